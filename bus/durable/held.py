"""Payload in shared memory: records carry a *reference* instead of the octets (docs/decisions/streams.md).

A held record is a record of another kind whose payload was replaced by a reference, always at its end. Every process
that meets such records maps the memories in which octets can lie, for reading; only the owner of a memory may write.
Code that must see the octets gets them by `Holdings.inline`, which returns the record of the other kind.

A reference names a memory, a ring in it and a position in the stream of that ring. The ring's own reference contains a
generation, so a record that refers to memory which was used for something else meanwhile is found out, and counted as
dropped: the peer's TCP, or ours, sends the octets again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from bus.counters import PipeCounters as C
from bus.durable.arena import Rings
from bus.durable.frames import FRAMES_OCTETS, Frames
from bus.layer import CounterWords
from bus.messages import HELD_OF, PACKET_HELD_MAX

STREAM_ARENA = 0  # the number of the memory with the rings of tcp
FRAMES = 1  # that of the memory into which link reads frames (bus.durable.frames)
APPLICATION_MIN = 2  # the numbers of the applications' memories begin here (usernet.pipe.rings.ApplicationRings)
APPLICATIONS_MAX = 32  # further applications send and receive their octets in records
REFERENCE = Struct("!QQII")  # the ring's reference, position of the first octet in its stream, octets, memory
REFERENCE_OCTETS = REFERENCE.size


class Held(NamedTuple):
    """Octets in shared memory."""

    ring: int
    offset: int
    length: int
    memory: int

    def pack(self) -> bytes:
        """The reference in a record."""
        return REFERENCE.pack(*self)


def held_octets(record: bytes) -> int:
    """The length of the payload that a held record refers to; 0: the record is too short."""
    if len(record) < REFERENCE_OCTETS:
        return 0
    length: int = REFERENCE.unpack_from(record, len(record) - REFERENCE_OCTETS)[2]
    return length


class Holdings:
    """The memories, mapped when they are first needed. `descriptors`: by number; `counters`: of the bus."""

    def __init__(self, descriptors: Sequence[int] = (), counters: CounterWords | None = None) -> None:
        self._descriptors = descriptors
        self._counters = counters
        self._rings: dict[int, Rings] = {}
        self._frames: Frames | None = None

    def _memory(self, number: int) -> Rings | None:
        rings = self._rings.get(number)
        if rings is None and number < len(self._descriptors):
            descriptor = self._descriptors[number]
            octets = os.lseek(descriptor, 0, os.SEEK_END)
            rings = self._rings[number] = Rings(mmap.mmap(descriptor, octets, prot=mmap.PROT_READ))
        return rings

    @property
    def frames(self) -> Frames | None:
        """The memory of frames."""
        if self._frames is None and len(self._descriptors) > FRAMES:
            descriptor = self._descriptors[FRAMES]
            if os.lseek(descriptor, 0, os.SEEK_END) == FRAMES_OCTETS:
                self._frames = Frames(mmap.mmap(descriptor, FRAMES_OCTETS, prot=mmap.PROT_READ))
        return self._frames

    def intact(self, record: bytes) -> bool:
        """True if what `pieces` returned for a record about a frame was not overwritten since."""
        _, position, _, number = REFERENCE.unpack_from(record, len(record) - REFERENCE_OCTETS)
        return number != FRAMES or (self.frames is not None and self.frames.good(position))

    def pieces(self, record: bytes) -> tuple[bytes, tuple[memoryview, ...]] | None:
        """(what precedes the reference, the octets in one or two pieces); None (counted): they are not there any more.

        The octets may change at any time after this.
        """
        at = len(record) - REFERENCE_OCTETS
        if at >= 0:
            reference, offset, length, number = REFERENCE.unpack_from(record, at)
            if number == FRAMES and self.frames is not None:
                octets = self.frames.octets(offset, length)
                if octets is not None and 0 < length <= PACKET_HELD_MAX:
                    return record[:at], (octets,)
                number = len(self._descriptors)
            rings = self._memory(number)
            ring = rings.ring(reference) if rings is not None else None
            if ring is not None and 0 < length <= min(ring.size, PACKET_HELD_MAX):
                return record[:at], ring.pieces(offset, length)
        if self._counters is not None:
            self._counters[C.bus_held_gone] += 1
        return None

    def inline(self, kind: int, record: bytes) -> tuple[int, bytes] | None:
        """The (kind, record) with the octets themselves, for any kind; None (counted): they are not there any more."""
        plain = HELD_OF.get(kind)
        if plain is None:
            return kind, record
        found = self.pieces(record)
        return None if found is None else (plain, b"".join((found[0], *found[1])))

    def inlined(self, kind: int, records: list[bytes]) -> tuple[int, list[bytes]]:
        """The same for the records of one frame, without those whose octets are not there any more."""
        found = [each[1] for record in records if (each := self.inline(kind, record)) is not None]
        return HELD_OF.get(kind, kind), found


NO_HOLDINGS = Holdings()

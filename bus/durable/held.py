"""Payload in shared memory: records carry a *reference* instead of the octets (docs/decisions/streams.md).

A held record is a record of another kind whose payload was replaced by a reference, always at its end. Every process
that meets such records maps the memories in which octets can lie, for reading; only the owner of a memory may write.
Code that must see the octets gets them by `Holdings.inline`, which returns the record of the other kind.

A reference names a memory, a ring in it and a position in the stream of that ring. The ring's own reference contains a
generation, so a record that refers to memory which was used for something else meanwhile is found out, and counted as
dropped: the peer's TCP, or ours, sends the octets again.

Datagrams are in buffers of an application (`usernet.pipe.buffers`), which learns from the table of returned buffers
that one may be used again. So whoever has used the octets, or drops the record, calls `spend`; `inline` does so by
itself. The table is written by `settle`, when the turn is published: until then a crash would repeat the turn, which
needs the octets again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from bus.counters import PipeCounters as C
from bus.durable.arena import Rings
from bus.durable.frames import FRAMES_OCTETS, Frames
from bus.layer import CounterWords
from bus.messages import HELD_OF, PACKET_HELD_MAX, SEND_SEGMENTS_HELD
from usernet.pipe.buffers import (
    BUFFER_MEMORY,
    BUFFERS,
    MEMORY_OCTETS,
    ROW_OCTETS,
    BufferMemory,
)
from usernet.pipe.buffers import (
    REFERENCE as REFERENCE,
)
from usernet.pipe.buffers import (
    REFERENCE_OCTETS as REFERENCE_OCTETS,
)
from usernet.pipe.rings import APPLICATION_BLOCKS, APPLICATION_OCTETS, block_of

STREAM_ARENA = 0  # the number of the memory with the rings of tcp
FRAMES = 1  # that of the memory into which link reads frames (bus.durable.frames)
APPLICATION_MIN = 2  # the numbers of the applications' memories begin here (usernet.pipe.rings.ApplicationRings)
APPLICATIONS_MAX = 32  # further applications send and receive their octets in records
RETURNED = APPLICATION_MIN + APPLICATIONS_MAX  # the number of the memory with the table of returned buffers
RETURNED_OCTETS = APPLICATIONS_MAX * ROW_OCTETS


class Held(NamedTuple):
    """Octets in shared memory."""

    ring: int
    offset: int  # of the first octet in the stream of the ring; of a buffer the token
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


def row_at(number: int) -> int:
    """Where the row of the application that has the memory `number` begins in the table of returned buffers."""
    return (number - APPLICATION_MIN) * ROW_OCTETS


def is_in_buffer(record: bytes) -> bool:
    """True if a record refers to a buffer of an application."""
    return len(record) >= REFERENCE_OCTETS and _memory_of(record) & BUFFER_MEMORY != 0


def _memory_of(record: bytes) -> int:
    return int.from_bytes(record[-4:])


class Holdings:
    """The memories, mapped when they are first needed. `descriptors`: by number; `counters`: of the bus."""

    def __init__(self, descriptors: Sequence[int] = (), counters: CounterWords | None = None) -> None:
        self._descriptors = descriptors
        self._counters = counters
        self._rings: dict[int, Rings] = {}
        self._frames: Frames | None = None
        self._buffers: dict[int, BufferMemory] = {}
        self._returned: memoryview[int] | None = None  # the table, once it is needed
        self.spent: dict[int, int] = {}  # {cell of that table: reference} of the buffers to return

    def _memory(self, number: int) -> Rings | None:
        rings = self._rings.get(number)
        if rings is None and number < len(self._descriptors):
            descriptor = self._descriptors[number]
            octets, blocks = os.lseek(descriptor, 0, os.SEEK_END), 0
            if APPLICATION_MIN <= number < RETURNED:
                octets, blocks = min(octets, APPLICATION_OCTETS), APPLICATION_BLOCKS  # buffers follow
            rings = self._rings[number] = Rings(mmap.mmap(descriptor, octets, prot=mmap.PROT_READ), blocks)
        return rings

    def _buffers_of(self, number: int, token: int) -> BufferMemory | None:
        """The buffers of the application that has the memory `number`, if this is its token."""
        number &= ~BUFFER_MEMORY
        buffers = self._buffers.get(number)
        if buffers is None and APPLICATION_MIN <= number < min(RETURNED, len(self._descriptors)):
            descriptor = self._descriptors[number]
            if os.lseek(descriptor, 0, os.SEEK_END) == MEMORY_OCTETS:
                buffers = self._buffers[number] = BufferMemory(descriptor, mmap.PROT_READ)
        return buffers if buffers is not None and buffers.token == token != 0 else None

    def spend(self, record: bytes) -> bool:
        """The octets of a held record, if they are in a buffer, are not needed any more once this turn is published.

        False: another record of this turn has said so. An application sends a reference once; if one that is hostile
        sends a frame full of the same one, it must not become 16 MB of records.
        """
        if is_in_buffer(record):
            reference, token, _, number = REFERENCE.unpack_from(record, len(record) - REFERENCE_OCTETS)
            block = block_of(reference)
            if block < BUFFERS and self._buffers_of(number, token) is not None:
                cell = row_at(number & ~BUFFER_MEMORY) // 8 + block
                if self.spent.get(cell) == reference:
                    return False
                self.spent[cell] = reference
        return True

    def let_go(self, kind: int, record: bytes) -> None:
        """A record of any kind is dropped."""
        if kind in HELD_OF:
            self.spend(record)

    def settle(self) -> None:
        """The turn is published: return the buffers."""
        if self._returned is None and len(self._descriptors) > RETURNED:
            self._returned = memoryview(mmap.mmap(self._descriptors[RETURNED], RETURNED_OCTETS)).cast("Q")
        if self._returned is not None:
            for cell, reference in self.spent.items():
                self._returned[cell] = reference
        self.spent.clear()

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
            rings: Rings | None
            if number & BUFFER_MEMORY:
                rings, offset = self._buffers_of(number, offset), 0
            else:
                rings = self._memory(number)
            ring = rings.ring(reference) if rings is not None else None
            if ring is not None and 0 < length <= min(ring.size, PACKET_HELD_MAX):
                return record[:at], ring.pieces(offset, length)
        self._gone()
        return None

    def _gone(self) -> None:
        if self._counters is not None:
            self._counters[C.bus_held_gone] += 1

    def inline(self, kind: int, record: bytes) -> tuple[int, bytes] | None:
        """The (kind, record) with the octets themselves, for any kind; None (counted): they are not there any more."""
        plain = HELD_OF.get(kind)
        if plain is None:
            return kind, record
        if kind == SEND_SEGMENTS_HELD and not is_in_buffer(record):  # an application may refer to nothing else
            self._gone()
            return None
        found = self.pieces(record)
        if found is None:
            return None
        if not self.spend(record):
            self._gone()
            return None
        return plain, b"".join((found[0], *found[1]))

    def inlined(self, kind: int, records: list[bytes]) -> tuple[int, list[bytes]]:
        """The same for the records of one frame, without those whose octets are not there any more."""
        found = [each[1] for record in records if (each := self.inline(kind, record)) is not None]
        return HELD_OF.get(kind, kind), found


NO_HOLDINGS = Holdings()

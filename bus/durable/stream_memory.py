"""Memory for streams: slots for connections, after the rest of the layer's durable memory, and an arena for their
octets, which other layers map for reading."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import NamedTuple

from bus.durable.arena import octets_for
from bus.durable.held import APPLICATION_MIN, APPLICATIONS_MAX, STREAM_ARENA
from bus.durable.layout import STREAMS_OCTETS, TOTAL_OCTETS
from bus.durable.slots import SLOT_OCTETS
from usernet.pipe.rings import APPLICATION_OCTETS

SLOTS_OCTETS = 65536 * SLOT_OCTETS
ARENA_OCTETS = octets_for(1 << 28)
assert SLOTS_OCTETS <= STREAMS_OCTETS

APPLICATIONS_END = APPLICATION_MIN + APPLICATIONS_MAX
SLOTS = -1  # the number of the memory with the slots, beside those of bus.durable.held


class Piece(NamedTuple):
    """Octets of one of the memories."""

    memory: int
    at: int
    octets: bytes


class StreamMemory(NamedTuple):
    """The slots and the arena of a layer."""

    slots: memoryview
    arena: mmap.mmap
    applications: dict[int, mmap.mmap]  # those that were mapped so far, by number
    shared: bool = False  # True: the layers below map the arena, too
    descriptors: tuple[int, ...] = ()  # of all memories by number (bus.durable.held)

    @classmethod
    def of(cls, descriptor: int, shared: tuple[int, ...], refers: bool = True) -> StreamMemory:
        """In the durable memory and the others that the keeper created (`supervisor.shared_memory`).

        `refers`: the layers below get references.
        """
        return cls(memoryview(mmap.mmap(descriptor, SLOTS_OCTETS, offset=TOTAL_OCTETS)),
                   mmap.mmap(shared[STREAM_ARENA], ARENA_OCTETS), {}, refers, shared)

    def application(self, number: int) -> mmap.mmap | None:
        """The memory of an application; None: there is no such number."""
        if not APPLICATION_MIN <= number < len(self.descriptors):
            return None
        if number not in self.applications:
            self.applications[number] = mmap.mmap(self.descriptors[number], APPLICATION_OCTETS)
        return self.applications[number]

    @property
    def mappings(self) -> dict[int, object]:
        """{number: what is mapped}, of all memories that are in use."""
        return {SLOTS: self.slots.obj, STREAM_ARENA: self.arena, **self.applications}

    def view(self, number: int) -> memoryview:
        """All octets of a memory. ValueError: there is no such memory."""
        mapping = self.application(number) if number >= APPLICATION_MIN else self.arena
        if mapping is None or number not in (SLOTS, STREAM_ARENA, *range(APPLICATION_MIN, APPLICATIONS_END)):
            raise ValueError(f"there is no memory {number}")
        return self.slots if number == SLOTS else memoryview(mapping)

    @classmethod
    def volatile(cls, pieces: Iterable[Piece] = ()) -> StreamMemory:
        """In ordinary memory, for a core without a bus; with `pieces` of other memories.

        OSError: no memory. ValueError: a piece that fits into no memory.
        """
        pieces = list(pieces)
        descriptors = [-1] * APPLICATIONS_END
        for number in {piece.memory for piece in pieces if APPLICATION_MIN <= piece.memory < APPLICATIONS_END}:
            descriptors[number] = os.memfd_create(f"usernet-{number}", os.MFD_CLOEXEC)
            os.ftruncate(descriptors[number], APPLICATION_OCTETS)
        memory = cls(memoryview(mmap.mmap(-1, SLOTS_OCTETS)), mmap.mmap(-1, ARENA_OCTETS), {},
                     descriptors=tuple(descriptors))
        for number, at, octets in pieces:
            memory.view(number)[at : at + len(octets)] = octets
        return memory

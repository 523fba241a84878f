"""Memory for streams: slots for connections, after the rest of the layer's durable memory, and an arena for their
octets, which other layers map for reading."""

from __future__ import annotations

import mmap
from typing import NamedTuple

from bus.durable.arena import octets_for
from bus.durable.held import APPLICATION_MIN, STREAM_ARENA
from bus.durable.layout import STREAMS_OCTETS, TOTAL_OCTETS
from bus.durable.slots import SLOT_OCTETS
from usernet.pipe.rings import APPLICATION_OCTETS

SLOTS_OCTETS = 65536 * SLOT_OCTETS
ARENA_OCTETS = octets_for(1 << 28)
assert SLOTS_OCTETS <= STREAMS_OCTETS


class StreamMemory(NamedTuple):
    """The slots and the arena of a layer."""

    slots: memoryview
    arena: mmap.mmap
    shared: bool = False  # True: the layers below map the arena, too
    descriptors: tuple[int, ...] = ()  # of all memories by number (bus.durable.held)

    @classmethod
    def of(cls, descriptor: int, shared: tuple[int, ...], refers: bool = True) -> StreamMemory:
        """In the durable memory and the others that the keeper created (`supervisor.shared_memory`).

        `refers`: the layers below get references.
        """
        return cls(memoryview(mmap.mmap(descriptor, SLOTS_OCTETS, offset=TOTAL_OCTETS)),
                   mmap.mmap(shared[STREAM_ARENA], ARENA_OCTETS), refers, shared)

    def application(self, number: int) -> mmap.mmap | None:
        """The memory of an application; None: there is no such number."""
        if not APPLICATION_MIN <= number < len(self.descriptors):
            return None
        return mmap.mmap(self.descriptors[number], APPLICATION_OCTETS)

    @classmethod
    def volatile(cls) -> StreamMemory:
        """In ordinary memory, for a core without a bus."""
        return cls(memoryview(mmap.mmap(-1, SLOTS_OCTETS)), mmap.mmap(-1, ARENA_OCTETS))

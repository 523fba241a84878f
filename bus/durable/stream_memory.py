"""Memory for streams: slots for connections, after the rest of the layer's durable memory, and an arena for their
octets, which other layers map for reading."""

from __future__ import annotations

import mmap
from typing import NamedTuple

from bus.durable.arena import octets_for
from bus.durable.layout import STREAMS_OCTETS, TOTAL_OCTETS
from bus.durable.slots import SLOT_OCTETS

SLOTS_OCTETS = 65536 * SLOT_OCTETS
ARENA_OCTETS = octets_for(1 << 28)
assert SLOTS_OCTETS <= STREAMS_OCTETS


class StreamMemory(NamedTuple):
    """The slots and the arena of a layer."""

    slots: memoryview
    arena: mmap.mmap
    shared: bool = False  # True: the layers below map the arena, too

    @classmethod
    def of(cls, descriptor: int, arena: int, shared: bool = True) -> StreamMemory:
        """In the durable memory and in the arena that the keeper created (`supervisor.shared_memory`)."""
        return cls(memoryview(mmap.mmap(descriptor, SLOTS_OCTETS, offset=TOTAL_OCTETS)),
                   mmap.mmap(arena, ARENA_OCTETS), shared)

    @classmethod
    def volatile(cls) -> StreamMemory:
        """In ordinary memory, for a core without a bus."""
        return cls(memoryview(mmap.mmap(-1, SLOTS_OCTETS)), mmap.mmap(-1, ARENA_OCTETS))

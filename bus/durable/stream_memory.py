"""Memory for streams, after the rest of a layer's durable memory: slots for connections, and an arena for their
octets."""

from __future__ import annotations

import mmap
from typing import NamedTuple

from bus.durable.arena import octets_for
from bus.durable.layout import STREAMS_OCTETS, TOTAL_OCTETS
from bus.durable.slots import SLOT_OCTETS

SLOTS_OCTETS = 65536 * SLOT_OCTETS
ARENA_OCTETS = octets_for(1 << 28)
assert SLOTS_OCTETS + ARENA_OCTETS <= STREAMS_OCTETS


class StreamMemory(NamedTuple):
    """The slots and the arena of a layer."""

    slots: memoryview
    arena: mmap.mmap

    @classmethod
    def of(cls, descriptor: int) -> StreamMemory:
        """In the durable memory that the keeper created (`bus.durable.layout.create`)."""
        return cls(memoryview(mmap.mmap(descriptor, SLOTS_OCTETS, offset=TOTAL_OCTETS)),
                   mmap.mmap(descriptor, ARENA_OCTETS, offset=TOTAL_OCTETS + SLOTS_OCTETS))

    @classmethod
    def volatile(cls) -> StreamMemory:
        """In ordinary memory, for a core without a bus."""
        return cls(memoryview(mmap.mmap(-1, SLOTS_OCTETS)), mmap.mmap(-1, ARENA_OCTETS))

"""Memory for streams: slots for connections, an arena for their octets, behind the rest of a layer's durable memory."""

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
    """See above."""

    slots: memoryview
    arena: mmap.mmap

    @classmethod
    def of(cls, descriptor: int) -> StreamMemory:
        """In the durable memory that the keeper made (`bus.durable.layout.create`)."""
        return cls(memoryview(mmap.mmap(descriptor, SLOTS_OCTETS, offset=TOTAL_OCTETS)),
                   mmap.mmap(descriptor, ARENA_OCTETS, offset=TOTAL_OCTETS + SLOTS_OCTETS))

    @classmethod
    def volatile(cls) -> StreamMemory:
        """For a core without a bus."""
        return cls(memoryview(mmap.mmap(-1, SLOTS_OCTETS)), mmap.mmap(-1, ARENA_OCTETS))

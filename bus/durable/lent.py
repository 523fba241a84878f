"""The memory of an application, which it lends to the owner of its streams: tcp allocates rings in it.

The application writes its octets into them and reads what arrived, without a copy through the pipes. It may damage what
lies there, but only this: which rings there are stands in the slots, and every offset and length is checked against
numbers that tcp keeps.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from bus.durable.arena import BLOCK_OCTETS, Arena, Ring
from usernet.pipe.rings import HOME_SHIFT, IN_USE, ORDER_MASK, REFERENCE_MASK, ApplicationRings, block_of


class Lent:
    """The memory of an application, in which tcp allocates rings for its streams."""

    def __init__(self, mapping: mmap.mmap, home: int, named: Iterable[int]) -> None:
        self.home = home
        self.rings = ApplicationRings(mapping)
        self.arena = Arena(mapping, named, blocks=self.rings.blocks)
        self._count()

    def _count(self) -> None:
        self.rings.facts[IN_USE] = self.arena.used

    def ring(self, reference: int) -> Ring | None:
        """The ring with a reference of this arena."""
        ring = self.arena.ring(reference & REFERENCE_MASK)
        return Ring(ring.memory, ring.reference | self.home << HOME_SHIFT) if ring is not None else None

    def take(self, octets: int) -> Ring | None:
        """A ring of that size, or a smaller one."""
        while not (reference := self.arena.allocate(octets)):
            if octets <= BLOCK_OCTETS:
                return None
            octets //= 4
        self.rings.written[block_of(reference)] = 0
        self._count()
        return self.ring(reference)

    def retire(self, reference: int) -> None:
        """A ring will be free soon: its application must not use it any more."""
        self.rings.cells[block_of(reference)] = reference & ~ORDER_MASK

    def free(self, reference: int, now: float) -> None:
        """A ring is not needed any more."""
        self.arena.free(reference, now)
        self._count()

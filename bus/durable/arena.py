"""The arena: rings for the octets of streams, in memory that outlives its owner and that other processes map for
reading.

`usernet.pipe.rings` has the format of the memory.

Rings are allocated by a buddy system with a factor of four: a free piece is quartered until it fits, and free pieces
are merged when a larger one is needed. The piece that was freed last is allocated first, because writing 64 kB into
untouched pages costs 280 us, and into warm ones 7 us. Pieces that were free for a while are returned to the system
(MADV_REMOVE), so the memory in use is little more than that of the rings.

Only the owner's process knows what is free. A successor derives it from the references in its slots. So the order of
stores is: `allocate`, then the slot's cell; and the slot's cell, then `free`. A crash in between leaves a ring without
a reference in a slot, which counts as free. A reader that maps the arena for writing (an application maps its own
arena) may damage the cells; the owner trusts only its slots.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable

from usernet.pipe.rings import (
    BLOCK_BITS,
    BLOCK_MASK,
    BLOCK_OCTETS,
    ORDER_BITS,
    ORDER_MASK,
    ORDERS,
    RING_OCTETS_MAX,
    Ring,
    Rings,
    octets_for,
    ring_octets,
)

IDLE_S = 3.0  # seconds after which a free piece is returned to the system
TRIMMED_AT_ONCE = 200  # pieces: 2 ms; all 16,384 would take 120 ms
POISON = 0xDD
_GENERATION_SHIFT = ORDER_BITS + BLOCK_BITS
_GENERATION_MASK = (1 << 32) - 1  # so that a reference has 56 bits


def order_for(octets: int) -> int:
    """The order of the smallest ring that holds this many octets; at most the largest order."""
    order = 0
    while order < ORDERS - 1 and BLOCK_OCTETS << 2 * order < octets:
        order += 1
    return order


class Arena(Rings):
    """An arena as its only owner sees it.

    `named`: the references in the owner's slots. Impossible ones (damaged octets) are in `refused`. `limit`: octets of
    rings that may be in use at the same time. `poison`: overwrite freed memory, for tests.
    """

    def __init__(self, mapping: mmap.mmap, named: Iterable[int] = (), limit: int | None = None, now: float = 0.0,
                 poison: bool = False, blocks: int = 0) -> None:
        super().__init__(mapping, blocks)
        self._mapping = mapping
        self.limit = self.blocks * BLOCK_OCTETS if limit is None else limit
        self.used = 0  # octets of rings in use
        self.refused: list[int] = []
        self._poison = poison
        self._in_use: dict[int, int] = {}  # {first block: reference}
        # For each order {first block: time when it was freed}; None: its pages were returned to the system. The last is
        # allocated next.
        self._free: list[dict[int, float | None]] = [{} for _ in range(ORDERS)]
        self._adopt(named)
        self._find_free(now)

    def _adopt(self, named: Iterable[int]) -> None:
        end = 0
        for reference in sorted(named, key=lambda reference: reference >> ORDER_BITS & BLOCK_MASK):
            block = reference >> ORDER_BITS & BLOCK_MASK
            if not self.fits(reference) or block < end:
                self.refused.append(reference)
                continue
            self._in_use[block] = reference
            size = ring_octets(reference)
            self.used += size
            end = block + size // BLOCK_OCTETS
        heads = self.cells.tolist()
        for block, head in enumerate(heads):
            good = self._in_use.get(block, head & ~ORDER_MASK)
            if good != head:
                self.cells[block] = good

    def _find_free(self, now: float) -> None:
        ever_used = self.cells.tolist()
        starts = sorted(self._in_use)
        step = 4 ** (ORDERS - 1)
        places = [(block, ORDERS - 1) for block in range(0, self.blocks, step)]
        while places:  # in reverse, so that the lowest is the last and is allocated first
            block, order = places.pop()
            size = 4**order
            first = bisect_left(starts, block)
            in_use = starts[first] if first < len(starts) and starts[first] < block + size else None
            if in_use is None and block + size <= self.blocks:
                self._free[order][block] = now if any(ever_used[block : block + size]) else None
            elif in_use is not None and in_use == block and ring_octets(self._in_use[block]) == size * BLOCK_OCTETS:
                continue
            elif order and block < self.blocks:
                places.extend((block + piece * size // 4, order - 1) for piece in range(4))

    def allocate(self, octets: int) -> int:
        """The reference of a new ring, the smallest that holds this many octets; 0: the limit is reached, or no piece
        is large enough.

        Its content is undefined. Store the reference in a slot before anything else.
        """
        order = order_for(octets)
        size = BLOCK_OCTETS << 2 * order
        if self.used + size > self.limit:
            return 0
        block = self._take(order)
        if block is None:
            self._merge(order)
            block = self._take(order)
            if block is None:
                return 0
        generation = (self.cells[block] >> _GENERATION_SHIFT) + 1 & _GENERATION_MASK
        reference: int = generation << _GENERATION_SHIFT | block << ORDER_BITS | order + 1
        self.cells[block] = self._in_use[block] = reference
        self.used += size
        return reference

    def ring(self, reference: int) -> Ring | None:
        """The ring with this reference; None: it is not allocated. The cells, which others may damage, do not count."""
        block = reference >> ORDER_BITS & BLOCK_MASK
        if self._in_use.get(block) != reference:
            return None
        at = block * BLOCK_OCTETS
        return Ring(self._data[at : at + ring_octets(reference)], reference)

    def _take(self, order: int) -> int | None:
        for larger in range(order, ORDERS):
            if self._free[larger]:
                block, freed = self._free[larger].popitem()
                for smaller in range(larger - 1, order - 1, -1):
                    size = 4**smaller
                    self._free[smaller].update((block + piece * size, freed) for piece in (3, 2, 1))
                return block
        return None

    def _merge(self, order: int) -> None:
        """Merge free pieces until there is one of `order`."""
        for smaller in range(order):
            free, size = self._free[smaller], 4**smaller
            for first in [block for block in free if not block & 4 * size - 1]:
                parts = range(first, first + 4 * size, size)
                if all(part in free for part in parts):
                    freed = [free.pop(part) for part in parts]
                    warm = [at for at in freed if at is not None]
                    self._free[smaller + 1][first] = max(warm) if warm else None

    def free(self, reference: int, now: float) -> None:
        """Free a ring whose reference is no longer in a slot.

        KeyError: it is not allocated, which is a defect of the owner.
        """
        block = reference >> ORDER_BITS & BLOCK_MASK
        if self._in_use.get(block) != reference:
            raise KeyError(f"no ring {reference:#x}")
        del self._in_use[block]
        self.cells[block] = reference & ~ORDER_MASK
        size = ring_octets(reference)
        if self._poison:
            at = block * BLOCK_OCTETS
            self._data[at : at + size] = bytes([POISON]) * size
        self.used -= size
        self._free[(reference & ORDER_MASK) - 1][block] = now

    def grow(self, reference: int, octets: int, start: int, end: int) -> int:
        """A ring for `octets` with the octets of another one at offsets [start, end); 0: no room.

        Store its reference in the slot next, then call `free(reference)`.
        """
        larger = self.allocate(octets)
        if larger:
            old, new = self.ring(reference), self.ring(larger)
            assert old is not None
            assert new is not None
            old.copy_to(new, start, end)
        return larger

    @property
    def crowded(self) -> bool:
        """True if three quarters of the limit are in use: receive windows should not grow any more."""
        return 4 * self.used >= 3 * self.limit

    def trim(self, now: float) -> float | None:
        """Return some of the pieces that were free for IDLE_S to the system; returns the time of the next call (None:
        nothing is left)."""
        due, left = None, TRIMMED_AT_ONCE
        for order, free in enumerate(self._free):
            size = BLOCK_OCTETS << 2 * order
            for block, freed in free.items():
                if freed is None:
                    continue
                if left and freed + IDLE_S <= now:
                    left -= 1
                    self._mapping.madvise(mmap.MADV_REMOVE, self.data_at + block * BLOCK_OCTETS, size)
                    free[block] = None
                elif due is None or freed + IDLE_S < due:
                    due = freed + IDLE_S
        return due


__all__ = ["BLOCK_OCTETS", "IDLE_S", "ORDERS", "POISON", "RING_OCTETS_MAX", "Arena", "Ring", "Rings", "octets_for",
           "order_for", "ring_octets"]

"""The arena: rings for the octets of streams, in memory that outlives its owner and that other processes map for
reading.

A ring has 64 kB, 256 kB, 1 MiB or 4 MiB. The octet at offset n of a stream is at position n modulo the size. So a
reader needs only the offsets, and writing an octet twice writes the same value to the same position.

Rings are allocated by a buddy system with a factor of four: a free piece is quartered until it fits, and free pieces
are merged when a larger one is needed. The piece that was freed last is allocated first, because writing 64 kB into
untouched pages costs 280 us, and into warm ones 7 us. Pieces that were free for a while are returned to the system
(MADV_REMOVE), so the memory in use is little more than that of the rings.

The *reference* of a ring is a 64-bit number, generation << 24 | first block << 8 | order + 1, never 0 and never reused.
A table of cells at the start of the arena contains the valid references. A reader checks it before and after copying,
and so detects that a ring was given to another stream meanwhile.

Only the owner's process knows what is free. A successor derives it from the references in its slots. So the order of
stores is: `allocate`, then the slot's cell; and the slot's cell, then `free`. A crash in between leaves a ring without
a reference in a slot, which counts as free. A reader that maps the arena for writing (an application maps its own
arena) may damage the cells; the owner trusts only its slots.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable

from bus.durable.layout import PAGE

BLOCK_OCTETS = 1 << 16
ORDERS = 4  # 64 kB * 4 ** order
RING_OCTETS_MAX = BLOCK_OCTETS * 4 ** (ORDERS - 1)
IDLE_S = 3.0  # seconds after which a free piece is returned to the system
POISON = 0xDD
_ORDER_BITS = 8
_BLOCK_BITS = 16
_ORDER_MASK = (1 << _ORDER_BITS) - 1
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1
_GENERATION_SHIFT = _ORDER_BITS + _BLOCK_BITS
_GENERATION_MASK = (1 << 64 - _GENERATION_SHIFT) - 1
BLOCKS_MAX = 1 << _BLOCK_BITS


def octets_for(data_octets: int) -> int:
    """The length of a mapping for this many octets of rings (a multiple of BLOCK_OCTETS)."""
    return _table_octets(data_octets // BLOCK_OCTETS) + data_octets


def _table_octets(blocks: int) -> int:
    return -(-8 * blocks // PAGE) * PAGE


def order_for(octets: int) -> int:
    """The order of the smallest ring that holds this many octets; at most the largest order."""
    order = 0
    while order < ORDERS - 1 and BLOCK_OCTETS << 2 * order < octets:
        order += 1
    return order


def ring_octets(reference: int) -> int:
    """The size of the ring with this reference."""
    return BLOCK_OCTETS << 2 * ((reference & _ORDER_MASK) - 1)


class Ring:
    """A view of a ring's memory. `reference` identifies it."""

    __slots__ = ("_mask", "memory", "reference", "size")

    def __init__(self, memory: memoryview, reference: int = 0) -> None:
        self.memory = memory
        self.reference = reference
        self.size = len(memory)
        self._mask = self.size - 1

    def write(self, offset: int, octets: bytes | memoryview) -> None:
        """Write octets at their position; at most `size` of them."""
        at, length = offset & self._mask, len(octets)
        end = at + length
        if end <= self.size:
            self.memory[at:end] = octets
        else:
            head = self.size - at
            self.memory[at:] = octets[:head]
            self.memory[: length - head] = octets[head:]

    def read(self, offset: int, length: int) -> bytes:
        """A copy of octets at their position; at most `size` of them."""
        at = offset & self._mask
        end = at + length
        if end <= self.size:
            return bytes(self.memory[at:end])
        return b"".join((self.memory[at:], self.memory[: end - self.size]))

    def pieces(self, offset: int, length: int) -> tuple[memoryview, ...]:
        """The same octets without a copy, in one or two pieces, for writev(2)."""
        at = offset & self._mask
        end = at + length
        if end <= self.size:
            return (self.memory[at:end],)
        return self.memory[at:], self.memory[: end - self.size]

    def copy_to(self, other: Ring, start: int, end: int) -> None:
        """Copy the octets at offsets [start, end) into another ring; at most `size` of either."""
        for piece in self.pieces(start, end - start):
            other.write(start, piece)
            start += len(piece)


class Rings:
    """An arena as its readers see it: link, the socket service, an application."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self.blocks = min(len(mapping) // BLOCK_OCTETS, BLOCKS_MAX)
        while octets_for(self.blocks * BLOCK_OCTETS) > len(mapping):
            self.blocks -= 1
        self._data_at = _table_octets(self.blocks)
        view = memoryview(mapping)
        self.cells = view[: 8 * self.blocks].cast("Q")
        self._data = view[self._data_at : self._data_at + self.blocks * BLOCK_OCTETS]

    def good(self, reference: int) -> bool:
        """True if the reference is valid; to be checked again after copying."""
        block = reference >> _ORDER_BITS & _BLOCK_MASK
        return block < self.blocks and self.cells[block] == reference and self._fits(reference)

    def ring(self, reference: int) -> Ring | None:
        """The ring with this reference; None: the memory belongs to another stream or to none, or there is no such
        position."""
        if not self.good(reference):
            return None
        at = (reference >> _ORDER_BITS & _BLOCK_MASK) * BLOCK_OCTETS
        return Ring(self._data[at : at + ring_octets(reference)], reference)

    def _fits(self, reference: int) -> bool:
        block, order = reference >> _ORDER_BITS & _BLOCK_MASK, (reference & _ORDER_MASK) - 1
        return 0 <= order < ORDERS and block & 4**order - 1 == 0 and block + 4**order <= self.blocks


class Arena(Rings):
    """An arena as its only owner sees it.

    `named`: the references in the owner's slots. Impossible ones (damaged octets) are in `refused`. `limit`: octets of
    rings that may be in use at the same time. `poison`: overwrite freed memory, for tests.
    """

    def __init__(self, mapping: mmap.mmap, named: Iterable[int] = (), limit: int | None = None, now: float = 0.0,
                 poison: bool = False) -> None:
        super().__init__(mapping)
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
        for reference in sorted(named, key=lambda reference: reference >> _ORDER_BITS & _BLOCK_MASK):
            block = reference >> _ORDER_BITS & _BLOCK_MASK
            if not self._fits(reference) or block < end:
                self.refused.append(reference)
                continue
            self._in_use[block] = reference
            size = ring_octets(reference)
            self.used += size
            end = block + size // BLOCK_OCTETS
        heads = self.cells.tolist()
        for block, head in enumerate(heads):
            good = self._in_use.get(block, head & ~_ORDER_MASK)
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
        reference: int = generation << _GENERATION_SHIFT | block << _ORDER_BITS | order + 1
        self.cells[block] = self._in_use[block] = reference
        self.used += size
        return reference

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
        block = reference >> _ORDER_BITS & _BLOCK_MASK
        if self._in_use.get(block) != reference:
            raise KeyError(f"no ring {reference:#x}")
        del self._in_use[block]
        self.cells[block] = reference & ~_ORDER_MASK
        size = ring_octets(reference)
        if self._poison:
            at = block * BLOCK_OCTETS
            self._data[at : at + size] = bytes([POISON]) * size
        self.used -= size
        self._free[(reference & _ORDER_MASK) - 1][block] = now

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
        """Return pieces to the system that were free for IDLE_S; returns the time of the next call (None: nothing is
        left)."""
        due = None
        for order, free in enumerate(self._free):
            size = BLOCK_OCTETS << 2 * order
            for block, freed in free.items():
                if freed is None:
                    continue
                if freed + IDLE_S <= now:
                    self._mapping.madvise(mmap.MADV_REMOVE, self._data_at + block * BLOCK_OCTETS, size)
                    free[block] = None
                elif due is None or freed + IDLE_S < due:
                    due = freed + IDLE_S
        return due

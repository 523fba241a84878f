"""The arena: rings for streams, in memory that outlives its owner and that others map for reading.

A ring is 64 kB, 256 kB, 1 MiB or 4 MiB of octets; that at offset n of a stream lies at n modulo the size, so whoever
maps the memory needs but the offsets, and what is written twice is the same octets at the same place.

Rings are cut from the arena by fours (a buddy system): a free piece is quartered until it fits, and put together again
when a larger one is wanted. The piece that was freed last is taken first: 64 kB into pages that were
never touched cost 280 us, into warm ones 7 us. Pieces that nobody took for a while go back to the system (MADV_REMOVE),
so memory is what is in use, and a little.

A ring's *reference* is a 64-bit number, generation << 24 | first block << 8 | order + 1, never 0 and never given
twice. A table of cells at the start of the arena says which references are good: a reader compares before and after
it copies, and so finds out that a ring was given to another stream in between.

What is free is known to the owner's process only. A successor derives it from the references that its slots name: so
the order of stores is `allocate`, then the slot's cell; and the slot's cell, then `free`. A crash in between leaves a
ring that nobody names, which is free by that rule. Readers may spoil the cells (an application maps its own arena for
writing): the owner believes only what its slots name.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable

BLOCK_OCTETS = 1 << 16
ORDERS = 4  # 64 kB * 4 ** order
RING_OCTETS_MAX = BLOCK_OCTETS * 4 ** (ORDERS - 1)
IDLE_S = 3.0  # a piece that nobody took for so long goes back to the system
POISON = 0xDD
_PAGE = 4096
_ORDER_BITS = 8
_BLOCK_BITS = 16
_ORDER_MASK = (1 << _ORDER_BITS) - 1
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1
_GENERATION_SHIFT = _ORDER_BITS + _BLOCK_BITS
_GENERATION_MASK = (1 << 64 - _GENERATION_SHIFT) - 1
BLOCKS_MAX = 1 << _BLOCK_BITS


def octets_for(data_octets: int) -> int:
    """How long a mapping has to be to hold so many octets of rings (a multiple of BLOCK_OCTETS)."""
    return _table_octets(data_octets // BLOCK_OCTETS) + data_octets


def _table_octets(blocks: int) -> int:
    return -(-8 * blocks // _PAGE) * _PAGE


def order_for(octets: int) -> int:
    """The order of the smallest ring that holds so many octets; that of the largest where none does."""
    order = 0
    while order < ORDERS - 1 and BLOCK_OCTETS << 2 * order < octets:
        order += 1
    return order


def ring_octets(reference: int) -> int:
    """The size of the ring that a reference names."""
    return BLOCK_OCTETS << 2 * ((reference & _ORDER_MASK) - 1)


class Ring:
    """A view of a ring's memory. `reference` is how others name it."""

    __slots__ = ("_mask", "memory", "reference", "size")

    def __init__(self, memory: memoryview, reference: int = 0) -> None:
        self.memory = memory
        self.reference = reference
        self.size = len(memory)
        self._mask = self.size - 1

    def write(self, offset: int, octets: bytes | memoryview) -> None:
        """Put octets at their place; at most `size` of them."""
        at, length = offset & self._mask, len(octets)
        end = at + length
        if end <= self.size:
            self.memory[at:end] = octets
        else:
            head = self.size - at
            self.memory[at:] = octets[:head]
            self.memory[: length - head] = octets[head:]

    def read(self, offset: int, length: int) -> bytes:
        """A copy of octets from their place; at most `size` of them."""
        at = offset & self._mask
        end = at + length
        if end <= self.size:
            return bytes(self.memory[at:end])
        return b"".join((self.memory[at:], self.memory[: end - self.size]))

    def pieces(self, offset: int, length: int) -> tuple[memoryview, ...]:
        """The same octets without a copy, in one or two pieces: for writev."""
        at = offset & self._mask
        end = at + length
        if end <= self.size:
            return (self.memory[at:end],)
        return self.memory[at:], self.memory[: end - self.size]

    def copy_to(self, other: Ring, start: int, end: int) -> None:
        """The octets at offsets [start, end) into another ring, at most `size` of either."""
        for piece in self.pieces(start, end - start):
            other.write(start, piece)
            start += len(piece)


class Rings:
    """An arena as those see it who only read: link, the socket service, an application."""

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
        """Whether the ring is still what the reference was made for; to be asked again after copying from it."""
        block = reference >> _ORDER_BITS & _BLOCK_MASK
        return block < self.blocks and self.cells[block] == reference and self._fits(reference)

    def ring(self, reference: int) -> Ring | None:
        """The ring that is named; None: its memory serves another by now, or nobody, or there is no such place."""
        if not self.good(reference):
            return None
        at = (reference >> _ORDER_BITS & _BLOCK_MASK) * BLOCK_OCTETS
        return Ring(self._data[at : at + ring_octets(reference)], reference)

    def _fits(self, reference: int) -> bool:
        block, order = reference >> _ORDER_BITS & _BLOCK_MASK, (reference & _ORDER_MASK) - 1
        return 0 <= order < ORDERS and block & 4**order - 1 == 0 and block + 4**order <= self.blocks


class Arena(Rings):
    """An arena as its one owner has it.

    `named`: the references that the owner's slots name. Those of them that cannot be (foreign octets) are in `refused`.
    `limit`: octets of rings that may be in use together. `poison`: fill what is freed, for tests.
    """

    def __init__(self, mapping: mmap.mmap, named: Iterable[int] = (), limit: int | None = None, now: float = 0.0,
                 poison: bool = False) -> None:
        super().__init__(mapping)
        self.limit = self.blocks * BLOCK_OCTETS if limit is None else limit
        self.used = 0  # octets of rings that are in use
        self.refused: list[int] = []
        self._poison = poison
        self._in_use: dict[int, int] = {}  # first block -> reference
        # A dict an order: first block -> when it was freed (None: its pages are the system's). The last one is next.
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
        while places:  # from the end: the lowest is put last and taken first
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
        """The reference of a new ring, the smallest that holds so many octets; 0: the limit, or no room in one piece.

        What it contains is nobody's. Store the reference in a slot before anything else happens.
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
        """Put pieces together until there is one of `order`."""
        for smaller in range(order):
            free, size = self._free[smaller], 4**smaller
            for first in [block for block in free if not block & 4 * size - 1]:
                parts = range(first, first + 4 * size, size)
                if all(part in free for part in parts):
                    freed = [free.pop(part) for part in parts]
                    warm = [at for at in freed if at is not None]
                    self._free[smaller + 1][first] = max(warm) if warm else None

    def free(self, reference: int, now: float) -> None:
        """Nobody names the ring any more. KeyError: nobody did (a defect of the owner)."""
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
        """A ring for `octets` with the octets of another at offsets [start, end); 0: no room.

        The slot's cell comes next, then `free(reference)`.
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
        """Whether three quarters of the limit are in use: time to promise nobody more than they have."""
        return 4 * self.used >= 3 * self.limit

    def trim(self, now: float) -> float | None:
        """Give back what has been free for IDLE_S; returns when there may be more to give (None: all is cold)."""
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

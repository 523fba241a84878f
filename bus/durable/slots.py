"""Slots: an array of small records of a fixed size in memory that outlives the process.

A slot is cells of 64 bits, aligned; the memory's owner gives each cell but the first its meaning and stores it whenever
the value changes. A SIGKILL can strike between any two machine instructions: a cell is written by one of them and never
torn; what is longer than a cell may be, so its reader checks ranges.

The first cell of a slot is its head, `generation << 8 | state`. State 0 is a free slot; the others are the owner's.
A slot is allocated (which the memory does not know), filled, and then published by the store of its head: a crash
before that leaves it free. Freeing raises the generation, so whoever kept `(number, generation)` finds out.

Slot 0 is none: it holds how far the array was ever used, so that a successor reads no page that was never touched
(reading one makes it). Freed slots are taken again before fresh ones, the last freed first: its page is warm.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any

SLOT_OCTETS = 256
STATE_BITS = 8
STATE_MASK = (1 << STATE_BITS) - 1
FREE = 0
_GENERATION_MASK = (1 << 64 - STATE_BITS) - 1
_EVER_USED = 0  # cell of slot 0: the highest slot that was ever allocated


class Slots:
    """An array over `memory`, whose length is a multiple of `octets`; zeros are an empty one.

    `cells` are all cells of all slots: cell k of slot n is `cells[n * width + k]`. `memory` is the same in octets.
    """

    __slots__ = ("_free", "cells", "count", "memory", "octets", "width")

    def __init__(self, memory: memoryview, octets: int = SLOT_OCTETS) -> None:
        if octets % 8 or len(memory) % octets or len(memory) < 2 * octets:
            raise ValueError(f"{len(memory)} octets are no array of slots of {octets}")
        self.memory = memory
        self.octets = octets
        self.width = octets // 8
        self.count = len(memory) // octets - 1  # so many can be in use
        self.cells = memory.cast("Q")
        ever = self.cells[_EVER_USED]
        if ever > self.count:  # foreign octets: whatever can be a slot is looked at
            ever = self.cells[_EVER_USED] = self.count
        self._free = [number for number, head in enumerate(self._heads(ever), 1) if not head & STATE_MASK]
        self._free.reverse()

    def _heads(self, ever: int) -> list[int]:
        return self.cells[self.width : (ever + 1) * self.width : self.width].tolist()

    def allocate(self) -> int:
        """The number of a free slot, 1 to `count`; 0: none is left. It stays free for a successor until `publish`.

        Its cells but the head are what the former user left.
        """
        if self._free:
            return self._free.pop()
        number: int = self.cells[_EVER_USED] + 1
        if number > self.count:
            return 0
        self.cells[_EVER_USED] = number
        return number

    def publish(self, number: int, state: int) -> None:
        """One store: what is in the slot counts from now on, in `state` (1 to 255); also from one state to another."""
        head = number * self.width
        self.cells[head] = self.cells[head] & ~STATE_MASK | state

    def free(self, number: int) -> None:
        """One store: the slot is free, of the next generation. Also for one allocated and never published."""
        head = number * self.width
        self.cells[head] = (self.generation(number) + 1 & _GENERATION_MASK) << STATE_BITS
        self._free.append(number)

    def state(self, number: int) -> int:
        """What `publish` said; 0: free."""
        return self.cells[number * self.width] & STATE_MASK

    def generation(self, number: int) -> int:
        """How often the slot was freed."""
        return self.cells[number * self.width] >> STATE_BITS

    @property
    def used(self) -> list[int]:
        """The numbers of the slots that are not free, ascending."""
        return [number for number, head in enumerate(self._heads(self.cells[_EVER_USED]), 1) if head & STATE_MASK]

    def records(self, layout: Struct) -> Iterator[tuple[Any, ...]]:
        """Every slot from 1 on that was ever used, unpacked, the free ones too: `enumerate(..., 1)` numbers them.

        `layout` is as long as a slot and begins with the head (`Q`). 10,000 slots take 1 to 2 ms.
        """
        end = (self.cells[_EVER_USED] + 1) * self.octets
        return layout.iter_unpack(self.memory[self.octets : end])

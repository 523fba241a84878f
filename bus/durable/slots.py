"""Slots: an array of records of a fixed size in memory that outlives the process.

A slot consists of aligned 64-bit cells. The owner of the memory defines the meaning of each cell but the first, and
stores it whenever the value changes. A SIGKILL can arrive between any two machine instructions. One instruction writes
a cell, so it is never torn; values longer than a cell may be, so their reader checks ranges.

The first cell of a slot is its head, `generation << 8 | state`. State 0 is a free slot; the owner defines the others. A
slot is allocated (which the memory does not record), filled, and then published by storing its head: a crash before
that leaves it free. Freeing increments the generation, so a stale `(number, generation)` can be detected.

Slot 0 is not used as a slot. It contains the highest slot ever used, so that a successor reads no page that was never
touched, because reading would allocate it. The slot that was freed last is allocated first, because its page is warm.
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
    """An array over `memory`, whose length is a multiple of `octets`; zeros are an empty array.

    `cells` are all cells of all slots: cell k of slot n is `cells[n * width + k]`. `memory` is the same as octets.
    """

    __slots__ = ("_free", "cells", "count", "memory", "octets", "width")

    def __init__(self, memory: memoryview, octets: int = SLOT_OCTETS) -> None:
        if octets % 8 or len(memory) % octets or len(memory) < 2 * octets:
            raise ValueError(f"{len(memory)} octets are not a multiple of slots of {octets}")
        self.memory = memory
        self.octets = octets
        self.width = octets // 8
        self.count = len(memory) // octets - 1  # the number of usable slots
        self.cells = memory.cast("Q")
        ever = self.cells[_EVER_USED]
        if ever > self.count:  # damaged: look at all slots
            ever = self.cells[_EVER_USED] = self.count
        self._free = [number for number, head in enumerate(self._heads(ever), 1) if not head & STATE_MASK]
        self._free.reverse()

    def _heads(self, ever: int) -> list[int]:
        return self.cells[self.width : (ever + 1) * self.width : self.width].tolist()

    def column(self, cell: int) -> list[int]:
        """This cell of all slots from 1 on that were ever used, including free ones."""
        end = (self.cells[_EVER_USED] + 1) * self.width
        return self.cells[self.width + cell : end : self.width].tolist()

    def allocate(self) -> int:
        """The number of a free slot, 1 to `count`; 0: none is left. It stays free for a successor until `publish`.

        Its cells except the head contain old values.
        """
        if self._free:
            return self._free.pop()
        number: int = self.cells[_EVER_USED] + 1
        if number > self.count:
            return 0
        self.cells[_EVER_USED] = number
        return number

    def write(self, number: int, at: int, octets: bytes) -> None:
        """Store whole cells from octet `at` of the slot on: each by one instruction, but in any order.

        `Struct.pack_into` would first fill all of them with zeros.
        """
        start = number * self.octets + at
        self.memory[start : start + len(octets)] = octets

    def publish(self, number: int, state: int) -> None:
        """Publish the slot by one store, in `state` (1 to 255); also changes from one state to another."""
        head = number * self.width
        self.cells[head] = self.cells[head] & ~STATE_MASK | state

    def free(self, number: int) -> None:
        """Free the slot by one store, with the next generation; also for a slot that was allocated but never
        published."""
        head = number * self.width
        self.cells[head] = (self.generation(number) + 1 & _GENERATION_MASK) << STATE_BITS
        self._free.append(number)

    def state(self, number: int) -> int:
        """The published state; 0: free."""
        return self.cells[number * self.width] & STATE_MASK

    def generation(self, number: int) -> int:
        """How often the slot was freed."""
        return self.cells[number * self.width] >> STATE_BITS

    @property
    def used(self) -> list[int]:
        """The numbers of the slots that are not free, ascending."""
        return [number for number, head in enumerate(self._heads(self.cells[_EVER_USED]), 1) if head & STATE_MASK]

    def records(self, layout: Struct) -> Iterator[tuple[Any, ...]]:
        """All slots from 1 on that were ever used, unpacked, including free ones: `enumerate(..., 1)` numbers them.

        `layout` is as long as a slot and begins with the head (`Q`). 10,000 slots take 1 to 2 ms.
        """
        end = (self.cells[_EVER_USED] + 1) * self.octets
        return layout.iter_unpack(self.memory[self.octets : end])

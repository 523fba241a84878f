"""The memory of an application with buffers, as the keeper, the application and the layers have it."""

from __future__ import annotations

import os

from bus.counters import PipeCounters
from bus.durable.held import APPLICATION_MIN, RETURNED, RETURNED_OCTETS, Holdings, row_at
from usernet.client.buffers import Buffers
from usernet.pipe.buffers import MEMORY_OCTETS
from usernet.pipe.rings import FACTS_AT, TOKEN


class Lent:
    """`buffers`: of the application. `holdings()`: of another process. `number`: of its memory."""

    def __init__(self, number: int = APPLICATION_MIN) -> None:
        self.number = number
        self.memory = os.memfd_create("application")
        os.ftruncate(self.memory, MEMORY_OCTETS)
        os.pwrite(self.memory, os.urandom(8), FACTS_AT + 8 * TOKEN)
        self.table = os.memfd_create("returned")
        os.ftruncate(self.table, RETURNED_OCTETS)
        self._readable = os.open(f"/proc/self/fd/{self.memory}", os.O_RDONLY)
        self._others = os.memfd_create("others")
        self.counters = PipeCounters.new()
        self.buffers: Buffers | None = self.used()

    def used(self) -> Buffers | None:
        """The buffers, for one more user in this process."""
        return Buffers.of(self.number, self.memory, self.table, row_at(self.number))

    def holdings(self) -> Holdings:
        descriptors = [self._others] * RETURNED + [self.table]
        descriptors[self.number] = self._readable
        return Holdings(descriptors, self.counters)

    @property
    def gone(self) -> int:
        return self.counters[PipeCounters.bus_held_gone]

    def close(self) -> None:
        for descriptor in (self.memory, self.table, self._readable, self._others):
            os.close(descriptor)

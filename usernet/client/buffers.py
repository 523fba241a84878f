"""The buffers for datagrams that this process sends (usernet.pipe.buffers): which of them are free.

A buffer is free again when the stack has returned it. Its return is a store that wakes nobody, so a thread that finds
none free looks again at short intervals. If a restart of a layer takes longer than its patience, the payloads travel in
a record, whose pipe is full then and makes the thread wait, so that a call waits no longer for a buffer than it would
for the pipe anyway.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic, sleep

from usernet.client.channel import NO_ROOM_S
from usernet.pipe.buffers import (
    BUFFER_MEMORY,
    LOST_S,
    REFERENCE,
    REFERENCE_OCTETS,
    ROW_OCTETS,
    BufferMemory,
)
from usernet.pipe.rings import block_of

HELD_OCTETS_MIN = 1 << 13  # payload of datagrams from which on they go into a buffer
PATIENCE_S = 0.02  # for a free buffer: most restarts take less
LOOK_S = 0.0002  # interval of looking for one; a frame of 64 kB takes the stack 0.1 ms

_used: weakref.WeakValueDictionary[tuple[int, int], Buffers] = weakref.WeakValueDictionary()


def patience(timeout: float | None) -> float:
    """How long a send with this timeout waits for a buffer."""
    return PATIENCE_S if timeout is None else min(timeout or NO_ROOM_S, PATIENCE_S)


class Buffers:
    """The buffers of a memory. `returned`: the row of this application in the table of returned ones."""

    def __init__(self, memory: BufferMemory, returned: memoryview[int], number: int) -> None:
        self._memory = memory
        self._returned = returned
        self._number = BUFFER_MEMORY | number
        self._lock = threading.Lock()
        # The buffer that was returned last is used next, because its memory is warm.
        self._free: list[int] = []
        self._out: deque[tuple[int, float]] = deque()  # (reference, since when), those used first at the left
        now = monotonic()
        for block, reference in reversed(list(enumerate(memory.cells.tolist()))):
            if reference == returned[block]:
                self._free.append(block)
            else:  # sent by a former user of this process
                self._out.append((reference & ~0xFFFFFF | block << 8 | 1, now))

    @classmethod
    def of(cls, number: int, descriptor: int, returned: int, at: int) -> Buffers | None:
        """The buffers in the memory of an application. `at`: where its row begins in the table of returned ones.

        None: another connection of this process to the same stack uses them. ValueError: there are none.
        """
        key = (os.getpid(), os.fstat(descriptor).st_ino)
        if key in _used:
            return None
        table = memoryview(mmap.mmap(returned, at + ROW_OCTETS, prot=mmap.PROT_READ))
        made = cls(BufferMemory(descriptor), table[at : at + ROW_OCTETS].cast("Q"), number)
        _used[key] = made
        return made

    def put(self, payloads: Sequence[bytes]) -> bytes | None:
        """Write payloads into a free buffer; returns the reference to them for a record. None: none is free."""
        if not self._lock.acquire(blocking=False):  # a signal handler does not wait for its own thread
            return None
        try:
            self._look()
            if not self._free:
                return None
            block = self._free.pop()
            reference = self._memory.next(block)
            self._out.append((reference, monotonic()))
        finally:
            self._lock.release()
        octets = b"".join(payloads)
        self._memory.octets(block)[: len(octets)] = octets
        return REFERENCE.pack(reference, self._memory.token, len(octets), self._number)

    def put_soon(self, payloads: Sequence[bytes], patience_s: float) -> bytes | None:
        """The same, when there is a free one."""
        deadline = monotonic() + patience_s
        while monotonic() < deadline:
            sleep(LOOK_S)
            reference = self.put(payloads)
            if reference is not None:
                return reference
        return None

    def take_back(self, records: Iterable[bytes]) -> None:
        """Records with such references were not sent."""
        unsent = {REFERENCE.unpack_from(record, len(record) - REFERENCE_OCTETS)[0] for record in records}
        if not self._lock.acquire(timeout=PATIENCE_S):  # an exception in a signal handler has left it locked
            return
        try:
            for entry in [entry for entry in self._out if entry[0] in unsent]:
                self._out.remove(entry)
                self._free.append(block_of(entry[0]))
        finally:
            self._lock.release()

    def _look(self) -> None:
        """Find returned buffers: of those that were sent first, and if that frees none, all."""
        out, returned, free = self._out, self._returned, self._free
        while out and returned[block_of(out[0][0])] == out[0][0]:
            free.append(block_of(out.popleft()[0]))
        if free or not out:
            return
        lost = monotonic() - LOST_S
        for entry in list(out):
            block = block_of(entry[0])
            if returned[block] == entry[0] or entry[1] < lost:
                out.remove(entry)
                free.append(block)

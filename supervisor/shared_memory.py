"""The memories for payload that records refer to (bus.durable.held), which the keeper holds for the whole stack.

The owner of a memory gets a descriptor for writing, every other layer that meets references one for reading only. The
memory of an application is written by this application and by tcp. Each application gets a descriptor of its own memory
only, over the control socket, and keeps the memory until its process has ended, tcp has no ring in it any more, and all
of its buffers (`usernet.pipe.buffers`) are returned. The table of returned buffers is written by every layer that meets
references, and every application may read it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import select
import time

from bus import topology
from bus.durable.frames import FRAMES_OCTETS
from bus.durable.held import APPLICATION_MIN, APPLICATIONS_MAX, RETURNED, RETURNED_OCTETS, row_at
from bus.durable.stream_memory import ARENA_OCTETS
from usernet.pipe.buffers import BUFFERS_AT, LOST_S, MEMORY_OCTETS, ROW_OCTETS
from usernet.pipe.rings import FACTS_AT, IN_USE, RINGS_AT, TOKEN

_ALL = "layers"  # as an owner: every layer that meets references
# the owner and the length of each memory, by its number
_MEMORIES = (("tcp", ARENA_OCTETS), ("link", FRAMES_OCTETS), *APPLICATIONS_MAX * (("tcp", MEMORY_OCTETS),),
             (_ALL, RETURNED_OCTETS))
assert len(_MEMORIES) == RETURNED + 1 == APPLICATION_MIN + APPLICATIONS_MAX + 1


class SharedMemory:
    """The descriptors of all memories, and the processes of the applications that have one."""

    def __init__(self) -> None:
        self._writable: list[int] = []
        self._readable: list[int] = []
        self._pids: dict[int, int] = {}  # {number of a memory: the process that has it}
        self._pidfds: dict[int, int] = {}
        # {number of a memory: when it was seen that its process has ended and that buffers were not returned}
        self._seen_ended: dict[int, float] = {}
        for number, (owner, octets) in enumerate(_MEMORIES):
            descriptor = os.memfd_create(f"usernet-{owner}-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, octets)
            # a process that could truncate it would end all others by a SIGBUS (memfd_create(2))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._writable.append(descriptor)
            self._readable.append(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC))

    def of(self, layer: str) -> tuple[int, ...]:
        """The descriptors for a layer, by the numbers of the memories; empty for a layer that meets no references."""
        if layer not in topology.REFERENCES:
            return ()
        return tuple(writable if owner in (layer, _ALL) else readable
                     for (owner, _), writable, readable in zip(_MEMORIES, self._writable, self._readable, strict=True))

    def lend(self, pid: int) -> tuple[int, int]:
        """(number, descriptor) of the memory of an application. OSError: there is none for it."""
        pidfd = os.pidfd_open(pid)
        for number, its in self._pids.items():
            if its == pid and not _ended(self._pidfds[number]):
                os.close(pidfd)
                return number, self._writable[number]
        for number in range(APPLICATION_MIN, RETURNED):
            former = self._pidfds.get(number)
            if former is None or (_ended(former) and not self._in_use(number)):
                break
        else:
            os.close(pidfd)
            raise OSError(errno.ENOMEM, f"{APPLICATIONS_MAX} applications have a memory already")
        if former is not None:
            os.close(former)
        self._pids[number], self._pidfds[number] = pid, pidfd
        self._clear(number)
        return number, self._writable[number]

    @property
    def returned(self) -> int:
        """The descriptor of the table of returned buffers for applications."""
        return self._readable[RETURNED]

    def _in_use(self, number: int) -> bool:
        if os.pread(self._writable[number], 8, FACTS_AT + 8 * IN_USE) != bytes(8):
            return True
        used = os.pread(self._writable[number], ROW_OCTETS, BUFFERS_AT)
        if used == os.pread(self._writable[RETURNED], ROW_OCTETS, row_at(number)):
            return False
        # the application may have damaged its table, and records about its buffers may be lost
        now = time.monotonic()
        return now < self._seen_ended.setdefault(number, now) + LOST_S

    def _clear(self, number: int) -> None:
        """Nothing of the former application remains, except the generations of its rings: references to its buffers
        have its token, so they are not valid any more."""
        self._seen_ended.pop(number, None)
        with mmap.mmap(self._writable[number], MEMORY_OCTETS) as memory:
            memory.madvise(mmap.MADV_REMOVE, RINGS_AT, MEMORY_OCTETS - RINGS_AT)
        os.pwrite(self._writable[RETURNED], bytes(ROW_OCTETS), row_at(number))
        os.pwrite(self._writable[number], secrets.token_bytes(8), FACTS_AT + 8 * TOKEN)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))

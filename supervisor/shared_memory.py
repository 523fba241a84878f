"""The memories for payload that records refer to (bus.durable.held), which the keeper holds for the whole stack.

The owner of a memory gets a descriptor for writing, every other layer that meets references one for reading only. The
memory of an application is written by this application and by tcp. Each application gets a descriptor of its own memory
only, over the control socket, and keeps the memory until its process has ended and tcp has no ring in it any more.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import select

from bus import topology
from bus.durable.frames import FRAMES_OCTETS
from bus.durable.held import APPLICATION_MIN, APPLICATIONS_MAX
from bus.durable.stream_memory import ARENA_OCTETS
from usernet.pipe.rings import APPLICATION_OCTETS, FACTS_AT, IN_USE, RINGS_AT, TOKEN

# the owner and the length of each memory, by its number
_MEMORIES = (("tcp", ARENA_OCTETS), ("link", FRAMES_OCTETS)) + APPLICATIONS_MAX * (("tcp", APPLICATION_OCTETS),)
assert len(_MEMORIES) == APPLICATION_MIN + APPLICATIONS_MAX


class SharedMemory:
    """The descriptors of all memories, and the processes of the applications that have one."""

    def __init__(self) -> None:
        self._writable: list[int] = []
        self._readable: list[int] = []
        self._pids: dict[int, int] = {}  # {number of a memory: the process that has it}
        self._pidfds: dict[int, int] = {}
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
        return tuple(writable if owner == layer else readable
                     for (owner, _), writable, readable in zip(_MEMORIES, self._writable, self._readable, strict=True))

    def lend(self, pid: int) -> tuple[int, int]:
        """(number, descriptor) of the memory of an application. OSError: there is none for it."""
        pidfd = os.pidfd_open(pid)
        for number, its in self._pids.items():
            if its == pid and not _ended(self._pidfds[number]):
                os.close(pidfd)
                return number, self._writable[number]
        for number in range(APPLICATION_MIN, len(_MEMORIES)):
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

    def _in_use(self, number: int) -> bool:
        return os.pread(self._writable[number], 8, FACTS_AT + 8 * IN_USE) != bytes(8)

    def _clear(self, number: int) -> None:
        """Nothing of the former application remains, except the generations of its rings."""
        with mmap.mmap(self._writable[number], APPLICATION_OCTETS) as memory:
            memory.madvise(mmap.MADV_REMOVE, RINGS_AT, APPLICATION_OCTETS - RINGS_AT)
        os.pwrite(self._writable[number], secrets.token_bytes(8), FACTS_AT + 8 * TOKEN)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))

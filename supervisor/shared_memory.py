"""The memories for payload that records refer to (bus.durable.held), which the keeper holds for the whole stack.

The owner of a memory gets a descriptor for writing, every other layer that meets references one for reading only.
"""

from __future__ import annotations

import fcntl
import os

from bus.durable.stream_memory import ARENA_OCTETS

READERS = frozenset({"link", "ip", "tcp"})  # layers that meet references
_OWNERS = ("tcp",)  # of each memory, by its number (bus.durable.held)


class SharedMemory:
    """The descriptors of all memories."""

    def __init__(self) -> None:
        self._writable: list[int] = []
        self._readable: list[int] = []
        for owner in _OWNERS:
            descriptor = os.memfd_create(f"usernet-{owner}-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, ARENA_OCTETS)
            # a process that could truncate it would end all others by a SIGBUS (memfd_create(2))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._writable.append(descriptor)
            self._readable.append(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC))

    def of(self, layer: str) -> tuple[int, ...]:
        """The descriptors for a layer, by the numbers of the memories; empty for a layer that meets no references."""
        if layer not in READERS:
            return ()
        return tuple(writable if owner == layer else readable
                     for owner, writable, readable in zip(_OWNERS, self._writable, self._readable, strict=True))

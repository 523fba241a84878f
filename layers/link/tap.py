"""The TAP: the kernel's end of the cable, through a descriptor that the keeper opened (Linux tuntap.rst)."""

from __future__ import annotations

import os

from bus.core import CounterWords
from bus.memory import SCRATCH_OCTETS
from layers.link.counters import Counters as C

READ_OCTETS = 65536 + 64
BATCH_FRAMES = 64
BATCH_OCTETS = SCRATCH_OCTETS - READ_OCTETS - 512  # with one more frame, and packed, it fits the node's scratch


class Tap:
    """A medium over one TAP descriptor, non-blocking."""

    edge_triggered = False
    writes_through = True

    def __init__(self, descriptor: int, counters: CounterWords) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._counters = counters

    def fileno(self) -> int:
        """Readable when the kernel has sent a frame."""
        return self._descriptor

    def read(self) -> list[bytes]:
        """The frames that the kernel has queued, at most a batch."""
        descriptor, read = self._descriptor, os.read
        frames: list[bytes] = []
        octets = 0
        try:
            while len(frames) < BATCH_FRAMES and octets < BATCH_OCTETS:
                frame = read(descriptor, READ_OCTETS)
                octets += len(frame)
                frames.append(frame)
        except OSError:
            pass  # EAGAIN: that was all; EIO, EBADFD: the interface is down for the moment
        return frames

    def write(self, frame: bytes) -> None:
        """Give one frame to the kernel, which takes or drops it at once."""
        try:
            os.write(self._descriptor, frame)
        except OSError:  # EIO: the interface is down; EINVAL: shorter than a header
            self._counters[C.medium_refused] += 1

    def flush(self) -> None:
        """Nothing is ever held back."""

"""The TAP: the kernel's end of the cable, through a descriptor that the keeper opened (Linux tuntap.rst)."""

from __future__ import annotations

import os

from bus import memory
from bus.batch import OCTETS_MAX, Batch
from bus.core import CounterWords
from layers.link.counters import Counters as C

READ_OCTETS = 65536 + 64
BATCH_FRAMES = 64
BATCH_OCTETS = OCTETS_MAX - READ_OCTETS  # beyond that no other frame is sure to fit


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

    def read(self, batch: Batch) -> list[bytes]:
        """The frames that the kernel has queued, at most a batch."""
        descriptor, read, octets, ends, words = self._descriptor, os.readv, batch.octets, batch.ends, batch.words
        frames: list[bytes] = []
        start = count = 0
        try:
            while count < BATCH_FRAMES and start < BATCH_OCTETS:
                ends[count] = end = start + read(descriptor, (octets[start : start + READ_OCTETS],))
                count += 1
                words[memory.BATCH_FRAMES] = count
                frames.append(bytes(octets[start:end]))
                start = end
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

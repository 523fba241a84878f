"""Frames that the device gave and that are not worked off yet, in durable memory.

The device forgets a frame in giving it. So it is read straight into here, and each frame counts from one store on. The
place where the next one goes is blank before it is read: what is found there after a death came in the system call
that the process did not return from, and counts as well, if the device can tell its length.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from bus.durable import layout

FRAMES_MAX = 256  # as many as one pack of a wire may carry (usernet.pipe.frame.MAX_RECORDS)
_ENDS_OCTETS = 8 * FRAMES_MAX
OCTETS_MAX = layout.SCRATCH_OCTETS - _ENDS_OCTETS - 12  # all frames of a batch together; behind them it is blank


BLANK = b"\xff" * 12  # no frame begins so, with or without a virtio_net_hdr: as a source address it would be a group


class RxLog:
    """One batch. A device that fills it itself reads frame n behind frame n - 1 into `octets`, then writes BLANK behind
    it, then where it ends into `ends[n]`, then n + 1 into `words[memory.BATCH_FRAMES]`.
    """

    def __init__(self, durable: layout.Memory) -> None:
        self.words = durable.words
        self.ends = durable.scratch[:_ENDS_OCTETS].cast("Q")
        self.octets = durable.scratch[_ENDS_OCTETS:]

    def open(self, number: int) -> None:
        """The next frames are those of batch `number`."""
        self.octets[: len(BLANK)] = BLANK
        self.words[layout.BATCH_NUMBER] = number

    def close(self) -> None:
        """Everything is worked off."""
        if self.words[layout.BATCH_FRAMES]:
            self.words[layout.BATCH_FRAMES] = 0

    def keep(self, frames: list[bytes]) -> None:
        """All of a batch at once: at most FRAMES_MAX frames of OCTETS_MAX octets together."""
        at = 0
        for number, frame in enumerate(frames):
            end = at + len(frame)
            self.octets[at:end] = frame
            self.ends[number] = at = end
        self.octets[at : at + len(BLANK)] = BLANK
        self.words[layout.BATCH_FRAMES] = len(frames)

    def left(self, length: Callable[[memoryview], int]) -> tuple[int, list[bytes]]:
        """(number, frames) of the batch that the former incarnation had open.

        `length`: of the frame that stands at the beginning of some octets, 0 where that cannot be told.
        """
        ends = [0, *self.ends[: min(self.words[layout.BATCH_FRAMES], FRAMES_MAX)].tolist()]
        frames = [bytes(self.octets[start:end]) for start, end in pairwise(ends)]
        rest = self.octets[ends[-1] :]
        if rest[: len(BLANK)] != BLANK and (octets := length(rest)):
            frames.append(bytes(rest[:octets]))
        return self.words[layout.BATCH_NUMBER], frames

"""The rx log: frames from the device that are not processed yet, in durable memory.

Reading a frame removes it from the device. So it is read directly into this memory, and one store makes it count. The
place for the next frame is filled with BLANK before it is read. A frame found there after a crash came from the system
call from which the process did not return. It counts as well if the device can determine its length.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from bus.durable import layout
from bus.durable.frames import Windows

FRAMES_MAX = 256  # as many as a message of a wire may carry (usernet.pipe.frame.MAX_RECORDS)
_ENDS_OCTETS = 8 * FRAMES_MAX
OCTETS_MAX = layout.SCRATCH_OCTETS - _ENDS_OCTETS - 12  # of all frames of a batch; what follows is blank


# no frame begins like this, with or without a virtio_net_hdr: the destination would be the broadcast address, and the
# source a group
BLANK = b"\xff" * 12


class RxLog:
    """One batch of frames. `windows`: where to read them, so that records may refer to them (`bus.durable.frames`).

    A device that fills it reads frame n behind frame n - 1 into `octets`, writes BLANK behind it, then the end of the
    frame into `ends[n]`, then n + 1 into `words[memory.BATCH_FRAMES]`.
    """

    def __init__(self, durable: layout.Memory, windows: Windows | None = None) -> None:
        self.words = durable.words
        self.ends = durable.scratch[:_ENDS_OCTETS].cast("Q")
        self.windows = windows
        self.octets = durable.scratch[_ENDS_OCTETS:] if windows is None else windows.window()
        self.held: list[int] = []  # which frames of the batch are ETHERNET_HELD records, ascending

    def open(self, number: int) -> None:
        """Start batch `number`."""
        if self.windows is not None and self.windows.open():
            self.octets = self.windows.window()
        if self.held:
            self.held = []
        self.octets[: len(BLANK)] = BLANK
        self.words[layout.BATCH_NUMBER] = number

    def close(self) -> None:
        """All frames are processed."""
        if self.words[layout.BATCH_FRAMES]:
            self.words[layout.BATCH_FRAMES] = 0

    def keep(self, frames: list[bytes]) -> None:
        """Store a whole batch: at most FRAMES_MAX frames with OCTETS_MAX octets in all."""
        at = 0
        for number, frame in enumerate(frames):
            end = at + len(frame)
            self.octets[at:end] = frame
            self.ends[number] = at = end
        self.octets[at : at + len(BLANK)] = BLANK
        self.words[layout.BATCH_FRAMES] = len(frames)

    def left(self, length: Callable[[memoryview], int]) -> tuple[int, list[bytes]]:
        """(number, frames) of the batch that the former process had open.

        `length`: a function that returns the length of the frame at the beginning of some octets, 0 if it is unknown.
        """
        ends = [0, *self.ends[: min(self.words[layout.BATCH_FRAMES], FRAMES_MAX)].tolist()]
        frames = [bytes(self.octets[start:end]) for start, end in pairwise(ends)]
        rest = self.octets[ends[-1] :]
        if rest[: len(BLANK)] != BLANK and (octets := length(rest)):
            frames.append(bytes(rest[:octets]))
        return self.words[layout.BATCH_NUMBER], frames

"""Both ends of the numbered pipe between an application and the socket service (docs/app-protocol.md).

`Journal` keeps the frames sent last, to repeat them for a service that restarted; `Incoming` decides which of the
frames received are new. No sockets here, and no threads.
"""

from __future__ import annotations

from collections import deque

from usernet.pipe.frame import HEADER

JOURNAL_FRAMES_MAX = 512  # more than a pipe holds, unread by a service that hangs
JOURNAL_OCTETS_MAX = 1 << 20


class Journal:
    """The last frames sent, by their sequence numbers, which have no gaps."""

    def __init__(self) -> None:
        self.sequence = 0  # the number of the last frame
        self._frames: deque[bytes] = deque()
        self._octets = 0

    def append(self, frame: bytes) -> None:
        """`frame` is number `sequence + 1`."""
        frames = self._frames
        frames.append(frame)
        self.sequence += 1
        self._octets += len(frame)
        while len(frames) > JOURNAL_FRAMES_MAX or self._octets > JOURNAL_OCTETS_MAX:
            self._octets -= len(frames.popleft())

    def after(self, done: int) -> tuple[int, list[bytes]]:
        """(number of the first, frames) of what is kept beyond number `done`."""
        oldest = self.sequence - len(self._frames) + 1
        first = min(max(done + 1, oldest), self.sequence + 1)
        return first, list(self._frames)[first - oldest :]


class Incoming:
    """How far the service's frames have been taken."""

    def __init__(self) -> None:
        self.done = 0
        self.incarnation = 0
        self.lost = 0  # frames that a restart of the service lost
        self._awaiting = True  # a repetition is announced: what is ahead of its turn comes again

    def started(self, incarnation: int) -> bool:
        """A HELLO came. True where it is a new incarnation's; its RESUME follows."""
        if incarnation <= self.incarnation:
            return False
        self.incarnation = incarnation
        self._awaiting = True
        return True

    def resumed(self, incarnation: int, first: int) -> None:
        """A RESUME came: the next frame is `first`, and what is missing below it is lost."""
        if incarnation == self.incarnation:
            self._awaiting = False
            self._skip_to(first - 1)

    def accept(self, incarnation: int, sequence: int) -> bool:
        """Whether a frame is to be processed; if so it counts as taken."""
        if incarnation != self.incarnation:
            return False  # of a former incarnation: repeated by the present one
        if sequence != self.done + 1:
            if sequence <= self.done or self._awaiting:
                return False
            self._skip_to(sequence - 1)
        self.done = sequence
        return True

    def accept_late(self, sequence: int) -> bool:
        """As `accept`, for a frame that a former incarnation sent before its successor's HELLO was read."""
        if sequence != self.done + 1:
            return False
        self.done = sequence
        return True

    def _skip_to(self, done: int) -> None:
        if done > self.done:
            self.lost += done - self.done
            self.done = done


def incarnation_of(frame: bytes) -> int:
    """Of the frame's sender; 0 for what is no frame."""
    return HEADER.unpack_from(frame)[3] if len(frame) >= HEADER.size else 0

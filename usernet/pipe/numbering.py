"""The numbering of frames on a pipe, the same between layers and for applications (docs/app-protocol.md).

Frames are numbered from 1. The end that starts says HELLO with the number of the last frame that it processed; the
other end answers RESUME with the number of the frame that follows, and repeats from there what it has kept.
`Incoming` decides at the receiving end for each frame whether it is next, a repetition, ahead of its turn, or stale.
What a sending end keeps is `ReplayBuffer`, in the memory of an application, or `bus.durable.journal.Journal`, in memory
that outlives a layer. No sockets here, and no threads.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Annotated

import msgspec

from usernet.pipe.frame import HEADER, VERSION, decoder

REPLAY_FRAMES_MAX = 512  # more than a pipe holds, unread by a service that hangs
REPLAY_OCTETS_MAX = 1 << 20

SequenceNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # as msgspec has it; no pipe ever gets there


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """First frame after a start: how far the sender has processed the receiver's frames."""

    done: SequenceNumber
    version: int = VERSION
    inbox: str = ""  # of an application: the file name of its inbox
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""  # likewise: anything, which comes back in the answer


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a HELLO that is not accepted: Linux's errno, and for people why."""

    errno: int
    error: str
    version: int = VERSION  # that the service speaks
    token: str  # of the HELLO


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The next frame is number `first`; `done`: as in Hello."""

    first: SequenceNumber
    done: SequenceNumber = 0


encode = msgspec.json.Encoder().encode
decode_hello = decoder(Hello)
decode_resume = decoder(Resume)


class Verdict(Enum):
    """What an Incoming says of a frame."""

    NEXT = "process it"
    REPEATED = "it was processed before"
    EARLY = "it is ahead of its turn; the repetition that was announced brings it again"
    STALE = "a former incarnation of the sender made it"


NEXT, _REPEATED, _EARLY, _STALE = Verdict  # an attribute of an Enum is slow to reach


class Incoming:
    """How far the frames of one sender have been taken."""

    __slots__ = ("awaiting", "done", "incarnation", "lost")

    def __init__(self, done: int = 0) -> None:
        self.done = done
        self.incarnation = 0
        self.lost = 0  # frames that a restart of the sender lost
        self.awaiting = True  # a repetition is announced: what is ahead of its turn comes again

    def started(self, incarnation: int) -> bool:
        """A HELLO came, and its RESUME follows. True where it is a new incarnation's."""
        if incarnation < self.incarnation:
            return False
        self.awaiting = True
        later, self.incarnation = incarnation > self.incarnation, incarnation
        return later

    def resumed(self, incarnation: int, first: int) -> None:
        """A RESUME came: the next frame is `first`, and what is missing below it is lost."""
        if incarnation >= self.incarnation:
            self.awaiting = False
            if first > self.done + 1:
                self.skip_to(first - 1)

    def judge(self, incarnation: int, sequence: int) -> Verdict:
        """Whether a frame is to be processed now; if so it counts as taken."""
        if incarnation != self.incarnation:
            if incarnation < self.incarnation:
                return _STALE  # repeated by the present one
            self.incarnation = incarnation
        if sequence != self.done + 1:
            if sequence <= self.done:
                return _REPEATED
            if self.awaiting:
                return _EARLY
            self.skip_to(sequence - 1)
        self.done = sequence
        return NEXT

    def judge_late(self, sequence: int) -> Verdict:
        """As `judge`, for a frame that a former incarnation sent before its successor's HELLO was read."""
        if sequence != self.done + 1:
            return _STALE
        self.done = sequence
        return NEXT

    def skip_to(self, done: int) -> None:
        """The frames up to number `done` that are missing will not come."""
        self.lost += done - self.done
        self.done = done


class ReplayBuffer:
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
        while len(frames) > REPLAY_FRAMES_MAX or self._octets > REPLAY_OCTETS_MAX:
            self._octets -= len(frames.popleft())

    def after(self, done: int) -> tuple[int, list[bytes]]:
        """(number of the first, frames) of what is kept beyond number `done`."""
        oldest = self.sequence - len(self._frames) + 1
        first = min(max(done + 1, oldest), self.sequence + 1)
        return first, list(self._frames)[first - oldest :]


def incarnation_of(frame: bytes) -> int:
    """Of the frame's sender; 0 for what is no frame."""
    return HEADER.unpack_from(frame)[3] if len(frame) >= HEADER.size else 0

"""The numbering of frames on a pipe, the same between layers and for applications (docs/app-protocol.md).

Frames are numbered from 1. The end that starts sends HELLO with the number of the last frame that it processed. The
other end answers RESUME with the number of the following frame, and repeats its stored frames from there. At the
receiving end `Incoming` decides for each frame whether it is next, a repetition, early, or stale. The sending end
stores frames in a `ReplayBuffer`, in the memory of an application, or in a `bus.durable.journal.Journal`, in memory
that outlives a layer. No sockets and no threads here.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Annotated

import msgspec

from usernet.pipe.frame import HEADER, VERSION, decoder

REPLAY_FRAMES_MAX = 512  # more than a pipe holds while the service hangs
REPLAY_OCTETS_MAX = 1 << 22  # what a stream may send while the service is away

SequenceNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # msgspec's limit, which no pipe ever reaches


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame after a start: how far the sender has processed the receiver's frames."""

    done: SequenceNumber
    version: int = VERSION
    inbox: str = ""  # only from an application: the file name of its inbox
    pid: int | msgspec.UnsetType = msgspec.UNSET  # only from a layer to another: its process
    tool: bool = False  # only from an application: a tool of the command line, for which some places are reserved
    # only from an application: any text, which is returned in the answer
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a refused HELLO: Linux's errno, and a text with the reason."""

    errno: int
    error: str
    version: int = VERSION  # the version that the service speaks
    token: str  # the token of the HELLO


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The next frame is number `first`; `done` as in Hello."""

    first: SequenceNumber
    done: SequenceNumber = 0
    pid: int | msgspec.UnsetType = msgspec.UNSET  # as in Hello


encode = msgspec.json.Encoder().encode
decode_hello = decoder(Hello)
decode_resume = decoder(Resume)


class Verdict(Enum):
    """The verdict of an Incoming about a frame."""

    NEXT = "process it"
    REPEATED = "it was processed before"
    EARLY = "it is early; the announced repetition contains it again"
    STALE = "it is from a former incarnation of the sender"


NEXT, _REPEATED, _EARLY, _STALE = Verdict  # module constants, because access to an attribute of an Enum is slow


class Incoming:
    """How far the frames of one sender have been taken."""

    __slots__ = ("awaiting", "done", "incarnation", "lost")

    def __init__(self, done: int = 0) -> None:
        self.done = done
        self.incarnation = 0
        self.lost = 0  # number of frames lost in restarts of the sender
        self.awaiting = True  # a repetition is announced: early frames come again

    def started(self, incarnation: int) -> bool:
        """A HELLO arrived, and its RESUME follows. True: it is from a new incarnation."""
        if incarnation < self.incarnation:
            return False
        self.awaiting = True
        later, self.incarnation = incarnation > self.incarnation, incarnation
        return later

    def resumed(self, incarnation: int, first: int) -> bool:
        """A RESUME arrived: the next frame is `first`. True: frames before it are missing, and lost."""
        is_lossy = incarnation >= self.incarnation and first > self.done + 1
        if incarnation >= self.incarnation:
            self.awaiting = False
        if is_lossy:
            self.skip_to(first - 1)
        return is_lossy

    def judge(self, incarnation: int, sequence: int) -> Verdict:
        """The verdict for a frame; if it is NEXT the frame counts as taken."""
        if incarnation != self.incarnation:
            if incarnation < self.incarnation:
                return _STALE  # repeated by the present incarnation
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
        """As `judge`, for a frame that a former incarnation sent, read after its successor's HELLO."""
        if sequence != self.done + 1:
            return _STALE
        self.done = sequence
        return NEXT

    def skip_to(self, done: int) -> None:
        """The missing frames up to number `done` will not come."""
        self.lost += done - self.done
        self.done = done


class ReplayBuffer:
    """The last sent frames, by their consecutive sequence numbers."""

    def __init__(self) -> None:
        self.sequence = 0  # number of the last frame
        self._frames: deque[bytes] = deque()
        self._octets = 0

    def append(self, frame: bytes) -> None:
        """Add frame number `sequence + 1`."""
        frames, octets = self._frames, self._octets + len(frame)
        frames.append(frame)
        self.sequence += 1
        if len(frames) > REPLAY_FRAMES_MAX:
            octets -= len(frames.popleft())
        while octets > REPLAY_OCTETS_MAX:
            octets -= len(frames.popleft())
        self._octets = octets

    def after(self, done: int) -> tuple[int, list[bytes]]:
        """(number of the first, frames) of the stored frames after number `done`."""
        oldest = self.sequence - len(self._frames) + 1
        first = min(max(done + 1, oldest), self.sequence + 1)
        return first, list(self._frames)[first - oldest :]


def incarnation_of(frame: bytes) -> int:
    """The incarnation of the frame's sender; 0: not a frame."""
    return HEADER.unpack_from(frame)[3] if len(frame) >= HEADER.size else 0

"""Whether an end had a reason to send octets again, read from what passed the cable.

The cable of the system tests loses nothing, so what is sent again was needless. The only excuse is a process that
waited for a processor, so that an ACK came late: `Again.waited` says from when to when one must have waited. The
capture is made at the kernel's end: the kernel has what has passed, and has just sent what passes; the stack's
processes may be late with both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field, replace

PROBE_MIN_S = 0.002  # RFC 8985 section 7.2 as layers/tcp/rack.py has it; Linux waits two ticks more
RTO_MIN_S = 0.2  # of Linux and of layers/tcp/retransmission.py
ACK_DELAY_S = 0.04  # of Linux and of layers/tcp/acknowledgment.py
DUPLICATES = 3  # RFC 5681 section 3.2
FIN, SYN, ACK = 1, 2, 16
TOLD = 10  # segments up to one that nothing explains
MSS = 536  # RFC 9293 section 3.7.1, where no SYN was seen
# When it was sent: text of a SYN that its SYN-ACK leaves out (RFC 7413 section 4.2.2); what has not passed yet.
REFUSED, OVERTAKEN = 0.0, -1.0


@dataclass(frozen=True)
class Segment:
    """What a frame says; numbers as on the cable. `source` to `destination`, in that connection."""

    at: float
    source: str
    connection: str
    flags: int
    sequence: int
    text: int
    acknowledgment: int = 0
    window: int = 0
    sack: tuple[tuple[int, int], ...] = ()
    mss: int = 0  # of a SYN


@dataclass(frozen=True)
class Again:
    """What is wrong with a segment that was sent again, and the time in which a process must have waited; None: no
    waiting explains it.
    """

    what: str
    waited: tuple[float, float] | None


@dataclass
class _Piece:
    """Octets up to `end`, from the piece before on; when they were sent last, and when the other end had them."""

    end: int
    sent: float
    arrived: float | None = None


@dataclass
class _Way:
    """What one end of a connection has sent, from relative number 0 on."""

    first: int
    mss: int
    pieces: list[_Piece] = field(default_factory=list)
    una: int = 0
    duplicates: int = 0
    window: int = 0
    top: int = 0  # the highest number that has arrived

    @property
    def end(self) -> int:
        return self.pieces[-1].end if self.pieces else 0

    def relative(self, number: int) -> int:
        """The number nearest to what was acknowledged."""
        return self.una + ((number - self.first - self.una + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)

    def between(self, start: int, end: int) -> list[_Piece]:
        """The pieces of [start, end), of which there are some more now."""
        return self.pieces[self._cut(start) : self._cut(end)]

    def _cut(self, at: int) -> int:
        """The index of the piece that begins there."""
        index = bisect_right(self.pieces, at, key=lambda piece: piece.end)
        if index < len(self.pieces) and (self.pieces[index - 1].end if index else 0) < at:
            piece = self.pieces[index]
            self.pieces.insert(index, _Piece(at, piece.sent, piece.arrived))
            index += 1
        return index

    def sends(self, start: int, end: int, at: float) -> list[_Piece]:
        """[start, end) is sent; what was sent before, as it was."""
        before = [_Piece(piece.end, piece.sent, piece.arrived) for piece in self.between(start, end)]
        for piece in self.between(start, end):
            piece.sent = at
        if start > self.end:
            self.pieces.append(_Piece(start, OVERTAKEN))
        if end > self.end:
            self.pieces.append(_Piece(end, at))
        return before

    def hears(self, segment: Segment) -> None:
        """The other end says what has arrived."""
        una = self.relative(segment.acknowledgment)
        if una > self.una:
            self.duplicates = 0
        elif una == self.una and not segment.text and not segment.sack and segment.window == self.window:
            self.duplicates += 1  # RFC 5681 section 2
        self.window = segment.window
        if segment.flags & SYN and not self.una:
            for piece in self.pieces[self._cut(una) :]:
                piece.sent = REFUSED
        blocks = [(self.relative(left), self.relative(right)) for left, right in segment.sack]
        for left, right in ((self.una, una), *blocks):
            if left < right:
                for piece in self.between(left, right):
                    piece.arrived = piece.arrived or segment.at
                self.top = max(self.top, right)
        self.una = max(self.una, una)


class Judge:
    """Of one capture, frame by frame. `exact`: the address of the end at which it was made."""

    def __init__(self, exact: str) -> None:
        self._exact = exact
        self._ways: dict[str, dict[str, _Way]] = {}
        self._last: dict[str, deque[Segment]] = {}

    def take(self, segment: Segment) -> Again | None:
        """What passes next; what is wrong if it is not new."""
        last = self._last.setdefault(segment.connection, deque(maxlen=TOLD))
        last.append(segment)
        wrong = self._judged(segment)
        if wrong is None or wrong.waited is not None:
            return wrong
        return replace(wrong, what=f"{wrong.what} ({', '.join(_told(each, segment.at) for each in last)})")

    def _judged(self, segment: Segment) -> Again | None:
        ways = self._ways.setdefault(segment.connection, {})
        there = ways.setdefault(segment.source, _Way(segment.sequence, segment.mss or MSS))
        for source, back in ways.items():
            if source != segment.source and segment.flags & ACK:
                back.hears(segment)
        octets = segment.text + bool(segment.flags & SYN) + bool(segment.flags & FIN)
        start = max(0, there.relative(segment.sequence))
        lost = there.duplicates >= DUPLICATES or start < there.top
        highest, may_wait = there.end, there.end - there.una < 2 * there.mss and not segment.flags & (SYN | FIN)
        before = there.sends(start, start + octets, segment.at) if octets else []
        if not before or all(piece.sent == REFUSED for piece in before):
            return None
        arrived = [piece.arrived for piece in before if piece.arrived is not None]
        all_arrived = max(arrived) if len(arrived) == len(before) else None
        return self._wrong(segment, max(piece.sent for piece in before), all_arrived, lost, before[-1].end == highest,
                           may_wait)

    def _wrong(self, segment: Segment, sent: float, arrived: float | None, lost: bool, last: bool,
               may_wait: bool) -> Again | None:
        at, exact = segment.at, segment.source == self._exact
        since = f"{(at - sent) * 1e3:.1f} ms after the first time"
        if arrived is not None:
            what = f"sent again {since}, {(at - arrived) * 1e3:.1f} ms after it was acknowledged"
            if not exact:
                return Again(what, (arrived, at))
            return Again(what, None) if at - arrived >= PROBE_MIN_S else None
        if sent == OVERTAKEN:
            return Again("out of order", None)
        if lost:
            return Again(f"sent again {since}, because it was lost", None)
        least = PROBE_MIN_S if last else RTO_MIN_S
        if at - sent < least:
            return Again(f"sent again {since}, too early", None if exact else (at - least, at))
        if last and may_wait:
            return None  # RFC 8985 section 7.2 does not wait for the delayed ACK of two short segments
        return Again(f"sent again {since}, for want of an ACK", (sent, at))


def _told(segment: Segment, at: float) -> str:
    """A segment in a message about one that passed at `at`."""
    sack = "".join(f" sack {left}-{right}" for left, right in segment.sack)
    return (f"{(segment.at - at) * 1e3:+.1f} ms {segment.source} {segment.sequence}+{segment.text}"
            f" ack {segment.acknowledgment}{sack} win {segment.window}")

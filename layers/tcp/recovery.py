"""What is in flight, what of it is lost, and how much may be: the seam described in `layers.tcp.connection`.

Here: RTO (RFC 6298), fast retransmit by duplicate ACKs or SACK, NewReno's window (RFC 5681). Ranges over relative
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

RTO_MIN_S = 0.2  # Linux TCP_RTO_MIN; RFC 6298 section 2.4 says 1 s SHOULD
RTO_MAX_S = 120.0  # Linux TCP_RTO_MAX
RTO_INITIAL_S = 1.0  # RFC 6298 section 2.1
DUPLICATES = 3  # RFC 5681 section 3.2
INITIAL_SEGMENTS = 10  # RFC 6928


class Sent:
    """A range that is under way."""

    __slots__ = ("at", "end", "lost", "sacked", "start", "times")

    def __init__(self, start: int, end: int, at: float) -> None:
        self.start = start
        self.end = end
        self.at = at
        self.times = 1
        self.sacked = False
        self.lost = False


class Recovery:
    """See the seam."""

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = INITIAL_SEGMENTS * mss
        self.ssthresh = 1 << 40
        self.rtt_s = 0.0
        self.rtt_variance_s = 0.0
        self.backoffs = 0
        self.retransmits = 0
        self.deadline: float | None = None
        self._ranges: list[Sent] = []
        self._una = 0
        self._duplicates = 0
        self._recover = -1  # RFC 6582: recovery ends when this is acknowledged
        self._limited = True
        self._rto_s = RTO_INITIAL_S

    @property
    def rto_s(self) -> float:
        """The time-out, backed off."""
        return min(self._rto_s * (1 << self.backoffs), RTO_MAX_S)

    @property
    def freed(self) -> bool:
        """Nothing is in flight."""
        return not self._ranges

    @property
    def in_flight(self) -> int:
        """RFC 6675's pipe."""
        return sum(each.end - each.start for each in self._ranges if not each.sacked and not each.lost)

    def sent(self, start: int, end: int, now: float, limited: bool) -> None:
        """See the seam."""
        again = False
        fresh: list[Sent] = []
        for each in self._ranges:
            if each.end <= start or each.start >= end:
                fresh.append(each)
                continue
            again = True
            if each.start < start:
                fresh.append(self._part(each, each.start, start))
            fresh.append(self._again(each, max(each.start, start), min(each.end, end), now))
            if each.end > end:
                fresh.append(self._part(each, end, each.end))
        if again:
            self.retransmits += 1
            self._ranges = fresh
        else:
            self._ranges.append(Sent(start, end, now))
            self._limited = limited
        if self.deadline is None or again:
            self.deadline = now + self.rto_s

    @staticmethod
    def _part(each: Sent, start: int, end: int) -> Sent:
        part = Sent(start, end, each.at)
        part.times, part.sacked, part.lost = each.times, each.sacked, each.lost
        return part

    def _again(self, each: Sent, start: int, end: int, now: float) -> Sent:
        part = self._part(each, start, end)
        part.at, part.lost = now, False
        part.times += 1
        return part

    def acknowledged(self, una: int, sack: Sequence[tuple[int, int]], now: float, duplicate: bool,
                     echoed_s: float | None) -> None:
        """See the seam."""
        advanced = una - self._una
        in_recovery = self._recover >= 0
        if advanced > 0:
            self._una = una
            self._measure([each for each in self._ranges if each.end <= una], now, echoed_s)
            kept = []
            for each in self._ranges:
                if each.end > una:
                    each.start = max(each.start, una)
                    kept.append(each)
            self._ranges = kept
            self._duplicates = 0
            self.backoffs = 0
            if self._recover >= 0 and una >= self._recover:
                self._recover = -1
            elif self._recover >= 0 and kept and not sack:
                kept[0].lost = True  # RFC 6582 section 3.2: a partial acknowledgment
            self.deadline = now + self.rto_s if kept else None
            if not in_recovery and not self._limited:
                self._grow(advanced)
        for left, right in sack:
            for each in self._ranges:
                if left <= each.start and each.end <= right:
                    each.sacked, each.lost = True, False
        if duplicate:
            self._duplicates += 1
        self._detect(now)

    def _measure(self, gone: list[Sent], now: float, echoed_s: float | None) -> None:
        # RFC 6298 section 3, Karn: not of what was sent twice, but by timestamps
        once = bool(gone) and all(each.times == 1 for each in gone)
        sample = now - gone[-1].at if once and gone else echoed_s
        if sample is None:
            return
        if not self.rtt_s:
            self.rtt_s, self.rtt_variance_s = max(sample, 1e-6), sample / 2
        else:
            self.rtt_variance_s += (abs(self.rtt_s - sample) - self.rtt_variance_s) / 4
            self.rtt_s += (sample - self.rtt_s) / 8
        self._rto_s = min(max(self.rtt_s + max(4 * self.rtt_variance_s, RTO_MIN_S), RTO_MIN_S), RTO_MAX_S)

    def _grow(self, octets: int) -> None:
        if self.cwnd < self.ssthresh:
            self.cwnd += octets  # RFC 5681 section 3.1, with RFC 3465's count of octets
        else:
            self.cwnd += max(1, self.mss * octets // self.cwnd)

    def _detect(self, now: float) -> None:
        if not self._ranges:
            return
        sacked_above = 0
        found = False
        for each in reversed(self._ranges):
            if each.sacked:
                sacked_above += each.end - each.start
            elif sacked_above > (DUPLICATES - 1) * self.mss and not each.lost and each.times == 1:
                each.lost = found = True  # RFC 6675 section 4
        if self._duplicates >= DUPLICATES and self._recover < 0 and not self._ranges[0].sacked:
            self._ranges[0].lost = found = True
        if found and self._recover < 0:
            self._recover = self._ranges[-1].end
            flight = sum(each.end - each.start for each in self._ranges)
            self.ssthresh = max(flight // 2, 2 * self.mss)
            self.cwnd = self.ssthresh

    def lost(self) -> tuple[int, int] | None:
        """See the seam."""
        for index, each in enumerate(self._ranges):
            if each.lost:
                end = each.end
                for following in self._ranges[index + 1 :]:
                    if not following.lost or following.start != end:
                        break
                    end = following.end
                return each.start, end
        return None

    def allowance(self, now: float) -> int:
        """See the seam."""
        flight = self.in_flight
        room = self.cwnd - flight
        if not flight and room < self.mss:
            return self.mss
        return max(room, 0)

    def expire(self, now: float) -> bool:
        """See the seam."""
        self.backoffs = min(self.backoffs + 1, 16)
        flight = sum(each.end - each.start for each in self._ranges)
        if self._recover < 0 or self.backoffs == 1:
            self.ssthresh = max(flight // 2, 2 * self.mss)
        self.cwnd = self.mss
        self._recover = self._ranges[-1].end if self._ranges else -1
        reneged = bool(self._ranges) and self._ranges[0].sacked  # RFC 2018 section 8
        for each in self._ranges:
            if reneged:
                each.sacked = False
            if not each.sacked:
                each.lost = True
        self._duplicates = 0
        self.deadline = now + self.rto_s if self._ranges else None
        return True

    def probe(self, start: int, end: int) -> None:
        """See the seam."""
        if not self._ranges or self._ranges[-1].end < end:
            self._ranges.append(Sent(max(start, self._ranges[-1].end if self._ranges else start), end, 0.0))
        for each in self._ranges:
            if each.start < end and each.end > start and not each.sacked:
                each.lost, each.times = True, 2
        self.deadline = None

    def window_closed(self, now: float) -> None:
        """See the seam."""
        for each in self._ranges:
            if not each.sacked:
                each.lost = True
        self.deadline = None

    def reduce_mss(self, mss: int) -> None:
        """See the seam."""
        if mss != self.mss and not self.retransmits and self.cwnd == INITIAL_SEGMENTS * self.mss:
            self.cwnd = INITIAL_SEGMENTS * mss
        shrunk = mss < self.mss
        self.mss = mss
        if shrunk:
            for each in self._ranges:
                if each.end - each.start > mss and not each.sacked:
                    each.lost = True

    def store(self, memory: memoryview, at: int) -> None:
        """See the seam."""

    def load(self, octets: memoryview) -> None:
        """See the seam."""

    def restored(self, una: int, nxt: int, now: float) -> None:
        """A successor: what was in flight is unknown; one segment from `una` asks (see `layers.tcp.durable`)."""
        self._una = una
        self._ranges = [Sent(una, nxt, now)] if nxt > una else []
        for each in self._ranges:
            each.times = 2
            each.lost = True

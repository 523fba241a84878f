"""The scoreboard: what was sent and not yet acknowledged, and what is known of it (RFC 2018, 2883, 6675).

Everything from SND.UNA to SND.NXT is cut into entries without gaps, each in flight, selectively acknowledged (SACKED)
or taken for lost (LOST). What lies side by side and is sacked, or lost, is one entry: so a window has as many entries
as it has segments in flight plus holes, and a block that the peer repeats costs one look. A super-segment of 64 kB is
one entry until an acknowledgment splits it. Sums of octets are kept, never counted: `pipe` of RFC 6675 is in flight.

In flight includes what was sent again: `sent_at` is the latest time, and `again` says that it was more than once
(Karn). First transmissions are in the order of their numbers; so beyond the first entry that is younger than some
time and was sent once, everything is younger.

Entries are bounded by what is in flight: where a peer sacks single octets, or an application sends such, the rest is
coarser (a SACK is advice; it may be ignored).

Numbers are relative sequence numbers of octets, times float seconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import attrgetter

IN_FLIGHT, SACKED, LOST = range(3)
DUPLICATE_THRESHOLD = 3  # RFC 6675 section 2: DupThresh
_SPARE_ENTRIES = 64
_start = attrgetter("start")


class Entry:
    """[start, end), what is known of it, when it was sent last and whether that was not the first time."""

    __slots__ = ("again", "end", "sent_at", "start", "state")

    def __init__(self, start: int, end: int, sent_at: float, state: int = IN_FLIGHT, again: bool = False) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.state = state
        self.again = again


class Scoreboard:
    """One connection's. After `acknowledged` its fields say what that acknowledgment was."""

    __slots__ = ("_entries", "_judged", "_lost_from", "_mss", "_top", "delivered", "dsack", "first_sent_once", "lost",
                 "newest_again", "newest_end", "newest_sent_at", "nxt", "order", "rtt_s", "sacked", "una")

    def __init__(self, mss: int, una: int = 0) -> None:
        self._entries: list[Entry] = []
        # Transmissions in the order of time: when, [start, end). What came of them since is in the entries
        self.order: list[tuple[float, int, int]] = []
        self._mss = mss
        self._lost_from = una  # nothing below is lost
        self._judged = una  # what was sent once and lies below was judged by what is sacked above it
        self._top = una  # highest number that was selectively acknowledged, and not given up
        self.una = una
        self.nxt = una
        self.sacked = 0  # octets
        self.lost = 0
        # Of the last acknowledgment:
        self.delivered = 0  # octets that it is the first to cover
        self.rtt_s: float | None = None  # of the youngest segment that it covers and that was sent once
        self.newest_sent_at = 0.0  # of what it is the first to cover, the youngest: when sent last (0: none), its end,
        self.newest_end = 0
        self.newest_again = False  # whether it was sent again
        self.first_sent_once: int | None = None  # the lowest end of what it covers first and that was sent once
        self.dsack: tuple[int, int] | None = None  # what the peer has received twice (RFC 2883)

    @property
    def pipe(self) -> int:
        """Octets in the network (RFC 6675 section 2)."""
        return self.nxt - self.una - self.sacked - self.lost

    @property
    def flight(self) -> int:
        """FlightSize of RFC 5681: octets sent and not cumulatively acknowledged."""
        return self.nxt - self.una

    @property
    def resent(self) -> int:
        """Octets in flight that were sent again (Linux's retrans_out); counted when it is asked for."""
        return sum(entry.end - entry.start for entry in self._entries if entry.again and entry.state == IN_FLIGHT)

    @property
    def top(self) -> int:
        """Behind the highest number that was selectively acknowledged; UNA where none is."""
        return max(self._top, self.una)

    @property
    def entries(self) -> list[Entry]:
        """To be read only, in the order of numbers."""
        return self._entries

    def sent(self, start: int, end: int, now: float) -> None:
        """[start, end) has left, for the first time (start is `nxt`) or again."""
        entries = self._entries
        if start < self.nxt:
            self._sent_again(max(start, self.una), min(end, self.nxt), now)
            start = self.nxt
        if start < end:
            if len(entries) > self._entries_max(end) and entries[-1].state == IN_FLIGHT:
                entries[-1].end = end
                if self.order and self.order[-1][2] == start:
                    self.order[-1] = (*self.order[-1][:2], end)
            else:
                entries.append(Entry(start, end, now))
                self.order.append((now, start, end))
            self.nxt = end

    def _sent_again(self, start: int, end: int, now: float) -> None:
        if start >= end:
            return
        first, last = self._cut(start, end)
        for entry in self._entries[first:last]:
            if entry.state == LOST:
                self.lost -= entry.end - entry.start
                entry.state = IN_FLIGHT
            if entry.state == IN_FLIGHT:
                entry.sent_at, entry.again = now, True
        self.order.append((now, start, end))

    def _entries_max(self, nxt: int) -> int:
        return _SPARE_ENTRIES + 2 * (nxt - self.una) // self._mss

    def acknowledged(self, una: int, blocks: Iterable[tuple[int, int]], now: float) -> None:
        """An acceptable acknowledgment (una <= nxt) with SACK blocks in the peer's order."""
        self.delivered, self.rtt_s, self.newest_sent_at, self.newest_again = 0, None, 0.0, False
        self.first_sent_once = self.dsack = None
        if una > self.una:
            self._advance(una)
        if blocks:
            self._take_blocks(list(blocks))
        if self.newest_sent_at and not self.newest_again:
            self.rtt_s = now - self.newest_sent_at  # RFC 6298 section 3: never of what was sent twice

    def _advance(self, una: int) -> None:
        entries = self._entries
        done = 0
        for entry in entries:
            if entry.end > una:
                break
            self._deliver(entry)
            done += 1
        del entries[:done]
        if entries and entries[0].start < una:
            entry = entries[0]
            self._deliver(Entry(entry.start, una, entry.sent_at, entry.state, entry.again))
            entry.start = una
        self.una = una

    def advanced(self, una: int, now: float) -> None:
        """`acknowledged` where there are no blocks, and nothing is sacked or lost: the usual case."""
        entries = self._entries
        done = 0
        newest: Entry | None = None
        sent_once = None
        for entry in entries:
            if entry.start >= una:
                break
            if newest is None or entry.sent_at >= newest.sent_at:
                newest = entry
            if sent_once is None and not entry.again:
                sent_once = min(entry.end, una)
            if entry.end > una:
                entry.start = una
                break
            done += 1
        del entries[:done]
        self.delivered, self.una = una - self.una, una
        self.forget_order()
        self.first_sent_once, self.dsack, self.rtt_s = sent_once, None, None
        if newest is None:
            self.newest_sent_at = 0.0
            return
        self.newest_sent_at, self.newest_again = newest.sent_at, newest.again
        self.newest_end = newest.end if newest.end < una else una
        if newest.sent_at and not newest.again:
            self.rtt_s = now - newest.sent_at

    def _deliver(self, entry: Entry) -> None:
        """The octets of an entry are known to have arrived; it leaves the sums of what it was."""
        octets = entry.end - entry.start
        if entry.state == SACKED:
            self.sacked -= octets
            return
        if entry.state == LOST:
            self.lost -= octets
        self.delivered += octets
        if not entry.again and self.first_sent_once is None:
            self.first_sent_once = entry.end
        if (entry.sent_at, entry.end) > (self.newest_sent_at, self.newest_end) or not self.newest_sent_at:
            self.newest_sent_at, self.newest_end, self.newest_again = entry.sent_at, entry.end, entry.again

    def _take_blocks(self, blocks: list[tuple[int, int]]) -> None:
        start, end = blocks[0]
        # RFC 2883 section 4: the first block reports a duplicate where it lies below the cumulative acknowledgment
        # (4.1) or inside the second block (4.2).
        if start < end <= self.una or (len(blocks) > 1 and blocks[1][0] <= start < end <= blocks[1][1]):
            self.dsack = (start, end)
        for start, end in blocks:
            start = max(start, self.una)
            if start < end <= self.nxt:  # RFC 2018 section 3: of what was never sent nothing can have arrived
                self._sack(start, end)

    def _sack(self, start: int, end: int) -> None:
        entries = self._entries
        index = bisect_right(entries, start, key=_start) - 1
        if entries[index].state == SACKED and entries[index].end >= end:
            return  # a repeated block
        first, last = self._cut(start, end, coarse=len(entries) > self._entries_max(self.nxt))
        if first >= last:
            return
        for entry in entries[first:last]:
            if entry.state != SACKED:
                self._deliver(entry)
        self._top = max(self._top, entries[last - 1].end)
        self._merge(first, last, SACKED)

    def _merge(self, first: int, last: int, state: int) -> None:
        """Entries first to last - 1 become one of `state`, with their neighbours of that state."""
        entries = self._entries
        self.sacked -= sum(entry.end - entry.start for entry in entries[first:last] if entry.state == SACKED)
        octets = entries[last - 1].end - entries[first].start
        if state == SACKED:
            self.sacked += octets
        else:
            self.lost += octets
        if first and entries[first - 1].state == state:
            first -= 1
        if last < len(entries) and entries[last].state == state:
            last += 1
        whole = entries[first]
        whole.end = entries[last - 1].end
        whole.state = state
        for entry in entries[first + 1 : last]:
            whole.again |= entry.again
            whole.sent_at = min(whole.sent_at, entry.sent_at)  # rather too old: nothing is lost by being younger
        del entries[first + 1 : last]

    def _cut(self, start: int, end: int, coarse: bool = False) -> tuple[int, int]:
        """Entries so that [start, end) is whole ones: the first's index, and that behind the last.

        `coarse`: split none, but leave out what does not fill its entry.
        """
        entries = self._entries
        first = bisect_right(entries, start, key=_start) - 1
        if entries[first].start < start:
            if not coarse:
                self._split(first, start)
            first += 1
        last = bisect_left(entries, end, key=_start)
        if entries[last - 1].end > end:
            if coarse:
                last -= 1
            else:
                self._split(last - 1, end)
        return first, last

    def _split(self, index: int, at: int) -> None:
        entry = self._entries[index]
        self._entries.insert(index + 1, Entry(at, entry.end, entry.sent_at, entry.state, entry.again))
        entry.end = at

    def forget_order(self) -> None:
        """Of what was sent first, leave out what is acknowledged."""
        order, una, done = self.order, self.una, 0
        for _, _, end in order:
            if end > una:
                break
            done += 1
        del order[:done]

    def in_flight_since(self, sent_at: float, start: int, end: int) -> list[int]:
        """Indices of the entries of a transmission that are still in flight, and were not sent again since."""
        entries = self._entries
        index = max(0, bisect_right(entries, start, key=_start) - 1)
        found = []
        while index < len(entries) and entries[index].start < end:
            entry = entries[index]
            if entry.state == IN_FLIGHT and entry.sent_at == sent_at:
                found.append(index)
            index += 1
        return found

    # -- what is lost ----------------------------------------------------------------------------------------------

    def mark_lost(self, first: int, last: int) -> int:
        """Entries first to last - 1 are taken for lost, those that are in flight; returns how many octets."""
        entries = self._entries
        before = self.lost
        index = last
        while index > first:
            index -= 1
            if entries[index].state == IN_FLIGHT:
                run = index
                while run > first and entries[run - 1].state == IN_FLIGHT:
                    run -= 1
                self._lost_from = min(self._lost_from, entries[run].start)
                self._merge(run, index + 1, LOST)
                index = run
        return self.lost - before

    def lose(self, start: int, end: int) -> None:
        """[start, end) is taken for lost, as far as it is in flight."""
        start, end = max(start, self.una), min(end, self.nxt)
        if start < end:
            self.mark_lost(*self._cut(start, end))

    def mark_lost_by_sack(self) -> int:
        """RFC 6675 section 4, IsLost(): in flight, sent once, and 3 blocks or more than 2 * MSS are sacked above it.

        What was sent again is RACK's to judge (its loss cannot be told by numbers). Returns how many octets.
        """
        entries = self._entries
        ranges = octets = 0
        index = bisect_left(entries, self.top, key=_start)
        while index > 0 and entries[index - 1].end > self._judged:
            index -= 1
            entry = entries[index]
            if entry.state == SACKED:
                ranges += 1
                octets += entry.end - entry.start
                if ranges >= DUPLICATE_THRESHOLD or octets > (DUPLICATE_THRESHOLD - 1) * self._mss:
                    return self._mark_sent_once(index)
        return 0

    def _mark_sent_once(self, last: int) -> int:
        entries, before, judged = self._entries, self.lost, self._judged
        self._judged = entries[last].start
        for index in range(last - 1, -1, -1):
            entry = entries[index]
            if entry.end <= judged:
                break
            if entry.state == IN_FLIGHT and not entry.again:
                self.mark_lost(index, index + 1)
        return self.lost - before

    def mark_first_lost(self) -> int:
        """The first segment is lost: three duplicate ACKs, or a partial one, of a peer without SACK (RFC 6582)."""
        if not self._entries or self._entries[0].state != IN_FLIGHT:
            return 0
        if self._entries[0].end - self.una > self._mss:
            self._split(0, self.una + self._mss)
        return self.mark_lost(0, 1)

    def mark_all_lost(self) -> int:
        """The retransmission timer expired. Returns how many octets."""
        return self.mark_lost(0, len(self._entries))

    def renege(self) -> None:
        """RFC 2018 section 8: the time-out expired, and nothing that was sacked is relied upon: all is lost."""
        for entry in self._entries:
            if entry.state == SACKED:
                entry.state, entry.again = IN_FLIGHT, True
        self.sacked = 0
        self._top = self._judged = self.una
        self.mark_all_lost()

    @property
    def reneged(self) -> bool:
        """Whether the peer sacked what it says cumulatively that it lacks."""
        return bool(self._entries) and self._entries[0].state == SACKED

    def forget_losses(self) -> None:
        """The losses were none (an undo): what was taken for lost and not sent again is in flight."""
        for entry in self._entries:
            if entry.state == LOST:
                entry.state = IN_FLIGHT
        self.lost = 0
        self.order = sorted((entry.sent_at, entry.start, entry.end) for entry in self._entries
                            if entry.state == IN_FLIGHT)

    def next_lost(self) -> tuple[int, int] | None:
        """RFC 6675 section 4, NextSeg() rule 1: the first range that is lost and was not sent again since; None."""
        if not self.lost:
            return None
        entries = self._entries
        index = max(0, bisect_right(entries, self._lost_from, key=_start) - 1)
        while entries[index].state != LOST:
            index += 1
        self._lost_from = entries[index].start
        return entries[index].start, entries[index].end

    def last_in_flight(self) -> tuple[int, int] | None:
        """The last segment's worth of the highest range in flight, for a probe (RFC 8985 section 7.3); None."""
        for entry in reversed(self._entries):
            if entry.state == IN_FLIGHT:
                return max(entry.start, entry.end - self._mss), entry.end
        return None

    def set_mss(self, mss: int) -> None:
        """The path's segment size changed."""
        self._mss = mss

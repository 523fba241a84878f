"""The scoreboard: the state of all octets that were sent and not acknowledged (RFC 2018, 2883, 6675).

The range from SND.UNA to SND.NXT is divided into entries without gaps, each in flight, selectively acknowledged
(SACKED) or supposed to be lost (LOST). Adjacent sacked, or lost, entries are merged, so a window has as many entries as
it has segments in flight plus holes, and a repeated SACK block costs one look-up. A super-segment of 64 kB is one entry
until an acknowledgment splits it. Sums of octets are maintained, not computed: `pipe` of RFC 6675 is what is in flight.

In flight includes retransmissions: `sent_at` is the latest time, and `again` means more than once (Karn). First
transmissions are in the order of their numbers, so after the first entry that was sent once and is younger than some
time, all are younger.

The number of entries is bounded by what is in flight: if a peer sacks single octets, or an application sends them, the
rest is coarser (a SACK is advisory and may be ignored).

Numbers are relative sequence numbers of octets, times are float seconds.
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
    """[start, end), its state, the time of its last transmission, and whether that was a retransmission."""

    __slots__ = ("again", "end", "sent_at", "start", "state")

    def __init__(self, start: int, end: int, sent_at: float, state: int = IN_FLIGHT, again: bool = False) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.state = state
        self.again = again


class Scoreboard:
    """The scoreboard of one connection. After `acknowledged` its fields describe that acknowledgment."""

    __slots__ = ("_entries", "_judged", "_lost_from", "_mss", "_top", "delivered", "dsack", "first_sent_once", "lost",
                 "newest_again", "newest_end", "newest_sent_at", "nxt", "order", "rtt_s", "sacked", "una")

    def __init__(self, mss: int, una: int = 0) -> None:
        self._entries: list[Entry] = []
        # Transmissions in the order of time: (time, start, end). The entries contain their present state
        self.order: list[tuple[float, int, int]] = []
        self._mss = mss
        self._lost_from = una  # nothing below is lost
        self._judged = una  # octets that were sent once below this were judged by the sacked ones above
        self._top = una  # the highest selectively acknowledged number that was not reneged
        self.una = una
        self.nxt = una
        self.sacked = 0  # octets
        self.lost = 0
        # Of the last acknowledgment:
        self.delivered = 0  # octets that it covers first
        self.rtt_s: float | None = None  # of the youngest segment that it covers and that was sent once
        # of the octets that it covers first, the youngest: time of the last transmission (0: none), its end,
        self.newest_sent_at = 0.0
        self.newest_end = 0
        self.newest_again = False  # whether it was sent again
        self.first_sent_once: int | None = None  # the lowest end of octets that it covers first and that were sent once
        self.dsack: tuple[int, int] | None = None  # octets that the peer has received twice (RFC 2883)

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
        """Octets in flight that were retransmitted (Linux's retrans_out); computed on request."""
        return sum(entry.end - entry.start for entry in self._entries if entry.again and entry.state == IN_FLIGHT)

    @property
    def top(self) -> int:
        """The number after the highest selectively acknowledged one; UNA if there is none."""
        return max(self._top, self.una)

    @property
    def entries(self) -> list[Entry]:
        """The entries in the order of numbers; read only."""
        return self._entries

    def sent(self, start: int, end: int, now: float) -> None:
        """[start, end) was sent, for the first time (start is `nxt`) or again."""
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
            self.rtt_s = now - self.newest_sent_at  # RFC 6298 section 3: never for retransmitted octets

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
        """The usual case of `acknowledged`: no blocks, and nothing is sacked or lost."""
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
                sent_once = entry.end if entry.end < una else una
            if entry.end > una:
                entry.start = una
                break
            done += 1
        del entries[:done]
        self.delivered, self.una = una - self.una, una
        if una == self.nxt:
            self.order.clear()
        else:
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
        """The octets of an entry have arrived: remove it from the sums of its state."""
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
            if start < end <= self.nxt:  # RFC 2018 section 3: octets that were never sent cannot have arrived
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
        """Entries first to last - 1 become one entry of `state`, merged with their neighbours of that state."""
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
            # the older time, because too old does less harm than too young
            whole.sent_at = min(whole.sent_at, entry.sent_at)
        del entries[first + 1 : last]

    def _cut(self, start: int, end: int, coarse: bool = False) -> tuple[int, int]:
        """Split entries so that [start, end) consists of whole ones; returns the first index and the one after the
        last.

        `coarse`: split none, but leave out partial entries.
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
        """Remove acknowledged transmissions from the start of the list."""
        order, una, done = self.order, self.una, 0
        for _, _, end in order:
            if end > una:
                break
            done += 1
        del order[:done]

    def in_flight_since(self, sent_at: float, start: int, end: int) -> list[int]:
        """Indices of the entries of a transmission that are still in flight and were not retransmitted since."""
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
        """Mark those of entries first to last - 1 that are in flight as lost; returns the number of octets."""
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
        """Mark the part of [start, end) that is in flight as lost."""
        start, end = max(start, self.una), min(end, self.nxt)
        if start < end:
            self.mark_lost(*self._cut(start, end))

    def mark_lost_by_sack(self) -> int:
        """RFC 6675 section 4, IsLost(): in flight, sent once, and 3 blocks or more than 2 * MSS are sacked above it.

        RACK judges retransmissions (numbers do not reveal their loss). Returns the number of octets.
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
        """The first segment is lost: three duplicate ACKs, or a partial ACK, from a peer without SACK (RFC 6582)."""
        if not self._entries or self._entries[0].state != IN_FLIGHT:
            return 0
        if self._entries[0].end - self.una > self._mss:
            self._split(0, self.una + self._mss)
        return self.mark_lost(0, 1)

    def mark_all_lost(self) -> int:
        """The retransmission timer has expired. Returns the number of octets."""
        return self.mark_lost(0, len(self._entries))

    def renege(self) -> None:
        """RFC 2018 section 8: after a timeout SACK information is discarded: everything is lost."""
        for entry in self._entries:
            if entry.state == SACKED:
                entry.state, entry.again = IN_FLIGHT, True
        self.sacked = 0
        self._top = self._judged = self.una
        self.mark_all_lost()

    @property
    def reneged(self) -> bool:
        """True if the peer sacked octets that its cumulative acknowledgment says are missing."""
        return bool(self._entries) and self._entries[0].state == SACKED

    def forget_losses(self) -> None:
        """The losses were spurious (an undo): lost octets that were not retransmitted are in flight."""
        for entry in self._entries:
            if entry.state == LOST:
                entry.state = IN_FLIGHT
        self.lost = 0
        self.order = sorted((entry.sent_at, entry.start, entry.end) for entry in self._entries
                            if entry.state == IN_FLIGHT)

    def next_lost(self) -> tuple[int, int] | None:
        """RFC 6675 section 4, NextSeg() rule 1: the first range that is lost and was not retransmitted since; None."""
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

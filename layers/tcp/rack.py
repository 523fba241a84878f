"""RACK-TLP (RFC 8985): loss is told by time, and the last segments of a flight are probed for.

RACK: a segment is lost if one that was sent *later* has arrived, and by then it had a round trip and a little more to
arrive itself. That little more, the reordering window, is a quarter of the least round trip; it grows with each round
in which the peer reports that something was sent again for nothing (D-SACK), and is given up where no reordering was
ever seen. Retransmissions have a time of their own, so the loss of one is found like any other.

TLP: where acknowledgments stop, nothing sent later can tell of a loss. Two round trips after the last transmission
one segment is sent, new or the last one again; its acknowledgment tells what is missing, and spares the time-out.

What arrives within one turn of the event loop has one time, and what is sent in one has too: reordering below a turn
looks like none, and a round trip of 50 us is measured as 0 or as a turn. So the window is never below TURN_S, and it
is three duplicates (RFC 6675), not a window of 0, that find a loss at once where no reordering was seen.
"""

from __future__ import annotations

from layers.tcp.scoreboard import IN_FLIGHT, Scoreboard

TURN_S = 0.001  # how long a turn of the loop may take when it is busy
DSACK_ROUNDS_FORGET = 16  # RFC 8985 section 6.2 step 4: recoveries without D-SACK until the window is small again
PROBE_MIN_S = 0.002
DELAYED_ACK_MAX_S = 0.2  # RFC 8985 section 7.2: WCDelAckT


class Rack:
    """RACK of one connection. Numbers, seconds."""

    __slots__ = ("_dsack_round", "_multiple", "_persist", "due", "end", "reordering_seen", "rtt_s", "sent_at")

    def __init__(self) -> None:
        self.sent_at = 0.0  # RACK.xmit_ts: of what arrived, the segment sent last: when,
        self.end = 0  # RACK.end_seq,
        self.rtt_s = 0.0  # RACK.rtt: its round trip
        self.reordering_seen = False
        self.due: float | None = None  # when `detect` is to be asked again
        self._multiple = 1  # RACK.reo_wnd_mult
        self._persist = DSACK_ROUNDS_FORGET  # RACK.reo_wnd_persist
        self._dsack_round: int | None = None

    def acknowledged(self, board: Scoreboard, highest_before: int, min_rtt_s: float, echoed_at: float | None,
                     now: float) -> None:
        """Steps 1 to 3 of section 6.2. `highest_before`: the highest number known to have arrived before (RACK.fack).

        `echoed_at`: when the segment left that the timestamp answers, as far as known.
        """
        if board.newest_sent_at:
            rtt_s = now - board.newest_sent_at
            # Step 2: it may answer the original: an echo that is older, or a round trip shorter than any (by an eighth,
            # as a lone probe finds shorter queues than a flight).
            ambiguous = board.newest_again and (rtt_s < min_rtt_s * 0.875 or (
                echoed_at is not None and echoed_at < board.newest_sent_at))
            if not ambiguous:
                self.rtt_s = rtt_s
                if (board.newest_sent_at, board.newest_end) > (self.sent_at, self.end):
                    self.sent_at, self.end = board.newest_sent_at, board.newest_end
        if board.first_sent_once is not None and board.first_sent_once < highest_before:
            self.reordering_seen = True  # step 3
        if board.dsack is not None and (self._dsack_round is None or board.una >= self._dsack_round):
            self._dsack_round = board.nxt  # step 4: at most once a round trip
            self._multiple += 1
            self._persist = DSACK_ROUNDS_FORGET

    def recovered(self) -> None:
        """A recovery has ended (fast, or after a time-out)."""
        self._persist -= 1
        if self._persist <= 0:
            self._multiple, self._persist = 1, DSACK_ROUNDS_FORGET

    def window_s(self, rtt_s: float, min_rtt_s: float, recovering: bool) -> float:
        """The reordering window; `rtt_s` smoothed."""
        if recovering and not self.reordering_seen:
            return TURN_S  # step 4: 0, but for the turn of the loop
        return max(TURN_S, min(self._multiple * min_rtt_s / 4, rtt_s))

    def detect(self, board: Scoreboard, window_s: float, now: float) -> int:
        """Step 5: mark what is lost; returns how many octets. `due` says when more may be."""
        self.due = None
        if not self.sent_at:
            return 0
        entries, order, octets, done = board.entries, board.order, 0, 0
        allowed_s = self.rtt_s + window_s
        for number, (sent_at, start, end) in enumerate(order):
            if sent_at > self.sent_at:
                break  # so is all that follows
            late_at = sent_at + allowed_s
            waiting = board.in_flight_since(sent_at, start, end)
            judged = [index for index in waiting if sent_at < self.sent_at or entries[index].end <= self.end]
            if late_at <= now:
                for index in reversed(judged):
                    octets += board.mark_lost(index, index + 1)
            elif judged:
                self.due = late_at
                break
            if len(judged) == len(waiting) and number == done:
                done += 1
        del order[:done]
        return octets

    def timed_out(self, board: Scoreboard, window_s: float, now: float) -> int:
        """Section 6.3: the retransmission timer expired.

        What had its round trip is lost, and the first in any case.
        """
        self.due = None
        late = [index for index, entry in enumerate(board.entries) if entry.state == IN_FLIGHT
                and (index == 0 or entry.sent_at + self.rtt_s + window_s <= now)]
        return sum(board.mark_lost(index, index + 1) for index in reversed(late))


class TailProbe:
    """TLP of one connection."""

    __slots__ = ("_resent", "end")

    def __init__(self) -> None:
        self.end: int | None = None  # TLP.end_seq: SND.NXT when the probe was sent; None: no probe is out
        self._resent = False  # TLP.is_retrans

    @staticmethod
    def timeout_s(rtt_s: float, flight: int, mss: int) -> float:
        """PTO (section 7.2), from the last transmission or acknowledgment. `rtt_s` smoothed; 0: none measured."""
        if not rtt_s:
            return 1.0
        timeout_s = max(2 * rtt_s, PROBE_MIN_S)
        return timeout_s + DELAYED_ACK_MAX_S if flight <= mss else timeout_s

    def sent(self, nxt: int, resent: bool) -> None:
        """The probe has left: again a segment, or a new one."""
        self.end, self._resent = nxt, resent

    def acknowledged(self, una: int, dsack: bool, repeated: bool) -> bool:
        """Section 7.4.2: True where the probe repaired a loss that nobody saw: the window shall be reduced.

        `repeated`: the acknowledgment says nothing new (no SACK block, same number).
        """
        if self.end is None or una < self.end:
            return False
        if not self._resent or dsack:
            self.end = None  # it was new data, or both it and the original have arrived
            return False
        if una > self.end:
            self.end = None
            return True
        if repeated:
            self.end = None  # the acknowledgments of both: nothing was lost
        return False

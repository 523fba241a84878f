"""RACK-TLP (RFC 8985): losses are detected by time, and the tail of a flight is probed.

RACK: a segment is lost if one that was sent *later* has arrived, and the segment itself had a round trip plus the
reordering window to arrive. The reordering window is a quarter of the minimum round trip. It grows in each round in
which the peer reports an unnecessary retransmission (D-SACK), and is zero while no reordering was ever seen.
Retransmissions have their own transmission time, so their loss is detected likewise.

TLP: if acknowledgments stop, no later segment reveals a loss. Two round trips after the last transmission a segment is
sent, a new one or the last one again. Its acknowledgment reveals the loss, which avoids the timeout.

All segments that arrive in one turn of the event loop have the same time, and so have all that are sent in one. So
reordering within a turn is invisible, and a round trip of 50 us is measured as 0 or as a turn. Therefore the window is
never below TURN_S, and three duplicates (RFC 6675), instead of a window of 0, detect a loss at once while no reordering
was seen.
"""

from __future__ import annotations

from layers.tcp.scoreboard import IN_FLIGHT, Scoreboard

TURN_S = 0.001  # maximum duration of a turn of a busy loop
DSACK_ROUNDS_FORGET = 16  # RFC 8985 section 6.2 step 4: recoveries without D-SACK until the window is small again
PROBE_MIN_S = 0.002
DELAYED_ACK_MAX_S = 0.2  # RFC 8985 section 7.2: WCDelAckT


class Rack:
    """RACK of one connection. Numbers, seconds."""

    __slots__ = ("_dsack_round", "_multiple", "_persist", "due", "end", "reordering_seen", "rtt_s", "sent_at")

    def __init__(self) -> None:
        self.sent_at = 0.0  # RACK.xmit_ts: transmission time of the latest sent among the delivered segments,
        self.end = 0  # RACK.end_seq,
        self.rtt_s = 0.0  # RACK.rtt: its round trip
        self.reordering_seen = False
        self.due: float | None = None  # time of the next `detect`
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
            # Step 2: the acknowledgment may be of the original: an older timestamp echo, or a round trip shorter than
            # any (by an eighth, because a single probe sees shorter queues than a flight).
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
        """Step 5: mark lost segments; returns the number of octets. `due` is the time of the next check."""
        self.due = None
        if not self.sent_at:
            return 0
        entries, order, octets, done = board.entries, board.order, 0, 0
        allowed_s = self.rtt_s + window_s
        for number, (sent_at, start, end) in enumerate(order):
            if sent_at > self.sent_at:
                break  # all that follow are younger
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
        """Section 6.3: the retransmission timer has expired.

        Segments that had their round trip are lost, and the first one in any case.
        """
        self.due = None
        late = [index for index, entry in enumerate(board.entries) if entry.state == IN_FLIGHT
                and (index == 0 or entry.sent_at + self.rtt_s + window_s <= now)]
        return sum(board.mark_lost(index, index + 1) for index in reversed(late))


class TailProbe:
    """TLP of one connection."""

    __slots__ = ("_resent", "end", "measured")

    def __init__(self) -> None:
        self.end: int | None = None  # TLP.end_seq: SND.NXT when the probe was sent; None: no probe is out
        self._resent = False  # TLP.is_retrans
        self.measured = True  # section 7.3: a round trip was measured since the last probe, or there was none

    @staticmethod
    def timeout_s(rtt_s: float, flight: int, mss: int) -> float:
        """PTO (section 7.2), from the last transmission or acknowledgment. `rtt_s` is smoothed; 0: not measured."""
        if not rtt_s:
            return 1.0
        timeout_s = max(2 * rtt_s, PROBE_MIN_S)
        return timeout_s + DELAYED_ACK_MAX_S if flight <= mss else timeout_s

    def sent(self, nxt: int, resent: bool) -> None:
        """The probe was sent: a retransmission or a new segment."""
        self.end, self._resent, self.measured = nxt, resent, False

    def acknowledged(self, una: int, dsack: bool, repeated: bool) -> bool:
        """Section 7.4.2: True if the probe repaired an undetected loss, so that the window must be reduced.

        `repeated`: the acknowledgment contains nothing new (no SACK block, same number).
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

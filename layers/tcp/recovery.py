"""Loss recovery and congestion control of one connection: the interface described in `layers.tcp.connection`.

Its parts are independent: the scoreboard knows what is in flight, RACK which of it is lost, congestion control how much
may be in flight, PRR how to get there, the timer when to give up waiting, F-RTO and D-SACK whether a reduction was
spurious. This module has the states between them (Linux's names): OPEN, RECOVERY after a loss that acknowledgments
revealed, LOSS after a timeout. Both end when everything that was in flight at their beginning is acknowledged.

Without SACK three duplicate acknowledgments indicate a loss, and a partial one indicates the next (RFC 5681, RFC 6582);
each duplicate stands for a delivered segment.

Numbers are relative, times are float seconds, sizes are octets.
"""

from __future__ import annotations

from collections.abc import Sequence

from layers.tcp import advisory
from layers.tcp.congestion import DEFAULT, ECN, LOSS_WINDOW_SEGMENTS, TIMEOUT, CongestionControl, find, initial_window
from layers.tcp.congestion import LOSS as BY_LOSS
from layers.tcp.pacing import Pacing
from layers.tcp.prr import ProportionalRateReduction
from layers.tcp.rack import Rack, TailProbe
from layers.tcp.retransmission import RTO_MIN_S, RetransmissionTimer
from layers.tcp.scoreboard import DUPLICATE_THRESHOLD, Scoreboard
from layers.tcp.spurious import TICK_S, Doubt

OPEN, RECOVERY, LOSS = range(3)


class Recovery:
    """One connection's. `sack`: the peer sends SACK blocks."""

    __slots__ = ("_advise_at", "_asked", "_asking_until", "_doubt", "_duplicates", "_ecn_point", "_full", "_last_sent",
                 "_more", "_point", "_probe_due", "_probe_from", "_prr", "_rack", "_round_at", "_round_end",
                 "_round_from", "_rto_at", "_state", "_syn_expiries", "_tail", "_used", "advises", "board", "control",
                 "delivery_rate", "mss", "pacing", "retransmits", "sack", "timer")

    def __init__(self, mss: int, congestion: str = DEFAULT, sack: bool = False) -> None:
        algorithm = find(congestion) or find(DEFAULT)  # the successor's code may lack the algorithm
        assert algorithm is not None
        self.mss = mss
        self.sack = sack
        self.control: CongestionControl = algorithm(mss)
        self.timer = RetransmissionTimer()
        self.board = Scoreboard(mss)
        self.retransmits = 0  # number of retransmitted segments, in all
        self.pacing = Pacing()
        self._rack = Rack()
        self._tail = TailProbe()
        self._doubt = Doubt()
        self._prr: ProportionalRateReduction | None = None
        self._state = OPEN
        self._point = 0  # the recovery ends when this is acknowledged
        self._ecn_point = 0  # until this is acknowledged no ECN mark counts
        self._duplicates = 0  # without SACK
        self._rto_at: float | None = None
        self._probe_from = 0.0  # the last acknowledgment, or transmission of something new
        self._probe_due = False  # a tail loss probe is to be sent
        self._more = False  # when the last new segment was sent, more was waiting
        self._last_sent = 0.0
        self._full = 0  # octets below were sent while the congestion window was the limit
        self._round_end = self._round_from = 0
        self._round_at = 0.0  # when the round trip began, with `_round_from` acknowledged
        self.delivery_rate = 0.0  # octets acknowledged per second of the last round trip
        self.advises = False  # `store` is due
        self._advise_at = 0.0
        self._used = 0  # maximum in flight in this round trip and the last
        self._syn_expiries = 0
        self._asked = False  # the single segment was sent
        # after a restart, until this time the successor learns what has arrived
        self._asking_until: float | None = None

    # -- to be read ------------------------------------------------------------------------------------------------

    @property
    def rtt_s(self) -> float:
        """SRTT; 0: not measured."""
        return self.timer.rtt_s

    @property
    def rtt_variance_s(self) -> float:
        """RTTVAR."""
        return self.timer.rtt_variance_s

    @property
    def min_rtt_s(self) -> float:
        """The minimum round trip of the last minutes."""
        return self.timer.min_rtt_s

    @property
    def rto_s(self) -> float:
        """The timeout, including back-off."""
        return self.timer.rto_s

    @property
    def backoffs(self) -> int:
        """How often the timeout was doubled."""
        return self.timer.backoffs

    @property
    def cwnd(self) -> int:
        """The congestion window."""
        return int(self.control.cwnd)

    @property
    def ssthresh(self) -> int:
        """The slow start threshold."""
        return int(self.control.ssthresh)

    @property
    def in_flight(self) -> int:
        """Octets in the network, as far as known (RFC 6675: pipe)."""
        pipe = self.board.pipe
        return pipe if self.sack else max(0, pipe - self._duplicates * self.mss)

    @property
    def reordering_seen(self) -> bool:
        """Segments were late and not lost."""
        return self._rack.reordering_seen

    @property
    def congestion_state(self) -> int:
        """As Linux's enum tcp_ca_state: 0 open, 1 disorder, 3 recovery, 4 loss."""
        return (1 if self.board.sacked else 0, 3, 4)[self._state]

    @property
    def freed(self) -> bool:
        """Nothing is in flight."""
        return self.board.nxt == self.board.una

    # -- sending ---------------------------------------------------------------------------------------------------

    def lost(self) -> tuple[int, int] | None:
        """The first range to retransmit."""
        if self._probe_due and not self._more:
            return self.board.last_in_flight()
        if not self.board.lost or self._doubt.frto.wants_new_data:
            return None
        return self.board.next_lost()

    def allowance(self, now: float) -> int:
        """Number of octets that may be sent now."""
        board = self.board
        pipe = self.in_flight if board.nxt > board.una else 0
        if board.nxt == board.una and self._last_sent:
            self.control.idle(now - self._last_sent, self.timer.base_s)  # RFC 5681 section 4.1
            self._last_sent = now
        if self._asking_until is not None and board.lost:
            return 0 if self._asked else self.mss
        room = int(self.control.cwnd) - pipe
        if room < self.mss and (self._probe_due or not pipe):
            return self.mss  # RFC 8985 section 7.3: a probe is sent whatever the window
        if self._state == LOSS or room <= 0:
            self.pacing.held()
            return max(0, room)
        control, window = self.control, self.control.cwnd
        if self._state == RECOVERY:
            window = max(window, control.ssthresh)  # what it has saved up leaves no faster than the window after it
        elif not pipe:
            self.pacing.starts(initial_window(self.mss))
        return self.pacing.allowance(room, window, window < control.ssthresh, self.timer.rtt_s, self.mss, now)

    def sent(self, start: int, end: int, now: float, limited: bool) -> None:
        """[start, end) is sent now."""
        board = self.board
        again = start < board.nxt
        board.sent(start, end, now)
        self._last_sent = self._probe_from = now
        if self.pacing.rate:
            self.pacing.sent(end - start, now)
        if self._prr is not None:
            self._prr.sent(end - start)
        if again:
            self.retransmits += -(-(end - start) // self.mss)
            self._asked = True
            self._doubt.resent(end - start, now)
        else:
            self._more = not limited
            flight = board.nxt - board.una  # at least what is in the network
            if flight > self._used:
                self._used = flight
            if self.control.cwnd - flight < self.mss and self.control.cwnd - self.in_flight < self.mss:
                self._full = end
        if self._probe_due:
            self._probe_due = False
            self._tail.sent(board.nxt, again)
            self._rto_at = now + self.timer.rto_s  # RFC 8985 section 7.3
        elif self._rto_at is None or again:
            if self._rto_at is None:  # after a pause
                self._round_from, self._round_at = board.una, now
            self._rto_at = now + self.timer.rto_s  # RFC 6298 section 5.1

    def sent_alone(self, start: int, end: int, now: float) -> bool:
        """The usual case of `allowance` and `sent`: [start, end), less than a segment and all that there is to send, is
        sent while nothing is in flight. It takes half the time. False: something else, and nothing was done."""
        board, control, timer, pacing, mss = self.board, self.control, self.timer, self.pacing, self.mss
        if (board.nxt != start or board.una != start or self._state != OPEN or self._probe_due or end - start >= mss
                or control.cwnd < 2 * mss or not pacing.pauses(control.cwnd, timer.rtt_s, mss)):
            return False
        if self._last_sent:
            control.idle(now - self._last_sent, timer.base_s)
        pacing.starts(initial_window(mss))
        board.sent(start, end, now)
        self._last_sent = self._probe_from = now
        self._more = False
        if end - start > self._used:
            self._used = end - start
        if self._rto_at is None:
            self._round_from, self._round_at = start, now
            self._rto_at = now + timer.rto_s
        return True

    # -- acknowledgments -------------------------------------------------------------------------------------------

    def acknowledged(self, una: int, sack: Sequence[tuple[int, int]], now: float, duplicate: bool,
                     echoed_s: float | None) -> None:
        """A segment with an acceptable ACK arrived."""
        board, control = self.board, self.control
        before = board.una
        advanced = una > before
        if (advanced and not sack and self._state == OPEN and not board.sacked and not board.lost
                and self._tail.end is None and not self._syn_expiries):
            self._advanced(una, before, now, echoed_s)
            return
        highest = board.top
        board.acknowledged(una, sack, now)
        if sack:
            self.sack = True
        if not before and advanced:
            self._established(now)
        elif (board.rtt_s if board.rtt_s is not None else echoed_s if advanced else None) is not None:
            self._measure(board.rtt_s if board.rtt_s is not None else echoed_s or TICK_S, now)
        if before and self._syn_expiries:
            self._syn_expiries = 0
        if una > self._round_end:
            self._next_round(una, now)
        echoed_at = now - echoed_s - TICK_S if echoed_s is not None else None
        if self._doubt.mistaken(board, advanced, duplicate, echoed_at, self._state != OPEN):
            self._undo()
        lost = self._detect(before, highest, advanced, duplicate, echoed_at, now)
        if self._state == RECOVERY and not board.lost and not self._doubt.resent_at and not lost:
            self._undo()  # supposedly lost segments have arrived before anything was retransmitted
        if self._state != OPEN and una >= self._point:
            self._recovered()
        if lost and self._state == OPEN:
            self._enter(RECOVERY, BY_LOSS, now, board.pipe + lost + board.delivered)
        if self._tail.acknowledged(una, board.dsack is not None, not advanced and not sack) and self._state == OPEN:
            control.reduce(self._in_use(0), BY_LOSS, now)  # RFC 8985 section 7.4.2: the probe repaired a loss
            control.recovered()
        delivered = board.delivered or (self.mss if duplicate and not self.sack else 0)
        if self._prr is not None:
            control.cwnd = self._prr.acknowledged(delivered, self.in_flight, control.ssthresh, self.mss,
                                                  advanced and not lost)
        elif advanced and before:
            control.acknowledged(board.delivered, now, self.timer.rtt_s, limited=not self._validated(before))
        self._probe_from = now
        if board.nxt == una:
            self._idle()
        elif advanced or lost:
            self._rto_at = now + self.timer.rto_s  # RFC 6298 section 5.3

    def _advanced(self, una: int, before: int, now: float, echoed_s: float | None) -> None:
        """The usual case of `acknowledged`: nothing is missing, and more was delivered. It takes half the time."""
        board, rack, control, timer = self.board, self._rack, self.control, self.timer
        board.advanced(una, now)
        rtt_s = board.rtt_s if board.rtt_s is not None else echoed_s
        flight = board.nxt - una
        if not before:
            self._established(now)
        elif rtt_s is not None:
            per_round = flight // (2 * self.mss)
            timer.sample(rtt_s, now, per_round if per_round > 1 else 1)
            self._tail.measured = True
            if control.cwnd < control.ssthresh:
                control.round_trip(rtt_s, una, board.nxt)
        if board.newest_sent_at and not board.newest_again:
            rack.sent_at, rack.end, rack.rtt_s = board.newest_sent_at, board.newest_end, now - board.newest_sent_at
        self._duplicates = 0
        if una > self._round_end:
            self._next_round(una, now)
        if before:
            control.acknowledged(board.delivered, now, timer.rtt_s, not self._validated(before))
        self._probe_from = now
        if flight:
            self._rto_at = now + timer.rto_s
        else:
            self._idle()

    def _next_round(self, una: int, now: float) -> None:
        self._round_end, self._used = self.board.nxt, max(self.board.nxt - una, self._used // 2)
        if now > self._round_at:
            self.delivery_rate = (una - self._round_from) / (now - self._round_at)
        self._round_from, self._round_at = una, now
        self.advises = now >= self._advise_at

    def _validated(self, una: int) -> bool:
        """RFC 7661 section 4.2: True if the acknowledged octets were sent while the window was the limit, or half of
        it."""
        if self._state == LOSS or una < self._full:
            return True
        return self.control.cwnd < self.control.ssthresh and self.control.cwnd < 2 * self._used  # as Linux

    def _established(self, now: float) -> None:
        """The SYN is acknowledged."""
        self.timer.established(self._syn_expiries > 0)
        if self.board.rtt_s is not None:
            self.timer.sample(self.board.rtt_s, now)
        if self._syn_expiries > 1:  # RFC 6928 section 2: only where it was lost more than once
            self.control.cwnd = float(LOSS_WINDOW_SEGMENTS * self.mss)
        self._state = OPEN

    def _measure(self, rtt_s: float, now: float) -> None:
        board = self.board
        self._tail.measured = True
        self.timer.sample(rtt_s, now, max(1, board.flight // (2 * self.mss)))
        self.control.round_trip(rtt_s, board.una, board.nxt)

    def _undo(self) -> None:
        self.control.undo()
        self.board.forget_losses()
        self._rack.reordering_seen = True
        self._doubt.end()
        self._state, self._prr = OPEN, None
        self.timer.progress()

    def _detect(self, before: int, highest: int, advanced: bool, duplicate: bool, echoed_at: float | None,
                now: float) -> int:
        """Mark lost segments; returns the number of octets."""
        board, rack = self.board, self._rack
        if self.sack:
            rack.acknowledged(board, highest, self.timer.min_rtt_s, echoed_at, now)
            if not board.sacked and not rack.due and self._state == OPEN:
                return 0
            lost = 0 if rack.reordering_seen else board.mark_lost_by_sack()
            return lost + rack.detect(board, self._window_s(), now)
        if advanced:
            self._duplicates = 0
            if self._state == RECOVERY and board.una < self._point:
                return board.mark_first_lost()  # RFC 6582 section 3.2 step 3: a partial acknowledgment
        elif duplicate:
            self._duplicates += 1
            if self._duplicates == DUPLICATE_THRESHOLD and self._state == OPEN and before > self._point:
                return board.mark_first_lost()  # RFC 5681 section 3.2; RFC 6582 section 3.2 step 1
        return 0

    def _window_s(self) -> float:
        return self._rack.window_s(self.timer.rtt_s, self.timer.min_rtt_s, self._state != OPEN)

    # -- states ----------------------------------------------------------------------------------------------------

    def _enter(self, state: int, cause: int, now: float, flight: int) -> None:
        """A loss: reduce the window, once until everything that was in flight is acknowledged."""
        board = self.board
        self.control.reduce(self._in_use(flight), cause, now)
        self._state, self._point = state, board.nxt
        self._doubt.begin(board.una)
        self._prr = ProportionalRateReduction(flight) if state == RECOVERY else None
        self._tail.end = None

    def _in_use(self, flight: int) -> float:
        """The base of a reduction: the window or, if it was not the limit, the octets in flight."""
        return self.control.cwnd if self.board.una < self._full else max(self._used, flight)

    def _recovered(self) -> None:
        if self._state == RECOVERY:
            self.control.recovered()
        self._rack.recovered()
        self._doubt.frto.step = 0
        self._state, self._prr, self._duplicates = OPEN, None, 0

    def congestion_experienced(self, now: float) -> None:
        """RFC 3168 section 6.1.2: ECE arrived: reduce as for a loss, at most once per round trip, but retransmit
        nothing."""
        if self._state == OPEN and self.board.una >= self._ecn_point:
            self.control.reduce(self._in_use(0), ECN, now)
            self.control.recovered()
            self._ecn_point = self.board.nxt

    def expire(self, now: float) -> bool:
        """The deadline has come; True: it was the timeout."""
        self.pacing.due = None
        rack = self._rack
        timed_out = False
        probe_at = self._probe_at()
        if self._asking_until is not None and self._asking_until <= now:
            self._asking_until = None
        elif rack.due is not None and rack.due <= now:
            pipe = self.board.pipe
            if rack.detect(self.board, self._window_s(), now) and self._state == OPEN:
                self._enter(RECOVERY, BY_LOSS, now, pipe)
                assert self._prr is not None
                self.control.cwnd = self._prr.acknowledged(0, self.in_flight, self.control.ssthresh, self.mss, False)
        elif probe_at is not None and probe_at <= now:
            self._probe_due = True
            self._rto_at = now + self.timer.rto_s
        elif self._rto_at is not None and self._rto_at <= now and self.board.flight:
            self._time_out(now)
            timed_out = True
        return timed_out

    def _time_out(self, now: float) -> None:
        board, control, timer = self.board, self.control, self.timer
        first = timer.backoffs == 0
        timer.expired()
        self._rto_at = now + timer.rto_s
        if not board.una:
            self._syn_expiries += 1
            board.mark_all_lost()
            return
        reneged = board.reneged
        if self._state == OPEN or (self._state == LOSS and first):
            self._enter(LOSS, TIMEOUT, now, board.flight)  # RFC 5681 section 3.1: only once for retransmissions
        self._state, self._prr, self._point, self._duplicates = LOSS, None, board.nxt, 0
        control.timed_out()
        if first and not reneged:
            self._doubt.frto.expired(board.una, board.nxt, now)
            if not self._more:
                self._doubt.frto.nothing_new_to_send()
        else:
            self._doubt.frto.step = 0
        if reneged:
            board.renege()  # RFC 2018 section 8
        elif self.sack:
            self._rack.timed_out(board, self._window_s(), now)
        else:
            board.mark_all_lost()
        self._tail.end, self._probe_due = None, False

    @property
    def deadline(self) -> float | None:
        """When `expire` is due: time-out, probe or reordering. None: nothing is in flight."""
        board = self.board
        if board.nxt == board.una:
            return None
        at = self._rto_at
        probe_at = self._probe_at()
        if probe_at is not None and (at is None or probe_at < at):
            at = probe_at
        if (due := self.pacing.due) is not None and (at is None or due < at):
            at = due
        due = self._rack.due if self._asking_until is None else self._asking_until
        return due if due is not None and (at is None or due < at) else at

    def _probe_at(self) -> float | None:
        """RFC 8985 section 7.2; if the timeout would be earlier, the probe replaces it."""
        board, at = self.board, self._rto_at
        if (self._state != OPEN or at is None or not self.sack or board.sacked or board.lost or self._probe_due
                or self._tail.end is not None or not self._tail.measured or not self.timer.rtt_s):
            return None
        probe_at = self._probe_from + self._tail.timeout_s(self.timer.rtt_s, board.nxt - board.una, self.mss)
        return probe_at if probe_at < at else at

    def _idle(self) -> None:
        """Nothing is in flight."""
        self._rto_at = self._rack.due = self._asking_until = self.pacing.due = None

    # -- the window, the path, a successor -------------------------------------------------------------------------

    def probe(self, start: int, end: int) -> None:
        """[start, end) was sent beyond the peer's window: it is not in flight, and must be sent again."""
        self.board.sent(start, end, 0.0)
        self.board.lose(start, end)
        self._rto_at = None

    def window_closed(self, now: float) -> None:
        """The timeout came while the window is closed, which is no sign of congestion."""
        self.board.mark_all_lost()
        self._rto_at = None

    def reduce_mss(self, mss: int) -> None:
        """Segments are smaller from now on; larger ones in flight are lost, which is no sign of congestion."""
        shrunk, self.mss = mss < self.mss, mss
        self.board.set_mss(mss)
        self.control.set_mss(mss, anew=self.board.nxt <= 1)
        if shrunk and self.board.una:
            self.board.mark_all_lost()

    def store(self, memory: memoryview, at: int) -> None:
        """Store advice for a successor (`layers.tcp.advisory`)."""
        self.advises, self._advise_at = False, self._round_at + advisory.INTERVAL_S
        memory[at : at + advisory.OCTETS] = advisory.pack(self)

    def load(self, octets: memoryview) -> None:
        """Load the advice of a predecessor."""
        advisory.unpack(self, octets[: advisory.OCTETS])

    def use(self, congestion: str) -> None:
        """TCP_CONGESTION: another algorithm continues from the same window."""
        algorithm, former = find(congestion), self.control
        if algorithm is not None and algorithm.name != former.name:
            self.control = algorithm(self.mss)
            self.control.restore((former.cwnd, former.ssthresh, 0.0, 0.0))

    def restored(self, una: int, nxt: int, now: float, last_sent: float = 0.0) -> None:
        """In a successor: [una, nxt) was sent by its predecessor, at an unknown time.

        One segment from `una` asks what has arrived. For a round trip, answers to the predecessor's segments may also
        arrive; what is not acknowledged by then is lost, which is no sign of congestion.
        """
        self.board = board = Scoreboard(self.mss, una)
        self._point = self._round_end = una
        self._last_sent = last_sent
        self._asked = False
        if nxt > una:
            for _ in range(2):  # Karn: no round trip is measured for it
                board.sent(una, nxt, max(1e-6, now - self.timer.base_s))
            board.mark_all_lost()
            rtt_s = self.timer.rtt_s
            self._asking_until = now + (rtt_s + max(4 * self.timer.rtt_variance_s, rtt_s / 4) or RTO_MIN_S)
            self._rto_at = now + self.timer.rto_s

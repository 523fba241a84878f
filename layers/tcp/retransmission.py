"""Round trips and the retransmission timer (RFC 6298, RFC 7323), and spurious timeouts (F-RTO, RFC 5682).

The timer is the last resort: it expires if no acknowledgment reveals a loss. So it has to be longer than any round trip
on the path: the smoothed round trip time plus four times its mean deviation. Each expiry doubles it until the peer
acknowledges something new. Retransmitted segments give no samples (Karn), unless the peer's timestamp echo identifies
the transmission.

If the round trip suddenly increases, the timer expires without a loss. F-RTO detects this by retransmitting one segment
and then sending new data: if acknowledgments then cover segments that were sent only once, the originals have arrived,
and the congestion window can be restored. With timestamps the echo itself shows this (Eifel, RFC 3522).

Times are float seconds of a monotonic clock, numbers are relative sequence numbers.
"""

from __future__ import annotations

RTO_INITIAL_S = 1.0  # RFC 6298 section 2.1
RTO_AFTER_SYN_LOSS_S = 3.0  # RFC 6298 section 5.7
RTO_MIN_S = 0.2  # Linux's TCP_RTO_MIN; RFC 6298 section 2.4 says 1 s SHOULD
RTO_MAX_S = 120.0  # Linux's TCP_RTO_MAX; RFC 6298 section 2.5: at least 60 s
MIN_RTT_WINDOW_S = 300.0  # Linux's tcp_min_rtt_wlen

R1 = 3  # expiries before the path is suspected (RFC 9293 section 3.8.3; Linux's tcp_retries1)
R2 = 15  # expiries before the connection is given up (Linux's tcp_retries2)


class RetransmissionTimer:
    """Round trip estimate, time-out and back-off of one connection."""

    __slots__ = ("_min_at", "backoffs", "base_s", "min_rtt_s", "rto_s", "rtt_s", "rtt_variance_s")

    def __init__(self) -> None:
        self.rtt_s = 0.0  # SRTT; 0: no sample yet
        self.rtt_variance_s = 0.0  # RTTVAR
        self.min_rtt_s = 0.0  # least of the last minutes; 0: no sample yet
        self._min_at = 0.0
        self.backoffs = 0  # expiries since the last progress
        self.base_s = RTO_INITIAL_S  # RTO without back-off
        self.rto_s = RTO_INITIAL_S  # RTO

    def sample(self, rtt_s: float, now: float, per_round: int = 1) -> None:
        """A round trip was measured, so the back-off ends. `per_round`: number of samples per round trip."""
        if rtt_s < 1e-6:
            rtt_s = 1e-6
        if rtt_s <= self.min_rtt_s or not self.min_rtt_s or now - self._min_at > MIN_RTT_WINDOW_S:
            self.min_rtt_s, self._min_at = rtt_s, now
        if not self.rtt_s:
            self.rtt_s, self.rtt_variance_s = rtt_s, rtt_s / 2  # RFC 6298 section 2.2
        else:
            # RFC 6298 section 2.3, alpha and beta divided among the samples of a round (RFC 7323 appendix G).
            difference = rtt_s - self.rtt_s
            self.rtt_variance_s += (abs(difference) - self.rtt_variance_s) / (4 * per_round)
            self.rtt_s += difference / (8 * per_round)
        self.backoffs = 0
        self.derive()

    def derive(self) -> None:
        """RFC 6298 section 2.3: RTO <- SRTT + max (G, K*RTTVAR).

        The minimum takes the place of G, as in Linux, so that a long path also has room for the peer's delayed
        acknowledgments.
        """
        if self.rtt_s:
            variance_s = 4.0 * self.rtt_variance_s
            base_s = self.rtt_s + (variance_s if variance_s > RTO_MIN_S else RTO_MIN_S)
            self.base_s = base_s if base_s < RTO_MAX_S else RTO_MAX_S
        self.rto_s = min(RTO_MAX_S, self.base_s * 2.0 ** min(self.backoffs, 16)) if self.backoffs else self.base_s

    def progress(self) -> None:
        """The back-off ends."""
        self.backoffs = 0
        self.derive()

    def expired(self) -> None:
        """The timer has expired (RFC 6298 section 5.5)."""
        self.backoffs += 1
        self.derive()

    def established(self, syn_sent_again: bool) -> None:
        """The handshake is done.

        RFC 6298 section 5.7: without a sample because the SYN was lost, data start at 3 s.
        """
        if syn_sent_again and not self.rtt_s:
            self.base_s = RTO_AFTER_SYN_LOSS_S
        self.progress()


def gives_up_after_s(expiries: int, rto_s: float = RTO_MIN_S) -> float:
    """Seconds that this many expiries take if the first comes after `rto_s`: Linux's meaning of a number of retries.

    As a time, so that a connection with a long RTO is not kept longer (RFC 9293 section 3.8.3: R2 at least 100 s; 924.6
    s for 15 from 200 ms; with 6 from 1 s, a SYN's 127 s).
    """
    total = 0.0
    for expiry in range(expiries + 1):
        total += min(RTO_MAX_S, rto_s * 2.0**expiry)
    return total


# The verdicts of F-RTO about an acknowledgment.
UNDECIDED, SPURIOUS, LOSS = range(3)


class Frto:
    """F-RTO: was the timeout spurious? (RFC 5682 section 3, the version for SACK; without SACK that of section 2.)"""

    __slots__ = ("_resent_at", "_una", "recover", "step")

    def __init__(self) -> None:
        self.step = 0  # step of the RFC for the next acknowledgment; 0: not active
        self.recover = 0
        self._una = 0
        self._resent_at = 0.0

    def expired(self, una: int, nxt: int, now: float) -> None:
        """The timer has expired with [una, nxt) in flight, not yet in recovery from another expiry."""
        self.step, self.recover, self._una, self._resent_at = 2, nxt, una, now

    @property
    def wants_new_data(self) -> bool:
        """RFC 5682 step 2b: send up to two segments of new data, and retransmit nothing."""
        return self.step == 3

    def acknowledged(self, una: int, sent_once: bool, duplicate: bool, echoes_at: float | None) -> int:
        """UNDECIDED, SPURIOUS or LOSS.

        `una`: the cumulative point. `sent_once`: the acknowledgment, cumulative or selective, is the first to cover
        octets that were sent only once. `duplicate`: it contains nothing new. `echoes_at`: when the segment of its
        timestamp echo was sent, as far as known.
        """
        if not self.step:
            return UNDECIDED
        if echoes_at is not None and una > self._una and echoes_at < self._resent_at:
            return self._decide(SPURIOUS)  # RFC 3522: it acknowledges the original
        if self.step == 2:
            if duplicate or una <= self._una:
                # RFC 5682 section 3.1 step 2a. A selective acknowledgment alone decides nothing yet.
                return self._decide(LOSS) if duplicate else UNDECIDED
            if una >= self.recover:
                # step 2b, first half: everything has arrived, as far as is known by the retransmission
                return self._decide(LOSS)
            self.step, self._una = 3, una  # step 2b: send new data
            return UNDECIDED
        if duplicate:
            return self._decide(LOSS)  # step 3a
        if una > self._una or sent_once:
            return self._decide(SPURIOUS if sent_once else LOSS)  # step 3b
        return UNDECIDED

    def nothing_new_to_send(self) -> None:
        """There is no data for step 2b: section 2.1 says to recover in the usual way."""
        self.step = 0

    def _decide(self, verdict: int) -> int:
        self.step = 0
        return verdict

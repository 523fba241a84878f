"""Round trips and the retransmission timer (RFC 6298, RFC 7323), and whether it was right to expire (F-RTO, RFC
5682).

The timer is the last resort: it expires where no acknowledgment tells of a loss. So it has to be longer than any
round trip that the path may take: the smoothed round trip time plus four times its mean deviation. Each expiry
doubles it until the peer acknowledges something new. Samples of segments that were sent twice are no samples (Karn),
unless the peer's timestamp echo says which of them it answers.

Where the round trip grew suddenly the timer expires though nothing was lost. F-RTO finds out by sending one segment
again and then new data: if acknowledgments still advance over what was sent once only, the originals have arrived,
and the congestion window may be restored. With timestamps the echo itself says so (Eifel, RFC 3522).

Times are float seconds of a monotonic clock, numbers are relative sequence numbers.
"""

from __future__ import annotations

RTO_INITIAL_S = 1.0  # RFC 6298 section 2.1
RTO_AFTER_SYN_LOSS_S = 3.0  # RFC 6298 section 5.7
RTO_MIN_S = 0.2  # Linux's TCP_RTO_MIN; RFC 6298 section 2.4 says 1 s SHOULD
RTO_MAX_S = 120.0  # Linux's TCP_RTO_MAX; RFC 6298 section 2.5: at least 60 s
MIN_RTT_WINDOW_S = 300.0  # Linux's tcp_min_rtt_wlen

R1 = 3  # expiries before the path is doubted (RFC 9293 section 3.8.3; Linux's tcp_retries1)
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
        """A round trip was measured, so the back-off ends. `per_round`: so many samples come in a round trip."""
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

        The floor stands in G's place, as in Linux: a long path has room for the peer's delayed acknowledgments as well.
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
    """Seconds that so many expiries take if the first comes after `rto_s`: what Linux makes of a number of retries.

    As a time, so that a connection whose RTO is long is not given the longer (RFC 9293 section 3.8.3: R2 at least 100
    s; 924.6 s for 15 from 200 ms; with 6 from 1 s, a SYN's 127 s).
    """
    total = 0.0
    for expiry in range(expiries + 1):
        total += min(RTO_MAX_S, rto_s * 2.0**expiry)
    return total


# What F-RTO says about an acknowledgment.
UNDECIDED, SPURIOUS, LOSS = range(3)


class Frto:
    """Was the time-out spurious? (RFC 5682 section 3, the version for SACK; without SACK it is section 2's.)"""

    __slots__ = ("_resent_at", "_una", "recover", "step")

    def __init__(self) -> None:
        self.step = 0  # of the RFC that the next acknowledgment belongs to; 0: no question is open
        self.recover = 0
        self._una = 0
        self._resent_at = 0.0

    def expired(self, una: int, nxt: int, now: float) -> None:
        """The timer has expired with [una, nxt) in flight, not yet in recovery from another expiry."""
        self.step, self.recover, self._una, self._resent_at = 2, nxt, una, now

    @property
    def wants_new_data(self) -> bool:
        """RFC 5682 step 2b: up to two segments of new data are to be sent, and nothing again."""
        return self.step == 3

    def acknowledged(self, una: int, sent_once: bool, duplicate: bool, echoes_at: float | None) -> int:
        """UNDECIDED, SPURIOUS or LOSS.

        `una`: the cumulative point. `sent_once`: the acknowledgment, cumulative or selective, is the first to cover
        something that was sent once only. `duplicate`: it is one that says nothing new. `echoes_at`: when the segment
        that its timestamp echoes was sent, as far as known.
        """
        if not self.step:
            return UNDECIDED
        if echoes_at is not None and una > self._una and echoes_at < self._resent_at:
            return self._decide(SPURIOUS)  # RFC 3522: it answers the original
        if self.step == 2:
            if duplicate or una <= self._una:
                # RFC 5682 section 3.1 step 2a. A selective acknowledgment alone decides nothing yet.
                return self._decide(LOSS) if duplicate else UNDECIDED
            if una >= self.recover:
                return self._decide(LOSS)  # step 2b, first half: it all came, by the retransmission as far as is known
            self.step, self._una = 3, una  # step 2b: send new data
            return UNDECIDED
        if duplicate:
            return self._decide(LOSS)  # step 3a
        if una > self._una or sent_once:
            return self._decide(SPURIOUS if sent_once else LOSS)  # step 3b
        return UNDECIDED

    def nothing_new_to_send(self) -> None:
        """Step 2b cannot be done: section 2.1 says to recover in the usual way."""
        self.step = 0

    def _decide(self, verdict: int) -> int:
        self.step = 0
        return verdict

"""HyStart++ (RFC 9406): leave slow start when the delay increases, before the queue overflows.

Otherwise slow start ends with a loss, after overshooting by up to a window. In each round trip the minimum delay is
compared with that of the round before. If it has increased by an eighth (4 to 16 ms) the window grows at a quarter of
the rate (CSS) for five rounds; if the delay then decreases, it was jitter, and slow start continues; otherwise slow
start ends.
"""

from __future__ import annotations

MIN_RTT_THRESHOLD_S = 0.004  # RFC 9406 section 4.3
MAX_RTT_THRESHOLD_S = 0.016
RTT_DIVISOR = 8
SAMPLES = 8  # N_RTT_SAMPLE
CSS_GROWTH_DIVISOR = 4
CSS_ROUNDS = 5
_INFINITE = float("inf")


class HyStart:
    """Of one connection. Used only while the window is below ssthresh; only in the first slow start (section 4.3)."""

    __slots__ = ("_baseline", "_before", "_least", "_over", "_rounds", "_samples", "_window_end", "divisor")

    def __init__(self) -> None:
        self.divisor = 1  # growth is the acknowledged octets divided by this
        self._over = False
        self._window_end = -1
        self._before = _INFINITE  # least round trip of the last round
        self._least = _INFINITE  # and of this one
        self._samples = 0
        self._baseline = _INFINITE  # CSS: the round trip at which it began
        self._rounds = 0  # of CSS

    def sample(self, rtt_s: float, una: int, nxt: int) -> bool:
        """A round trip was measured; True: slow start is over."""
        if self._over:
            return False
        if una > self._window_end:  # a round trip is over; section 4.2: windowEnd = SND.NXT
            self._window_end = nxt
            self._before, self._least, self._samples = self._least, _INFINITE, 0
            if self.divisor > 1:
                self._rounds += 1
                if self._rounds >= CSS_ROUNDS:
                    self.end()
                    return True
        self._least = min(self._least, rtt_s)
        self._samples += 1
        if self._samples < SAMPLES:
            return False
        if self.divisor > 1:
            if self._least < self._baseline:  # it was not caused by a queue
                self.divisor, self._baseline = 1, _INFINITE
        elif self._before < _INFINITE:
            threshold_s = max(MIN_RTT_THRESHOLD_S, min(self._before / RTT_DIVISOR, MAX_RTT_THRESHOLD_S))
            if self._least >= self._before + threshold_s:
                self.divisor, self._baseline, self._rounds = CSS_GROWTH_DIVISOR, self._least, 0
        return False

    def end(self) -> None:
        """Slow start has ended; later ones are standard slow start (section 4.3)."""
        self._over, self.divisor = True, 1

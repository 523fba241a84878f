"""CUBIC (RFC 9438): the window is a cubic function of the time since the last loss.

It grows fast to the value of the last loss (W_max), stays near it, and then grows faster and faster. So the throughput
of a flow depends less on its round trip, and a large window is restored in seconds instead of minutes as with Reno.
Where Reno would be faster (small windows, short round trips) the window is Reno's (W_est).

The RFC counts in segments; here the unit is octets, so C is multiplied by the segment size.
"""

from __future__ import annotations

from typing import ClassVar

from layers.tcp.congestion import TIMEOUT, UNLIMITED, CongestionControl, clamp

C = 0.4  # RFC 9438 section 4.1, segments / s^3
BETA = 0.7
ALPHA = 3 * (1 - BETA) / (1 + BETA)  # RFC 9438 section 4.3: the same average window as Reno


class Control(CongestionControl):
    """RFC 9438. `_origin` and `_k_s` are W_max and K of the current curve, which began at `_epoch`."""

    name: ClassVar[str] = "cubic"
    beta: ClassVar[float] = BETA
    beta_ecn: ClassVar[float] = 0.85  # RFC 8511 section 3 for CUBIC

    __slots__ = ("_epoch", "_friendly", "_k_s", "_last", "_origin", "_prior", "_w_max")

    def __init__(self, mss: int) -> None:
        super().__init__(mss)
        self._w_max = 0.0  # the window at the last loss, reduced by fast convergence; 0: none yet
        self._prior = 0.0  # cwnd_prior: the window before the loss
        self._epoch: float | None = None  # None: the curve begins with the next acknowledgment
        self._k_s = 0.0
        self._origin = 0.0
        self._friendly = 0.0  # W_est
        self._last = 0.0  # time of the last acknowledgment

    def avoid(self, octets: int, now: float, rtt_s: float) -> float:
        """RFC 9438 sections 4.2 to 4.5."""
        cwnd, mss = self.cwnd, self.mss
        if self._epoch is None:
            self._begin(now)
        assert self._epoch is not None
        self._last = now
        elapsed_s = now - self._epoch
        # Section 4.3: alpha is 1 when the Reno estimate has reached the window before the loss.
        alpha = ALPHA if self._friendly < self._prior else 1.0
        self._friendly += alpha * mss * octets / cwnd
        if self._cubic(elapsed_s) < self._friendly:
            # Reno-friendly region. After a pause the window is below an estimate from before: no faster than slow start
            return min(max(cwnd, self._friendly), cwnd + octets)
        target = min(max(self._cubic(elapsed_s + rtt_s), cwnd), 1.5 * cwnd)  # section 4.2
        return cwnd + (target - cwnd) * octets / cwnd  # sections 4.4, 4.5

    def _begin(self, now: float) -> None:
        self._epoch = self._last = now
        self._friendly = self.cwnd  # section 4.3
        if self.cwnd < self._w_max:
            self._origin = self._w_max
            self._k_s = ((self._w_max - self.cwnd) / (C * self.mss)) ** (1 / 3)  # equation 2
        else:
            self._origin, self._k_s = self.cwnd, 0.0  # section 4.8; also after slow start without a loss

    def _cubic(self, elapsed_s: float) -> float:
        """W_cubic(t), equation 1."""
        return C * self.mss * (elapsed_s - self._k_s) ** 3 + self._origin

    def unused(self, now: float) -> None:
        """Section 4.2: time in which the window was not the limit does not count (as in section 5.8)."""
        if self._epoch is not None:
            self._epoch += max(0.0, now - self._last)
            self._last = now

    def idle(self, seconds: float, rto_s: float) -> None:
        """This time does not count either."""
        super().idle(seconds, rto_s)
        if self._epoch is not None:
            self._epoch += seconds
            self._last += seconds

    def reduce(self, used: float, cause: int, now: float) -> None:
        """Section 4.6; with fast convergence (section 4.7): a flow whose W_max decreases releases bandwidth to new
        flows.

        The decrease must be at least one segment, as if windows were counted in segments.
        """
        super().reduce(used, cause, now)
        window = min(self.cwnd, used)
        self._w_max = window * (1 + BETA) / 2 if window + self.mss <= self._w_max else window
        self._prior = window
        self._epoch = None
        if cause == TIMEOUT:
            self._w_max = 0.0  # section 4.8: K is 0, and W_max the window where congestion avoidance begins

    def saved(self) -> tuple[float, ...]:
        """As in the base class; the curve starts again after `restore`, towards the same W_max."""
        return (*super().saved(), self._w_max, self._prior)

    def restore(self, saved: tuple[float, ...]) -> None:
        """Section 4.9: after a spurious reduction the curve starts again from the restored window."""
        super().restore(saved)
        self._w_max, self._prior = (clamp(value, 0.0, UNLIMITED, 0.0) for value in saved[2:4])
        self._epoch = None

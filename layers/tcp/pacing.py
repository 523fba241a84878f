"""Pacing: what the congestion window permits leaves over the round trip and not at once.

A sender that is clocked by acknowledgments still sends bursts: in slow start, after a pause, and where acknowledgments
come together. A queue shorter than a burst drops part of it, and then slow start ends far below what the path carries.
So at most a *quantum* is sent at once: what leaves at the pacing rate in a turn of the loop, two segments at least, and
an initial window (RFC 6928) where nothing is in flight. The rate is that of Linux (tcp_update_pacing_rate): twice the
window per round trip in slow start, 1.2 times the window otherwise.

Not paced: windows that are no larger than an initial window, which may leave at once anyway; round trips below
PACED_RTT_MIN_S, for which timers are too coarse and super-segments matter more; and recoveries, which proportional rate
reduction clocks. docs/decisions/pacing.md has the figures.
"""

from __future__ import annotations

PACED_RTT_MIN_S = 0.004
TURN_S = 0.001  # between two quanta: a timer of the loop
SLOW_START_RATIO, RATIO = 2.0, 1.2  # Linux net.ipv4.tcp_pacing_ss_ratio, tcp_pacing_ca_ratio
QUANTUM_SEGMENTS = 2
UNPACED_SEGMENTS = 10  # RFC 6928 section 2: the initial window


class Pacing:
    """Of one connection. Octets and float seconds."""

    __slots__ = ("_free", "_until", "_waits", "due", "rate")

    def __init__(self) -> None:
        self.rate = 0.0  # octets per second; 0: not paced
        self.due: float | None = None  # when the next quantum may leave, if something waits for it
        self._until = 0.0  # until then the octets sent take at this rate
        self._waits = False  # something waits since the last quantum: a timer that comes late is made up for
        self._free = 0  # octets that may leave at once, whatever the rate

    def allowance(self, room: int, cwnd: float, slow_start: bool, rtt_s: float, mss: int, now: float) -> int:
        """Of `room` octets in the congestion window, those that may leave now; 0 (and `due`): later."""
        self.due = None
        if rtt_s < PACED_RTT_MIN_S or cwnd <= UNPACED_SEGMENTS * mss:
            self.rate, self._waits = 0.0, False
            return room
        self.rate = rate = (SLOW_START_RATIO if slow_start else RATIO) * cwnd / rtt_s
        quantum = max(rate * TURN_S, QUANTUM_SEGMENTS * mss)
        if self._until < now:
            self._until = max(self._until, now - rtt_s) if self._waits else now
        left = max(int(quantum - (self._until - now) * rate), self._free)
        if left >= min(mss, room):
            return min(room, left)
        self._waits = True
        self.due = self._until
        return 0

    def sent(self, octets: int, now: float) -> None:
        """So many octets were sent."""
        if self.rate:
            self._until += octets / self.rate
            self._waits = self._waits and self._until < now
            self._free = max(0, self._free - octets)

    def starts(self, octets: int) -> None:
        """Nothing is in flight: so many octets may leave at once."""
        self._free = octets

"""Pacing: what the congestion window permits leaves over the round trip and not at once.

A sender that is clocked by acknowledgments still sends bursts: in slow start, after a pause, and where acknowledgments
come together. A queue shorter than a burst drops part of it, and then slow start ends far below what the path carries.
So at most a *quantum* is sent at once: what leaves at the pacing rate in a turn of the loop, two segments at least, and
an initial window (RFC 6928) where nothing is in flight. The rate is that of Linux (tcp_update_pacing_rate): twice the
window per round trip in slow start, 1.2 times the window otherwise.

Recoveries are paced with the window after them: proportional rate reduction saves up what it could have sent while the
application had written nothing more, and the acknowledgment that makes room in its buffer would release all of it at
once.

A timer that comes late is made up for, because a busy machine would otherwise send less. Only that: time in which the
window was the limit, or a recovery, or the application, gives no right to a burst.

Not paced: windows that are no larger than an initial window, which may leave at once anyway; round trips below
PACED_RTT_MIN_S, for which timers are too coarse and super-segments matter more; and what follows a retransmission
timeout, which begins with one segment. docs/decisions/pacing.md has the figures.
"""

from __future__ import annotations

PACED_RTT_MIN_S = 0.004
TURN_S = 0.001  # between two quanta: a timer of the loop
SLOW_START_RATIO, RATIO = 2.0, 1.2  # Linux net.ipv4.tcp_pacing_ss_ratio, tcp_pacing_ca_ratio
QUANTUM_SEGMENTS = 2
UNPACED_SEGMENTS = 10  # RFC 6928 section 2: the initial window


class Pacing:
    """Of one connection. Octets and float seconds."""

    __slots__ = ("_free", "_late_at", "_until", "_waits", "due", "rate")

    def __init__(self) -> None:
        self.rate = 0.0  # octets per second; 0: not paced
        self.due: float | None = None  # when the next quantum may leave, if something waits for it
        self._until = 0.0  # until then the octets sent take at this rate
        self._waits = False  # something waits for `due`, and for nothing else
        self._late_at = 0.0  # time of the turn in which a late timer is made up for
        self._free = 0  # octets that may leave at once, whatever the rate

    def allowance(self, room: int, cwnd: float, slow_start: bool, rtt_s: float, mss: int, now: float) -> int:
        """Of `room` octets in the congestion window, those that may leave now; 0 (and `due`): later."""
        if self.pauses(cwnd, rtt_s, mss):
            return room
        self.due = None
        self.rate = rate = (SLOW_START_RATIO if slow_start else RATIO) * cwnd / rtt_s
        quantum = max(rate * TURN_S, QUANTUM_SEGMENTS * mss)
        if self._until < now:
            if self._waits:
                self._until, self._late_at = max(self._until, now - rtt_s), now
            elif self._late_at != now:
                self._until = now
        self._waits = False
        left = max(int(quantum - (self._until - now) * rate), self._free)
        if left >= min(mss, room):
            return min(room, left)
        self._waits = True
        self.due = self._until
        return 0

    def pauses(self, cwnd: float, rtt_s: float, mss: int) -> bool:
        """True if nothing is paced with this window and round trip; from now on, too, if it was."""
        if rtt_s >= PACED_RTT_MIN_S and cwnd > UNPACED_SEGMENTS * mss:
            return False
        self.rate, self.due, self._waits = 0.0, None, False
        return True

    def sent(self, octets: int, now: float) -> None:
        """So many octets were sent."""
        if self.rate:
            self._until += octets / self.rate
            self._free = max(0, self._free - octets)

    def held(self) -> None:
        """Nothing may leave, or all of it, whatever the rate: until the next quantum no timer is late."""
        self.due, self._waits = None, False

    def starts(self, octets: int) -> None:
        """Nothing is in flight: so many octets may leave at once."""
        self._free = octets

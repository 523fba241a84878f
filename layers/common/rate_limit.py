"""A token bucket: a rate of events per second, after a burst."""

from __future__ import annotations


class TokenBucket:
    """A token bucket that starts full. Time is an argument and must not run backwards."""

    __slots__ = ("_burst", "_last", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens: float = burst
        self._last = 0.0

    def ready(self, now: float) -> bool:
        """True if one more event is allowed at `now`; takes no token."""
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._per_second)
        self._last = now
        return self._tokens >= 1

    def take(self) -> None:
        """Take a token; only after `ready` returned True."""
        self._tokens -= 1

    def allow(self, now: float) -> bool:
        """Take a token if one is available; returns True if so."""
        ready = self.ready(now)
        if ready:
            self._tokens -= 1
        return ready

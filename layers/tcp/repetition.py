"""After a restart of the socket service the state of all connections is repeated to it, in portions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

# Of so many connections at once, then of so many in each further portion: 10,000 a second, in turns of a few
# milliseconds, so that it looks like no hang and does not fill the memory.
AT_ONCE, THEN, EVERY_S = 1000, 200, 0.02


class Repetition:
    """`tell` repeats the state of one connection, by its handle."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._untold: deque[int] = deque()
        self.next_due: float | None = None  # time of the next `go_on`

    def begin(self, handles: Iterable[int], now: float) -> None:
        """Repeat the state of these; of others that were to be repeated no more."""
        self._untold = deque(handles)
        self._portion(AT_ONCE, now)

    def go_on(self, now: float) -> None:
        """The next portion, if it is time."""
        if self.next_due is not None and self.next_due <= now:
            self._portion(THEN, now)

    def _portion(self, count: int, now: float) -> None:
        untold = self._untold
        for _ in range(min(count, len(untold))):
            self._tell(untold.popleft())
        self.next_due = now + EVERY_S if untold else None

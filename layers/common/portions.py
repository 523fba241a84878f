"""Work on many items at once is done in portions, one in a turn.

So what arrives is served in between, and the layer does not look like one that hangs (`bus.layer.Core.wake`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Portions(Generic[T]):
    """Items that wait, in order. `next_due`: the time of the next portion; None: nothing waits."""

    def __init__(self, every_s: float = 0.0) -> None:
        """`every_s`: the least time between two portions."""
        self.next_due: float | None = None
        self._every_s = every_s
        self._waiting: deque[T] = deque()

    def add(self, items: Iterable[T], now: float = 0.0) -> None:
        """More items; the first portion is due at `now` (0: at once), unless others wait already."""
        self._waiting.extend(items)
        if self._waiting and self.next_due is None:
            self.next_due = now

    def replace(self, items: Iterable[T], now: float) -> None:
        """These items instead of those that wait."""
        self._waiting.clear()
        self.next_due = None
        self.add(items, now)

    def take(self, now: float, most: int) -> list[T]:
        """The next portion if it is due, of so many at most."""
        if self.next_due is None or self.next_due > now:
            return []
        waiting = self._waiting
        portion = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        self.next_due = now + self._every_s if waiting else None
        return portion

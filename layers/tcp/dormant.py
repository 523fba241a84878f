"""Connections of a former process that nothing has touched yet.

A successor makes their TCBs when a segment or a record asks for them, and otherwise a few at a time, so that it serves
at once, however many connections it has inherited. Only connections that owe nothing may wait: nothing is in flight,
unacknowledged or unread, and no timer but TIME-WAIT runs. Until all are awake, the look-ups are dictionaries that know
the numbers of their slots; then they are ordinary ones again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layers.tcp.connection import Connection

if TYPE_CHECKING:
    from layers.tcp.lookup import Lookup

WAKE_AT_ONCE, WAKE_EVERY_S = 50, 0.02  # 2,500 a second, in turns of about a millisecond


class _Waking(dict[Any, Connection]):
    """A look-up that wakes a connection that is asked for. `dormant`: numbers of slots."""

    __slots__ = ("_dormant", "_wake")

    def __init__(self, awake: dict[Any, Connection], dormant: dict[Any, int], wake: Callable[[int], None]) -> None:
        super().__init__(awake)
        self._dormant = dormant
        self._wake = wake

    def __missing__(self, key: object) -> Connection:
        self._wake(self._dormant[key])
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """As of a dictionary."""
        if key in self:
            return super().__getitem__(key)
        number = self._dormant.get(key)
        if number is not None:
            self._wake(number)
        return super().get(key, default)


class Dormant:
    """The dormant connections of `lookup`. `wake` makes the TCB of a slot and adds it to the look-ups."""

    def __init__(self, lookup: Lookup, by_flow: dict[bytes, int], by_handle: dict[int, int], ports: set[int],
                 wake: Callable[[int], None]) -> None:
        self._lookup = lookup
        self._make = wake
        self._numbers = set(by_flow.values())
        lookup.connections = _Waking(lookup.connections, by_flow, self._wake)
        lookup.by_handle = _Waking(lookup.by_handle, by_handle, self._wake)
        lookup.ports.dormant, lookup.ports.wake = ports, self.wake_all
        self.next_due: float | None = 0.0

    def _wake(self, number: int) -> None:
        if number in self._numbers:
            self._numbers.discard(number)
            self._make(number)

    def wake_some(self, now: float) -> None:
        """Wake the next few, if it is time."""
        if self.next_due is not None and self.next_due <= now:
            for _ in range(min(WAKE_AT_ONCE, len(self._numbers))):
                self._make(self._numbers.pop())
            self.next_due = now + WAKE_EVERY_S
            if not self._numbers:
                self._end()

    def wake_all(self) -> None:
        """Wake all, for a look at every connection."""
        while self._numbers:
            self._make(self._numbers.pop())
        if self.next_due is not None:
            self._end()

    def _end(self) -> None:
        self.next_due = None
        lookup = self._lookup
        lookup.connections, lookup.by_handle = dict(lookup.connections), dict(lookup.by_handle)
        lookup.ports.dormant = set()

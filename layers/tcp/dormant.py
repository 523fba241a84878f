"""Connections of a former process that have no TCB yet: their slots contain all that there is to know of them.

A successor makes a TCB when a segment or a record asks for the connection, so it serves at once, however many
connections it has inherited, and uses no memory for those that remain idle. Only connections that owe nothing may be
dormant: nothing is in flight, unacknowledged or unread. Those with a running timer (TIME-WAIT, keep-alive) are woken a
few at a time. While there are dormant connections, the look-ups are dictionaries that know the numbers of their slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from layers.tcp.connection import Connection

if TYPE_CHECKING:
    from layers.tcp.lookup import Claim, Lookup

WAKE_AT_ONCE, WAKE_EVERY_S = 50, 0.02  # 2,500 a second, in turns of about a millisecond


class Identity(NamedTuple):
    """What the look-ups know of a dormant connection."""

    flow: bytes
    handle: int  # 0: it has no owner
    port: int
    claim: Claim


class Told(NamedTuple):
    """What an application is told of a connection that owes nothing."""

    written: int
    una: int  # SND.UNA
    limit: int  # of what it may write
    finished: bool  # our FIN is acknowledged
    fin_at: int  # number of the peer's FIN, if that was reached; 0: not


class Sleepers(Protocol):
    """What dormant connections have in their slots."""

    def identify(self, number: int) -> Identity:
        """The identity of the connection in a slot."""

    def told_of(self, number: int) -> Told:
        """What the application of the connection in a slot knows of it."""

    def view(self, number: int) -> Connection | None:
        """The connection in a slot, which is not added to the look-ups; None: the slot is damaged."""

    def wake(self, number: int) -> None:
        """Make the TCB of a connection, and add it to the look-ups."""


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
        if key not in self and key in self._dormant:
            self._wake(self._dormant[key])
        return super().get(key, default)


class Dormant:
    """The dormant connections of `lookup`."""

    def __init__(self, lookup: Lookup, slots: Sleepers) -> None:
        self._lookup = lookup
        self.slots = slots
        self._timed: list[int] = []  # slots of those with a running timer
        self.by_flow: dict[bytes, int] = {}  # numbers of slots
        self.by_handle: dict[int, int] = {}
        self.next_due: float | None = None  # time of the next `wake_some`

    def add(self, number: int, identity: Identity, timed: bool) -> None:
        """The connection in a slot is dormant."""
        flow, handle, port, claim = identity
        self.by_flow[flow] = number
        if handle:
            self.by_handle[handle] = number
        self._lookup.ports.sleeps(port, claim)
        if timed:
            self._timed.append(number)

    def begin(self, now: float) -> None:
        """All were added."""
        lookup = self._lookup
        if self.by_flow:
            lookup.connections = _Waking(lookup.connections, self.by_flow, self.wake)
            lookup.by_handle = _Waking(lookup.by_handle, self.by_handle, self.wake)
        self.next_due = now if self._timed else None

    def wake(self, number: int) -> None:
        """Make the TCB of a dormant connection."""
        flow, handle, port, claim = self.slots.identify(number)
        if self.by_flow.get(flow) != number:
            return
        del self.by_flow[flow]
        self.by_handle.pop(handle, None)
        self._lookup.ports.wakes(port, claim)
        self.slots.wake(number)
        if not self.by_flow:
            lookup = self._lookup
            lookup.connections, lookup.by_handle = dict(lookup.connections), dict(lookup.by_handle)

    def wake_some(self, now: float) -> None:
        """Wake the next few with a running timer, if it is time."""
        if self.next_due is not None and self.next_due <= now:
            for _ in range(min(WAKE_AT_ONCE, len(self._timed))):
                self.wake(self._timed.pop())
            self.next_due = now + WAKE_EVERY_S if self._timed else None

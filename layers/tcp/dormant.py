"""Connections that have no TCB at present: they are in their slots, and need little more.

A successor makes a TCB when a segment or a record asks for the connection, so it serves at once, however many
connections it has inherited. A live connection that has been quiet for a while sleeps in the same way
(`layers.tcp.asleep`), so an idle connection costs little memory. Only connections that owe nothing may be dormant:
nothing is in flight, unacknowledged or unread. Of inherited ones, those with a running timer (TIME-WAIT, keep-alive)
are woken a few at a time; those that went to sleep here are woken when their keep-alive timer expires.

The look-ups are dictionaries that make the TCB of a dormant connection that is asked for. A look-up by `[]` costs the
same as in any dictionary if the connection is awake.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bus import heap
from layers.tcp import asleep
from layers.tcp.connection import Connection
from layers.tcp.lookup import Claim, is_sparse

if TYPE_CHECKING:
    from layers.tcp.lookup import Lookup

WAKE_AT_ONCE, WAKE_EVERY_S = 50, 0.02  # 2,500 a second, in turns of about a millisecond
STALE_MIN = 64  # entries of the heap that are not worth looking for


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
    """What dormant connections have in their slots and notes (`layers.tcp.asleep`)."""

    def identify(self, note: bytes) -> Identity:
        """The identity of a connection."""

    def told_of(self, note: bytes) -> Told:
        """What the application of a connection knows of it."""

    def view(self, note: bytes) -> Connection | None:
        """A connection, which is not added to the look-ups; None: the slot is damaged."""

    def wake(self, note: bytes) -> None:
        """Make the TCB of a connection, and add it to the look-ups."""

    def options_number(self, conn: Connection) -> int:
        """For the note of a connection that goes to sleep: the number of its options."""

    def store(self, conn: Connection) -> None:
        """Store everything of a connection that goes to sleep in its slot."""


class _Waking(dict[Any, Connection]):
    """A look-up that wakes a connection that is asked for. `dormant`: notes."""

    __slots__ = ("_dormant", "_wake")

    def __init__(self, awake: dict[Any, Connection], dormant: dict[Any, bytes], wake: Callable[[bytes], None]) -> None:
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
        self._timed: list[bytes] = []  # notes of inherited ones with a running timer
        self._wake_at: float | None = None  # when the next of these are woken
        self._alarms: list[tuple[float, int]] = []  # heap: expiry of a keep-alive timer, handle; some are stale
        self._alarms_true = 0
        self.by_flow: dict[bytes, bytes] = {}  # notes
        self.by_handle: dict[int, bytes] = {}

    def add(self, note: bytes, identity: Identity, timed: bool) -> None:
        """An inherited connection is dormant."""
        flow, handle, port, claim = identity
        self.by_flow[flow] = note
        if handle:
            self.by_handle[handle] = note
        self._lookup.ports.sleeps(port, claim)
        if timed:
            self._timed.append(note)

    def begin(self, now: float) -> None:
        """All inherited ones were added."""
        lookup = self._lookup
        lookup.connections = _Waking(lookup.connections, self.by_flow, self.wake)
        lookup.by_handle = _Waking(lookup.by_handle, self.by_handle, self.wake)
        self._wake_at = now if self._timed else None

    def sleep(self, conn: Connection) -> None:
        """A connection for which `asleep.may_sleep` is true becomes dormant."""
        lookup, ends, options, handle = self._lookup, conn.ends, conn.options, conn.handle
        claim = Claim(ends.local, options.reuse_address, options.reuse_port, False, conn.automatic)
        claim_kept = lookup.ports.claim(handle, ends.port) != claim  # then it is that of the socket, and stays
        self.slots.store(conn)
        note = asleep.note_of(conn, self.slots.options_number(conn), claim_kept)
        lookup.remove(conn)
        self.by_flow[conn.flow] = self.by_handle[handle] = note
        if not claim_kept:
            lookup.ports.release(handle, ends.port)
            lookup.ports.sleeps(ends.port, claim)
        if conn.keepalive_at is not None:
            heappush(self._alarms, (conn.keepalive_at, handle))
            self._alarms_true += 1

    def give_back(self) -> None:
        """Many have gone to sleep: return the memory that they needed to the system."""
        lookup = self._lookup
        if is_sparse(lookup.connections):
            lookup.connections = _Waking(lookup.connections, self.by_flow, self.wake)
        if is_sparse(lookup.by_handle):
            lookup.by_handle = _Waking(lookup.by_handle, self.by_handle, self.wake)
        lookup.ports.give_back()
        heap.trim()

    def wake(self, note: bytes) -> None:
        """Make the TCB of a dormant connection."""
        flow, handle, port, claim = self.slots.identify(note)
        if self.by_flow.get(flow) is not note:
            return
        del self.by_flow[flow]
        self.by_handle.pop(handle, None)
        ports = self._lookup.ports
        if not asleep.keeps_claim(note):
            ports.wakes(port, claim)
            if asleep.is_own(note):
                ports.hold(handle, port, claim)
        if asleep.keepalive_at(note):
            self._alarms_true -= 1
        self.slots.wake(note)

    def told_limit(self, handle: int, said: int) -> None:
        """The application was told that it may write so far beyond SND.UNA."""
        note = self.by_handle[handle]
        if asleep.room(note) != said:
            self.by_flow[self.slots.identify(note).flow] = self.by_handle[handle] = asleep.with_room(note, said)

    # -- timers

    @property
    def next_due(self) -> float | None:
        """The time of the next `wake_some`."""
        alarms = self._alarms
        while alarms and not self._is_true(*alarms[0]):
            heappop(alarms)
        if not alarms:
            return self._wake_at
        due = alarms[0][0]
        return due if self._wake_at is None else min(due, self._wake_at)

    def wake_some(self, now: float) -> None:
        """Wake those whose keep-alive timer expires, and the next few inherited ones with a timer, if it is time."""
        alarms = self._alarms
        for _ in range(min(WAKE_AT_ONCE, len(alarms))):
            if not alarms or alarms[0][0] > now:
                break
            due, handle = heappop(alarms)
            if self._is_true(due, handle):
                self.wake(self.by_handle[handle])
        if len(alarms) > 2 * self._alarms_true + STALE_MIN:
            self._alarms = [alarm for alarm in alarms if self._is_true(*alarm)]
            heapify(self._alarms)
        if self._wake_at is not None and self._wake_at <= now:
            for _ in range(min(WAKE_AT_ONCE, len(self._timed))):
                self.wake(self._timed.pop())
            self._wake_at = now + WAKE_EVERY_S if self._timed else None

    def _is_true(self, due: float, handle: int) -> bool:
        note = self.by_handle.get(handle)
        return note is not None and asleep.keepalive_at(note) == due

"""Timers: each connection has several deadlines; one heap has the earliest of each, lazily.

A connection is in the heap with a time that is never later than its earliest deadline; when that time comes, its
deadlines are checked again. So postponing a deadline, which is the usual case, costs nothing. An earlier deadline makes
a new entry, and the former one stale. Stale entries are removed when they are about half of the heap: their times may
be hours away.

A call takes at most AT_ONCE expired connections. The others remain due and follow in the next turn, after what has
arrived meanwhile, so that thousands whose timers expire together delay nothing else and look like no endless loop.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count

from layers.tcp.connection import Connection

STALE_MIN = 64  # entries of the heap that are not worth looking for
AT_ONCE = 100  # connections whose deadlines have come: about 3 ms for probes or retransmissions
CHECKED_AT_ONCE = 20 * AT_ONCE  # entries whose deadline may have been postponed: 2 ms


class Timers:
    """The times at which connections must be checked."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Connection]] = []
        self._tie = count()
        self._stale = 0  # entries that are not the last one of their connection

    def schedule(self, conn: Connection) -> None:
        """A deadline of `conn` has changed."""
        due = earliest(conn)
        if due is not None and (conn.queued_at is None or due < conn.queued_at):
            if conn.queued_at is not None:
                self._grows_stale()
            conn.queued_at = due
            heappush(self._heap, (due, next(self._tie), conn))

    def forget(self, conn: Connection) -> None:
        """`conn` is deleted: nothing keeps it in memory until an expiry that may be hours away."""
        if conn.queued_at is not None:
            conn.queued_at = None
            self._grows_stale()

    def _grows_stale(self) -> None:
        self._stale += 1
        if 2 * self._stale > len(self._heap) + STALE_MIN:
            self._heap = list({entry[2]: entry for entry in self._heap if entry[2].queued_at == entry[0]}.values())
            heapify(self._heap)
            self._stale = 0

    @property
    def next_due(self) -> float | None:
        """The time of the next `expired`."""
        heap = self._heap
        while heap and heap[0][2].queued_at != heap[0][0]:
            heappop(heap)
            self._stale = max(0, self._stale - 1)
        return heap[0][0] if heap else None

    def expired(self, now: float) -> list[Connection]:
        """The next connections with a deadline that has come, in the order of these."""
        ready: list[Connection] = []
        for _ in range(CHECKED_AT_ONCE):
            due = self.next_due
            if due is None or due > now or len(ready) == AT_ONCE:
                break
            conn = heappop(self._heap)[2]
            conn.queued_at = None
            true_due = earliest(conn)
            if true_due is not None and true_due <= due:
                ready.append(conn)
            else:
                self.schedule(conn)
        return ready


def earliest(conn: Connection) -> float | None:
    """The earliest deadline of a connection. Written without a loop, because it is needed after every turn."""
    recovery = conn.recovery
    due = recovery.deadline if recovery is not None else None
    at = conn.delayed_at
    if at is not None and (due is None or at < due):
        due = at
    at = conn.persist_at
    if at is not None and (due is None or at < due):
        due = at
    at = conn.keepalive_at
    if at is not None and (due is None or at < due):
        due = at
    at = conn.wait_until
    if at is not None and (due is None or at < due):
        due = at
    at = conn.cork_at
    if at and (due is None or at < due):
        due = at
    return due

"""Timers: each connection has several deadlines; one heap has the earliest of each, lazily.

A connection is in the heap with a time that is never later than its earliest deadline; when that time comes, its
deadlines are checked again. So postponing a deadline, which is the usual case, costs nothing.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

from layers.tcp.connection import Connection


class Timers:
    """The times at which connections must be checked."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Connection]] = []
        self._tie = count()

    def schedule(self, conn: Connection) -> None:
        """A deadline of `conn` has changed."""
        due = earliest(conn)
        if due is not None and (conn.queued_at is None or due < conn.queued_at):
            conn.queued_at = due
            heappush(self._heap, (due, next(self._tie), conn))

    @property
    def next_due(self) -> float | None:
        """The time of the next `expired`."""
        heap = self._heap
        while heap and heap[0][2].queued_at != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def expired(self, now: float) -> list[Connection]:
        """The connections with a deadline that has come."""
        ready = []
        while (due := self.next_due) is not None and due <= now:
            conn = heappop(self._heap)[2]
            conn.queued_at = None
            true_due = earliest(conn)
            if true_due is not None and true_due <= now:
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
    if at is not None and (due is None or at < due):
        due = at
    return due

"""Idle connections release memory and keep little more than their slot.

One second after the last octet in either direction, if nothing waits to be sent, acknowledged or read, the rings of a
connection return to the pool, and its loss recovery (1 kB) is reduced to the 44 octets of advice in the slot. Both are
restored on demand. The pool returns unused pages to the system after a while.

Connections are in a queue in the order in which they became idle; it is processed when the first has waited long
enough.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from layers.tcp.acknowledgment import unread
from layers.tcp.connection import CLOSED, TIME_WAIT, Connection

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

QUIET_S = 1.0


class Quiet:
    """The queue of idle connections. Times are those of the engine."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Connection]] = deque()

    def consider(self, conn: Connection, now: float) -> None:
        """`conn` was flushed: it may be idle from now on."""
        if not conn.quiet_queued and conn.recovery is not None and conn.recovery.freed:
            conn.quiet_queued = True
            self._waiting.append((now + QUIET_S, conn))

    @property
    def next_due(self) -> float | None:
        """The time of the next `shrink`."""
        return self._waiting[0][0] if self._waiting else None

    def shrink(self, engine: Engine) -> None:
        """Connections that have waited long enough release their memory, or wait again."""
        waiting, now = self._waiting, engine.now
        while waiting and waiting[0][0] <= now:
            conn = waiting.popleft()[1]
            conn.quiet_queued = False
            recovery = conn.recovery
            if recovery is None or conn.state in (CLOSED, TIME_WAIT) or not recovery.freed or (
                    conn.snd_una < conn.written) or conn.persist_at is not None:
                continue  # its next flush considers it again
            if max(conn.last_sent, conn.last_text) + QUIET_S > now:
                self.consider(conn, now)
                continue
            if conn.send_ring is not None and not conn.send_ring.home:  # the application may write into its own
                engine.rings.give(conn.send_ring)
                conn.send_ring = None
            if conn.receive_ring is not None and not conn.out_of_order and not unread(conn):
                engine.rings.give(conn.receive_ring)
                conn.receive_ring = None
            if conn.slot:
                recovery.store_next()
                engine.cells.store(conn)
                conn.recovery = None

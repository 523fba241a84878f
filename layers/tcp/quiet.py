"""Idle connections release memory and keep little more than their slot.

One second after the last octet in either direction, if nothing waits to be sent, acknowledged or read, the rings of a
connection return to the pool, and its loss recovery (1 kB) is reduced to the 44 octets of advice in the slot. A
second later the TCB goes, too (`layers.tcp.asleep`). All are restored on demand. The pool returns unused pages to the
system after a while.

There is a queue for either, in the order in which the connections became idle; it is processed when the first has
waited long enough. A connection that may not sleep leaves the queue, and is considered again when it changes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from layers.tcp.acknowledgment import unread
from layers.tcp.asleep import may_sleep
from layers.tcp.connection import CLOSED, LASTING, ORPHAN, TIME_WAIT, Connection
from layers.tcp.counters import Counters as C

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

QUIET_S = 1.0
SLEEP_S = 1.0
ASK_S = 10.0  # without text until an application is asked how far it has read; at once if memory is scarce
# Memory goes back to the system when so many have gone to sleep, and then so much later: more may follow
GIVE_BACK_MIN, GIVE_BACK_S = 200, 2.0
SLEEP_AT_ONCE, SLEEP_EVERY_S = 50, 0.02  # 2,500 a second, in turns of about a millisecond
SHRINK_AT_ONCE = 200  # others follow in the next turn


class Quiet:
    """The queue of idle connections. Times are those of the engine."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Connection]] = deque()
        self._resting: deque[tuple[float, Connection]] = deque()  # without rings and loss recovery
        self._next_sleep = 0.0
        self._slept = 0  # since memory was last given back
        self._give_back_at: float | None = None

    def consider(self, conn: Connection, now: float) -> None:
        """`conn` was flushed: it may be idle from now on."""
        recovery = conn.recovery
        if recovery is None:
            if not conn.rest_queued and conn.state in LASTING:
                conn.rest_queued = True
                self._resting.append((now + SLEEP_S, conn))
        elif not conn.quiet_queued and recovery.freed:
            conn.quiet_queued = True
            self._waiting.append((now + QUIET_S, conn))

    @property
    def next_due(self) -> float | None:
        """The time of the next `expire`."""
        waiting = self._waiting
        while waiting and waiting[0][1].state in (CLOSED, TIME_WAIT):
            waiting.popleft()  # nothing is left to release
        due = waiting[0][0] if waiting else None
        if self._resting:
            sleep_at = max(self._resting[0][0], self._next_sleep)
            due = sleep_at if due is None else min(due, sleep_at)
        at = self._give_back_at
        return at if due is None or (at is not None and at < due) else due

    def expire(self, engine: Engine) -> None:
        """Connections that have waited long enough release their memory, or wait again."""
        self._shrink(engine)
        if self._resting and max(self._resting[0][0], self._next_sleep) <= engine.now:
            self._sleep(engine)
        if self._give_back_at is not None and self._give_back_at <= engine.now and engine.dormant is not None:
            self._slept, self._give_back_at = 0, None
            engine.dormant.give_back()

    def _sleep(self, engine: Engine) -> None:
        resting, now, dormant = self._resting, engine.now, engine.dormant
        for _ in range(min(SLEEP_AT_ONCE, len(resting))):
            if resting[0][0] > now:
                return
            conn = resting.popleft()[1]
            conn.rest_queued = False
            if conn.recovery is not None:
                continue  # it is in the other queue, or will be
            if max(conn.last_heard, conn.last_sent, conn.last_text) + SLEEP_S > now:
                self.consider(conn, now)
                continue
            if conn.state in LASTING:
                _release_rings(engine, conn)
            if dormant is not None and may_sleep(conn, now):
                engine.timers.forget(conn)
                dormant.sleep(conn)
                engine.counters[C.slept] += 1
                self._slept += 1
                if self._slept == GIVE_BACK_MIN:
                    self._give_back_at = now + GIVE_BACK_S
            elif conn.slot:
                engine.cells.store(conn)
                self._ask(engine, conn)
        self._next_sleep = now + SLEEP_EVERY_S

    def _ask(self, engine: Engine, conn: Connection) -> None:
        """Ask an application that seems not to read: it says how far it has read only every few thousand octets, and
        until then the octets stay in a ring."""
        if conn.state not in LASTING or conn.handle == ORPHAN or not unread(conn) or conn.read_asked == conn.rcv_nxt:
            return
        if conn.last_text + ASK_S > engine.now and engine.rings.may_grow:
            self.consider(conn, engine.now)
            return
        conn.read_asked = conn.rcv_nxt
        engine.counters[C.reading_asked] += 1
        engine.room(conn, resume=True)

    def _shrink(self, engine: Engine) -> None:
        waiting, now = self._waiting, engine.now
        for _ in range(min(SHRINK_AT_ONCE, len(waiting))):
            if waiting[0][0] > now:
                return
            conn = waiting.popleft()[1]
            conn.quiet_queued = False
            recovery = conn.recovery
            if recovery is None or conn.state in (CLOSED, TIME_WAIT) or not recovery.freed or (
                    conn.snd_una < conn.written) or conn.persist_at is not None:
                continue  # its next flush considers it again
            if max(conn.last_sent, conn.last_text) + QUIET_S > now:
                self.consider(conn, now)
                continue
            _release_rings(engine, conn)
            if conn.slot:
                recovery.advises = True
                engine.cells.store(conn)
                conn.recovery = None
                self.consider(conn, now)


def _release_rings(engine: Engine, conn: Connection) -> None:
    """Return the rings of an idle connection to the pool; its caller stores that."""
    ring = conn.send_ring
    if ring is not None and not ring.home and conn.snd_una >= conn.written:  # the application may write into its own
        engine.rings.give(ring)
        conn.send_ring = None
    if conn.receive_ring is not None and not conn.out_of_order and not unread(conn):
        engine.rings.give(conn.receive_ring)
        conn.receive_ring = None

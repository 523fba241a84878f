"""Zero-window probes (RFC 9293 section 3.8.6.1), keep-alives (3.8.4), and when to give up (3.8.3)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from layers.tcp import closing, history, output
from layers.tcp.connection import CLOSED, CORK_OVER, ORPHAN, SYN_RECEIVED, SYN_SENT, Connection
from layers.tcp.counters import Counters as C
from packets.tcp import ACK

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

PROBE_S_MAX = 120.0  # Linux TCP_RTO_MAX
RETRIES_1 = 3  # Linux net.ipv4.tcp_retries1: RFC 9293 section 3.8.3 R1 (SHLD-10)
RETRIES_2 = 15  # Linux net.ipv4.tcp_retries2: RFC 9293 section 3.8.3 R2, at least 100 s
ORPHAN_RETRIES = 8  # Linux net.ipv4.tcp_orphan_retries (0 means 8)
SYNACK_RETRIES = 5  # Linux net.ipv4.tcp_synack_retries


def expired(engine: Engine, conn: Connection) -> None:
    """A deadline of `conn` has come."""
    now = engine.now
    if conn.wait_until is not None and conn.wait_until <= now:
        closing.waited(engine, conn)
        if conn.state == CLOSED:
            return
    recovery = conn.recovery
    if recovery is not None and recovery.deadline is not None and recovery.deadline <= now:
        _retransmission(engine, conn)
    if conn.state == CLOSED:
        return
    if conn.delayed_at is not None and conn.delayed_at <= now:
        conn.delayed_at = None
        conn.ack_now = True
        conn.pingpong = False
        engine.counters[C.delayed_acks] += 1
    if conn.cork_at is not None and conn.cork_at <= now:
        conn.cork_at = CORK_OVER  # the octets leave now, or when the window or the congestion window permits
    if conn.persist_at is not None and conn.persist_at <= now:
        _probe(engine, conn)
    if conn.state != CLOSED and conn.keepalive_at is not None and conn.keepalive_at <= now:
        _keepalive(engine, conn)
    if conn.state != CLOSED:
        engine.touch(conn)


def _retransmission(engine: Engine, conn: Connection) -> None:
    recovery = conn.recovery
    assert recovery is not None
    if conn.state not in (SYN_SENT, SYN_RECEIVED) and conn.snd_window == 0 and conn.snd_una < conn.snd_nxt:
        # Octets in flight are beyond a window that has closed since: the peer drops them, which is not the path's fault
        recovery.window_closed(engine.now)
        conn.persist_at = min(conn.persist_at or engine.now, engine.now)
        return
    if not recovery.expire(engine.now):
        return
    engine.counters[C.timeouts] += 1
    conn.backoffs += 1
    engine.history.note(engine.now, conn, history.TIMED_OUT, conn.backoffs)
    if _given_up(engine, conn):
        error = conn.error_soft or errno.ETIMEDOUT
        engine.history.note(engine.now, conn, history.GAVE_UP, conn.backoffs)
        if conn.state in (SYN_SENT, SYN_RECEIVED):
            engine.counters[C.attempt_fails] += 1
        closing.abandon(engine, conn, error)
        return
    if conn.backoffs >= RETRIES_1:
        engine.below.advise(conn.ends.peer)
    closing.black_hole(engine, conn)


def _given_up(engine: Engine, conn: Connection) -> bool:
    options = conn.options
    if options.user_timeout and conn.state != SYN_RECEIVED:  # RFC 5482, tcp(7)
        return engine.now - conn.last_progress >= options.user_timeout / 1000
    if conn.state == SYN_SENT:
        return conn.backoffs > (options.syncnt or 6)
    if conn.state == SYN_RECEIVED:
        return conn.backoffs > SYNACK_RETRIES
    return conn.backoffs > (ORPHAN_RETRIES if conn.handle == ORPHAN else RETRIES_2)


def _probe(engine: Engine, conn: Connection) -> None:
    """Send one octet of new data beyond the window repeatedly; the connection stays open while the peer answers."""
    recovery = conn.recovery
    assert recovery is not None
    limit = conn.snd_una + conn.snd_window
    final = conn.written + (conn.end is not None)
    conn.persist_at = None
    if conn.snd_una >= final or (limit > conn.snd_una and recovery.lost() is None and conn.snd_nxt < limit
                                 and not _silly(conn, final, limit)):
        return  # it has opened: continue with output
    options = conn.options
    if options.user_timeout and engine.now - conn.last_progress >= options.user_timeout / 1000:
        engine.history.note(engine.now, conn, history.PROBES_UNANSWERED, conn.probes_unanswered)
        closing.abandon(engine, conn, errno.ETIMEDOUT)
        return
    if (conn.handle == ORPHAN and conn.probe_count >= ORPHAN_RETRIES) or conn.probes_unanswered > RETRIES_2:
        engine.history.note(engine.now, conn, history.PROBES_UNANSWERED, conn.probes_unanswered)
        closing.abandon(engine, conn, conn.error_soft or errno.ETIMEDOUT)
        return
    start = conn.snd_una
    end = start + max(1, min(limit, final) - start) if limit > start else start + 1
    engine.counters[C.probes_sent] += 1
    recovery.probe(start, end)
    conn.snd_nxt = max(conn.snd_nxt, end)
    output.emit(engine, conn, start, end, ACK)
    conn.probe_count += 1
    engine.history.note(engine.now, conn, history.PROBED, conn.probe_count)
    conn.probes_unanswered += 1
    wait = min(recovery.rto_s * (1 << min(conn.probe_count, 10)), PROBE_S_MAX)
    conn.persist_at = engine.now + wait


def _silly(conn: Connection, final: int, limit: int) -> bool:
    """The window is open, but by too little for a segment."""
    usable = limit - conn.snd_nxt
    return usable < min(final - conn.snd_nxt, conn.window_max // 2, conn.mss)


def _keepalive(engine: Engine, conn: Connection) -> None:
    options = conn.options
    conn.keepalive_at = None
    if not options.keepalive or conn.state in (SYN_SENT, SYN_RECEIVED):
        return
    busy = conn.snd_una < conn.snd_nxt or conn.snd_nxt < conn.written
    silent = engine.now - conn.last_heard
    if busy or (silent < options.keepidle and not conn.keepalive_probes):
        # RFC 9293 section 3.8.4: only on an idle connection; segments in flight have their own timer
        conn.keepalive_at = max(conn.last_heard + options.keepidle, engine.now + (options.keepidle if busy else 0.001))
        engine.timers.schedule(conn)
        return
    if options.user_timeout:
        dead = silent >= options.keepidle + options.user_timeout / 1000 and conn.keepalive_probes > 0
    else:
        dead = conn.keepalive_probes >= options.keepcnt
    if dead:
        engine.history.note(engine.now, conn, history.NOT_ALIVE, conn.keepalive_probes)
        closing.abandon(engine, conn, conn.error_soft or errno.ETIMEDOUT, reset=True)
        return
    # RFC 9293 section 3.8.4: SEG.SEQ = SND.NXT - 1, no text: the peer has to answer that it is outside the window
    engine.counters[C.keepalives_sent] += 1
    conn.keepalive_probes += 1
    engine.history.note(engine.now, conn, history.KEPT_ALIVE, conn.keepalive_probes)
    output.emit(engine, conn, conn.snd_nxt - 1, conn.snd_nxt - 1, ACK)
    conn.keepalive_at = engine.now + options.keepintvl
    engine.timers.schedule(conn)

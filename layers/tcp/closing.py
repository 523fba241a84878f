"""The end of connections (RFC 9293 section 3.6): timeouts of the FIN states, TIME-WAIT, aborts, orphans, black
holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp import acknowledgment, history, output
from layers.tcp.connection import (
    CLOSE_WAIT,
    CLOSED,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    LAST_ACK,
    ORPHAN,
    SYN_RECEIVED,
    SYN_SENT,
    SYNCHRONIZED,
    TIME_WAIT,
    Connection,
)
from layers.tcp.counters import Counters as C
from packets.tcp import ACK, RST, SYN

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.interfaces import Arrival

TIME_WAIT_S = 60.0  # Linux TCP_TIMEWAIT_LEN; RFC 9293 says 2 MSL, 4 minutes
# RFC 4821, Linux tcp_mtu_probing = 1: after this many timeouts in a row a smaller segment is tried
BLACK_HOLE_TIMEOUTS = 2  # if no full segment has ever arrived,
BLACK_HOLE_TIMEOUTS_LATE = 4  # and if one has: 3 s from the minimum RTO on, as Linux with its tcp_retries1
BLACK_HOLE_MSS = 1024  # Linux tcp_base_mss
MSS_MIN = 48  # Linux tcp_min_snd_mss
LEAST_MSS = 512  # after as many again: a size for every path (RFC 1191 section 7.1 names 508)
RAISE_FIRST_S = 10.0  # until the former size is tried again,
RAISE_S = 600.0  # and until the next time (Linux tcp_probe_interval)


def end_stream(engine: Engine, conn: Connection, number: int | None = None) -> None:
    """CLOSE of the sending direction (RFC 9293 section 3.10.4): the FIN follows the last written octet."""
    if conn.end is not None:
        return
    conn.end = conn.written if number is None else number
    conn.more = False
    if conn.state == ESTABLISHED:
        conn.state = FIN_WAIT_1
    elif conn.state == CLOSE_WAIT:
        conn.state = LAST_ACK
    engine.history.note(engine.now, conn, history.CLOSED_BY_USER)
    engine.touch(conn)


def orphaned(engine: Engine, conn: Connection, read: int) -> None:
    """The application has closed or ended, and has taken everything before `read`; the FIN is queued."""
    state = conn.state
    if state in (SYN_SENT, CLOSED):  # RFC 9293 section 3.10.4: delete the TCB
        finish(engine, conn)
        return
    conn.read = max(conn.read, min(read, conn.rcv_nxt))
    if acknowledgment.unread(conn) and state in SYNCHRONIZED and state != TIME_WAIT:
        engine.history.note(engine.now, conn, history.UNREAD)
        abort(engine, conn)  # RFC 9293 section 3.6.1 (SHLD-3): received data will not be read
        return
    engine.disown(conn)
    acknowledgment.release_ring(engine, conn)
    if state == FIN_WAIT_2:
        fin_wait_2(engine, conn)
    engine.touch(conn)


def abort(engine: Engine, conn: Connection, told: int = 0) -> None:
    """ABORT (RFC 9293 section 3.10.5): send <SEQ=SND.NXT><CTL=RST> and delete the connection.

    Where the peer's window ends before it, at that end: see `output.acceptable`.
    """
    if (conn.state in SYNCHRONIZED and conn.state != TIME_WAIT) or conn.state == SYN_RECEIVED:
        engine.counters[C.resets_sent] += 1
        engine.history.note(engine.now, conn, history.ABORTED)
        if conn.state in (ESTABLISHED, CLOSE_WAIT):
            engine.counters[C.established_resets] += 1
        reset(engine, conn)
    abandon(engine, conn, told)


def reset(engine: Engine, conn: Connection) -> None:
    """Send the RST of a connection that is deleted next."""
    engine.transmit(conn, output.acceptable(conn), RST | ACK, 0, b"", b"", 0)
    if conn.slot:
        engine.cells.reset(conn, engine.now)


def abandon(engine: Engine, conn: Connection, error: int, reset: bool = False) -> None:
    """Delete the connection, for the reason `error` (an errno; 0: not reported)."""
    if reset:
        abort(engine, conn, error)
        return
    if error and conn.handle != ORPHAN and conn.adopted:
        engine.history.note(engine.now, conn, history.FAILED, error)
        engine.failed(conn, error)
    finish(engine, conn)


def finish(engine: Engine, conn: Connection) -> None:
    """CLOSED: delete the TCB."""
    conn.state = CLOSED
    engine.forget(conn)


def keepalive_from_now(engine: Engine, conn: Connection) -> None:
    """SO_KEEPALIVE, if it is set: start the idle time."""
    conn.keepalive_at = engine.now + conn.options.keepidle if conn.options.keepalive else None
    engine.timers.schedule(conn)


def fin_wait_2(engine: Engine, conn: Connection) -> None:
    """An orphan does not wait for the peer's FIN for ever (tcp(7), tcp_fin_timeout and TCP_LINGER2)."""
    if conn.handle != ORPHAN:
        return
    seconds = conn.options.linger2
    if seconds < 0:
        finish(engine, conn)
        return
    conn.wait_until = engine.now + seconds
    engine.timers.schedule(conn)


def enter_time_wait(engine: Engine, conn: Connection) -> None:
    """RFC 9293 section 3.10.7.4: start the time-wait timer, turn off the other timers."""
    conn.state = TIME_WAIT
    engine.history.note(engine.now, conn, history.IN_TIME_WAIT)
    conn.delayed_at = conn.persist_at = conn.keepalive_at = conn.cork_at = None
    conn.wait_until = engine.now + TIME_WAIT_S
    engine.in_time_wait(conn)
    engine.timers.forget(conn)  # those that were turned off need no turn
    engine.timers.schedule(conn)


def waited(engine: Engine, conn: Connection) -> None:
    """`wait_until` has come: the end of TIME-WAIT, or of an orphan's FIN-WAIT-2."""
    conn.wait_until = None
    if conn.state in (TIME_WAIT, FIN_WAIT_2):
        engine.history.note(engine.now, conn, history.WAITED)
        finish(engine, conn)


def time_wait(engine: Engine, conn: Connection, arrival: Arrival, seq: int) -> bool:
    """The special cases of TIME-WAIT; False: continue with the ordinary steps."""
    segment = arrival.segment
    if segment.flags & RST:
        return True  # RFC 1337 section 3, fix F1: ignore it, against TIME-WAIT assassination
    if segment.flags & SYN and not segment.flags & ACK:
        stamps = segment.options.timestamps
        if conn.timestamps_ok and stamps is not None:  # RFC 6191 section 2
            age = (stamps[0] - conn.ts_recent) & 0xFFFFFFFF
            newer = 0 < age < 1 << 31 or (age == 0 and seq >= conn.rcv_nxt)
        else:
            # RFC 9293 section 3.6.1 (MAY-2): a larger sequence number than the last used one
            newer = seq >= conn.rcv_nxt
        if newer and engine.lookup.listener(arrival.destination, segment.destination_port) is not None:
            engine.counters[C.time_wait_reused] += 1
            engine.history.note(engine.now, conn, history.REUSED)
            engine.predecessor = conn
            finish(engine, conn)
            engine.arrives(arrival)
            return True
        engine.counters[C.outside_window] += 1
        engine.history.note(engine.now, conn, history.OUTSIDE, seq - conn.rcv_nxt)
        engine.acknowledge(conn)
        return True
    # the peer's FIN again: our last ACK was lost. RFC 9293: acknowledge it, and restart the 2 MSL timeout
    if segment.length:
        conn.wait_until = engine.now + TIME_WAIT_S
        engine.timers.schedule(conn)
    return False


def black_hole(engine: Engine, conn: Connection) -> None:
    """RFC 4821 section 4.2, as Linux's tcp_mtu_probing: full segments are lost without an ICMP error, so send smaller
    ones.

    Where full segments have arrived, congestion is the likelier reason for some timeouts, and the path for many.
    """
    if conn.state not in SYNCHRONIZED or conn.mss <= LEAST_MSS:
        return
    recovery = conn.recovery
    arrived = 0 < conn.full_end <= conn.snd_una or (recovery is not None and recovery.board.sacked >= conn.mss)
    timeouts = BLACK_HOLE_TIMEOUTS_LATE if arrived else BLACK_HOLE_TIMEOUTS
    former = conn.former_mss or conn.mss
    if conn.mss > BLACK_HOLE_MSS and conn.backoffs >= timeouts:
        lower_mss(engine, conn, BLACK_HOLE_MSS)
    elif conn.backoffs >= 2 * timeouts:
        lower_mss(engine, conn, LEAST_MSS)
    else:
        return
    conn.former_mss, conn.raise_at, conn.raise_end = former, engine.now + RAISE_FIRST_S, 0


def raise_mss(engine: Engine, conn: Connection) -> None:
    """The octets of the segment with the former size have arrived; if nothing was sent again meanwhile, as one.

    RFC 4821 section 7: then the path carries it, and the timeouts had another reason.
    """
    conn.raise_end = 0
    if conn.octets_resent != conn.raise_resent:
        conn.raise_at = engine.now + RAISE_S
        return
    conn.mss, conn.former_mss, conn.full_end = conn.former_mss, 0, 0
    engine.history.note(engine.now, conn, history.FORMER_MSS, conn.mss)
    engine.loss_recovery(conn).reduce_mss(conn.mss - (12 if conn.timestamps_ok else 0))


def lower_mss(engine: Engine, conn: Connection, mss: int) -> None:
    """The path MTU is smaller: split later segments, and those in flight, accordingly (RFC 9293 section 3.9.2.2)."""
    if mss < conn.former_mss:
        conn.former_mss = mss if mss > conn.mss else 0
    if mss >= conn.mss:
        return
    engine.counters[C.mtu_lowered] += 1
    conn.mss, conn.full_end = max(mss, MSS_MIN), 0
    engine.history.note(engine.now, conn, history.SMALLER_MSS, conn.mss)
    if conn.recovery is not None:
        conn.recovery.reduce_mss(conn.mss - (12 if conn.timestamps_ok else 0))
    engine.touch(conn)

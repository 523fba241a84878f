"""SEGMENT ARRIVES (RFC 9293 section 3.10.7), in the order of the RFC.

`layers.tcp.listen` and `layers.tcp.reset` handle segments without a connection. This module handles segments of a
connection: SYN-SENT (3.10.7.3), and all other states (3.10.7.4), step by step. A step returns False where the RFC says
"return".
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from layers.tcp import acknowledgment, closing, ecn, fast_open, history, listen, reassembly, reset
from layers.tcp.connection import (
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    LAST_ACK,
    ORPHAN,
    RECEIVING,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
    Connection,
)
from layers.tcp.counters import Counters as C
from layers.tcp.sequence import from_wire
from packets.tcp import ACK, FIN, PSH, RST, SYN, URG

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.interfaces import Arrival

PAWS_IDLE_S = 24 * 86400  # RFC 7323 section 5.5: after this time the peer's timestamp clock may have wrapped


def arrives(engine: Engine, conn: Connection, arrival: Arrival) -> None:
    """Process a segment of this connection."""
    payload = arrival.segment.payload
    if payload:
        segments = _segments(conn, payload)
        conn.segments_in += segments
        conn.data_segments_in += segments
    else:
        conn.segments_in += 1
    if conn.state == SYN_SENT:
        _syn_sent(engine, conn, arrival)
    else:
        _otherwise(engine, conn, arrival)


def _segments(conn: Connection, payload: bytes | memoryview) -> int:
    """How many segments on the wire a segment was that the kernel has joined."""
    octets = len(payload)
    return 1 if octets <= conn.own_mss else -(-octets // (conn.own_mss - 12 * conn.timestamps_ok))


# -- 3.10.7.3: SYN-SENT ---------------------------------------------------------------------------------------------


def _syn_sent(engine: Engine, conn: Connection, arrival: Arrival) -> None:
    segment = arrival.segment
    flags = segment.flags
    ack = from_wire(conn.iss, segment.acknowledgment, conn.snd_una) if flags & ACK else None
    # First, check the ACK bit
    if ack is not None and not conn.snd_una < ack <= conn.snd_nxt:
        engine.history.note(engine.now, conn, history.SENT_BAD_ACK)
        reset.unacceptable(engine, arrival)
        return
    # Second, check the RST bit
    if flags & RST:
        if ack is not None:  # otherwise RFC 5961 section 3: it proves nothing
            engine.history.note(engine.now, conn, history.SENT_RESET)
            engine.counters[C.attempt_fails] += 1
            closing.abandon(engine, conn, errno.ECONNREFUSED)
        return
    # Third, check the security: none here.  Fourth, check the SYN bit
    if not flags & SYN:
        return
    conn.irs = segment.sequence
    conn.rcv_nxt = conn.advertised = conn.last_ack_sent = 1
    listen.negotiate(engine, conn, segment, arrival.ecn)
    conn.last_heard = engine.now
    # The window of a SYN is never scaled (RFC 7323 section 2.2)
    conn.snd_window = conn.window_max = segment.window
    conn.snd_wl1 = 0
    acknowledgment.open_window(conn)
    if ack is None:  # simultaneous open: our SYN again, with an ACK
        conn.state = SYN_RECEIVED
        engine.history.note(engine.now, conn, history.SENT_SYN)
        engine.send_syn(conn)
        if segment.payload:
            conn.ack_now = True  # the text is sent again: RFC 9293 permits queueing text of a SYN until ESTABLISHED
        return
    _acknowledged(engine, conn, arrival, ack)
    if conn.options.fast_open:
        fast_open.answered(engine, conn, segment, ack)
    conn.cookie = None
    conn.snd_wl2 = ack
    _established(engine, conn)
    engine.history.note(engine.now, conn, history.SENT_ESTABLISHED)
    conn.ack_now = True
    # Sixth to eighth: URG, text and FIN of the SYN itself
    if segment.payload or flags & FIN:
        number = 1
        if flags & URG:
            _urgent(engine, conn, arrival, number)
        _text_and_fin(engine, conn, arrival, number, segment.payload, bool(flags & FIN))


def _established(engine: Engine, conn: Connection) -> None:
    conn.state = ESTABLISHED
    conn.last_heard = engine.now
    engine.cookie_limit.proves(conn.ends.peer)
    closing.keepalive_from_now(engine, conn)
    if conn.listener:
        listen.established(engine, conn)
    else:
        engine.room(conn, first=True)
    if conn.end is not None:  # the application has closed already: the FIN follows the octets that it wrote
        conn.state = FIN_WAIT_1
    engine.touch(conn)


# -- 3.10.7.4: all other states ---------------------------------------------------------------------------------------


def _otherwise(engine: Engine, conn: Connection, arrival: Arrival) -> None:
    segment = arrival.segment
    flags, payload = segment.flags, segment.payload
    seq = from_wire(conn.irs, segment.sequence, conn.rcv_nxt)
    if flags & SYN and conn.state == SYN_RECEIVED and not seq:
        if not flags & ACK:  # the same SYN again, so send the same answer
            engine.history.note(engine.now, conn, history.SYN_AGAIN)
            engine.send_syn(conn)
            return
        seq, flags = 1, flags & ~SYN  # simultaneous open, figure 8: the SYN-ACK repeats the SYN
    if conn.state == TIME_WAIT and closing.time_wait(engine, conn, arrival, seq):
        return
    # First, check sequence number
    window_end = conn.advertised if conn.advertised > conn.rcv_nxt else conn.rcv_nxt
    stamps = segment.options.timestamps if conn.timestamps_ok else None  # absence is tolerated, as Linux does
    if stamps is not None and (stamps[0] - conn.ts_recent) & 0x80000000 and _is_old(engine, conn, arrival, seq):
        return
    length = len(payload) + (flags & SYN > 0) + (flags & FIN)
    if length:
        acceptable = seq < window_end and seq + length > conn.rcv_nxt
        if not acceptable and seq == conn.rcv_nxt == window_end:
            # A zero-window probe: RFC 9293 section 3.4 (MUST-66): process its ACK, URG and RST, but not its text
            acceptable = True
    elif flags & RST:
        acceptable = conn.rcv_nxt <= seq < window_end or seq == conn.rcv_nxt
    else:
        # including its end: the next number of a peer that has filled the window
        acceptable = conn.rcv_nxt <= seq <= window_end
    if not acceptable:
        engine.history.note(engine.now, conn, history.OUTSIDE, seq - conn.rcv_nxt)
        if flags & RST:
            engine.counters[C.blind_reset] += 1
            return
        engine.counters[C.outside_window] += 1
        if payload and seq < conn.rcv_nxt:
            reassembly.duplicate(conn, seq, seq + len(payload))  # RFC 2883
        if conn.state == SYN_RECEIVED and flags & SYN:
            reset.challenge(engine, conn)
            return
        reset.out_of_window(engine, conn, arrival.segment, length > 0)
        return
    conn.last_heard = engine.now
    conn.keepalive_probes = 0
    # Second, check the RST bit
    if flags & RST:
        if seq != conn.rcv_nxt:  # RFC 5961 section 3.2
            engine.counters[C.blind_reset] += 1
            engine.history.note(engine.now, conn, history.BLIND_RESET, seq - conn.rcv_nxt)
            reset.challenge(engine, conn)
        else:
            engine.history.note(engine.now, conn, history.RESET)
            _reset(engine, conn)
        return
    # Third, check security: none here.  Fourth, check the SYN bit
    if flags & SYN:  # RFC 5961 section 4.2
        engine.counters[C.unexpected_syn] += 1
        engine.history.note(engine.now, conn, history.CHALLENGED_SYN)
        reset.challenge(engine, conn)
        return
    # Fifth, check the ACK field
    if not flags & ACK:
        engine.counters[C.no_ack] += 1
        engine.history.note(engine.now, conn, history.NO_ACK)
        return
    ack = from_wire(conn.iss, segment.acknowledgment, conn.snd_una)
    progress = conn.accurate is not None and ecn.is_progress(conn, arrival, seq, ack)
    if conn.state == SYN_RECEIVED:
        if not conn.snd_una < ack <= conn.snd_nxt:
            engine.history.note(engine.now, conn, history.BAD_ACK, ack - conn.snd_una)
            reset.unacceptable(engine, arrival)
            return
        if not listen.may_establish(engine, conn, payload):
            engine.history.note(engine.now, conn, history.ACCEPT_WAITS)
            return
        conn.snd_wl1, conn.snd_wl2 = seq, ack
        ecn.handshake_acknowledged(conn, flags)
        progress = False
        _acknowledged(engine, conn, arrival, ack)
        _established(engine, conn)
        engine.history.note(engine.now, conn, history.ESTABLISHED_BY_ACK)
        conn.snd_window = segment.window << conn.peer_scale
        conn.window_max = max(conn.window_max, conn.snd_window)
    elif not _ack(engine, conn, arrival, seq, ack, length):
        return
    if stamps is not None and seq <= conn.last_ack_sent:
        # RFC 7323 section 4.3: TS.Recent is updated by segments that start at or before the last sent ACK
        conn.ts_recent, conn.ts_recent_at = stamps[0], engine.now
    if conn.ecn_ok or conn.accurate is not None:
        ecn.arrived(engine, conn, arrival, _segments(conn, payload), progress)
    # Sixth, check the URG bit
    if flags & URG:
        _urgent(engine, conn, arrival, seq)
    # Seventh, process the segment text; eighth, check the FIN bit
    if payload or flags & FIN:
        _text_and_fin(engine, conn, arrival, seq, payload, bool(flags & FIN))


def _is_old(engine: Engine, conn: Connection, arrival: Arrival, seq: int) -> bool:
    """PAWS: RFC 7323 section 5.3, R1, for a segment with a timestamp before TS.Recent."""
    if arrival.segment.flags & RST or engine.now - conn.ts_recent_at >= PAWS_IDLE_S:
        return False  # resets: section 5.2
    engine.counters[C.old_timestamp] += 1
    engine.history.note(engine.now, conn, history.OLD_TIMESTAMP)
    length = arrival.segment.length
    if length and seq < conn.rcv_nxt:
        reassembly.duplicate(conn, seq, seq + length)
    reset.out_of_window(engine, conn, arrival.segment, length > 0)
    return True


def _reset(engine: Engine, conn: Connection) -> None:
    state = conn.state
    if state == SYN_RECEIVED:
        engine.counters[C.attempt_fails] += 1
        refused = errno.ECONNRESET if conn.accept_number else errno.ECONNREFUSED
        closing.abandon(engine, conn, refused if conn.accept_number or not conn.listener else 0)
        return
    if state in (ESTABLISHED, CLOSE_WAIT):
        engine.counters[C.established_resets] += 1
    # Linux, tcp_reset: EPIPE if the peer has sent its FIN before
    closing.abandon(engine, conn, errno.EPIPE if state == CLOSE_WAIT else errno.ECONNRESET)


def _ack(engine: Engine, conn: Connection, arrival: Arrival, seq: int, ack: int, length: int) -> bool:
    """ESTABLISHED and later: process the ACK field. False: the segment is finished."""
    if ack > conn.snd_nxt or ack < conn.snd_una - conn.window_max:  # RFC 5961 section 5.2
        engine.counters[C.unacceptable_ack] += 1
        engine.history.note(engine.now, conn, history.BAD_ACK, ack - conn.snd_una)
        if ack > conn.snd_nxt:
            engine.acknowledge(conn)  # "send an ACK, drop the segment, and return"
        else:
            reset.challenge(engine, conn)
        return False
    segment = arrival.segment
    window = segment.window << conn.peer_scale
    if ack >= conn.snd_una:
        # RFC 5681 section 2: what counts as a duplicate ACK
        duplicate = (ack == conn.snd_una and not length and window == conn.snd_window and ack < conn.snd_nxt)
        if conn.snd_wl1 < seq or (conn.snd_wl1 == seq and conn.snd_wl2 <= ack):
            if window != conn.snd_window:
                if not window or not conn.snd_window:
                    engine.history.note(engine.now, conn, history.WINDOW_OPENED if window else history.WINDOW_CLOSED,
                                        window)
                engine.touch(conn)
            conn.snd_window = window
            conn.snd_wl1, conn.snd_wl2 = seq, ack
            if window > conn.window_max:
                conn.window_max = window
        if ack > conn.snd_una or duplicate or segment.options.sack:
            _acknowledged(engine, conn, arrival, ack, duplicate)
    if conn.persist_at is not None and not segment.payload:
        conn.probes_unanswered = 0  # RFC 9293 section 3.8.6.1: while the peer answers, the connection stays open
    return _after_fin_acked(engine, conn) if conn.end is not None and conn.snd_una > conn.end else True


def _acknowledged(engine: Engine, conn: Connection, arrival: Arrival, ack: int, duplicate: bool = False) -> None:
    """Process the acknowledgment of a segment and its SACK blocks (RFC 2018)."""
    options = arrival.segment.options
    blocks: tuple[tuple[int, int], ...] = ()
    if options.sack and conn.sack_ok:
        blocks = tuple((from_wire(conn.iss, left, conn.snd_una), from_wire(conn.iss, right, conn.snd_una))
                       for left, right in options.sack)
    stamps = options.timestamps if conn.timestamps_ok else None
    acknowledged(engine, conn, ack, stamps[1] if stamps is not None else 0, blocks, duplicate)


def acknowledged(engine: Engine, conn: Connection, ack: int, echo: int, blocks: tuple[tuple[int, int], ...] = (),
                 duplicate: bool = False) -> None:
    """Process the cumulative acknowledgment and relative SACK blocks. `echo`: of our timestamp; 0: none."""
    now = engine.now
    advanced = ack > conn.snd_una
    echoed = None
    if advanced:
        if echo:
            ticks = (engine.timestamp(conn) - echo) & 0xFFFFFFFF
            if ticks < 1 << 22:  # RFC 7323 section 4: an echo of more than an hour is not a valid sample
                echoed = ticks / 1000
        conn.snd_una = ack
        conn.backoffs = 0
        conn.last_progress = now
        conn.error_soft = 0
        conn.probes_unanswered = 0
    if conn.recovery is not None:
        conn.recovery.acknowledged(ack, blocks, now, duplicate, echoed)
    if advanced:
        if 0 < conn.raise_end <= ack:
            closing.raise_mss(engine, conn)
        engine.freed(conn)
    engine.touch(conn)


def _after_fin_acked(engine: Engine, conn: Connection) -> bool:
    """Our FIN is acknowledged."""
    state = conn.state
    if state == FIN_WAIT_1:
        conn.state = FIN_WAIT_2
        engine.history.note(engine.now, conn, history.FIN_ACKED)
        engine.room(conn, finished=True)
        closing.fin_wait_2(engine, conn)
    elif state == CLOSING:
        engine.history.note(engine.now, conn, history.FIN_ACKED_LAST)
        engine.room(conn, finished=True)
        closing.enter_time_wait(engine, conn)
        return False
    elif state == LAST_ACK:
        engine.history.note(engine.now, conn, history.FIN_ACKED_LAST)
        engine.room(conn, finished=True)
        closing.finish(engine, conn)
        return False
    return True


def _urgent(engine: Engine, conn: Connection, arrival: Arrival, seq: int) -> None:
    """Sixth step; RFC 6093: the pointer is interpreted as on Linux, as the octet after the urgent one."""
    segment = arrival.segment
    if not segment.urgent or conn.state not in RECEIVING:
        return
    mark = seq + segment.urgent
    if mark > conn.urgent and mark > conn.rcv_nxt:
        conn.urgent = mark
        engine.urgent(conn)


def _text_and_fin(engine: Engine, conn: Connection, arrival: Arrival, seq: int, payload: bytes | memoryview,
                  fin: bool) -> None:
    if conn.state not in RECEIVING:  # after a FIN there can be no urgent data
        if seq + len(payload) + fin > conn.rcv_nxt or payload:
            conn.ack_now = True
            engine.touch(conn)
        return
    end = seq + len(payload)
    if conn.handle == ORPHAN and end > conn.rcv_nxt and conn.state in (FIN_WAIT_1, FIN_WAIT_2) and payload:
        # The application will not read it: RFC 9293 section 3.6.1 (SHLD-3), RFC 2525 section 2.17; Linux's
        # TCPAbortOnData
        engine.history.note(engine.now, conn, history.UNREAD)
        closing.abort(engine, conn)
        return
    if fin and end <= max(conn.advertised, conn.rcv_nxt) and conn.fin_at is None:
        conn.fin_at = end
    if payload:
        reassembly.text(engine, conn, seq, payload, bool(arrival.segment.flags & PSH))
    if conn.fin_at is not None and conn.rcv_nxt == conn.fin_at:
        if not fin:
            conn.ack_now = True  # RFC 5681 section 4.2: what fills the gap before a FIN, at once
        _fin(engine, conn)
    elif fin:
        conn.ack_now = True
        engine.touch(conn)


def _fin(engine: Engine, conn: Connection) -> None:
    """Eighth step: all octets before the FIN have arrived."""
    conn.rcv_nxt += 1
    conn.out_of_order = None
    engine.touch(conn)
    engine.ended(conn)
    state = conn.state
    engine.history.note(engine.now, conn, history.FIN_CAME)
    if state == ESTABLISHED:
        conn.state = CLOSE_WAIT
        acknowledgment.end_came(engine, conn)
        return
    conn.ack_now = True
    if state == FIN_WAIT_1:
        conn.state = CLOSING  # had our FIN been acknowledged, the state would be FIN-WAIT-2 by now
    elif state == FIN_WAIT_2:
        closing.enter_time_wait(engine, conn)

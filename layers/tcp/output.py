"""Output (RFC 9293 sections 3.7, 3.8.6): windows, Nagle, silly window avoidance, super-segments, PSH and FIN.

`flush` is called once per turn for every connection that has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp import acknowledgment, ecn, fast_open, history, reassembly
from layers.tcp.connection import CLOSED, LISTEN, SENDING, SYN_RECEIVED, SYN_SENT, TIME_WAIT, Connection
from layers.tcp.counters import Counters as C
from packets.tcp import (
    ACK,
    CWR,
    ECE,
    FIN,
    OPTIONS_OCTETS_MAX,
    PSH,
    SACK_BLOCKS_MAX,
    SYN,
    URG,
    Options,
    timestamps_alone,
)

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

HELD_OCTETS_MIN = 4096  # text of a super-segment from which on only a reference to it is sent
CORK_S = 0.2  # tcp(7): maximum time that TCP_CORK and MSG_MORE hold back an incomplete segment


def flush(engine: Engine, conn: Connection) -> None:
    """Send what may be sent, and the ACK if one is owed."""
    state = conn.state
    if state in SENDING:
        recovery = conn.recovery
        if recovery is not None and recovery.lost() is not None:
            _retransmit(engine, conn)
        if (conn.snd_nxt < conn.written or conn.end is not None) and not _alone(engine, conn):
            _new(engine, conn)
    elif state in (SYN_SENT, SYN_RECEIVED):
        lost = engine.loss_recovery(conn).lost()
        if conn.syn_held:
            if conn.written > 1 or conn.end is not None:
                conn.syn_held = False
                send_syn(engine, conn)
        elif lost is not None and not lost[0]:
            engine.counters[C.retransmitted] += 1
            fast_open.timed_out(engine, conn)
            send_syn(engine, conn)
        elif not conn.snd_nxt:
            send_syn(engine, conn)  # the former process died before it had text for it
        elif conn.accept_number:
            _new(engine, conn)  # RFC 7413 section 4.2.1: before the handshake is complete
            engine.timers.schedule(conn)
        return
    elif state in (CLOSED, LISTEN):
        return
    if (conn.ack_now or conn.ack_due) and acknowledgment.due(engine, conn):
        acknowledge(engine, conn)
    engine.timers.schedule(conn)


def send_syn(engine: Engine, conn: Connection) -> None:
    """Send the SYN of SYN-SENT, or the SYN-ACK of SYN-RECEIVED, for the first time or again."""
    options = conn.options
    answers = conn.state == SYN_RECEIVED
    offer = Options(
        mss=conn.own_mss,
        window_scale=conn.own_scale if (options.window_scaling if not answers else conn.scale_ok) else None,
        sack_permitted=options.sack if not answers else conn.sack_ok,
        timestamps=(engine.timestamp(conn), conn.ts_recent) if (
            options.timestamps if not answers else conn.timestamps_ok) else None,
        cookie=conn.cookie)
    if conn.cookie is not None and not fast_open.fits(offer):
        offer, conn.cookie = offer._replace(cookie=None), None
    text = fast_open.text(engine, conn, offer) if conn.cookie and not answers else b""
    # RFC 7323 section 2.2: the window of a SYN is not scaled
    window = min(max(conn.advertised - conn.rcv_nxt, acknowledgment.offered(conn)), acknowledgment.WINDOW_FIELD_MAX)
    conn.advertised = max(conn.advertised, conn.rcv_nxt + window)
    if conn.recovery is not None:
        conn.recovery.sent(0, 1, engine.now, True)
        if text:
            conn.recovery.sent(1, 1 + len(text), engine.now, True)
    conn.syn_octets = max(conn.syn_octets, len(text))
    conn.snd_nxt = max(conn.snd_nxt, 1 + len(text))
    acknowledgment.left(conn)
    flags = SYN | ACK | ecn.agreement(conn) if answers else SYN | ecn.request(conn)
    conn.segments_out += 1
    engine.transmit(conn, 0, flags, window, offer.pack(), text, 0)
    engine.timers.schedule(conn)


def acknowledge(engine: Engine, conn: Connection, expected: int = 0) -> None:
    """A segment without text, with ACK, at a number that the peer accepts; `expected`: what it last said it expects."""
    number = acceptable(conn)
    if number < expected <= conn.snd_nxt:
        number = expected
    emit(engine, conn, number, number, ACK)


def acceptable(conn: Connection) -> int:
    """SND.NXT, or the end of the peer's window where that is before it: after a probe, or if the window has shrunk.

    The peer drops a segment outside its window together with its ACK, so two ends that both wait for room would wait
    for ever. RFC 9293 section 3.8.6 asks a sender to withstand such a peer (MUST-34) and leaves the number open.
    """
    return min(conn.snd_nxt, conn.snd_una + conn.snd_window) if conn.snd_una else conn.snd_nxt


def _options(engine: Engine, conn: Connection) -> bytes:
    stamps = None
    if conn.timestamps_ok:
        stamps = (int(engine.now * 1000) + conn.timestamp_offset) & 0xFFFFFFFF, conn.ts_recent
    if conn.sack_ok and (conn.out_of_order or conn.duplicate_sack is not None):
        most = SACK_BLOCKS_MAX - 1 if stamps else SACK_BLOCKS_MAX  # RFC 2018 section 3: as many as fit into 40 octets
        wire = [((conn.irs + left) & 0xFFFFFFFF, (conn.irs + right) & 0xFFFFFFFF)
                for left, right in reassembly.sack_blocks(conn)[:most]]
        return Options(timestamps=stamps, sack=tuple(wire)).pack()
    return timestamps_alone(*stamps) if stamps is not None else b""


def emit(engine: Engine, conn: Connection, start: int, end: int, flags: int, size: int = 0, new: bool = False) -> None:
    """Send the segment with numbers [start, end), with FIN if that is among them. `size`: split it."""
    options = _options(engine, conn)
    text_end = end
    if conn.end is not None and end > conn.end >= start and end > start:
        flags |= FIN
        text_end = conn.end
    payload, held, has_text = b"", None, text_end > start
    segments = -(-(text_end - start) // size) if size else 1
    conn.segments_out += segments
    if has_text:
        conn.data_segments_out += segments
        assert conn.send_ring is not None
        if size and text_end - start >= HELD_OCTETS_MIN:
            held = engine.rings.held(conn.send_ring, start - 1, text_end - start)
        if held is None:
            payload = conn.send_ring.read(start - 1, text_end - start)
        if text_end == conn.written:
            flags |= PSH  # RFC 9293 section 3.9.1.2 (MUST-61): the last available octets
        if conn.snd_urgent > start:
            flags |= URG
    window = acknowledgment.window_field(conn)
    acknowledgment.left(conn)
    capable = False
    if conn.ecn_ok:
        if conn.ecn_echo:
            flags |= ECE
        if new and has_text:  # RFC 3168 sections 6.1.2, 6.1.5: not on retransmissions
            capable = True
            if conn.ecn_reduced:
                flags |= CWR
                conn.ecn_reduced = False
    elif conn.accurate is not None:
        flags |= conn.accurate.sent()
        capable = new and has_text and conn.accurate.capable
    engine.transmit(conn, start, flags, window, options, payload, size, capable, held)


def _largest(engine: Engine, conn: Connection) -> int:
    """The maximum text of one segment on the wire: RFC 6691, options are subtracted."""
    options = 12 if conn.timestamps_ok else 0
    if conn.sack_ok and conn.out_of_order:
        options += 4 + 8 * min(len(conn.recent_sack or ()), 3)
    return max(1, conn.mss - options)


def _at_once(engine: Engine, conn: Connection, most: int) -> int:
    """The maximum text of a super-segment, whose segments have `most`."""
    if conn.accurate is not None and conn.accurate.field & CWR:
        return most  # who splits it clears CWR in all but the first segment, as RFC 3168 wants it
    return max(engine.super_octets(most), most)


def _retransmit(engine: Engine, conn: Connection) -> None:
    recovery = conn.recovery
    if recovery is None:
        return
    while (lost := recovery.lost()) is not None:
        start, end = lost
        limit = conn.snd_una + conn.snd_window
        most = _largest(engine, conn)
        room = recovery.allowance(engine.now)
        if start >= limit:  # RFC 9293 section 3.8.6 (SHLD-17): octets beyond a window that shrank wait for the probe
            _persist(engine, conn)
            return
        size = min(end - start, limit - start)
        if conn.end is not None and end > conn.end:
            size = end - start  # the FIN is in the same segment
        if room < min(size, most):
            return
        if size > most:
            size = min(size, room, _at_once(engine, conn, most)) // most * most or most
        finish = start + size
        engine.counters[C.retransmitted] += 1
        engine.history.note(engine.now, conn, history.RETRANSMITTED, max(start - 1, 0))
        conn.octets_resent += size
        recovery.sent(start, finish, engine.now, False)
        emit(engine, conn, start, finish, ACK, most if size > most else 0)


def _alone(engine: Engine, conn: Connection) -> bool:
    """The usual case of `_new` in an exchange: all there is to send is less than a segment, and nothing is in flight,
    so that Nagle permits it. False: something else, and nothing was done."""
    start, finish, recovery, options, now = conn.snd_nxt, conn.written, conn.recovery, conn.options, engine.now
    size = finish - start
    if (start != conn.snd_una or recovery is None or conn.end is not None or size >= conn.mss - OPTIONS_OCTETS_MAX
            or size > conn.snd_window or conn.more or options.cork or options.notsent_lowat
            or conn.persist_at is not None or not recovery.sent_alone(start, finish, now)):
        return False
    conn.last_progress = conn.last_sent = now
    conn.snd_nxt = conn.small_sent = finish
    conn.cork_at = None
    emit(engine, conn, start, finish, ACK, new=True)
    if now - conn.last_text < acknowledgment.DELAY_S:
        conn.pingpong = True
    return True


def _new(engine: Engine, conn: Connection) -> None:
    final = conn.written + (conn.end is not None and conn.state != SYN_RECEIVED)
    if conn.snd_nxt >= final:
        return
    recovery = conn.recovery or engine.loss_recovery(conn)
    options = conn.options
    most = _largest(engine, conn)
    limit = conn.snd_una + conn.snd_window
    sent_text = False
    if conn.snd_una == conn.snd_nxt and conn.persist_at is None:
        conn.last_progress = engine.now  # from here on the time without an answer counts
    while conn.snd_nxt < final:
        start = conn.snd_nxt
        available, usable, room = final - start, limit - start, recovery.allowance(engine.now)
        size = min(available, usable)
        if size > room:
            if room < most:
                break  # the congestion window
            size = room
        if size >= most:
            # The rest after full segments is sent as a segment of its own, if Nagle permits it
            size = min(size, _at_once(engine, conn, most)) // most * most
            conn.full_end = conn.full_end or start + most
            if conn.former_mss and engine.now >= conn.raise_at and not conn.raise_end:
                size = _former_size(conn, size, min(available, usable, room), most)
        elif size < available:  # truncated by the window
            # RFC 9293 section 3.8.6.2.1 (MUST-38): less than a segment only if it is half of the largest window
            if size <= 0 or size < conn.window_max // 2:
                if conn.snd_una == conn.snd_nxt:
                    _persist(engine, conn)
                break
        elif not _small_may_leave(engine, conn, size):
            break
        finish = start + size
        conn.snd_nxt = finish
        if size < most:
            conn.small_sent = finish
        recovery.sent(start, finish, engine.now, finish == final or limit - finish < most)
        conn.persist_at = conn.cork_at = None
        emit(engine, conn, start, finish, ACK, most if size > most and finish != conn.raise_end else 0, new=True)
        sent_text = True
    if sent_text:
        if engine.now - conn.last_text < acknowledgment.DELAY_S:
            conn.pingpong = True  # Linux: an application that answers soon sends the ACK with its answer
        conn.last_sent = engine.now
        if options.notsent_lowat:
            engine.room(conn)
    if conn.snd_una == conn.snd_nxt and conn.snd_nxt < final and limit <= conn.snd_nxt:
        _persist(engine, conn)


def _former_size(conn: Connection, size: int, permitted: int, most: int) -> int:
    """The size of the next segment: what it was before `closing.black_hole`, as a probe (RFC 4821 section 7).

    Otherwise a path that was interrupted for some seconds would have small segments for ever.
    """
    whole = most + conn.former_mss - conn.mss
    if not most < whole <= permitted:
        return size
    conn.raise_end, conn.raise_resent = conn.snd_nxt + whole, conn.octets_resent
    return whole


def _small_may_leave(engine: Engine, conn: Connection, size: int) -> bool:
    """The last available octets, less than a segment: Nagle with Minshall's variant, corks (RFC 9293 section 3.7.4)."""
    options = conn.options
    if conn.end is not None:
        return True  # the FIN ends the stream: no more octets follow
    if options.cork or conn.more:
        if conn.cork_at is None:
            conn.cork_at = engine.now + CORK_S
            return False
        return engine.now >= conn.cork_at
    if options.nodelay or conn.snd_urgent > conn.snd_nxt:
        return True
    return conn.small_sent <= conn.snd_una  # no small segment is in flight


def _persist(engine: Engine, conn: Connection) -> None:
    """The window is closed, and no segment in flight would be answered: probe it (section 3.8.6.1)."""
    if conn.persist_at is None and conn.state != TIME_WAIT:
        assert conn.recovery is not None
        conn.persist_at = engine.now + conn.recovery.rto_s

"""Listening (RFC 9293 sections 3.5 and 3.10.7.2): SYN queue, accept queue, SYN cookies (RFC 4987), negotiation of
options.

The socket service has the accept queue: its ACCEPT records say how many connections may be passed up. If the queue is
full, as on Linux, new SYNs are dropped, and the last ACK of a handshake is ignored, so that the peer sends it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.streams import StreamState
from layers.tcp import acknowledgment, closing, cookies, ecn, fast_open, history, reassembly, reset
from layers.tcp.connection import LISTEN, SYN_RECEIVED, Connection, Ends
from layers.tcp.counters import Counters as C
from packets.tcp import ACK, FIN, MSS_DEFAULT, RST, SYN, Options, Segment

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.interfaces import Arrival

SYN_QUEUE_MIN, SYN_QUEUE_MAX = 128, 1024  # half-open connections of a listener; beyond this cookies are used
COOKIE_WINDOW = min(acknowledgment.UNSCALED_LIMIT, acknowledgment.WINDOW_FIELD_MAX)  # of the SYN-ACK


class Listener:
    """A socket in LISTEN."""

    __slots__ = ("address", "handed", "handle", "limit", "options", "port", "syn_queue", "taken", "untaken")

    def __init__(self, handle: int, address: bytes, port: int, options: StreamState) -> None:
        self.handle = handle
        self.address = address  # empty: any
        self.port = port
        self.options = options
        self.syn_queue: dict[Connection, None] = {}
        # passed up, by number; not yet confirmed by the socket service, nor closed. Without their TCBs, which may sleep
        self.untaken: dict[int, tuple[int, Ends]] = {}  # handle
        self.handed = 0
        self.taken = 0
        self.limit = max(options.listen, 0) + 1  # until the first ACCEPT

    @property
    def full(self) -> bool:
        """True if no more connections can be passed up."""
        return self.handed >= self.limit

    @property
    def crowded(self) -> bool:
        """True if the SYN queue is full, so that a SYN is answered with a SYN cookie."""
        waiting = len(self.syn_queue)
        return waiting >= SYN_QUEUE_MAX or waiting >= max(self.options.listen, SYN_QUEUE_MIN)


def arrives(engine: Engine, listener: Listener, arrival: Arrival) -> None:
    """A segment to a listener without a connection: RFC 9293 section 3.10.7.2."""
    segment = arrival.segment
    # First, check for a RST
    if segment.flags & RST:
        return
    # Second, check for an ACK
    if segment.flags & ACK:
        if segment.flags & SYN or not _cookie_returned(engine, listener, arrival):
            reset.answer(engine, arrival)
        return
    # Third, check for a SYN (security: none here). Fourth, other: drop, and also a SYN with FIN, as on Linux
    if segment.flags & (SYN | FIN) != SYN:
        engine.counters[C.listen_bad] += 1
        return
    if listener.full:
        engine.counters[C.listen_dropped] += 1
        engine.history.note_alone(engine.now, _ends(arrival), LISTEN, history.LISTEN_FULL)
        return
    if listener.crowded:
        identity = b"".join((_ends(arrival).flow, segment.sequence.to_bytes(4, "big")))
        if engine.cookie_limit.allows(arrival.source, identity, engine.now):
            _send_cookie(engine, listener, arrival)
        else:
            engine.counters[C.cookies_limited] += 1
        return
    conn = _open(engine, listener, arrival)
    conn.irs = segment.sequence
    conn.rcv_nxt = conn.last_ack_sent = 1
    negotiate(engine, conn, segment, arrival.ecn)
    conn.snd_window = conn.window_max = segment.window
    acknowledgment.open_window(conn)
    listener.syn_queue[conn] = None
    engine.history.note(engine.now, conn, history.LISTEN_SYN)
    engine.remember(conn)
    if listener.options.fast_open and fast_open.takes_text(engine, listener, conn, segment):
        hand_up(engine, listener, conn)
        reassembly.text(engine, conn, 1, segment.payload, pushed=True)
        conn.syn_octets = conn.rcv_nxt - 1
    engine.send_syn(conn)


def _open(engine: Engine, listener: Listener, arrival: Arrival) -> Connection:
    conn = engine.new_connection(_ends(arrival), 0, listener.options)
    conn.listener = listener.handle
    conn.adopted = False
    conn.state = SYN_RECEIVED
    conn.opened_at = engine.now
    return conn


def _ends(arrival: Arrival) -> Ends:
    segment = arrival.segment
    return Ends(arrival.destination, segment.destination_port, arrival.source, segment.source_port)


def negotiate(engine: Engine, conn: Connection, segment: Segment, field: int = ecn.NOT_ECT) -> None:
    """What the peer's SYN and ours agree on (RFC 6691, 7323, 2018, 3168, 9768); `field` is the ECN field of its
    packet."""
    options, own = segment.options, conn.options
    conn.peer_mss = options.mss or MSS_DEFAULT  # RFC 9293 section 3.7.1 (MUST-15)
    conn.mss = max(min(conn.peer_mss, conn.path_mss), closing.MSS_MIN)
    conn.scale_ok = options.window_scale is not None and own.window_scaling
    if conn.scale_ok:
        conn.peer_scale = options.window_scale or 0
    else:
        conn.peer_scale = conn.own_scale = 0
    conn.sack_ok = options.sack_permitted and own.sack
    conn.timestamps_ok = options.timestamps is not None and own.timestamps
    (ecn.answered if segment.flags & ACK else ecn.asked)(conn, segment.flags, field)
    if conn.timestamps_ok and options.timestamps is not None:
        conn.ts_recent, conn.ts_recent_at = options.timestamps[0], engine.now
    conn.peer_segment = min(conn.mss, MSS_DEFAULT)
    conn.rcv_limit = acknowledgment.initial_limit(conn)
    if conn.recovery is not None:
        conn.recovery.sack = conn.sack_ok
        conn.recovery.reduce_mss(conn.mss - (12 if conn.timestamps_ok else 0))


def may_establish(engine: Engine, conn: Connection, payload: bytes | memoryview) -> bool:
    """True if the ACK that completes the handshake is accepted."""
    listener = engine.lookup.listeners.get(conn.listener)
    if listener is None or conn.accept_number:  # it was passed up already
        return True
    if listener.full:
        engine.counters[C.accept_waits] += 1
        return False
    defer = listener.options.defer_accept
    # tcp(7), TCP_DEFER_ACCEPT: the application is notified when data arrives, or after the timeout
    return bool(payload) or not defer or engine.now >= conn.opened_at + defer


def established(engine: Engine, conn: Connection) -> None:
    """The handshake is complete: pass the connection up."""
    listener = engine.lookup.listeners.get(conn.listener)
    conn.cookie = None
    if listener is not None:
        listener.syn_queue.pop(conn, None)
    if conn.accept_number:  # by Fast Open it was passed up before
        return
    if listener is None:
        closing.abort(engine, conn)
        return
    hand_up(engine, listener, conn)


def hand_up(engine: Engine, listener: Listener, conn: Connection) -> None:
    """Pass a connection up."""
    engine.counters[C.passive_opens] += 1
    listener.handed += 1
    conn.accept_number = listener.handed
    engine.adopt(listener, conn)
    listener.untaken[conn.accept_number] = conn.handle, conn.ends


def credit(engine: Engine, listener: Listener, taken: int, limit: int) -> None:
    """ACCEPT: connections up to number `taken` are stored by the service, up to `limit` may be passed up."""
    untaken = listener.untaken  # in the order of their numbers
    while untaken and (number := next(iter(untaken))) <= taken:
        del untaken[number]
    listener.taken = max(listener.taken, taken)
    listener.limit = max(listener.limit, limit)


def close(engine: Engine, listener: Listener) -> None:
    """RFC 9293 section 3.10.4: leave LISTEN; half-open connections are deleted."""
    for conn in [conn for conn in listener.syn_queue if not conn.accept_number]:
        closing.abort(engine, conn)
    listener.syn_queue.clear()


# -- SYN cookies ------------------------------------------------------------------------------------------------------


def _send_cookie(engine: Engine, listener: Listener, arrival: Arrival) -> None:
    """A SYN-ACK without any state: the ACK that answers it contains everything. `layers.tcp.crowd` does the same."""
    segment = arrival.segment
    ends = _ends(arrival)
    count_cookie(engine, ends.flow)
    isn = cookies.make(engine.secret, ends.octets, segment.sequence, segment.options.mss or MSS_DEFAULT, engine.now)
    offer = cookie_options(engine, listener.options, arrival.source, segment.options)
    engine.transmit_alone(arrival, Segment(
        segment.destination_port, segment.source_port, isn, (segment.sequence + 1) & 0xFFFFFFFF, SYN | ACK,
        COOKIE_WINDOW, options=offer))


def count_cookie(engine: Engine, flow: bytes) -> None:
    """A SYN cookie is sent."""
    engine.counters[C.cookies_sent] += 1
    engine.history.note_flow(engine.now, flow, LISTEN, history.COOKIE_SENT)


def cookie_options(engine: Engine, own: StreamState, source: bytes, options: Options) -> Options:
    """What a SYN-ACK with a cookie offers in answer to `options`."""
    stamps = None
    scale = None
    if options.timestamps is not None and own.timestamps:
        wanted = options.window_scale if own.window_scaling else None
        clock = int(engine.now * 1000)
        stamps = cookies.stamp(clock, wanted, options.sack_permitted and own.sack), options.timestamps[0]
        scale = acknowledgment.OWN_SCALE if wanted is not None else None
    return Options(mss=engine.route_mss(source, own), window_scale=scale, timestamps=stamps,
                   sack_permitted=stamps is not None and options.sack_permitted and own.sack)


def _cookie_returned(engine: Engine, listener: Listener, arrival: Arrival) -> bool:
    """An ACK to a listener: if it contains a valid cookie, create the connection. False: no valid cookie."""
    segment = arrival.segment
    if engine.counters[C.cookies_sent] == 0:
        return False
    ends = _ends(arrival)
    isn, irs = (segment.acknowledgment - 1) & 0xFFFFFFFF, (segment.sequence - 1) & 0xFFFFFFFF
    mss = cookies.check(engine.secret, ends.octets, irs, isn, engine.now)
    if not mss:
        engine.counters[C.cookies_failed] += 1
        return False
    if listener.full:
        engine.counters[C.accept_waits] += 1
        return True
    engine.counters[C.cookies_received] += 1
    stamps = segment.options.timestamps
    scale, sack = cookies.read_stamp(stamps[1]) if stamps is not None else (None, False)
    conn = _open(engine, listener, arrival)
    conn.iss, conn.irs = isn, irs
    engine.history.note(engine.now, conn, history.COOKIE_CAME)
    conn.snd_nxt = conn.rcv_nxt = conn.last_ack_sent = 1
    conn.timestamp_offset = 0
    as_if = segment._replace(sequence=irs, flags=SYN, options=Options(mss, scale, sack, stamps), payload=b"")
    negotiate(engine, conn, as_if)
    acknowledgment.open_window(conn)
    if conn.recovery is not None:
        conn.recovery.sent(0, 1, engine.now, True)
    listener.syn_queue[conn] = None
    engine.remember(conn)
    engine.arrives(arrival)
    return True


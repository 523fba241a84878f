"""When to acknowledge, and the receive window (RFC 9293 sections 3.8.6.2.2 and 3.8.6.3, RFC 5681 section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp.connection import ORPHAN, RECEIVING, Connection
from layers.tcp.ring import RING_OCTETS_MAX, RING_OCTETS_MIN, size_for
from packets.tcp import MSS_DEFAULT
from usernet.pipe.streams import READ_OCTETS_MIN

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

DELAY_S = 0.04  # Linux TCP_DELACK_MIN; RFC 9293 (MUST-58): below 0.5 s
END_DELAY_S = 0.02  # of the ACK of a FIN: an application that closes in answer to it needs a few milliseconds
QUICK_ACKS = 16  # Linux TCP_MAX_QUICKACKS: number of segments acknowledged at once at the start and after a pause
IDLE_S = 0.2  # Linux: after an RTO without text the next segments are acknowledged at once again
WINDOW_FIELD_MAX = 65535
MSS_MIN = 88  # Linux TCP_MIN_MSS: shorter ones are not full
SPARE_OCTETS = 256  # of a ring, not offered, because windows are rounded up by less than this
OWN_SCALE = 7  # RFC 7323 section 2.3: enough for a ring of 4 MiB
UNSCALED_LIMIT = RING_OCTETS_MIN - SPARE_OCTETS


def limit_of(ring_octets: int) -> int:
    """The number of octets that may be promised for a ring of that size."""
    return ring_octets - SPARE_OCTETS


def initial_limit(conn: Connection) -> int:
    """The initial limit of a receive buffer; SO_RCVBUF reports twice its size."""
    asked = conn.options.receive_buffer
    return min(max(asked // 2, 1), limit_of(RING_OCTETS_MAX)) if asked else limit_of(RING_OCTETS_MIN)


def open_window(conn: Connection) -> None:
    """The first window, in the SYN: unscaled."""
    conn.rcv_limit = conn.rcv_limit or initial_limit(conn)
    conn.advertised = max(conn.advertised, conn.rcv_nxt + min(offered(conn), WINDOW_FIELD_MAX))


def unread(conn: Connection) -> int:
    """Number of octets received in order that the application has not taken."""
    end = conn.rcv_nxt if conn.fin_at is None else min(conn.rcv_nxt, conn.fin_at)
    return end - conn.read if end > conn.read else 0


def offered(conn: Connection) -> int:
    """Number of octets after RCV.NXT to promise, with silly window avoidance: never less than was promised before."""
    clamp = conn.options.window_clamp
    limit = min(conn.rcv_limit, clamp) if clamp else conn.rcv_limit
    room = limit - unread(conn)
    if room < 0:
        room = 0
    promised = conn.advertised - conn.rcv_nxt
    grown = room - promised
    # RFC 9293 section 3.8.6.2.2 (MUST-39): move the right edge only by min(half the buffer, one segment) or more
    if grown < conn.mss and grown < limit // 2:
        return promised if promised > 0 else 0
    return room


def window_field(conn: Connection) -> int:
    """The window field of a segment that is sent now; from now on it is promised."""
    window = offered(conn)
    scale = conn.own_scale
    field = (window + (1 << scale) - 1) >> scale  # rounded up: the right edge must not move back because of rounding
    if conn.rcv_nxt + (field << scale) > conn.read + size_for(conn.rcv_limit):
        field = window >> scale  # but not beyond the ring: RFC 7323 section 2.4 permits moving back by rounding
    if field > WINDOW_FIELD_MAX:
        field = WINDOW_FIELD_MAX
    edge = conn.rcv_nxt + (field << scale)
    if edge > conn.advertised:
        conn.advertised = edge
    return field


def due(engine: Engine, conn: Connection) -> bool:
    """An ACK is owed. True if it must be sent now; otherwise set the time of a delayed ACK."""
    if conn.ack_now:
        return True
    quick = conn.options.quickack
    # RFC 9293 section 3.8.6.3 (SHLD-19): at least for every second full segment, counted in octets because many may
    # arrive as one
    if conn.ack_due >= 2 * conn.peer_segment or quick:
        return True
    if quick is None and not conn.pingpong:
        if conn.quick > 0:
            conn.quick -= 1
            return True
        # As Linux (__tcp_cleanup_rbuf): a peer with Nagle's algorithm keeps its next short segment until this ACK. That
        # the application reads as fast as text comes is known without a record for each read.
        if conn.pushed and unread(conn) - conn.ack_due < READ_OCTETS_MIN:
            return True
    if conn.delayed_at is None:
        conn.delayed_at = engine.now + DELAY_S
    return False


def left(conn: Connection) -> None:
    """A segment with an ACK was sent: no ACK is owed any more."""
    conn.ack_now = False
    conn.pushed = False
    conn.ack_due = 0
    conn.delayed_at = None
    conn.last_ack_sent = conn.rcv_nxt


def text_came(engine: Engine, conn: Connection) -> None:
    """Text arrived: begin anew after a pause. Linux stays in pingpong mode then."""
    if engine.now - conn.last_text > IDLE_S:
        conn.quick, conn.pingpong, conn.last_size = QUICK_ACKS, False, 0
    conn.last_text = engine.now


def end_came(engine: Engine, conn: Connection) -> None:
    """The peer's FIN arrived in ESTABLISHED. Its ACK is delayed (Linux: tcp_fin): usually the application answers by
    closing, and our FIN carries it."""
    conn.ack_due += 1
    conn.pingpong = True
    at = engine.now + END_DELAY_S
    if conn.delayed_at is None or at < conn.delayed_at:
        conn.delayed_at = at


def measure(conn: Connection, octets: int, pushed: bool) -> None:
    """Estimate the size of the peer's full segments from text that comes in order, and note whether it ends a write
    (Linux: tcp_measure_rcv_mss).

    A larger segment is full. So are two of the same smaller size in succession, because the path's MTU has become less,
    unless they are so short that they may be an application's, and are pushed.
    """
    options = 12 if conn.timestamps_ok else 0
    largest = max(conn.mss - options, conn.peer_segment)
    if pushed and octets % largest:
        conn.pushed = True
    if octets >= conn.peer_segment:
        conn.peer_segment, conn.last_size = min(octets, largest), 0
    elif octets >= MSS_DEFAULT - options or (octets >= MSS_MIN and not pushed):
        if octets == conn.last_size:
            conn.peer_segment = octets
        conn.last_size = octets
    else:
        conn.last_size = 0


def was_read(engine: Engine, conn: Connection, number: int) -> None:
    """The application has taken everything before `number`: decide whether to send a window update."""
    conn.read = number
    _tune(engine, conn)
    if conn.state not in RECEIVING:
        release_ring(engine, conn)
        return
    before = conn.advertised - conn.rcv_nxt
    now = offered(conn)
    # An update that opens a window of less than a segment is sent at once, any other when it is large enough; it is not
    # delayed.
    if now > before and (before < conn.mss or now - before >= min(2 * conn.mss, conn.rcv_limit // 2)):
        half_used = conn.rcv_limit - before >= conn.rcv_limit // 4 or before < conn.mss
        if half_used:
            conn.ack_now = True
            engine.touch(conn)


def release_ring(engine: Engine, conn: Connection) -> None:
    """Give the receive ring back if no text can come any more and none is left that the application will read."""
    if conn.receive_ring is None or conn.fin_at is None or conn.rcv_nxt <= conn.fin_at:
        return
    if conn.handle == ORPHAN or not unread(conn):
        engine.rings.give(conn.receive_ring)
        conn.receive_ring = None
        engine.touch(conn)


def _tune(engine: Engine, conn: Connection) -> None:
    """As Linux's dynamic right-sizing: a window that is read within a round trip is too small."""
    if conn.options.receive_buffer or conn.options.window_clamp or not conn.own_scale:
        return
    if conn.read - conn.measured_from >= conn.rcv_limit // 2:
        fast = engine.now - conn.measured_at <= 2 * max(engine.loss_recovery(conn).rtt_s, 0.001)
        conn.measured_from, conn.measured_at = conn.read, engine.now
        larger = limit_of(size_for(conn.rcv_limit + SPARE_OCTETS + 1))
        if fast and larger > conn.rcv_limit and engine.rings.may_grow:
            conn.rcv_limit = larger

"""The engine: the state that all modules of the layer share, and one turn.

A turn is a call of the core. Segments, records or timers change connections, which are then *touched*. At the end of
the turn each touched connection is flushed (`output.flush`) and its cells are stored; only then its segments and
records leave (`layers.tcp.durable`). Pure: the time is an argument; output goes to `Below` and `Above`, which make
records of it (`layers.tcp.interfaces`).
"""

from __future__ import annotations

from collections.abc import Callable

from bus.durable.held import Held
from bus.layer import CounterWords
from bus.streams import StreamState
from layers.common.portions import Portions
from layers.tcp import acknowledgment, arrival, closing, fast_open, isn, listen, output, probes, reset
from layers.tcp.connection import ORPHAN, PORTS, Connection, Ends
from layers.tcp.cookie_limit import CookieLimit
from layers.tcp.counters import Counters as C
from layers.tcp.dormant import Dormant
from layers.tcp.history import History
from layers.tcp.interfaces import Above, Arrival, Below, Cells, Rings
from layers.tcp.listen import Listener
from layers.tcp.lookup import Claim, Lookup
from layers.tcp.quiet import Quiet
from layers.tcp.recovery import Recovery
from layers.tcp.ring import RING_OCTETS_MAX
from layers.tcp.sequence import MODULUS_MASK, to_wire
from layers.tcp.timers import Timers
from packets.tcp import NO_OPTIONS, Segment, of_type

TIME_WAIT_MAX = 16384  # connections in TIME-WAIT; beyond, the oldest ends (Linux: net.ipv4.tcp_max_tw_buckets)
HELD_OCTETS_MIN = 2048  # shorter text goes to the application in the record
SEND_LIMIT = 1 << 18  # initial limit of octets that are written but not acknowledged
# Connections whose state is repeated to a new socket service: at once, then in each further portion. That is 10,000 a
# second, so that the records do not fill the memory.
REPEATED_AT_ONCE, REPEATED_THEN, REPEATED_EVERY_S = 1000, 200, 0.02
IP_AND_TCP_OCTETS = {4: 40, 16: 60}  # headers without options, by the octets of an address


class Engine:
    """The engine. The core sets `now` before every call."""

    def __init__(self, counters: CounterWords, below: Below, above: Above, rings: Rings, cells: Cells,
                 secret: bytes) -> None:
        self.now = 0.0
        self.counters = counters
        self.below = below
        self.above = above
        self.rings = rings
        self.cells = cells
        self.secret = secret
        self.lookup = Lookup()
        self.timers = Timers()
        self.history = History()
        self.quiet = Quiet()
        self.dormant: Dormant | None = None  # connections that have no TCB at present; None: not started
        self.repetition: Portions[int] = Portions(REPEATED_EVERY_S)  # handles whose state is repeated
        self.repeat: Callable[[int], None] = lambda handle: None  # of `layers.tcp.calls`
        self.resets = reset.Allowance(reset.RESETS_PER_S)
        self.challenges = reset.Allowance(reset.CHALLENGES_PER_S)
        self.cookie_limit = CookieLimit()
        self.fast_open = fast_open.Cookies()
        self.predecessor: Connection | None = None  # in TIME-WAIT, replaced by the next connection (RFC 6191)
        self.remember_failure: Callable[[int, int], None] = lambda handle, number: None  # of `layers.tcp.calls`
        # of a segment whose text is elsewhere: whether it is still there
        self.text_intact: Callable[[], bool] | None = None
        self._touched: list[Connection] = []
        self._time_waiting: dict[Connection, None] = {}  # the oldest first

    # -- turns ----------------------------------------------------------------------------------------------------

    def arrives(self, segment: Arrival) -> None:
        """Process a segment with a valid checksum."""
        source, destination, parsed, _ = segment
        flow = source + destination + PORTS.pack(parsed.source_port, parsed.destination_port)
        try:
            conn = self.lookup.connections[flow]
        except KeyError:
            pass
        else:
            arrival.arrives(self, conn, segment)
            return
        listener = self.lookup.listener(destination, parsed.destination_port, flow)
        if listener is not None:
            listen.arrives(self, listener, segment)
        else:
            reset.answer(self, segment)

    def expire(self) -> None:
        """Process the timers that are due."""
        if self.dormant is not None:
            self.dormant.wake_some(self.now)
        for conn in self.timers.expired(self.now):
            probes.expired(self, conn)
            self.timers.schedule(conn)
        self.quiet.expire(self)
        self.go_on(REPEATED_THEN)
        trim_at = self.rings.trim_at
        if trim_at is not None and trim_at <= self.now:
            self.rings.trim(self.now)

    def go_on(self, most: int) -> None:
        """Repeat the state of more connections to a new socket service, if it is time."""
        for handle in self.repetition.take(self.now, most):
            self.repeat(handle)

    @property
    def next_due(self) -> float | None:
        """The time of the next `expire`."""
        due = self.timers.next_due
        dormant_due = self.dormant.next_due if self.dormant is not None else None
        for at in (self.quiet.next_due, self.rings.trim_at, self.repetition.next_due, dormant_due):
            if at is not None and (due is None or at < due):
                due = at
        return due

    def touch(self, conn: Connection) -> None:
        """Flush `conn` at the end of the turn."""
        if not conn.touched:
            conn.touched = True
            self._touched.append(conn)

    def flush(self) -> None:
        """End the turn."""
        touched = self._touched
        for conn in touched:  # it may grow during the loop
            conn.touched = False
            output.flush(self, conn)
            if conn.slot:
                self.cells.store(conn)
            self.quiet.consider(conn, self.now)
        touched.clear()
        self.cells.turn_stored(self.now)

    # -- connections ----------------------------------------------------------------------------------------------

    def new_connection(self, ends: Ends, handle: int, options: StreamState) -> Connection:
        """A connection in CLOSED, with its initial sequence number chosen."""
        conn = Connection(ends, handle, options)
        ends_octets = ends.octets
        conn.iss = isn.initial(self.secret, ends_octets, self.now)
        conn.timestamp_offset = isn.timestamp_offset(self.secret, ends_octets)
        conn.path_mss = conn.mss = conn.own_mss = self.route_mss(ends.peer, options)
        conn.own_scale = acknowledgment.OWN_SCALE
        conn.recovery = self.new_recovery(conn)
        conn.send_limit = options.send_buffer // 2 or SEND_LIMIT
        conn.last_heard = conn.last_progress = conn.measured_at = self.now
        predecessor, self.predecessor = self.predecessor, None
        if predecessor is not None and predecessor.ends == ends:
            # RFC 6191 section 2: beyond all numbers that the former connection used
            conn.iss = to_wire(predecessor.iss, predecessor.snd_nxt + 65535 + 2)
        return conn

    @staticmethod
    def new_recovery(conn: Connection) -> Recovery:
        """Loss recovery for a connection."""
        return Recovery(conn.mss - (12 if conn.timestamps_ok else 0), conn.options.congestion, conn.sack_ok)

    def loss_recovery(self, conn: Connection) -> Recovery:
        """The loss recovery of a connection, which may have been released (`layers.tcp.quiet`)."""
        if conn.recovery is None:
            conn.recovery = self.advised_recovery(conn)
        return conn.recovery

    def advised_recovery(self, conn: Connection) -> Recovery:
        """A new loss recovery for a connection with nothing in flight, from the advice in its slot."""
        recovery = self.new_recovery(conn)
        advice = self.cells.advice(conn)
        if advice is not None:
            recovery.load(advice)
        recovery.restored(conn.snd_una, conn.snd_nxt, self.now, conn.last_sent)
        return recovery

    def route_mss(self, peer: bytes, options: StreamState) -> int:
        """The MSS that we send, and the maximum that we use: RFC 9293 section 3.7.1 (MUST-67)."""
        mss = max(self.below.mtu(peer) - IP_AND_TCP_OCTETS[len(peer)] - len(options.ip_options), 88)
        return min(mss, options.maxseg) if options.maxseg else mss

    def remember(self, conn: Connection) -> None:
        """Add it to the look-up, so that it gets its segments."""
        self.lookup.add(conn)
        if not self.cells.born(conn):
            self.counters[C.no_memory] += 1
        self.touch(conn)

    def disown(self, conn: Connection) -> None:
        """Its handle has no owner any more; it continues alone and holds the port itself."""
        self.lookup.by_handle.pop(conn.handle, None)
        options = conn.options
        self.lookup.ports.pass_on(conn.handle, conn, conn.ends.port, Claim(
            conn.ends.local, options.reuse_address, options.reuse_port, False, conn.automatic))
        conn.handle = ORPHAN
        listener = self.lookup.listeners.get(conn.listener)
        if listener is not None:
            listener.untaken.pop(conn.accept_number, None)

    def in_time_wait(self, conn: Connection) -> None:
        """Only its numbers are needed any more; unread octets stay until they are read."""
        waiting = self._time_waiting
        waiting[conn] = None
        if len(waiting) > TIME_WAIT_MAX:
            self.counters[C.time_wait_ended] += 1
            closing.finish(self, next(iter(waiting)))
        conn.recovery = None
        if conn.send_ring is not None:
            self.rings.give(conn.send_ring)
            conn.send_ring = None
        acknowledgment.release_ring(self, conn)
        self.touch(conn)

    def forget(self, conn: Connection) -> None:
        """Delete the TCB."""
        self._time_waiting.pop(conn, None)
        self.lookup.remove(conn)
        self.lookup.ports.release(conn, conn.ends.port)
        listener = self.lookup.listeners.get(conn.listener)
        if listener is not None:
            listener.syn_queue.pop(conn, None)
            listener.untaken.pop(conn.accept_number, None)
        if conn.send_ring is not None:
            self.rings.give(conn.send_ring)
        if conn.receive_ring is not None:
            if conn.receive_ring.home and conn.handle != ORPHAN:  # what is unread may be read after the end
                self.rings.keep(conn.handle, conn.receive_ring)
            else:
                self.rings.give(conn.receive_ring)
        conn.send_ring = conn.receive_ring = None
        conn.recovery = None
        conn.delayed_at = conn.persist_at = conn.keepalive_at = conn.cork_at = conn.wait_until = None
        self.timers.forget(conn)
        if conn.slot:
            self.cells.gone(conn)

    def adopt(self, listener: Listener, conn: Connection) -> None:
        """Pass a connection up: it gets a handle."""
        conn.handle = self.cells.new_handle()
        conn.adopted = True
        self.lookup.by_handle[conn.handle] = conn
        self.lookup.ports.hold(conn.handle, conn.ends.port, Claim(
            conn.ends.local, conn.options.reuse_address, conn.options.reuse_port, False))
        self.above.accepted(listener.handle, conn.handle, conn.accept_number, conn.ends)
        self.room(conn, first=True)

    # -- to the application ---------------------------------------------------------------------------------------

    def received(self, conn: Connection, start: int, octets: bytes | memoryview | None) -> None:
        """Octets arrived in order from `start` to RCV.NXT; `octets` if they are at hand, else they are in the ring."""
        acknowledgment.text_came(self, conn)
        if conn.handle == ORPHAN:
            return
        self.told(conn, start, octets)

    def told(self, conn: Connection, start: int, octets: bytes | memoryview | None = None, moved: bool = False) -> None:
        """Send STREAM records from `start` on. `moved`: they are in another ring now."""
        end = conn.rcv_nxt if conn.fin_at is None else min(conn.rcv_nxt, conn.fin_at)
        ring = conn.receive_ring
        if ring is not None and ring.home and (moved or end - start >= HELD_OCTETS_MIN):
            self.above.stream_held(conn.handle, 0, start - 1, end - start, ring)
            return
        if octets is not None:
            self.above.stream(conn.handle, 0, start - 1, octets)
            return
        while start < end and ring is not None:
            size = min(end - start, 1 << 16)
            self.above.stream(conn.handle, 0, start - 1, ring.read(start - 1, size))
            start += size

    def ended(self, conn: Connection) -> None:
        """The peer's FIN was reached."""
        if conn.handle != ORPHAN:
            assert conn.fin_at is not None
            self.above.stream(conn.handle, 2, conn.fin_at - 1, b"")

    def urgent(self, conn: Connection) -> None:
        """The peer has set the urgent mark."""
        if conn.handle != ORPHAN:
            self.above.stream(conn.handle, 4, conn.urgent - 1, b"")

    def failed(self, conn: Connection, number: int) -> None:
        """The connection has ended with this errno."""
        self.remember_failure(conn.handle, number)
        self.above.reset(conn.handle, number)

    def room(self, conn: Connection, first: bool = False, finished: bool = False, resume: bool = False) -> None:
        """Send ROOM if it contains something new."""
        if conn.handle == ORPHAN:
            return
        buffer_octets = conn.buffer_octets
        limit = conn.snd_una + buffer_octets
        least = buffer_octets // 4
        unsent_low = conn.options.notsent_lowat
        if unsent_low:
            limit = min(limit, conn.snd_nxt + unsent_low)
            least = min(least, unsent_low // 2 or least)
        if limit < conn.room_said:
            limit = conn.room_said
        if not (first or finished or resume) and limit - conn.room_said < least:
            everything = conn.snd_una >= conn.written
            if not everything or conn.room_said - conn.written > buffer_octets // 2:
                return
        conn.room_said = limit
        acked = min(max(conn.snd_una, 1), conn.written)
        done = conn.end is not None and conn.snd_una > conn.end
        flags = (1 if resume else 0) | (2 if done else 0)
        ring = conn.send_ring
        if ring is None or not ring.home:
            self.above.room(conn.handle, flags, conn.written - 1, acked - 1, limit - 1)
        else:
            self.above.room(conn.handle, flags, conn.written - 1, acked - 1, limit - 1, ring)

    def freed(self, conn: Connection) -> None:
        """The peer has acknowledged more octets."""
        recovery = conn.recovery
        if (recovery is not None and not conn.options.send_buffer and 2 * recovery.cwnd > conn.send_limit
                and conn.send_limit == conn.buffer_octets < RING_OCTETS_MAX and self.rings.may_grow):
            conn.send_limit = min(conn.send_limit * 4, RING_OCTETS_MAX)
        self.room(conn)

    # -- to the network -------------------------------------------------------------------------------------------

    def timestamp(self, conn: Connection) -> int:
        """TSval: milliseconds, and the connection's own offset (RFC 7323 section 5.4)."""
        return (int(self.now * 1000) + conn.timestamp_offset) & 0xFFFFFFFF

    def super_octets(self, mss: int) -> int:
        """The maximum text in one super-segment."""
        return self.below.super_octets(mss)

    def send_syn(self, conn: Connection) -> None:
        """The SYN or SYN-ACK of a connection."""
        output.send_syn(self, conn)
        self.touch(conn)

    def acknowledge(self, conn: Connection, expected: int = 0) -> None:
        """Send an ACK now; `expected` as in `output.acknowledge`."""
        output.acknowledge(self, conn, expected)
        self.touch(conn)

    def transmit(self, conn: Connection, number: int, flags: int, window: int, options: bytes, payload: bytes,
                 size: int, capable: bool = False, held: Held | None = None) -> None:
        """Send a segment of a connection; numbers are relative, `window` is the header field."""
        local, local_port, peer, peer_port = conn.ends
        sequence = (conn.iss + number) & MODULUS_MASK
        acknowledgment_number = (conn.irs + conn.rcv_nxt) & MODULUS_MASK if flags & 16 else 0
        urgent = min(conn.snd_urgent - number, 65535) if flags & 32 else 0
        segment = of_type(Segment, (local_port, peer_port, sequence, acknowledgment_number, flags, window, urgent,
                                    NO_OPTIONS, payload, options))
        self.counters[C.segments_out] += 1
        if held is None:
            self.below.transmit(local, peer, segment, size, conn.options, capable)
        else:
            self.below.transmit(local, peer, segment, size, conn.options, capable, held)

    def transmit_alone(self, arrived: Arrival, segment: Segment) -> None:
        """Answer a segment without a connection."""
        self.counters[C.segments_out] += 1
        self.below.transmit(arrived.destination, arrived.source, segment, 0, None, False)


"""The engine: what all modules of the layer share, and one turn of it.

A turn is a call of the core: segments, records or timers change connections, which are then *touched*; at its end each
of those is flushed (`output.flush`), its cells are stored, and only then does what it sends leave
(`layers.tcp.durable`). Pure: time is told, what is to be sent goes to `Below` and `Above`, which make records of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from bus.layer import CounterWords
from bus.streams import StreamState
from layers.tcp import acknowledgment, arrival, closing, isn, listen, output, probes, reset
from layers.tcp.connection import ORPHAN, Connection, Ends
from layers.tcp.counters import Counters as C
from layers.tcp.listen import Listener
from layers.tcp.lookup import Claim, Lookup
from layers.tcp.quiet import Quiet
from layers.tcp.recovery import Recovery
from layers.tcp.ring import RING_OCTETS_MAX, Ring, size_for
from layers.tcp.sequence import to_wire
from layers.tcp.timers import Timers
from packets.tcp import NO_OPTIONS, Segment

TIME_WAIT_MAX = 16384  # connections in TIME-WAIT; beyond, the oldest ends (Linux: net.ipv4.tcp_max_tw_buckets)
SEND_LIMIT = 1 << 18  # octets that an application may have written and the peer not acknowledged, to begin with
IP_AND_TCP_OCTETS = {4: 40, 16: 60}  # headers without options, by the octets of an address


class Arrival(NamedTuple):
    """A segment as it came."""

    source: bytes
    destination: bytes
    segment: Segment
    congested: bool = False  # it was marked on its way (RFC 3168: CE)


class Below(Protocol):
    """What the engine wants of whoever is below: ip."""

    def transmit(self, source: bytes, destination: bytes, segment: Segment, size: int, options: StreamState | None,
                 capable: bool) -> None:
        """Send a segment. `size`: it is to be cut into segments of so many octets of text; 0: it is one.

        `capable`: routers may mark it (RFC 3168: ECT).
        """

    def mtu(self, destination: bytes) -> int:
        """What the way there is known to take, in octets of a packet."""

    def super_octets(self, mss: int) -> int:
        """The most text that one `transmit` may have."""


class Above(Protocol):
    """What the engine wants of whoever is above: the socket service."""

    def stream(self, handle: int, flags: int, offset: int, octets: bytes | memoryview) -> None:
        """STREAM."""

    def room(self, handle: int, flags: int, taken: int, acked: int, limit: int) -> None:
        """ROOM."""

    def accepted(self, listener: int, handle: int, number: int, ends: Ends) -> None:
        """ACCEPTED."""

    def reset(self, handle: int, number: int) -> None:
        """STREAM_RESET."""


class Rings(Protocol):
    """Where rings come from."""

    @property
    def may_grow(self) -> bool:
        """False while memory is scarce."""

    def take(self, octets: int) -> Ring | None:
        """A ring of that size; None: there is no more memory."""

    def give(self, ring: Ring) -> None:
        """It is not needed any more."""

    @property
    def trim_at(self) -> float | None:
        """When `trim` is to be called."""

    def trim(self, now: float) -> None:
        """Give memory that nobody took for a while back to the system."""


class Cells(Protocol):
    """Where connections are stored: `layers.tcp.durable`."""

    def born(self, conn: Connection) -> bool:
        """Give it a slot; False: there is none."""

    def store(self, conn: Connection) -> None:
        """Store what has changed of it, before anything of this turn leaves."""

    def advice(self, conn: Connection) -> memoryview | None:
        """What its loss recovery stored last."""

    def gone(self, conn: Connection) -> None:
        """Its slot is free."""

    def new_handle(self) -> int:
        """A handle that was never given before."""

    def settle(self, now: float) -> None:
        """All that was to be stored in this turn is."""


class Engine:
    """See above. `now` is set by the core before every call."""

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
        self.quiet = Quiet()
        self.resets = reset.Allowance(reset.RESETS_PER_S)
        self.challenges = reset.Allowance(reset.CHALLENGES_PER_S)
        self.predecessor: Connection | None = None  # in TIME-WAIT, whose place the next connection takes (RFC 6191)
        self.remember_failure: Callable[[int, int], None] = lambda handle, number: None  # of `layers.tcp.calls`
        self._touched: list[Connection] = []
        self._time_waiting: dict[Connection, None] = {}  # the oldest first

    # -- turns ----------------------------------------------------------------------------------------------------

    def arrives(self, segment: Arrival) -> None:
        """A segment whose checksum is right."""
        source, destination, parsed = segment[:3]
        flow = b"".join((source, destination, parsed.source_port.to_bytes(2, "big"),
                         parsed.destination_port.to_bytes(2, "big")))
        conn = self.lookup.connections.get(flow)
        if conn is not None:
            arrival.arrives(self, conn, segment)
            return
        listener = self.lookup.listener(destination, parsed.destination_port, flow)
        if listener is not None:
            listen.arrives(self, listener, segment)
        else:
            reset.answer(self, segment)

    def expire(self) -> None:
        """Timers that are due."""
        for conn in self.timers.expired(self.now):
            probes.expired(self, conn)
            self.timers.schedule(conn)
        self.quiet.shrink(self)
        trim_at = self.rings.trim_at
        if trim_at is not None and trim_at <= self.now:
            self.rings.trim(self.now)

    @property
    def next_due(self) -> float | None:
        """When `expire` is to be called."""
        due = self.timers.next_due
        at = self.quiet.next_due
        if at is not None and (due is None or at < due):
            due = at
        at = self.rings.trim_at
        if at is not None and (due is None or at < due):
            due = at
        return due

    def touch(self, conn: Connection) -> None:
        """`conn` is to be flushed at the end of the turn."""
        if not conn.touched:
            conn.touched = True
            self._touched.append(conn)

    def flush(self) -> None:
        """The end of the turn."""
        touched = self._touched
        for conn in touched:  # it may grow meanwhile
            conn.touched = False
            output.flush(self, conn)
            if conn.slot:
                self.cells.store(conn)
            self.quiet.consider(conn, self.now)
        touched.clear()
        self.cells.settle(self.now)

    # -- connections ----------------------------------------------------------------------------------------------

    def new_connection(self, ends: Ends, handle: int, options: StreamState) -> Connection:
        """A connection in CLOSED, with its numbers drawn."""
        conn = Connection(ends, handle, options)
        conn.iss = isn.initial(self.secret, ends.octets, self.now)
        conn.timestamp_offset = isn.timestamp_offset(self.secret, ends.octets)
        conn.path_mss = conn.mss = self.route_mss(ends.peer, options)
        conn.own_mss = self.route_mss(ends.peer, options)
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
        """That of a connection that may have been quiet (`layers.tcp.quiet`)."""
        if conn.recovery is None:
            conn.recovery = self.advised_recovery(conn)
        return conn.recovery

    def advised_recovery(self, conn: Connection) -> Recovery:
        """A new one for a connection of which nothing is in flight, from what the slot says."""
        recovery = self.new_recovery(conn)
        advice = self.cells.advice(conn)
        if advice is not None:
            recovery.load(advice)
        recovery.restored(conn.snd_una, conn.snd_nxt, self.now, conn.last_sent)
        return recovery

    def route_mss(self, peer: bytes, options: StreamState) -> int:
        """What we tell the peer, and the most that we send: RFC 9293 section 3.7.1 (MUST-67)."""
        mss = max(self.below.mtu(peer) - IP_AND_TCP_OCTETS[len(peer)] - len(options.ip_options), 88)
        return min(mss, options.maxseg) if options.maxseg else mss

    def remember(self, conn: Connection) -> None:
        """From now on it gets its segments."""
        self.lookup.add(conn)
        if not self.cells.born(conn):
            self.counters[C.no_memory] += 1
        self.touch(conn)

    def disown(self, conn: Connection) -> None:
        """Nobody has its handle any more; it goes on alone, and keeps its port."""
        self.lookup.by_handle.pop(conn.handle, None)
        self.hold_port(conn)
        conn.handle = ORPHAN

    def hold_port(self, conn: Connection) -> None:
        """A connection that outlives its socket holds the port itself."""
        options = conn.options
        self.lookup.ports.hold(conn, conn.ends.port, Claim(
            conn.ends.local, options.reuse_address, options.reuse_port, False, conn.automatic))

    def in_time_wait(self, conn: Connection) -> None:
        """Nothing but its numbers is needed any more; unread octets stay until they are read."""
        waiting = self._time_waiting
        waiting[conn] = None
        if len(waiting) > TIME_WAIT_MAX:
            self.counters[C.time_wait_ended] += 1
            closing.finish(self, next(iter(waiting)))
        conn.recovery = None
        if conn.send_ring is not None:
            self.rings.give(conn.send_ring)
            conn.send_ring = None
        self.touch(conn)

    def forget(self, conn: Connection) -> None:
        """The TCB is deleted."""
        self._time_waiting.pop(conn, None)
        self.lookup.remove(conn)
        self.lookup.ports.release(conn, conn.ends.port)
        listener = self.lookup.listeners.get(conn.listener)
        if listener is not None:
            listener.syn_queue.pop(conn, None)
        for ring in (conn.send_ring, conn.receive_ring):
            if ring is not None:
                self.rings.give(ring)
        conn.send_ring = conn.receive_ring = None
        conn.recovery = None
        conn.delayed_at = conn.persist_at = conn.keepalive_at = conn.cork_at = conn.wait_until = None
        if conn.slot:
            self.cells.gone(conn)

    def adopt(self, listener: Listener, conn: Connection) -> None:
        """A connection is handed up: it gets a handle."""
        conn.handle = self.cells.new_handle()
        conn.adopted = True
        self.lookup.by_handle[conn.handle] = conn
        self.lookup.ports.hold(conn.handle, conn.ends.port, Claim(
            conn.ends.local, conn.options.reuse_address, conn.options.reuse_port, False))
        self.above.accepted(listener.handle, conn.handle, conn.accept_number, conn.ends)
        self.room(conn, first=True)

    # -- to the application ---------------------------------------------------------------------------------------

    def received(self, conn: Connection, start: int, octets: bytes | memoryview | None) -> None:
        """Octets in order from `start` to RCV.NXT; `octets` where they are at hand, else they are in the ring."""
        acknowledgment.text_came(self, conn, conn.rcv_nxt - start)
        if conn.handle == ORPHAN:
            return
        self.told(conn, start, octets)

    def told(self, conn: Connection, start: int, octets: bytes | memoryview | None = None) -> None:
        """STREAM from `start` on."""
        end = conn.rcv_nxt if conn.fin_at is None else min(conn.rcv_nxt, conn.fin_at)
        if octets is not None:
            self.above.stream(conn.handle, 0, start - 1, octets)
            return
        ring = conn.receive_ring
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
        """The peer has set a mark."""
        if conn.handle != ORPHAN:
            self.above.stream(conn.handle, 4, conn.urgent - 1, b"")

    def failed(self, conn: Connection, number: int) -> None:
        """The connection is gone, and why."""
        self.remember_failure(conn.handle, number)
        self.above.reset(conn.handle, number)

    def room(self, conn: Connection, first: bool = False, finished: bool = False, resume: bool = False) -> None:
        """ROOM, where there is something to say."""
        if conn.handle == ORPHAN:
            return
        limit = conn.snd_una + conn.send_limit
        if conn.options.notsent_lowat:
            limit = min(limit, conn.snd_nxt + conn.options.notsent_lowat)
        limit = max(limit, conn.room_said)
        if not (first or finished or resume) and limit - conn.room_said < conn.send_limit // 4:
            everything = conn.snd_una >= conn.written
            if not everything or conn.room_said - conn.written > conn.send_limit // 2:
                return
        conn.room_said = limit
        acked = min(max(conn.snd_una, 1), conn.written)
        done = conn.end is not None and conn.snd_una > conn.end
        self.above.room(conn.handle, (1 if resume else 0) | (2 if done else 0), conn.written - 1, acked - 1, limit - 1)

    def freed(self, conn: Connection) -> None:
        """The peer has acknowledged more."""
        recovery = conn.recovery
        if (recovery is not None and not conn.options.send_buffer and 2 * recovery.cwnd > conn.send_limit
                and conn.send_limit < RING_OCTETS_MAX and self.rings.may_grow):
            conn.send_limit = min(conn.send_limit * 4, RING_OCTETS_MAX)
        self.room(conn)

    # -- from the application -------------------------------------------------------------------------------------

    def write(self, conn: Connection, number: int, octets: bytes | memoryview) -> bool:
        """Octets to send, from `number` on, which is at most `written`; False: there is no memory."""
        start = max(number, conn.written)
        fresh = octets[start - number :]
        if not fresh:
            return True
        needed = start + len(fresh) - conn.snd_una
        ring = conn.send_ring
        if ring is None or ring.size < needed:
            larger = self.rings.take(size_for(needed))
            if larger is None:
                return False
            if larger.size < needed:
                self.rings.give(larger)
                return False
            if ring is not None:
                first = max(conn.snd_una, 1)
                ring.copy_to(larger, first - 1, conn.written - 1)
                self.rings.give(ring)
            conn.send_ring = ring = larger
        ring.write(start - 1, fresh)
        conn.written = start + len(fresh)
        self.touch(conn)
        return True

    # -- to the network -------------------------------------------------------------------------------------------

    def timestamp(self, conn: Connection) -> int:
        """TSval: milliseconds, and the connection's own offset (RFC 7323 section 5.4)."""
        return (int(self.now * 1000) + conn.timestamp_offset) & 0xFFFFFFFF

    def super_octets(self, mss: int) -> int:
        """The most text that leaves in one piece."""
        return self.below.super_octets(mss)

    def send_syn(self, conn: Connection) -> None:
        """The SYN or SYN-ACK of a connection."""
        output.send_syn(self, conn)
        self.touch(conn)

    def acknowledge(self, conn: Connection) -> None:
        """An ACK, now."""
        output.acknowledge(self, conn)
        self.touch(conn)

    def transmit(self, conn: Connection, number: int, flags: int, window: int, options: bytes, payload: bytes,
                 size: int, capable: bool = False) -> None:
        """A segment of a connection; numbers are relative, `window` is what stands in the header."""
        ends = conn.ends
        acknowledgment_number = to_wire(conn.irs, conn.rcv_nxt) if flags & 16 else 0
        urgent = min(conn.snd_urgent - number, 65535) if flags & 32 else 0
        segment = Segment(ends.port, ends.peer_port, to_wire(conn.iss, number), acknowledgment_number, flags, window,
                          urgent, NO_OPTIONS, payload, options)
        self.counters[C.segments_out] += 1
        self.below.transmit(ends.local, ends.peer, segment, size, conn.options, capable)

    def transmit_alone(self, arrived: Arrival, segment: Segment) -> None:
        """An answer to a segment that belongs to no connection."""
        self.counters[C.segments_out] += 1
        self.below.transmit(arrived.destination, arrived.source, segment, 0, None, False)


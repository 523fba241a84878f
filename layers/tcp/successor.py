"""Makes TCBs of slots (`layers.tcp.durable`): for a successor, and for connections that have slept."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from bus.durable.held import STREAM_ARENA
from bus.durable.slots import SLOT_OCTETS, STATE_MASK
from bus.streams import StreamState
from layers.tcp import asleep, history
from layers.tcp import connection as tcb
from layers.tcp.closing import RAISE_FIRST_S, TIME_WAIT_S, fin_wait_2, reset
from layers.tcp.connection import ORPHAN, Connection, Ends
from layers.tcp.counters import Counters as C
from layers.tcp.dormant import Dormant, Identity, Told
from layers.tcp.durable import (
    ACCURATE_ECN,
    ADVISORY_AT,
    AUTOMATIC,
    ECN,
    ENDS,
    HOT,
    HOT_AT,
    IDENTITY,
    IDENTITY_AT,
    SACK,
    SCALE,
    SHARE_ADDRESS,
    SHARE_PORT,
    TIMESTAMPS,
    Durable,
)
from layers.tcp.ecn import AccurateEcn
from layers.tcp.lookup import Claim

if TYPE_CHECKING:
    from layers.tcp.calls import Calls
    from layers.tcp.engine import Engine

RESUMED_PER_S = 1000  # rate at which restored connections with data in flight send a segment
_PORTS = Struct("!HH")
# head, send ring, receive ring, `written`, `end`, SND.UNA, RCV.NXT, `fin_at`, `read`, `wait_until`, `last_ack_sent`
_DORMANT_CELLS = (0, 11, 12, 13, 14, 16, 18, 17, 20, 24, 25)


class Successor:
    """Makes connections of slots."""

    def __init__(self, durable: Durable, engine: Engine, calls: Calls) -> None:
        self._durable = durable
        self._engine = engine
        self._calls = calls
        self._claims: dict[tuple[bytes, int], Claim] = {}  # by local address and flags, for dormant connections
        self._options = asleep.Options()

    def restore(self) -> None:
        """Restore what a former process stored; about 10 us for a connection, 3 us for one that may be dormant."""
        engine, asking = self._engine, 0
        for number in self._not_dormant():
            conn = self._load(number)
            if conn is None:
                continue
            engine.counters[C.resumed] += 1
            owes = conn.snd_una < conn.written + (conn.end is not None) or conn.last_ack_sent < conn.rcv_nxt
            if conn.state != tcb.TIME_WAIT and owes:
                # What is owed and what is in flight: one segment each, spread. No time-out, no smaller window: what
                # was lost was lost by us, not by the path
                conn.delayed_at = engine.now + asking / RESUMED_PER_S
                asking += 1
            engine.timers.schedule(conn)
        for listener in engine.lookup.listeners.values():  # slots have another order
            listener.untaken = dict(sorted(listener.untaken.items()))

    def _not_dormant(self) -> list[int]:
        """Connections that owe nothing become dormant (`layers.tcp.dormant`); returns the numbers of the others."""
        engine, sockets, memory = self._engine, self._calls.sockets, self._durable.memory
        dormant = engine.dormant = Dormant(engine.lookup, self)
        listeners = engine.lookup.listeners
        others = []
        columns = (self._durable.slots.column(cell) for cell in _DORMANT_CELLS)
        for number, (head, send, receive, written, end, una, rcv_nxt, fin_at, read, wait, acked) in enumerate(
                zip(*columns, strict=True), 1):
            state = head & STATE_MASK
            if not state:
                continue
            may_wait = not (send or receive) and (
                state == tcb.TIME_WAIT or (state == asleep.state_at_rest(end > 0, fin_at > 0) and not wait
                                           and una == (end or written) and rcv_nxt == acked == read + (fin_at > 0)))
            timed = state == tcb.TIME_WAIT
            if may_wait:
                fields = ENDS.unpack_from(memory, number * SLOT_OCTETS + IDENTITY_AT)
                handle, listener, accept_number, _, _, octets = fields[:6]
                known = listeners.get(listener)
                may_wait = octets in (4, 16) and (known is None or accept_number <= known.taken) and (
                    handle != ORPHAN or timed)
                options = sockets.get(handle) or sockets.get(listener)
                timed |= options is not None and options.declared.keepalive
            if may_wait:
                dormant.add(asleep.inherited(number), self._identity(fields), timed)
            else:
                others.append(number)
        engine.counters[C.resumed] += len(dormant.by_flow)
        dormant.begin(engine.now)
        return others

    def identify(self, note: bytes) -> Identity:
        """See `Sleepers`."""
        return self._identity(ENDS.unpack_from(self._durable.memory, asleep.slot_of(note) * SLOT_OCTETS + IDENTITY_AT))

    def _identity(self, fields: tuple[Any, ...]) -> Identity:
        handle, _, _, port, peer_port, octets, flags, _, _, local, peer = fields
        local, kind = local[:octets], flags & (SHARE_ADDRESS | SHARE_PORT | AUTOMATIC)
        claim = self._claims.get((local, kind))
        if claim is None:
            claim = self._claims[local, kind] = Claim(
                local, bool(flags & SHARE_ADDRESS), bool(flags & SHARE_PORT), False, bool(flags & AUTOMATIC))
        return Identity(peer[:octets] + local + _PORTS.pack(peer_port, port), handle, port, claim)

    def told_of(self, note: bytes) -> Told:
        """See `Sleepers`."""
        hot = HOT.unpack_from(self._durable.memory, asleep.slot_of(note) * SLOT_OCTETS + HOT_AT)
        written, end, una, fin_at, rcv_nxt, limit = hot[2], hot[3], hot[5], hot[6], hot[7], hot[15]
        limit = max(limit, asleep.room(note))
        return Told(written, una, una + limit, bool(end) and una >= end, fin_at - 1 if 0 < fin_at <= rcv_nxt else 0)

    def wake(self, note: bytes) -> None:
        """See `Sleepers`."""
        engine, number = self._engine, asleep.slot_of(note)
        if not asleep.is_own(note):
            conn = self._load(number)
        elif (conn := self.view(note)) is not None:
            engine.lookup.add(conn)
            engine.lookup.by_handle[conn.handle] = conn
            engine.counters[C.woken] += 1
        else:
            self._durable.slots.free(number)
        if asleep.options_of(note):
            self._options.release(asleep.options_of(note))
        if conn is not None:
            engine.timers.schedule(conn)
            engine.quiet.consider(conn, engine.now)

    def options_number(self, conn: Connection) -> int:
        """See `Sleepers`."""
        socket = self._calls.sockets.get(conn.handle)
        return 0 if socket is not None and socket.declared is conn.options else self._options.keep(conn.options)

    def store(self, conn: Connection) -> None:
        """See `Sleepers`."""
        conn.stored = None  # also what is constant, nearly
        self._durable.store(conn)

    def _load(self, number: int) -> Connection | None:
        """Make the TCB of a slot and add it to the look-ups."""
        engine, conn = self._engine, self.of_slot(number)
        if conn is None:
            self._durable.slots.free(number)
            return None
        if self._durable.slots.state(number) == tcb.CLOSED:
            self._reset(conn)
            return None
        handle, listener = conn.handle, conn.listener
        if conn.snd_una < conn.snd_nxt and conn.state != tcb.TIME_WAIT:  # else it is quiet, see `layers.tcp.quiet`
            at = number * SLOT_OCTETS
            conn.recovery = engine.new_recovery(conn)
            conn.recovery.load(self._durable.memory[at + ADVISORY_AT : at + SLOT_OCTETS])
            conn.recovery.restored(conn.snd_una, conn.snd_nxt, engine.now)
        if conn.state == tcb.TIME_WAIT:
            engine.in_time_wait(conn)
        conn.room_said = conn.snd_una + conn.buffer_octets
        engine.lookup.add(conn)
        if handle != ORPHAN:
            engine.lookup.by_handle[handle] = conn
        elif conn.state == tcb.SYN_RECEIVED and listener in engine.lookup.listeners:
            engine.lookup.listeners[listener].syn_queue[conn] = None
            conn.adopted = False
        self._calls.resumed(conn)
        engine.history.note(engine.now, conn, history.RESTORED)
        if conn.wait_until is None:  # the turn that began the wait was cut short
            if conn.state == tcb.TIME_WAIT:
                conn.wait_until = engine.now + TIME_WAIT_S
            elif conn.state == tcb.FIN_WAIT_2:
                fin_wait_2(engine, conn)
        return conn

    def _reset(self, conn: Connection) -> None:
        """Its RST may not have left. If it has, this one finds nothing that it could hit."""
        for ring in (conn.send_ring, conn.receive_ring):
            if ring is not None:
                self._durable.give(ring)
        self._engine.counters[C.resets_sent] += 1
        reset(self._engine, conn)

    def view(self, note: bytes) -> Connection | None:
        """See `Sleepers`."""
        options = asleep.options_of(note)
        conn = self.of_slot(asleep.slot_of(note), self._options[options] if options else None)
        if conn is not None and asleep.is_own(note):
            asleep.wake(conn, note)
        return conn

    def of_slot(self, number: int, options: StreamState | None = None) -> Connection | None:
        """The connection in a slot, which is not added to the look-ups; None: the slot is damaged.

        `options`: None if they are not known otherwise.
        """
        at, memory = number * SLOT_OCTETS, self._durable.memory
        (handle, listener, accept_number, port, peer_port, octets, flags, peer_scale, own_scale, local, peer, iss, irs,
         offset, mss, peer_mss, own_mss, path_mss, home, accurate, former_mss) = IDENTITY.unpack_from(
             memory, at + IDENTITY_AT)
        hot = HOT.unpack_from(memory, at + HOT_AT)
        state = self._durable.slots.state(number)
        if octets not in (4, 16) or not 0 < state < 12 or peer_scale > 14 or own_scale > 14:
            return None
        if state == tcb.SYN_SENT:
            hot = (*hot[:5], 0, 0, 0, *hot[8:])  # what the peer's SYN brought comes again: the state is stored after it
        if options is None:
            socket = self._calls.sockets.get(handle)
            options = socket.declared if socket is not None else _options_of(listener, flags, self._calls)
        conn = Connection(Ends(local[:octets], port, peer[:octets], peer_port), handle, options)
        conn.slot, conn.listener, conn.accept_number = number, listener, accept_number
        conn.iss, conn.irs, conn.timestamp_offset = iss, irs, offset
        conn.mss, conn.peer_mss, conn.own_mss, conn.path_mss = mss, peer_mss, own_mss, path_mss
        conn.former_mss, conn.raise_at = former_mss, self._engine.now + RAISE_FIRST_S
        conn.peer_scale, conn.own_scale = peer_scale, own_scale
        conn.scale_ok, conn.timestamps_ok = bool(flags & SCALE), bool(flags & TIMESTAMPS)
        conn.sack_ok, conn.automatic = bool(flags & SACK), bool(flags & AUTOMATIC)
        conn.ecn_ok = bool(flags & ECN)
        conn.accurate = AccurateEcn.restored(accurate) if flags & ACCURATE_ECN else None
        conn.home = home if self._durable.lent_by(home) is not None else STREAM_ARENA
        self._load_hot(conn, hot, self._engine.now)
        conn.state = _state_of(conn, state)
        if conn.state == tcb.SYN_RECEIVED and listener and conn.rcv_nxt == 1:
            # The turn that passed it up was cut short; by Fast Open it would have text
            conn.handle, conn.accept_number = ORPHAN, 0
        conn.stored = None
        return conn

    def _load_hot(self, conn: Connection, hot: tuple[Any, ...], now: float) -> None:
        (send, receive, written, end, snd_nxt, snd_una, fin_at, rcv_nxt, advertised, read, ts_recent, ts_recent_at,
         snd_window, window_max, rcv_limit, send_limit, wait, last_ack_sent) = hot
        conn.send_ring = self._durable.ring(send) if send else None
        conn.receive_ring = self._durable.ring(receive) if receive else None
        conn.written = max(written, 1)
        conn.end = end - 1 if end else None
        final = conn.written + (conn.end is not None)
        conn.snd_una = min(snd_una, final)
        conn.snd_nxt = min(max(snd_nxt, conn.snd_una), final)
        conn.rcv_nxt, conn.fin_at = rcv_nxt, fin_at - 1 if fin_at else None
        conn.advertised = max(advertised, rcv_nxt)
        conn.read = max(1, min(read, rcv_nxt)) if rcv_nxt else 1
        conn.ts_recent, conn.ts_recent_at = ts_recent, float(ts_recent_at)
        conn.snd_window, conn.window_max = snd_window, window_max
        conn.snd_wl1, conn.snd_wl2 = conn.rcv_nxt, conn.snd_una
        conn.rcv_limit, conn.send_limit = rcv_limit, send_limit
        conn.wait_until = wait or None
        conn.last_ack_sent = min(last_ack_sent, rcv_nxt)
        # the pause was this layer's, not the peer's
        conn.last_heard = conn.last_progress = conn.measured_at = conn.opened_at = now
        conn.measured_from = conn.read
        conn.small_sent = conn.snd_una
        conn.peer_segment = min(conn.mss, 536)


def _options_of(listener: int, flags: int, calls: Calls) -> StreamState:
    """Of a connection for which nothing is stored: its listener's, where that is still there."""
    socket = calls.sockets.get(listener)
    if socket is not None:
        return socket.declared
    return StreamState(handle=0, request=0, reuse_address=bool(flags & SHARE_ADDRESS),
                       reuse_port=bool(flags & SHARE_PORT))


def _state_of(conn: Connection, stored: int) -> int:
    """The state that follows from the numbers, which may be newer than the published one."""
    if stored == tcb.TIME_WAIT:
        return tcb.TIME_WAIT
    if not conn.snd_una:
        return stored if stored in (tcb.SYN_SENT, tcb.SYN_RECEIVED) else tcb.SYN_SENT
    ended = conn.fin_at is not None and conn.rcv_nxt > conn.fin_at
    if conn.end is None:
        return tcb.CLOSE_WAIT if ended else tcb.ESTABLISHED
    if conn.snd_una > conn.end:
        return tcb.FIN_WAIT_2 if not ended else tcb.TIME_WAIT if stored != tcb.LAST_ACK else tcb.LAST_ACK
    if not ended:
        return tcb.FIN_WAIT_1
    return stored if stored in (tcb.LAST_ACK, tcb.CLOSING) else (
        tcb.LAST_ACK if stored == tcb.CLOSE_WAIT else tcb.CLOSING)

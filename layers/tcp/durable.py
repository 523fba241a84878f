"""Where connections and their octets are stored, and how a successor takes them up.

A connection is a slot of 256 octets, its octets lie in rings of the arena. The order of stores makes it safe: octets
at their place, then the slot's cells, then the turn is published, then frames leave. So nothing is acknowledged and
no room is given before it is stored, and a turn that a SIGKILL cut short is done again: every input is idempotent by
sequence number or offset. Within a slot the order of cells is that of `_HOT`: a ring before what is said to be in it,
what was written before what was sent. A ring that is not needed any more is free only after the slots have been
stored.

Not stored, because the peer or the application says it again: octets beyond a gap, duplicates, what SACK reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, Any

from bus.durable.arena import IDLE_S, Arena
from bus.durable.held import STREAM_ARENA, Held
from bus.durable.lent import Lent
from bus.durable.slots import SLOT_OCTETS, STATE_MASK, Slots
from bus.durable.stream_memory import StreamMemory
from bus.layer import State
from bus.streams import StreamState
from layers.tcp import connection as tcb
from layers.tcp import history
from layers.tcp.acknowledgment import RING_OCTETS_MIN
from layers.tcp.connection import ORPHAN, Connection, Ends
from layers.tcp.counters import Counters as C
from layers.tcp.dormant import Dormant
from layers.tcp.ring import Ring
from usernet.pipe.rings import HOME_SHIFT, REFERENCE_MASK, TOKEN, block_of
from usernet.pipe.streams import TCP_HANDLE_MIN

if TYPE_CHECKING:
    from layers.tcp.calls import Calls
    from layers.tcp.engine import Engine

LAYOUT = b"2"  # of a slot; to be raised whenever `_IDENTITY`, `_HOT` or the advice behind them changes
HANDLES_RESERVED = 4096  # reserved by each write, because a handle is never reused, not even after a crash
LEAVING_S = 0.05  # seconds until a released ring is free: until then, its last references have reached link
RESUMED_PER_S = 1000  # rate at which restored connections with data in flight send a segment
_MASK_32 = 0xFFFFFFFF

# Cells of a slot, from 1 on (0 is the head). Constant ones, or nearly:
_IDENTITY = Struct("@IIQHHBBBB16s16sIIIHHHHBx")  # see `_identity`; 80 octets, cells 1 to 10
# and what a turn changes, cells 11 to 25: native order, so that each is stored by one instruction
_HOT = Struct("@10Q6IdQ")
_ADVISORY_OCTETS = 48  # cells 26 to 31: round trips and congestion control; torn or old values do no harm
_IDENTITY_AT, _HOT_AT, _ADVISORY_AT = 8, 88, 208
_ENDS = Struct("@IIQHHBBBB16s16s")  # the first fields of `_IDENTITY`
_PORTS = Struct("!HH")
# head, send ring, receive ring, `written`, `end`, SND.UNA, RCV.NXT, `fin_at`, `read`, `wait_until`, `last_ack_sent`
_RING_CELLS = (0, 11, 12)
_DORMANT_CELLS = (0, 11, 12, 13, 14, 16, 17, 18, 20, 24, 25)
assert _IDENTITY_AT + _IDENTITY.size <= _HOT_AT
assert _HOT_AT + _HOT.size <= _ADVISORY_AT
assert _ADVISORY_AT + _ADVISORY_OCTETS == SLOT_OCTETS
_SCALE, _TIMESTAMPS, _SACK, _AUTOMATIC, _SHARE_ADDRESS, _SHARE_PORT, _ECN = 1, 2, 4, 8, 16, 32, 64


class Durable:
    """Implements `Rings` and `Cells` of the engine."""

    def __init__(self, memory: StreamMemory, state: State, key_handles: int) -> None:
        """`key_handles` and the next are this module's keys of `state`."""
        self._state = state
        self._key_handles = key_handles
        stored = state.get(key_handles)
        self._next_handle = self._reserved = int(stored) if stored else TCP_HANDLE_MIN
        self._slots = Slots(memory.slots)
        if state.get(key_handles + 1) != LAYOUT:  # stored by other code, which would be misread
            for number in self._slots.used:
                self._slots.free(number)
            state[key_handles + 1] = LAYOUT
        self._memory = memory.slots
        self._shared = memory.shared
        self._released: list[int] = []
        self._leaving: deque[tuple[float, int]] = deque()  # (time at which it is free, reference) of released rings
        self.trim_at: float | None = None  # see `Rings`
        self._streams = memory
        self._arena = Arena(memory.arena, self._named(STREAM_ARENA))
        self._lent: dict[int, Lent | None] = {}  # the applications' memories, once they are needed
        self._kept: dict[int, list[int]] = {}  # {handle: rings that its application may still read}

    def _named(self, home: int) -> Iterable[int]:
        for head, send, receive in zip(*map(self._slots.column, _RING_CELLS), strict=True):
            if head & STATE_MASK:
                for reference in (send, receive):
                    if reference and reference >> HOME_SHIFT == home:
                        yield reference & REFERENCE_MASK

    def _lent_by(self, home: int) -> Lent | None:
        if home not in self._lent:
            mapping = self._streams.application(home)
            self._lent[home] = Lent(mapping, home, self._named(home)) if mapping is not None else None
        return self._lent[home]

    def lends(self, home: int, token: int) -> bool:
        """See `Rings`."""
        lent = self._lent_by(home) if self._shared else None
        return lent is not None and token != 0 and lent.rings.facts[TOKEN] == token

    def written(self, ring: Ring) -> int:
        """See `Rings`."""
        lent = self._lent_by(ring.home)
        return lent.rings.written[block_of(ring.reference)] if lent is not None else 0

    def keep(self, handle: int, ring: Ring) -> None:
        """See `Rings`."""
        self._kept.setdefault(handle, []).append(ring.reference)

    def closed(self, handle: int) -> None:
        """See `Rings`."""
        self._released += self._kept.pop(handle, ())

    def _ring(self, reference: int) -> Ring | None:
        """The ring that a slot names."""
        home = reference >> HOME_SHIFT
        if home == STREAM_ARENA:
            return self._arena.ring(reference)
        lent = self._lent_by(home)
        return lent.ring(reference) if lent is not None else None

    def new_handle(self) -> int:
        """See `Cells`."""
        handle = self._next_handle
        if handle >= self._reserved:
            self._reserved = handle + HANDLES_RESERVED
            self._state[self._key_handles] = b"%d" % self._reserved
        self._next_handle = handle + 1
        return handle

    # -- rings

    @property
    def may_grow(self) -> bool:
        """See `Rings`."""
        return not self._arena.crowded

    @property
    def used_octets(self) -> int:
        """Of rings."""
        return self._arena.used

    def take(self, octets: int, home: int = STREAM_ARENA) -> Ring | None:
        """See `Rings`."""
        if home != STREAM_ARENA:
            lent = self._lent_by(home)
            return lent.take(octets) if lent is not None else None
        reference = self._arena.allocate(octets)
        if not reference and self._leaving:
            self._free_left(self._leaving[-1][0])
            reference = self._arena.allocate(octets)
        if not reference and octets > RING_OCTETS_MIN:
            reference = self._arena.allocate(RING_OCTETS_MIN)
        return self._arena.ring(reference) if reference else None

    def held(self, ring: Ring, offset: int, length: int) -> Held | None:
        """See `Rings`."""
        return Held(ring.reference & REFERENCE_MASK, offset, length, ring.home) if self._shared else None

    def give(self, ring: Ring) -> None:
        """See `Rings`. It is free when the turn is stored: until then a slot may refer to it."""
        self._released.append(ring.reference)

    def settle(self, now: float) -> None:
        """The turn is stored."""
        if self._released:
            # references to them may be on their way to link
            free_at = now + LEAVING_S if self._shared else now
            self._leaving += [(free_at, reference) for reference in self._released]
            for reference in self._released:
                lent = self._lent_by(reference >> HOME_SHIFT) if reference >> HOME_SHIFT else None
                if lent is not None:
                    lent.retire(reference & REFERENCE_MASK)
            self._released.clear()
            self._free_left(now)
            due = self._leaving[0][0] if self._leaving else now + IDLE_S
            self.trim_at = due if self.trim_at is None else min(self.trim_at, due)

    def _free_left(self, now: float) -> None:
        leaving = self._leaving
        while leaving and leaving[0][0] <= now:
            reference = leaving.popleft()[1]
            home = reference >> HOME_SHIFT
            lent = self._lent_by(home) if home != STREAM_ARENA else None
            if lent is not None:
                lent.free(reference & REFERENCE_MASK, now)
            else:
                self._arena.free(reference, now)

    def trim(self, now: float) -> None:
        """See `Rings`."""
        self._free_left(now)
        dues = [lent.arena.trim(now) for lent in self._lent.values() if lent is not None]
        due = min((at for at in (self._arena.trim(now), *dues) if at is not None), default=None)
        leaving = self._leaving
        self.trim_at = leaving[0][0] if leaving and (due is None or leaving[0][0] < due) else due

    # -- cells

    def born(self, conn: Connection) -> bool:
        """See `Cells`."""
        conn.slot = self._slots.allocate()
        if conn.slot:
            self.store(conn)
        return conn.slot > 0

    def store(self, conn: Connection) -> None:
        """See `Cells`. 1 us."""
        at = conn.slot * SLOT_OCTETS
        send, receive = conn.send_ring, conn.receive_ring
        end, fin_at, wait = conn.end, conn.fin_at, conn.wait_until
        _HOT.pack_into(
            self._memory, at + _HOT_AT, send.reference if send is not None else 0,
            receive.reference if receive is not None else 0, conn.written, 0 if end is None else end + 1, conn.snd_nxt,
            conn.snd_una, conn.rcv_nxt, 0 if fin_at is None else fin_at + 1, conn.advertised, conn.read,
            conn.ts_recent, int(conn.ts_recent_at) & _MASK_32, conn.snd_window, conn.window_max, conn.rcv_limit,
            conn.send_limit, wait or 0.0, conn.last_ack_sent)  # a window is less than 2**30 (RFC 7323 section 2.3)
        identity = conn.state, conn.handle, conn.accept_number, conn.mss, conn.home
        if identity != conn.stored:
            conn.stored = identity
            _IDENTITY.pack_into(self._memory, at + _IDENTITY_AT, *_identity(conn))
            self._slots.publish(conn.slot, conn.state)
        recovery = conn.recovery
        if recovery is not None and recovery.rtt_s:
            recovery.store(self._memory, at + _ADVISORY_AT)

    def advice(self, conn: Connection) -> memoryview | None:
        """See `Cells`."""
        at = conn.slot * SLOT_OCTETS
        return self._memory[at + _ADVISORY_AT : at + SLOT_OCTETS] if conn.slot else None

    def gone(self, conn: Connection) -> None:
        """See `Cells`."""
        self._slots.free(conn.slot)
        conn.slot = 0

    # -- a successor

    def restore(self, engine: Engine, calls: Calls) -> None:
        """Restore what a former process stored; about 10 us for a connection, 2 us for one that may wait."""
        asking = 0
        for number in self._not_dormant(engine, calls):
            conn = self._load(number, engine, calls)
            if conn is None:
                self._slots.free(number)
                continue
            engine.counters[C.resumed] += 1
            engine.history.note(engine.now, conn, history.RESTORED)
            owes = conn.snd_una < conn.written + (conn.end is not None) or conn.last_ack_sent < conn.rcv_nxt
            if conn.state != tcb.TIME_WAIT and owes:
                # What is owed and what is in flight: one segment each, spread. No time-out, no smaller window: what
                # was lost was lost by us, not by the path
                conn.delayed_at = engine.now + asking / RESUMED_PER_S
                asking += 1
            engine.timers.schedule(conn)

    def _not_dormant(self, engine: Engine, calls: Calls) -> list[int]:
        """Let the connections wait that owe nothing (`layers.tcp.dormant`); returns the numbers of the others."""
        listeners, memory = engine.lookup.listeners, self._memory
        by_flow: dict[bytes, int] = {}
        by_handle: dict[int, int] = {}
        ports: set[int] = set()
        others = []
        columns = (self._slots.column(cell) for cell in _DORMANT_CELLS)
        for number, (head, send, receive, written, end, una, rcv_nxt, fin_at, read, wait, acked) in enumerate(
                zip(*columns, strict=True), 1):
            state = head & STATE_MASK
            if not state:
                continue
            may_wait = not (send or receive) and (
                state == tcb.TIME_WAIT or (state == tcb.ESTABLISHED and una == written and rcv_nxt == acked == read
                                           and not (end or fin_at or wait)))
            if may_wait:
                handle, listener, accept_number, port, peer_port, octets, _, _, _, local, peer = _ENDS.unpack_from(
                    memory, number * SLOT_OCTETS + _IDENTITY_AT)
                known = listeners.get(listener)
                may_wait = octets in (4, 16) and (known is None or accept_number <= known.taken) and (
                    handle != ORPHAN or state == tcb.TIME_WAIT)
            if not may_wait:
                others.append(number)
                continue
            by_flow[b"".join((peer[:octets], local[:octets], _PORTS.pack(peer_port, port)))] = number
            ports.add(port)
            if handle:
                by_handle[handle] = number

        def wake(number: int) -> None:
            conn = self._load(number, engine, calls)
            if conn is None:
                self._slots.free(number)
                return
            engine.counters[C.resumed] += 1
            engine.history.note(engine.now, conn, history.RESTORED)
            engine.timers.schedule(conn)
            if conn.handle != ORPHAN:
                calls.repeat_state(conn)

        if by_flow:
            engine.dormant = Dormant(engine.lookup, by_flow, by_handle, ports, wake)
        return others

    def _load(self, number: int, engine: Engine, calls: Calls) -> Connection | None:
        at, memory = number * SLOT_OCTETS, self._memory
        (handle, listener, accept_number, port, peer_port, octets, flags, peer_scale, own_scale, local, peer, iss, irs,
         offset, mss, peer_mss, own_mss, path_mss, home) = _IDENTITY.unpack_from(memory, at + _IDENTITY_AT)
        hot = _HOT.unpack_from(memory, at + _HOT_AT)
        state = self._slots.state(number)
        if octets not in (4, 16) or not 0 < state < 12 or peer_scale > 14 or own_scale > 14:
            return None
        socket = calls.sockets.get(handle)
        options = socket.declared if socket is not None else _options_of(listener, flags, calls)
        conn = Connection(Ends(local[:octets], port, peer[:octets], peer_port), handle, options)
        conn.slot, conn.listener, conn.accept_number = number, listener, accept_number
        conn.iss, conn.irs, conn.timestamp_offset = iss, irs, offset
        conn.mss, conn.peer_mss, conn.own_mss, conn.path_mss = mss, peer_mss, own_mss, path_mss
        conn.peer_scale, conn.own_scale = peer_scale, own_scale
        conn.scale_ok, conn.timestamps_ok = bool(flags & _SCALE), bool(flags & _TIMESTAMPS)
        conn.sack_ok, conn.automatic = bool(flags & _SACK), bool(flags & _AUTOMATIC)
        conn.ecn_ok = bool(flags & _ECN)
        conn.home = home if self._lent_by(home) is not None else STREAM_ARENA
        self._load_hot(conn, hot, engine.now)
        conn.state = _state_of(conn, state)
        conn.stored = None
        if conn.snd_una < conn.snd_nxt and conn.state != tcb.TIME_WAIT:  # else it is quiet, see `layers.tcp.quiet`
            conn.recovery = engine.new_recovery(conn)
            conn.recovery.load(memory[at + _ADVISORY_AT : at + SLOT_OCTETS])
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
        calls.resumed(conn)
        return conn

    def _load_hot(self, conn: Connection, hot: tuple[Any, ...], now: float) -> None:
        (send, receive, written, end, snd_nxt, snd_una, rcv_nxt, fin_at, advertised, read, ts_recent, ts_recent_at,
         snd_window, window_max, rcv_limit, send_limit, wait, last_ack_sent) = hot
        conn.send_ring = self._ring(send) if send else None
        conn.receive_ring = self._ring(receive) if receive else None
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


def _identity(conn: Connection) -> tuple[Any, ...]:
    ends, options = conn.ends, conn.options
    flags = (conn.scale_ok * _SCALE | conn.timestamps_ok * _TIMESTAMPS | conn.sack_ok * _SACK | conn.ecn_ok * _ECN
             | conn.automatic * _AUTOMATIC | options.reuse_address * _SHARE_ADDRESS | options.reuse_port * _SHARE_PORT)
    return (conn.handle, conn.listener, conn.accept_number, ends.port, ends.peer_port, len(ends.local), flags,
            conn.peer_scale, conn.own_scale, ends.local, ends.peer, conn.iss, conn.irs, conn.timestamp_offset,
            conn.mss, conn.peer_mss, conn.own_mss, conn.path_mss, conn.home)


def _options_of(listener: int, flags: int, calls: Calls) -> StreamState:
    """Of a connection for which nothing is stored: its listener's, where that is still there."""
    socket = calls.sockets.get(listener)
    if socket is not None:
        return socket.declared
    return StreamState(handle=0, request=0, reuse_address=bool(flags & _SHARE_ADDRESS),
                       reuse_port=bool(flags & _SHARE_PORT))


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

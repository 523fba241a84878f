"""Where connections and their octets are stored, and how a successor takes them up.

A connection is a slot of 256 octets, its octets lie in rings of the arena. The order of stores makes it safe: octets
at their place, then the slot's cells, then the turn is published, then frames leave. So nothing is acknowledged and
no room is given before it is stored, and a turn that a SIGKILL cut short is done again: every input is idempotent by
sequence number or offset. Within a slot the cells are stored one by one, in the order of `HOT`: a ring before what is
said to be in it, what was written before what was sent, where the peer's FIN is before RCV.NXT passes it. What a
handshake agreed on is stored before the numbers that say that it is complete. A ring that is not needed any more is
free only after the slots have been stored.

Not stored, because the peer or the application says it again: octets beyond a gap, duplicates, what SACK reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from struct import Struct
from typing import Any

from bus.durable.arena import IDLE_S, Arena
from bus.durable.held import STREAM_ARENA, Held
from bus.durable.lent import Lent
from bus.durable.slots import FREE, SLOT_OCTETS, STATE_MASK, Slots
from bus.durable.stream_memory import StreamMemory
from bus.layer import State
from layers.tcp.acknowledgment import RING_OCTETS_MIN
from layers.tcp.connection import CLOSED, ORPHAN, SYN_RECEIVED, SYN_SENT, Connection
from layers.tcp.ring import Ring
from usernet.pipe.rings import HOME_SHIFT, REFERENCE_MASK, RINGS_AT, TOKEN, block_of
from usernet.pipe.streams import TCP_HANDLE_MIN

LAYOUT = b"5"  # of a slot; to be raised whenever `IDENTITY`, `HOT` or the advice behind them changes
HANDLES_RESERVED = 4096  # reserved by each write, because a handle is never reused, not even after a crash
FREED_AT_ONCE = 2000  # released rings: about 1 ms; others follow in the next turn
LEAVING_S = 0.05  # seconds until a released ring is free: until then, its last references have reached link
KEY_KEPT = 1 << 33  # and the handle: key of `state` for the rings that are kept for it
_MASK_32 = 0xFFFFFFFF
_REFERENCES = Struct("=Q")

# Cells of a slot, from 1 on (0 is the head). Constant ones, or nearly:
IDENTITY = Struct("@IIQHHBBBB16s16sIIIHHHHBBH")  # see `_identity`; 80 octets, cells 1 to 10
# and what a turn changes, cells 11 to 25, see `_store_hot`
HOT = Struct("@10Q6IdQ")
ADVISORY_OCTETS = 48  # cells 26 to 31: round trips and congestion control; torn or old values do no harm
IDENTITY_AT, HOT_AT, ADVISORY_AT = 8, 88, 208
ENDS = Struct("@IIQHHBBBB16s16s")  # the first fields of `IDENTITY`
_RING_CELLS = (0, 11, 12)
HANDSHAKE = (FREE, SYN_SENT, SYN_RECEIVED)  # stored states in which the constant cells may change
assert IDENTITY_AT + IDENTITY.size <= HOT_AT
assert HOT_AT + HOT.size <= ADVISORY_AT
assert ADVISORY_AT + ADVISORY_OCTETS == SLOT_OCTETS
SCALE, TIMESTAMPS, SACK, AUTOMATIC, SHARE_ADDRESS, SHARE_PORT, ECN, ACCURATE_ECN = 1, 2, 4, 8, 16, 32, 64, 128


class Durable:
    """Implements `Rings` and `Cells` of the engine."""

    def __init__(self, memory: StreamMemory, state: State, key_handles: int) -> None:
        """`key_handles` and the next are this module's keys of `state`."""
        self._state = state
        self._key_handles = key_handles
        stored = state.get(key_handles)
        self._reserved = int(stored) if stored else TCP_HANDLE_MIN
        self._handles = iter(range(0))  # reserved ones. Of a sum Python would keep an int that is larger than its value
        self.slots = Slots(memory.slots)
        if state.get(key_handles + 1) != LAYOUT:  # stored by other code, which would be misread
            for number in self.slots.used:
                self.slots.free(number)
            state[key_handles + 1] = LAYOUT
        self.memory = memory.slots
        self._halves, self._seconds = memory.slots.cast("I"), memory.slots.cast("d")
        self._shared = memory.shared
        self._released: list[int] = []
        self._leaving: deque[tuple[float, int]] = deque()  # (time at which it is free, reference) of released rings
        self._resets: deque[tuple[float, int]] = deque()  # (time of the turn, slot) of connections that were reset
        self.trim_at: float | None = None  # see `Rings`
        self.streams = memory
        self._kept = self._load_kept()  # {handle: rings that its application may still read}
        self._arena = Arena(memory.arena, self._named(STREAM_ARENA))
        self._lent: dict[int, Lent | None] = {}  # the applications' memories, once they are needed

    def _in_slots(self) -> Iterable[int]:
        for head, *references in zip(*map(self.slots.column, _RING_CELLS), strict=True):
            if head & STATE_MASK:
                yield from references

    def _named(self, home: int) -> Iterable[int]:
        for reference in chain(self._in_slots(), *self._kept.values()):
            if reference and reference >> HOME_SHIFT == home:
                yield reference & REFERENCE_MASK

    def _load_kept(self) -> dict[int, list[int]]:
        """Rings that a former process kept, but for those that a connection still has: it did not end that turn."""
        keys = [key for key in self._state if KEY_KEPT <= key <= KEY_KEPT + _MASK_32]
        in_slots = set(self._in_slots()) if keys else set()
        kept = {}
        for key in keys:
            stored = self._state[key]
            whole = stored[: len(stored) // _REFERENCES.size * _REFERENCES.size]
            references = [each for (each,) in _REFERENCES.iter_unpack(whole) if each not in in_slots]
            if references:
                kept[key - KEY_KEPT] = references
            else:
                del self._state[key]
        return kept

    def lent_by(self, home: int) -> Lent | None:
        """The memory of an application that a ring's reference names."""
        if home not in self._lent:
            mapping = self.streams.application(home)
            self._lent[home] = Lent(mapping, home, self._named(home)) if mapping is not None else None
        return self._lent[home]

    def rings_at(self, home: int) -> int:
        """Where the rings begin in a memory of rings, after their table."""
        return RINGS_AT if home != STREAM_ARENA else self._arena.data_at

    def lends(self, home: int, token: int) -> bool:
        """See `Rings`."""
        lent = self.lent_by(home) if self._shared else None
        return lent is not None and token != 0 and lent.rings.facts[TOKEN] == token

    def written(self, ring: Ring) -> int:
        """See `Rings`."""
        lent = self.lent_by(ring.home)
        return lent.rings.written[block_of(ring.reference)] if lent is not None else 0

    def keep(self, handle: int, ring: Ring) -> None:
        """See `Rings`."""
        references = self._kept.setdefault(handle, [])
        references.append(ring.reference)
        self._state[KEY_KEPT + handle] = b"".join(map(_REFERENCES.pack, references))

    def closed(self, handle: int) -> None:
        """See `Rings`."""
        references = self._kept.pop(handle, None)
        if references is not None:
            self._released += [each for each in references if self.ring(each) is not None]
            del self._state[KEY_KEPT + handle]

    def ring(self, reference: int) -> Ring | None:
        """The ring that a slot names."""
        home = reference >> HOME_SHIFT
        if home == STREAM_ARENA:
            return self._arena.ring(reference)
        lent = self.lent_by(home)
        return lent.ring(reference) if lent is not None else None

    def new_handle(self) -> int:
        """See `Cells`."""
        handle = next(self._handles, None)
        if handle is None:
            first, self._reserved = self._reserved, self._reserved + HANDLES_RESERVED
            self._state[self._key_handles] = b"%d" % self._reserved
            self._handles = iter(range(first, self._reserved))
            handle = next(self._handles)
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
            lent = self.lent_by(home)
            return lent.take(octets) if lent is not None else None
        reference = self._arena.allocate(octets)
        if not reference and self._leaving:
            self._free_left(self._leaving[-1][0], len(self._leaving))
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

    def turn_stored(self, now: float) -> None:
        """The turn is stored."""
        while self._resets and self._resets[0][0] < now:  # an earlier turn, which is published by now
            self.slots.free(self._resets.popleft()[1])
        if self._released:
            # references to them may be on their way to link
            free_at = now + LEAVING_S if self._shared else now
            self._leaving += [(free_at, reference) for reference in self._released]
            for reference in self._released:
                lent = self.lent_by(reference >> HOME_SHIFT) if reference >> HOME_SHIFT else None
                if lent is not None:
                    lent.retire(reference & REFERENCE_MASK)
            self._released.clear()
            self._free_left(now)
            due = self._left_at or now + IDLE_S
            self.trim_at = due if self.trim_at is None else min(self.trim_at, due)

    @property
    def _left_at(self) -> float:
        """When all rings that are leaving now will have left; 0: there are none. They are freed together then: each by
        itself would take a turn, and the next ring that is released frees the first ones anyway."""
        return self._leaving[-1][0] if self._leaving else 0.0

    def _free_left(self, now: float, most: int = FREED_AT_ONCE) -> None:
        leaving = self._leaving
        for _ in range(min(most, len(leaving))):
            if leaving[0][0] > now:
                return
            reference = leaving.popleft()[1]
            home = reference >> HOME_SHIFT
            lent = self.lent_by(home) if home != STREAM_ARENA else None
            if lent is not None:
                lent.free(reference & REFERENCE_MASK, now)
            else:
                self._arena.free(reference, now)

    def trim(self, now: float) -> None:
        """See `Rings`."""
        self._free_left(now)
        dues = [lent.arena.trim(now) for lent in self._lent.values() if lent is not None]
        self.trim_at = min((at for at in (self._left_at, self._arena.trim(now), *dues) if at), default=None)

    # -- cells

    def born(self, conn: Connection) -> bool:
        """See `Cells`."""
        conn.slot = self.slots.allocate()
        return conn.slot > 0

    def store(self, conn: Connection) -> None:
        """See `Cells`. 1 us."""
        accurate = conn.accurate
        stored, identity = conn.stored, (conn.state, conn.handle, conn.accept_number, conn.mss, conn.former_mss,
                                         conn.home, accurate.octet if accurate is not None else -1)
        begins = constant = False
        if identity != stored:
            handshake = self.slots.state(conn.slot) in HANDSHAKE
            constant = handshake or stored is None or identity[1:] != stored[1:]
            # With the numbers alone a successor would have a connection with another ISN or without an owner. An owner
            # is gone last: until then it says again that it has closed
            begins = handshake and conn.handle != ORPHAN
        if begins:
            self.slots.write(conn.slot, IDENTITY_AT, IDENTITY.pack(*_identity(conn)))
        self._store_hot(conn)
        if identity != stored:
            if constant and not begins:
                self.slots.write(conn.slot, IDENTITY_AT, IDENTITY.pack(*_identity(conn)))
            conn.stored = identity
            self.slots.publish(conn.slot, conn.state)
        recovery = conn.recovery
        if recovery is not None and recovery.advises:
            recovery.store(self.memory, conn.slot * SLOT_OCTETS + ADVISORY_AT)

    def _store_hot(self, conn: Connection) -> None:
        """`HOT`, cell by cell: `Struct.pack_into` first fills all of them with zeros (CPython, s_pack_internal)."""
        send, receive, end, fin_at = conn.send_ring, conn.receive_ring, conn.end, conn.fin_at
        cells, at = self.slots.cells, (conn.slot * SLOT_OCTETS + HOT_AT) // 8
        cells[at] = send.reference if send is not None else 0
        cells[at + 1] = receive.reference if receive is not None else 0
        cells[at + 2] = conn.written
        cells[at + 3] = 0 if end is None else end + 1
        cells[at + 4] = conn.snd_nxt
        cells[at + 5] = conn.snd_una
        cells[at + 6] = 0 if fin_at is None else fin_at + 1
        cells[at + 7] = conn.rcv_nxt
        cells[at + 8] = conn.advertised
        cells[at + 9] = conn.read
        halves, half = self._halves, 2 * (at + 10)
        halves[half] = conn.ts_recent
        halves[half + 1] = int(conn.ts_recent_at) & _MASK_32
        halves[half + 2] = conn.snd_window  # less than 2**30 (RFC 7323 section 2.3)
        halves[half + 3] = conn.window_max
        halves[half + 4] = conn.rcv_limit
        halves[half + 5] = conn.send_limit
        self._seconds[at + 13] = conn.wait_until or 0.0
        cells[at + 14] = conn.last_ack_sent

    def advice(self, conn: Connection) -> memoryview | None:
        """See `Cells`."""
        at = conn.slot * SLOT_OCTETS
        return self.memory[at + ADVISORY_AT : at + SLOT_OCTETS] if conn.slot else None

    def gone(self, conn: Connection) -> None:
        """See `Cells`."""
        self.slots.free(conn.slot)
        conn.slot = 0

    def reset(self, conn: Connection, now: float) -> None:
        """See `Cells`."""
        slots, number = self.slots, conn.slot
        if slots.state(number) == FREE:  # nobody would know whose it is
            return
        slots.publish(number, CLOSED)
        for cell in _RING_CELLS[1:]:  # others may have them from the next moment on
            slots.cells[number * slots.width + cell] = 0
        self._resets.append((now, number))
        conn.slot = 0


def _identity(conn: Connection) -> tuple[Any, ...]:
    ends, options = conn.ends, conn.options
    flags = (conn.scale_ok * SCALE | conn.timestamps_ok * TIMESTAMPS | conn.sack_ok * SACK | conn.ecn_ok * ECN
             | (conn.accurate is not None) * ACCURATE_ECN | conn.automatic * AUTOMATIC
             | options.reuse_address * SHARE_ADDRESS | options.reuse_port * SHARE_PORT)
    return (conn.handle, conn.listener, conn.accept_number, ends.port, ends.peer_port, len(ends.local), flags,
            conn.peer_scale, conn.own_scale, ends.local, ends.peer, conn.iss, conn.irs, conn.timestamp_offset,
            conn.mss, conn.peer_mss, conn.own_mss, conn.path_mss, conn.home,
            conn.accurate.octet if conn.accurate is not None else 0, conn.former_mss)

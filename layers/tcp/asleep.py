"""What a connection that sleeps keeps besides its slot, and which connections may sleep.

A live connection that has been quiet for two seconds goes to sleep: its TCB is deleted, and made again when a segment,
a record or its keep-alive timer asks for it (`layers.tcp.dormant`). It is in ESTABLISHED, or one end has closed and the
other has not (CLOSE-WAIT, FIN-WAIT-2), which may last as long. An orphan in FIN-WAIT-2 ends after a minute, and stays
awake.

The slot (`layers.tcp.durable`) contains what a successor needs; a *note* of 110 octets contains the rest: times,
counters of TCP_INFO, what was last said to the application and by the peer. A connection with anything else that would
be forgotten stays awake, so nobody can see whether it slept.

The note of a connection that a successor has inherited contains only the number of its slot.
"""

from __future__ import annotations

from struct import Struct

from bus.streams import StreamState
from layers.tcp.acknowledgment import unread
from layers.tcp.connection import CLOSE_WAIT, ESTABLISHED, FIN_WAIT_2, ORPHAN, Connection
from layers.tcp.reset import OUT_OF_WINDOW_INTERVAL_S

_NUMBER = Struct("=I")
# slot; number of the options; flags; quick ACKs; largest segment of the peer; octets in the SYN; segments in and out,
# with text in and out, beyond a gap; octets sent again; ROOM beyond SND.UNA; RCV.NXT minus where the receive buffer's
# measurement began, minus SND.WL1; SND.UNA minus SND.WL2; times: last heard, progress, text sent, text received,
# measurement, TS.Recent, keep-alive (0: none)
_NOTE = Struct("=IIBBHH10I7d")
_ROOM = Struct("=I")
_ROOM_AT = Struct("=IIBBHH6I").size
_KEEPALIVE = Struct("=d")
_KEEPALIVE_AT = _NOTE.size - _KEEPALIVE.size
_FLAGS_AT = _NUMBER.size + _NUMBER.size
_PINGPONG, _CLAIM_KEPT, _FULL_ARRIVED = 1, 2, 4
_END_8, _END_16, _END_32 = 1 << 8, 1 << 16, 1 << 32


def inherited(number: int) -> bytes:
    """The note of an inherited connection."""
    return _NUMBER.pack(number)


def slot_of(note: bytes) -> int:
    """The number of the slot."""
    number: int = _NUMBER.unpack_from(note)[0]
    return number


def is_own(note: bytes) -> bool:
    """True for a connection of this process, False for an inherited one."""
    return len(note) == _NOTE.size


def keeps_claim(note: bytes) -> bool:
    """True if the claim on its port was left as it is."""
    return is_own(note) and note[_FLAGS_AT] & _CLAIM_KEPT > 0


def keepalive_at(note: bytes) -> float:
    """When its keep-alive timer expires; 0: it has none."""
    at: float = _KEEPALIVE.unpack_from(note, _KEEPALIVE_AT)[0] if is_own(note) else 0.0
    return at


def room(note: bytes) -> int:
    """How far beyond SND.UNA the application was last told that it may write; 0 of an inherited one."""
    said: int = _ROOM.unpack_from(note, _ROOM_AT)[0] if is_own(note) else 0
    return said


def with_room(note: bytes, said: int) -> bytes:
    """The note after the application was told that it may write so far beyond SND.UNA."""
    return b"".join((note[:_ROOM_AT], _ROOM.pack(said), note[_ROOM_AT + _ROOM.size :])) if is_own(note) else note


class Options:
    """The options of sleeping connections that have no declaration of their own: usually those of their listener.

    All with the same options share one object, as while they were awake.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[StreamState, int]] = {}  # with the number of connections that have them
        self._numbers: dict[int, int] = {}  # by id(options)
        self._last = 0

    def keep(self, options: StreamState) -> int:
        """The number of these options, from 1 on, for one connection more."""
        number = self._numbers.get(id(options))
        if number is None:
            self._last += 1
            number = self._numbers[id(options)] = self._last
        self._kept[number] = options, self._kept.get(number, (options, 0))[1] + 1
        return number

    def __getitem__(self, number: int) -> StreamState:
        return self._kept[number][0]

    def release(self, number: int) -> None:
        """One connection less has them."""
        options, count = self._kept[number]
        if count > 1:
            self._kept[number] = options, count - 1
        else:
            del self._kept[number], self._numbers[id(options)]


def state_at_rest(sent_fin: bool, got_fin: bool) -> int:
    """The state of a connection on which nothing is under way; 0: it does not stay in it."""
    if sent_fin:
        return 0 if got_fin else FIN_WAIT_2
    return CLOSE_WAIT if got_fin else ESTABLISHED


def may_sleep(conn: Connection, now: float) -> bool:
    """True if the slot and a note contain all that there is to know of it."""
    una, end, fin_at = conn.snd_una, conn.end, conn.fin_at
    return bool(
        conn.state == state_at_rest(end is not None, fin_at is not None)
        and conn.slot and conn.handle != ORPHAN and conn.adopted and not conn.touched
        # nothing is in flight, unacknowledged, unread or owed; a FIN has the number after the last octet
        and conn.recovery is None and una == conn.snd_nxt == conn.written + (end is not None)
        and conn.rcv_nxt == conn.last_ack_sent and fin_at in (None, conn.rcv_nxt - 1) and not unread(conn)
        and conn.send_ring is conn.receive_ring is None
        and not (conn.ack_now or conn.ack_due or conn.out_of_order or conn.recent_sack or conn.duplicate_sack)
        # no timer is running but the keep-alive
        and conn.delayed_at is conn.persist_at is conn.cork_at is conn.wait_until is None
        # and there is nothing that only the TCB contains
        and conn.accurate is None and conn.cookie is None and not (conn.syn_held or conn.more or conn.former_mss)
        and not (conn.urgent or conn.snd_urgent or conn.ecn_echo or conn.ecn_reduced or conn.error_soft)
        and not (conn.backoffs or conn.keepalive_probes or conn.probe_count or conn.probes_unanswered)
        and not conn.options.notsent_lowat and conn.gap_told != conn.written and conn.small_sent <= una
        and now - conn.challenge_at >= OUT_OF_WINDOW_INTERVAL_S
        and conn.quick < _END_8 and conn.peer_segment < _END_16 and conn.syn_octets < _END_16
        and max(conn.segments_in, conn.segments_out, conn.out_of_order_in, conn.octets_resent) < _END_32
        and 0 <= conn.room_said - una < _END_32 and 0 <= conn.rcv_nxt - conn.measured_from < _END_32
        and 0 <= conn.rcv_nxt - conn.snd_wl1 < _END_32 and 0 <= una - conn.snd_wl2 < _END_32)


def note_of(conn: Connection, options: int, claim_kept: bool) -> bytes:
    """What the slot does not contain. `options`: their number; 0: those that its application has declared."""
    flags = conn.pingpong * _PINGPONG | claim_kept * _CLAIM_KEPT | (conn.full_end > 0) * _FULL_ARRIVED
    return _NOTE.pack(
        conn.slot, options, flags, conn.quick, conn.peer_segment, conn.syn_octets, conn.segments_in, conn.segments_out,
        conn.data_segments_in, conn.data_segments_out, conn.out_of_order_in, conn.octets_resent,
        conn.room_said - conn.snd_una, conn.rcv_nxt - conn.measured_from, conn.rcv_nxt - conn.snd_wl1,
        conn.snd_una - conn.snd_wl2, conn.last_heard, conn.last_progress, conn.last_sent, conn.last_text,
        conn.measured_at, conn.ts_recent_at, conn.keepalive_at or 0.0)


def options_of(note: bytes) -> int:
    """The number of the options; 0: those that its application has declared."""
    number: int = _NUMBER.unpack_from(note, _NUMBER.size)[0] if is_own(note) else 0
    return number


def wake(conn: Connection, note: bytes) -> None:
    """Complete a TCB that was made of the slot."""
    (_, _, flags, conn.quick, conn.peer_segment, conn.syn_octets, conn.segments_in, conn.segments_out,
     conn.data_segments_in, conn.data_segments_out, conn.out_of_order_in, conn.octets_resent, said, measured, wl1, wl2,
     conn.last_heard, conn.last_progress, conn.last_sent, conn.last_text, conn.measured_at, conn.ts_recent_at,
     keepalive) = _NOTE.unpack(note)
    conn.pingpong = flags & _PINGPONG > 0
    conn.full_end = conn.snd_una if flags & _FULL_ARRIVED else 0
    conn.room_said = conn.snd_una + said
    conn.measured_from = conn.rcv_nxt - measured
    conn.snd_wl1, conn.snd_wl2 = conn.rcv_nxt - wl1, conn.snd_una - wl2
    conn.keepalive_at = keepalive or None

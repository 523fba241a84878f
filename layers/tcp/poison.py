"""Segments that killed this layer, and the end of the connection whose peer sends such a segment again.

The bus drops a record that has killed the layer twice (`bus.runtime.poison`). A peer retransmits what was
not acknowledged, with other timestamps and perhaps together with more octets, so the retransmission is another record
and would kill the layer again. It is recognized by its octets of sequence space, from the fixed part of its header
alone, because anything that is done with the rest may be what kills. The connection could never get past these octets,
so it is reset, both ways. All other connections live. A segment outside the receive window resets nothing (RFC 5961).

Owns one key of the layer's state, so the segments are known after a restart.
"""

from __future__ import annotations

from errno import ECONNRESET
from struct import Struct
from typing import NamedTuple

from bus.layer import State
from bus.messages import PACKET_HEAD
from layers.tcp import closing, reset
from layers.tcp.connection import SYN_SENT, Connection
from layers.tcp.counters import Counters as C
from layers.tcp.engine import Engine
from layers.tcp.interfaces import Arrival
from layers.tcp.sequence import MODULUS_MASK, from_wire
from packets.tcp import FIN, HEADER, SYN, Segment

SEGMENTS_MAX = 64  # remembered, the newest; the bus remembers fewer records
_STORED = Struct("!12sIIIHB")


class _Segment(NamedTuple):
    """Where a segment belongs: its connection, the octets of sequence space, and what tells ACKs apart."""

    flow: bytes  # as `layers.tcp.connection.Ends.flow`
    sequence: int
    length: int
    acknowledgment: int
    window: int
    flags: int

    def repeats(self, other: _Segment) -> bool:
        """True if it has octets of `other`; without octets, if its header says the same."""
        if self.flow != other.flow:
            return False
        if not (self.length and other.length):
            return self == other
        return ((self.sequence - other.sequence) & MODULUS_MASK < other.length
                or (other.sequence - self.sequence) & MODULUS_MASK < self.length)


class PoisonSegments:
    """The segments that killed this layer."""

    def __init__(self, engine: Engine, state: State, key: int) -> None:
        self._engine = engine
        self._state = state
        self._key = key
        stored = state.get(key, b"")
        self.known = [_Segment(*fields) for fields in
                      _STORED.iter_unpack(stored[: len(stored) // _STORED.size * _STORED.size])]

    def set_aside(self, record: bytes) -> None:
        """The bus has dropped this PACKET record, which killed the layer twice, now or earlier."""
        segment = _segment_of(record)
        if segment is None or self.comes_again(record):
            return
        self.known = [*self.known, segment][-SEGMENTS_MAX:]
        self._state[self._key] = b"".join(_STORED.pack(*each) for each in self.known)

    def comes_again(self, record: bytes) -> bool:
        """True if a PACKET record is a known segment again, which must not be processed; its connection is reset."""
        segment = _segment_of(record)
        if segment is None or not any(segment.repeats(each) for each in self.known):
            return False
        engine = self._engine
        conn = engine.lookup.connections.get(segment.flow)
        if conn is None:  # RFC 9293 section 3.5.2, group 1; there may be a listener, which this SYN must not reach
            reset.answer(engine, _arrival_of(record, segment))
        elif _is_acceptable(conn, segment):
            engine.counters[C.poison_resets] += 1
            closing.abandon(engine, conn, ECONNRESET, reset=True)
        return True


def _segment_of(record: bytes) -> _Segment | None:
    if len(record) < PACKET_HEAD.size:
        return None
    _, _, _, header_octets, _, _, _, _, source, destination = PACKET_HEAD.unpack_from(record)
    start = PACKET_HEAD.size + header_octets
    if len(record) < start + HEADER.size:
        return None
    _, _, sequence, acknowledgment, offset, flags, window, _, _ = HEADER.unpack_from(record, start)
    text = max(0, len(record) - start - (offset >> 4 << 2))
    length = text + (flags & SYN > 0) + (flags & FIN)
    return _Segment(source + destination + record[start : start + 4], sequence, length, acknowledgment, window, flags)


def _arrival_of(record: bytes, segment: _Segment) -> Arrival:
    _, _, _, _, _, _, _, _, source, destination = PACKET_HEAD.unpack_from(record)
    port, own_port = int.from_bytes(segment.flow[-4:-2], "big"), int.from_bytes(segment.flow[-2:], "big")
    text = bytes(segment.length - (segment.flags & SYN > 0) - (segment.flags & FIN))
    return Arrival(source, destination, Segment(port, own_port, segment.sequence, segment.acknowledgment, segment.flags,
                                                segment.window, payload=text))


def _is_acceptable(conn: Connection, segment: _Segment) -> bool:
    """RFC 9293 section 3.10.7.4, first: some of it is in the receive window."""
    if conn.state == SYN_SENT:
        return True
    number = from_wire(conn.irs, segment.sequence, conn.rcv_nxt)
    return conn.rcv_nxt <= number + segment.length and number <= max(conn.advertised, conn.rcv_nxt)

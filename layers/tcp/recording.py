"""For a recording (`bus.runtime.recorder`): octets of streams that are in memory and not in records or `state`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bus import messages
from bus.durable.held import STREAM_ARENA
from bus.durable.slots import SLOT_OCTETS
from bus.durable.stream_memory import SLOTS, Piece
from usernet.pipe.rings import BLOCK_OCTETS, FACTS_AT, HOME_SHIFT, REFERENCE_MASK, Ring, block_of
from usernet.pipe.streams import CLOSE_RECORD, HELD_RECORD, STREAM_HEADER

if TYPE_CHECKING:
    from layers.tcp.connection import Connection
    from layers.tcp.durable import Durable
    from layers.tcp.engine import Engine
    from layers.tcp.successor import Successor

PIECE_OCTETS = 1 << 15


def pieces(durable: Durable, engine: Engine, successor: Successor) -> Iterator[Piece]:
    """The slots in use, the tables of rings, and the octets in rings that were not acknowledged or not read, also
    beyond gaps."""
    yield Piece(SLOTS, 0, bytes(durable.memory[:SLOT_OCTETS]))
    homes = {STREAM_ARENA, *durable.streams.applications}
    found = []
    for number in durable.slots.used:
        at = number * SLOT_OCTETS
        yield Piece(SLOTS, at, bytes(durable.memory[at : at + SLOT_OCTETS]))
        conn = successor.of_slot(number)
        if conn is not None and (conn.send_ring is not None or conn.receive_ring is not None):
            found.append(conn)
            homes |= {ring.home for ring in (conn.send_ring, conn.receive_ring) if ring is not None}
    for home in homes:
        view = durable.streams.view(home)
        yield from _cut(home, 0, bytes(view[: durable.rings_at(home)]).rstrip(b"\0"))
        if home != STREAM_ARENA:
            yield from _cut(home, FACTS_AT, bytes(view[FACTS_AT:]).rstrip(b"\0"))
    for conn in found:
        yield from _octets_of(durable, conn)
    for conn in engine.lookup.connections.values():
        if conn.receive_ring is not None:
            for start, end in conn.out_of_order or ():
                yield from _live(durable, conn.receive_ring, start - 1, end - 1)


def _octets_of(durable: Durable, conn: Connection) -> Iterator[Piece]:
    if conn.send_ring is not None:
        yield from _live(durable, conn.send_ring, max(conn.snd_una, 1) - 1, conn.written - 1)
    if conn.receive_ring is not None:
        yield from _live(durable, conn.receive_ring, conn.read - 1, conn.rcv_nxt - 1)


def _live(durable: Durable, ring: Ring, start: int, end: int) -> Iterator[Piece]:
    """The octets at these offsets of its stream."""
    home = ring.reference >> HOME_SHIFT
    base = durable.rings_at(home) + block_of(ring.reference & REFERENCE_MASK) * BLOCK_OCTETS
    while start < end:
        at = start % ring.size
        count = min(end - start, ring.size - at, PIECE_OCTETS)
        yield Piece(home, base + at, ring.read(start, count))
        start += count


def _cut(memory: int, at: int, octets: bytes) -> Iterator[Piece]:
    for start in range(0, len(octets) or 1, PIECE_OCTETS):
        yield Piece(memory, at + start, octets[start : start + PIECE_OCTETS])


# -- what applications have written into their memories ---------------------------------------------------------------


def with_octets(engine: Engine, kind: int, records: list[bytes]) -> list[tuple[int, list[bytes]]]:
    """(kind, records) that do the same as these, but contain the octets that they only refer to."""
    if kind == messages.STREAM_HELD:
        return [_stream_of(engine, record) for record in records]
    if kind == messages.SOCKET_CLOSE:
        return [each for record in records for each in (*_untold(engine, record), (kind, [record]))]
    return [(kind, records)]


def _ring_of(engine: Engine, handle: int) -> Ring | None:
    by_handle = engine.lookup.by_handle
    conn = by_handle[handle] if handle in by_handle else None  # noqa: SIM401  (`get` would wake a dormant one)
    ring = conn.send_ring if conn is not None else None
    return ring if ring is not None and ring.home else None


def _stream_of(engine: Engine, record: bytes) -> tuple[int, list[bytes]]:
    """STREAM for a STREAM_HELD."""
    if len(record) == HELD_RECORD.size:
        handle, flags, offset, length, reference = HELD_RECORD.unpack(record)
        ring = _ring_of(engine, handle)
        if ring is not None and ring.reference & REFERENCE_MASK == reference and length <= ring.size:
            return messages.STREAM, [STREAM_HEADER.pack(handle, flags, offset) + ring.read(offset, length)]
    return messages.STREAM_HELD, [record]


def _untold(engine: Engine, record: bytes) -> list[tuple[int, list[bytes]]]:
    """STREAM with what an application has written before its end, if no record about it has arrived."""
    handle = CLOSE_RECORD.unpack(record)[0] if len(record) == CLOSE_RECORD.size else 0
    ring = _ring_of(engine, handle)
    if ring is None:
        return []
    conn = engine.lookup.by_handle[handle]
    start, end = conn.written - 1, min(engine.rings.written(ring), conn.room_said - 1)
    if start >= end or conn.end is not None:
        return []
    return [(messages.STREAM, [STREAM_HEADER.pack(handle, 0, start) + ring.read(start, end - start)])]

"""Segment text (RFC 9293 section 3.10.7.4, seventh): every octet is written to its position in the ring, in order or
not.

So reassembly is a short list of ranges beyond RCV.NXT. It is not durable: a restart forgets these ranges, which is
reneging and permitted (RFC 2018 section 8).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING

from layers.tcp import acknowledgment, history
from layers.tcp.connection import Connection
from layers.tcp.counters import Counters as C
from layers.tcp.ring import size_for

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.ring import Ring

RANGES_MIN, RANGES_MAX = 64, 1 << 11  # see `ranges_max`
SACK_BLOCKS_KEPT = 4
_low, _high = itemgetter(0), itemgetter(1)


def text(engine: Engine, conn: Connection, seq: int, payload: bytes | memoryview, pushed: bool) -> None:
    """Text of a segment that overlaps the receive window, or is a probe of a closed one. Passes up what is in order."""
    counters, nxt = engine.counters, conn.rcv_nxt
    octets = len(payload)
    end = seq + octets
    limit = conn.advertised if conn.fin_at is None else min(conn.advertised, conn.fin_at)
    if end > limit:
        counters[C.beyond_window] += 1
        payload, end = payload[: max(0, limit - seq)], max(limit, seq)
    start = seq
    if start < nxt or conn.out_of_order:
        _note_duplicate(conn, start, end)
    if start < nxt:
        if end <= nxt:
            counters[C.duplicates] += 1
            _acknowledge_now(engine, conn)
            return
        payload, start = payload[nxt - seq :], nxt
    if not payload:
        _acknowledge_now(engine, conn)
        return
    if not ensure_ring(engine, conn, end):
        counters[C.no_memory] += 1
        _acknowledge_now(engine, conn)
        return
    assert conn.receive_ring is not None
    if start > nxt:
        counters[C.out_of_order] += 1
        conn.out_of_order_in += 1
        engine.history.note(engine.now, conn, history.OUT_OF_ORDER, start - nxt)
        conn.receive_ring.write(start - 1, payload)
        if _overwritten(engine, conn):
            return
        _insert(conn, start, end)
        if conn.sack_ok:
            _acknowledge_now(engine, conn)  # RFC 5681 section 4.2: at once
        else:
            engine.acknowledge(conn)  # for each of a turn: the peer counts three
        return
    conn.receive_ring.write(start - 1, payload)
    if engine.text_intact is not None and _overwritten(engine, conn):
        return
    conn.rcv_nxt = end
    conn.ack_due += end - start
    if conn.out_of_order:
        _join(conn, end)
        _acknowledge_now(engine, conn)  # RFC 5681 section 4.2: what fills a gap, at once
    engine.received(conn, start, payload if conn.rcv_nxt == end and engine.text_intact is None else None)
    acknowledgment.measure(conn, octets, pushed)
    if conn.ack_due >= 2 * conn.peer_segment and end - start <= conn.peer_segment:
        # RFC 9293 section 3.8.6.3 (SHLD-19): a turn may bring many segments. A peer that counts ACKs, or no more than
        # two segments for each (RFC 3465 section 2.3), would open its window slowly. A super-segment has one ACK.
        engine.acknowledge(conn)
    else:
        engine.touch(conn)


def _overwritten(engine: Engine, conn: Connection) -> bool:
    """True (counted) if the text was overwritten while it was copied; the application does not know of it yet."""
    if engine.text_intact is None or engine.text_intact():
        return False
    engine.counters[C.text_overwritten] += 1
    conn.out_of_order = conn.recent_sack = None  # what was there may be damaged, and may be forgotten (RFC 2018)
    return True


def _acknowledge_now(engine: Engine, conn: Connection) -> None:
    conn.ack_now = True
    engine.touch(conn)


def ensure_ring(engine: Engine, conn: Connection, end: int) -> bool:
    """A ring for the octets from the first unread one to `end`."""
    ring = conn.receive_ring
    wanted = size_for(conn.rcv_limit)
    moves = conn.home != 0 and (ring is None or ring.home == 0)  # into the memory of the application
    if ring is not None and ring.size >= wanted and not moves:
        return end - conn.read <= ring.size
    larger = _lent(engine, conn, ring, wanted) if conn.home else None
    if larger is None:
        if ring is not None and ring.home:
            return end - conn.read <= ring.size
        moves = False
        larger = engine.rings.take(wanted)
    if larger is None:
        return ring is not None and end - conn.read <= ring.size
    if ring is not None and larger.size <= ring.size and not moves:  # memory is scarce: use the present ring
        engine.rings.give(larger)
        return end - conn.read <= ring.size
    if ring is not None:
        ring.copy_to(larger, conn.read - 1, conn.rcv_nxt - 1)
        for first, last in conn.out_of_order or ():
            ring.copy_to(larger, first - 1, last - 1)
        engine.rings.give(ring)
    conn.receive_ring = larger
    if larger.home and ring is not None and conn.rcv_nxt > conn.read:
        engine.told(conn, conn.read, moved=True)
    return end - conn.read <= larger.size


def _lent(engine: Engine, conn: Connection, ring: Ring | None, wanted: int) -> Ring | None:
    """A ring in the memory of the application; None: none that is better than `ring`."""
    larger = engine.rings.take(wanted, conn.home)
    least = 0 if ring is None else ring.size + (ring.home > 0)
    if larger is not None and larger.size < least:
        engine.rings.give(larger)
        larger = None
    if larger is None and (ring is None or not ring.home):
        conn.home = 0  # its octets travel in records
    elif larger is None or larger.size < wanted:  # do not try it for every segment
        size = larger.size if larger is not None else ring.size if ring is not None else wanted
        conn.rcv_limit = min(conn.rcv_limit, acknowledgment.limit_of(size))
    return larger


def _insert(conn: Connection, start: int, end: int) -> bool:
    """Note that [start, end) has arrived; False: too many ranges. Updates the ranges for SACK."""
    ranges = conn.out_of_order or []
    first, after = bisect_left(ranges, start, key=_high), bisect_right(ranges, end, key=_low)
    if first < after:  # overlaps these ranges, or touches them
        start, end = min(start, ranges[first][0]), max(end, ranges[after - 1][1])
    elif len(ranges) >= ranges_max(conn):
        return False
    ranges[first:after] = [(start, end)]
    conn.out_of_order = ranges
    _report(conn, start, end)
    return True


def ranges_max(conn: Connection) -> int:
    """The maximum number of ranges beyond RCV.NXT; more are not stored, so the peer must send them again.

    A peer whose slow start fills a queue loses every other segment of its window, so there are as many as full segments
    fit into half of the receive buffer. The list of an attacker's tiny segments is small beside that buffer.
    """
    return min(max(conn.rcv_limit // (2 * conn.own_mss), RANGES_MIN), RANGES_MAX)


def _report(conn: Connection, first: int, last: int) -> None:
    """RFC 2018 section 4: the block with the latest arrival comes first, then those reported before."""
    blocks = [each for each in conn.recent_sack or () if each[1] < first or each[0] > last]
    conn.recent_sack = [(first, last), *blocks][:SACK_BLOCKS_KEPT]


def _note_duplicate(conn: Connection, start: int, end: int) -> None:
    """RFC 2883 section 4: of a segment with repeated octets, the first repeated range is reported."""
    if start < conn.rcv_nxt:
        duplicate(conn, start, min(end, conn.rcv_nxt))
        return
    ranges = conn.out_of_order or ()
    first = bisect_right(ranges, start, key=_high)
    if first < len(ranges) and ranges[first][0] < end:
        duplicate(conn, max(ranges[first][0], start), min(ranges[first][1], end))


def duplicate(conn: Connection, start: int, end: int) -> None:
    """RFC 2883: the next ACK reports these octets as duplicates."""
    if conn.sack_ok and end > start:
        conn.duplicate_sack = start, end


def _join(conn: Connection, end: int) -> None:
    """RCV.NXT has reached `end`: continue over the ranges that it reaches."""
    ranges, reached = conn.out_of_order or [], 0
    while reached < len(ranges) and ranges[reached][0] <= end:
        end = max(end, ranges[reached][1])
        reached += 1
    del ranges[:reached]
    conn.out_of_order = ranges or None
    conn.rcv_nxt = max(conn.rcv_nxt, end)
    blocks = [each for each in conn.recent_sack or () if each[0] > end]
    conn.recent_sack = blocks or None


def sack_blocks(conn: Connection) -> list[tuple[int, int]]:
    """The relative blocks for the next ACK, the most important first; removes the duplicate."""
    blocks = list(conn.recent_sack or ()) if conn.out_of_order else []
    if conn.duplicate_sack is not None:
        blocks.insert(0, conn.duplicate_sack)
        conn.duplicate_sack = None
    return blocks

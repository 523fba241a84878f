"""SEND (RFC 9293 section 3.10.2): what the application writes stays in a ring until the peer has acknowledged it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp.connection import Connection
from layers.tcp.ring import size_for

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

SEND_RING_OCTETS = 1 << 20  # of a ring in the memory of an application, which does not grow


def lend(engine: Engine, conn: Connection, home: int) -> None:
    """The application's memory is used from now on for what it sends and receives, as far as there is room."""
    conn.home = home
    old = conn.send_ring
    if old is not None and old.home:
        return
    ring = engine.rings.take(SEND_RING_OCTETS, home)
    if ring is None or conn.room_said - max(conn.snd_una, 1) > ring.size:
        if ring is not None:
            engine.rings.give(ring)
        return
    if old is not None:
        old.copy_to(ring, max(conn.snd_una, 1) - 1, conn.written - 1)
        engine.rings.give(old)
    conn.send_ring = ring
    if not conn.options.send_buffer:
        conn.send_limit = ring.size
    engine.touch(conn)
    engine.room(conn, first=True)


def written_in_ring(engine: Engine, conn: Connection, number: int, length: int) -> bool:
    """The application has written octets from `number` on into the ring; False: there is no such room."""
    ring = conn.send_ring
    if ring is None or not ring.home or number + length - max(conn.snd_una, 1) > ring.size:
        return False
    conn.written = max(conn.written, number + length)
    engine.touch(conn)
    return True


def write(engine: Engine, conn: Connection, number: int, octets: bytes | memoryview) -> bool:
    """Add octets to send from `number` on, which is at most `written`; False: no memory."""
    start = conn.written
    fresh = octets[start - number :] if number < start else octets
    if not fresh:
        return True
    needed = start + len(fresh) - conn.snd_una
    ring = conn.send_ring
    if ring is not None and ring.home and ring.size < needed:
        return False
    if ring is None or ring.size < needed:
        larger = engine.rings.take(size_for(needed))
        if larger is None:
            return False
        if larger.size < needed:
            engine.rings.give(larger)
            return False
        if ring is not None:
            first = max(conn.snd_una, 1)
            ring.copy_to(larger, first - 1, conn.written - 1)
            engine.rings.give(ring)
        conn.send_ring = ring = larger
    ring.write(start - 1, fresh)
    conn.written = start + len(fresh)
    engine.touch(conn)
    return True

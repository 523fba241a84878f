"""Goodput of two engines, with the rules of receivers and of buffers that tests/unit/netsim.py leaves out, over the
simulated links of tests/badnet and with a moved clock."""

from __future__ import annotations

import pytest

from packets.tcp import Segment
from tests.badnet.impairment import Impairment, Path
from tests.unit.tcp.host import A, B, Host, World

HEADERS_OCTETS = 14 + 20  # Ethernet's and IP's
FRAME_OCTETS, TEXT_OCTETS = 1514, 1448
WRITE_OCTETS = 1 << 14


def goodput_mbit(path: Path, seconds: float, buffer_octets: int) -> float:
    """Mbit/s that arrive in so many seconds from the first octet on, while the sender's buffer is kept full."""
    a, b = Host(A, seed=1), Host(B, seed=2)
    world = World(a, b)
    links = {A: Impairment(path, 1), B: Impairment(path, 2)}

    def fate(source: bytes, segment: Segment) -> list[float]:
        frame = bytes(HEADERS_OCTETS + len(segment.pack()))
        return [due - world.now for due, _ in links[source].take(frame, world.now)]

    world.fate = fate
    assert b.set(5, port=80, bind=True, listen=16) == 0
    assert a.set(1, peer=B, peer_port=80, connect=1, send_buffer=2 * buffer_octets) == 0
    assert world.run(5, lambda: a.applications[1].established and bool(b.accepted_handles))
    here, there, handle = a.applications[1], b.applications[b.accepted_handles[0][1]], b.accepted_handles[0][1]
    first, end = 0.0, world.now + seconds
    while world.now < end:
        while here.limit - len(here.written) >= WRITE_OCTETS:
            a.write(1, bytes(WRITE_OCTETS))
        world.step(end)
        if there.read < len(there.received):
            first = first or world.now
            b.take(handle)
    return len(there.received) * 8e-6 / (end - first)


@pytest.mark.parametrize(("rate_mbit", "buffer_octets", "share"), [(10, 1 << 18, 0.65), (20, 1 << 20, 0.75)])
def test_a_long_path_is_used_although_slow_start_overflows_its_queue(rate_mbit, buffer_octets, share):
    """The delay of 200 ms of tests.badnet: slow start loses hundreds of segments, which takes much of the 6 s.

    The application is the limit in the first case for most of the time, and in the second while a recovery lasts. In
    the second more than 64 ranges wait behind the first gap.
    """
    path = Path(rate_mbit=rate_mbit, queue_octets=7500 * rate_mbit, delay_ms=100)
    assert goodput_mbit(path, 6, buffer_octets) > share * rate_mbit * TEXT_OCTETS / FRAME_OCTETS

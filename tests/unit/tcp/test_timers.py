"""Thousands of timers that expire together: each call does a part of the work, in order, and the rest stays due."""

from __future__ import annotations

import random

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import TRANSMIT_HEAD, encode
from bus.streams import StreamState
from layers.tcp.connection import Connection, Ends
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from layers.tcp.timers import AT_ONCE, CHECKED_AT_ONCE, Timers
from packets.tcp import SYN, parse

COUNT = 5000
PEER = bytes((10, 0, 0, 1))
CONFIG = StackConfig(name="test", run_dir="", address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6))


def connections(count: int) -> list[Connection]:
    return [Connection(Ends(bytes((10, 0, 0, 2)), 1024 + number, PEER, 80), number, StreamState(handle=0, request=0))
            for number in range(count)]


def test_thousands_due_at_once_expire_in_portions_in_the_order_of_their_deadlines():
    timers, made = Timers(), connections(COUNT)
    order = random.Random(1).sample(range(COUNT), COUNT)
    for conn, place in zip(made, order, strict=True):
        conn.delayed_at = 100 + place / COUNT
        timers.schedule(conn)
    expired = []
    while timers.next_due is not None and timers.next_due <= 200:
        portion = timers.expired(200)
        assert len(portion) == AT_ONCE
        expired += portion
    assert expired == sorted(made, key=lambda conn: conn.delayed_at)


def test_postponed_deadlines_are_checked_in_portions_and_keep_their_order():
    """Their entries in the heap are due; most deadlines are later, and some have come, too."""
    timers, made = Timers(), connections(COUNT)
    for number, conn in enumerate(made):
        conn.keepalive_at = 100 + number / COUNT
        timers.schedule(conn)
        conn.keepalive_at = 500.0 if number % 100 else 150 - number / COUNT
    expired, calls = [], 0
    while timers.next_due is not None and timers.next_due <= 200:
        expired += timers.expired(200)
        calls += 1
    assert expired == made[::100][::-1]
    assert COUNT // CHECKED_AT_ONCE <= calls <= COUNT // CHECKED_AT_ONCE + 2
    assert timers.next_due == 500


def test_retransmissions_due_at_once_are_sent_in_portions_the_oldest_first():
    core = Core(CONFIG, {}, Counters.new(), random.Random(1))
    core.start(0.0)
    for handle in range(1, COUNT + 1):
        core.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(StreamState(
            handle=handle, request=1, peer=PEER, peer_port=handle, connect=1))], handle / COUNT)
    portions = []  # the peers' ports
    while core.next_wake is not None and core.next_wake <= 3:
        segments = [parse(record[TRANSMIT_HEAD.size :]) for _, kind, record in core.wake(3)
                    if kind == messages.TRANSMIT]
        assert all(segment.flags == SYN for segment in segments)
        portions.append([segment.destination_port for segment in segments])
    assert {len(portion) for portion in portions} == {AT_ONCE}
    assert [port for portion in portions for port in portion] == [*range(1, COUNT + 1)]

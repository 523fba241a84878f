"""Connections that are quiet keep their slot and little else."""

from __future__ import annotations

import gc
import tracemalloc

from layers.tcp.connection import ESTABLISHED, TIME_WAIT
from layers.tcp.quiet import QUIET_S
from tests.unit.tcp.host import pair
from tests.unit.tcp.peer import Peer
from tests.unit.tcp.test_streams import octets


def test_after_a_second_without_octets_there_are_no_rings_and_the_window_is_known():
    world, a, b, left, right = pair()
    a.write(left, octets(100_000))
    world.run(5, lambda: len(b.applications[right].received) == 100_000)
    conn, peer = a.conn(left), b.conn(right)
    world.run(0.5)
    assert conn.recovery is not None
    window, rtt_s = conn.recovery.cwnd, conn.recovery.rtt_s
    assert conn.send_ring is not None
    assert peer.receive_ring is not None
    world.run(2 * QUIET_S)
    assert (conn.send_ring, conn.recovery, peer.receive_ring, peer.recovery) == (None, None, None, None)
    assert a.durable.used_octets == b.durable.used_octets == 0
    recovery = a.engine.advised_recovery(conn)
    assert abs(recovery.cwnd - window) <= 1
    assert abs(recovery.rtt_s - rtt_s) < 1e-6
    assert recovery.allowance(world.now) < window  # RFC 5681 section 4.1: it rested


def test_a_quiet_connection_goes_on_where_it_was_both_ways():
    world, a, b, left, right = pair()
    for turn in range(3):
        a.write(left, octets(50_000, turn))
        b.write(right, octets(30_000, turn + 7))
        done = (50_000 * (turn + 1), 30_000 * (turn + 1))
        assert world.run(60, lambda done=done: (len(b.applications[right].received),
                                                len(a.applications[left].received)) == done)
        world.run(2 * QUIET_S)
        assert a.conn(left).recovery is None
    a.write(left, b"", end=True)
    b.write(right, b"", end=True)
    assert world.run(60, lambda: a.applications[left].ended and b.applications[right].ended)
    assert a.applications[left].received == b"".join(octets(30_000, turn + 7) for turn in range(3))


def test_unread_octets_and_octets_beyond_a_gap_keep_their_ring():
    world, a, b, left, right = pair()
    a.write(left, octets(1000))
    world.run(1, reading=False)
    world.run(2 * QUIET_S, reading=False)
    assert b.conn(right).receive_ring is not None
    assert b.applications[right].received == octets(1000)


def test_a_window_probe_that_is_still_to_come_finds_its_loss_recovery():
    """The last octet went as a probe and was acknowledged; the timer of the next probe is not over."""
    world, a, b, left, right = pair(b_options={"receive_buffer": 4608})
    a.write(left, octets(20_000))
    world.run(40, reading=False)
    conn = a.conn(left)
    assert conn.persist_at is not None
    conn.persist_at = world.now + 5  # as after some back-off
    b.take(right)
    assert world.run(60, lambda: conn.snd_una >= conn.written)
    conn.persist_at = world.now + 3
    a.engine.touch(conn)
    a.engine.flush()
    world.run(10)
    assert conn.persist_at is None
    assert len(b.applications[right].received) == 20_000


def test_idle_memory_of_a_connection():
    world, a, _, left, _ = pair()
    a.write(left, octets(10_000))
    world.run(0.5)
    conn = a.conn(left)
    gc.collect()
    tracemalloc.start()
    recovery = a.engine.advised_recovery(conn)
    spared = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert spared > 800
    del recovery
    world.run(2 * QUIET_S)
    assert conn.recovery is None


def test_memory_goes_back_to_the_system_and_then_nothing_wakes_the_layer():
    world, a, b, left, right = pair()
    a.write(left, octets(10_000))
    world.run(5, lambda: len(b.applications[right].received) == 10_000)
    world.run(10)
    assert (a.engine.next_due, b.engine.next_due) == (None, None)


def test_time_wait_keeps_no_ring_once_everything_was_read():
    """A minute of short connections would else hold 64 kB each."""
    world, a, b, left, right = pair()
    a.write(left, octets(1000), end=True)
    b.write(right, octets(3000), end=True)
    assert world.run(5, lambda: a.conn(left).state == TIME_WAIT)
    world.run(QUIET_S / 2)
    assert (a.applications[left].ended, a.conn(left).receive_ring, a.durable.used_octets) == (True, None, 0)


def test_time_wait_keeps_what_is_unread_until_it_is_read():
    world, a, b, left, right = pair()
    a.write(left, octets(1000), end=True)
    b.write(right, octets(3000), end=True)
    world.run(5, reading=False)
    conn = a.conn(left)
    assert conn.state == TIME_WAIT
    assert conn.receive_ring is not None
    assert a.applications[left].received == octets(3000)
    a.take(left)
    world.run(QUIET_S / 2)
    assert (conn.receive_ring, a.durable.used_octets) == (None, 0)


def test_time_wait_without_a_reader_keeps_no_ring():
    world, a, b, left, right = pair()
    a.write(left, octets(1000), end=True)
    b.write(right, octets(3000), end=True)
    world.run(5, reading=False)
    conn = a.conn(left)
    assert conn.receive_ring is not None
    a.close(left)
    world.run(1)
    assert (conn.receive_ring, a.durable.used_octets) == (None, 0)


def test_a_connection_without_a_round_trip_has_no_advice_of_the_one_before_it_in_its_slot():
    peer = Peer()
    first = peer.host.conn(peer.connects())
    assert peer.host.engine.advised_recovery(first).rtt_s > 0
    slot = first.slot
    peer.says("R", 1)
    peer.port += 1
    assert peer.says("S", 0) == ["S. 0(0) ack 1"]
    peer.passes(1.5)
    assert peer.hears()[-1] == "S. 0(0) ack 1"  # sent again, so its round trip is unknown (Karn)
    peer.says(".", 1, 1)
    second = peer.host.conn(peer.host.accepted_handles[-1][1])
    assert (second.slot, second.state) == (slot, ESTABLISHED)
    assert peer.host.engine.advised_recovery(second).rtt_s == 0

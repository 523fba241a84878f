"""A connection from its SYN to its end, between two hosts on a good link."""

from __future__ import annotations

import errno

import pytest

from layers.tcp.acknowledgment import window_field
from layers.tcp.counters import Counters
from layers.tcp.ring import size_for
from packets.tcp import ACK, FIN, PSH, RST, SYN
from tests.unit.tcp.host import A, B, Host, World, pair
from usernet.pipe.streams import RESUME, WRITTEN_UNKNOWN


def octets(length: int, seed: int = 7) -> bytes:
    return bytes((seed + 31 * i + (i >> 8)) & 0xFF for i in range(length))


def test_rfc9293_3_5_the_three_way_handshake():
    world, a, b, left, right = pair()
    flags = [segment.flags for _, _, segment in world.log[:3]]
    assert flags == [SYN, SYN | ACK, ACK]
    assert (a.state_of(left), b.state_of(right)) == ("ESTABLISHED", "ESTABLISHED")
    syn = world.log[0][2]
    assert syn.window == 65280


def test_octets_arrive_both_ways_and_both_ends_close():
    world, a, b, left, right = pair()
    there, back = octets(300_000), octets(200_000, 3)
    pending = {a: (left, there), b: (right, back)}
    for host, (handle, data) in pending.items():
        host.write(handle, data[:200_000])
    world.run(5)
    a.write(left, there[200_000:], end=True)
    assert world.run(30, lambda: b.applications[right].ended)
    assert bytes(b.applications[right].received) == there
    assert bytes(a.applications[left].received) == back
    assert b.state_of(right) == "CLOSE-WAIT"
    b.close(right)
    world.run(1)
    assert a.applications[left].ended
    assert a.applications[left].finished
    assert a.state_of(left) == "TIME-WAIT"
    assert b.state_of(right) == "CLOSED"
    a.close(left)
    world.run(61)
    assert not a.engine.lookup.connections
    assert not b.engine.lookup.connections
    assert a.engine.timers.next_due is None


def test_rfc9293_3_10_7_1_a_closed_port_answers_reset_and_a_reset_is_never_answered():
    a, b = Host(A), Host(B)
    world = World(a, b)
    assert a.set(1, peer=B, peer_port=9, connect=1) == 0
    world.run(1)
    assert a.applications[1].error == errno.ECONNREFUSED
    assert [segment.flags for _, _, segment in world.log] == [SYN, RST | ACK]


def refused():
    """A host with a socket, 1, to which a closed port has answered; its port then."""
    a, b = Host(A), Host(B)
    world = World(a, b)
    assert a.set(1, peer=B, peer_port=9, connect=1) == 0
    world.run(1)
    assert a.applications[1].error == errno.ECONNREFUSED
    return world, a, b, a.calls.sockets[1].port


def test_after_a_refused_connection_another_has_the_address_and_port_of_its_own_way():
    world, a, b, port = refused()
    assert b.set(1, port=80, bind=True, listen=3) == 0
    assert a.set(1, peer=B, peer_port=80, connect=2) == 0
    world.run(1)
    assert a.state_of(1) == "ESTABLISHED"
    ends = a.engine.lookup.by_handle[1].ends
    assert (ends.local, ends.port != port) == (A, True)
    assert a.engine.lookup.ports.free(port)


def test_after_a_refused_connection_a_socket_can_listen_and_not_while_it_is_connected():
    world, a, b, _ = refused()
    assert a.set(1, listen=3) == 0
    assert a.engine.lookup.listeners[1].address == b""
    assert b.set(1, peer=A, peer_port=a.engine.lookup.listeners[1].port, connect=1) == 0
    world.run(1)
    assert b.state_of(1) == "ESTABLISHED"
    assert b.set(1, listen=3) == b.set(1, bind=True) == errno.EINVAL
    assert b.state_of(1) == "ESTABLISHED"
    assert not b.engine.lookup.listeners


def test_rfc9293_3_6_simultaneous_close():
    world, a, b, left, right = pair()
    a.write(left, b"x", end=True)
    b.write(right, b"y", end=True)
    world.run(1)
    assert (a.state_of(left), b.state_of(right)) == ("TIME-WAIT", "TIME-WAIT")
    assert bytes(a.applications[left].received) == b"y"
    assert bytes(b.applications[right].received) == b"x"


def test_rfc9293_3_5_simultaneous_open():
    a, b = Host(A), Host(B)
    world = World(a, b)
    a.set(1, port=1000, bind=True, peer=B, peer_port=2000, connect=1)
    b.set(1, port=2000, bind=True, peer=A, peer_port=1000, connect=1)
    world.run(1)
    assert (a.state_of(1), b.state_of(1)) == ("ESTABLISHED", "ESTABLISHED")
    assert a.applications[1].established
    assert b.applications[1].established
    a.write(1, b"hello", end=True)
    world.run(1)
    assert bytes(b.applications[1].received) == b"hello"


def test_half_close_the_other_way_goes_on():
    world, a, b, left, right = pair()
    a.write(left, b"request", end=True)
    world.run(1)
    assert b.applications[right].ended
    b.write(right, octets(100_000), end=True)
    world.run(5)
    assert bytes(a.applications[left].received) == octets(100_000)
    assert a.applications[left].ended
    assert b.state_of(right) == "CLOSED"


def test_a_window_that_is_closed_is_probed_and_opens_again():
    world, a, b, left, right = pair()
    a.write(left, octets(200_000))
    world.run(20, reading=False)
    assert len(b.applications[right].received) <= 65536
    before = len(b.applications[right].received)
    world.run(300, reading=False)
    assert len(b.applications[right].received) - before <= 64
    assert a.state_of(left) == "ESTABLISHED"
    assert world.run(30, lambda: len(b.applications[right].received) == 200_000)
    assert bytes(b.applications[right].received) == octets(200_000)


def test_rfc9293_3_6_1_close_with_unread_octets_resets():
    world, a, b, left, right = pair()
    a.write(left, b"unread")
    world.run(1, reading=False)
    b.close(right)
    world.run(1)
    assert a.applications[left].error == errno.ECONNRESET
    assert b.state_of(right) == "CLOSED"


def test_octets_that_are_asked_for_often_in_one_turn_are_repeated_once():
    """256 questions in a frame about a megabyte were more than tcp's memory."""
    world, a, b, left, right = pair()
    a.write(left, octets(40_000))
    world.run(1, reading=False)

    def often(host: Host) -> int:
        for _ in range(256):
            host.calls.read(right, RESUME, 0, 0)
        return sum(len(record[-1]) for publish, *record in host._turn if publish == host._stream)

    assert b.do(often) == 40_000
    world.run(1, reading=False)
    assert b.do(often) == 40_000


def test_corked_octets_whose_time_has_come_leave_when_the_window_opens_and_tcp_does_not_spin_meanwhile():
    world, a, b, left, right = pair(a_options={"cork": True})
    a.write(left, b"corked")
    conn = a.conn(left)
    window, conn.snd_window = conn.snd_window, 0
    world.run(0.25)  # beyond CORK_S
    assert a.engine.next_due > world.now
    assert not b.applications[right].received
    conn.snd_window = window
    world.run(1)
    assert bytes(b.applications[right].received) == b"corked"


def test_linger_0_resets():
    world, a, b, left, right = pair()
    a.close(left, linger=0)
    world.run(1)
    assert b.applications[right].error == errno.ECONNRESET


def test_an_orphan_in_fin_wait_2_ends():
    world, a, b, left, right = pair()
    a.close(left)
    world.run(1)
    assert b.state_of(right) == "CLOSE-WAIT"
    world.run(61)
    assert not a.engine.lookup.connections


@pytest.mark.parametrize("option", ["window_scaling", "timestamps", "sack"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_options_are_used_only_where_both_agree(option, side):
    world, a, b, left, right = pair(**{f"{side}_options": {option: False}})
    a.write(left, octets(150_000))
    world.run(10)
    assert bytes(b.applications[right].received) == octets(150_000)
    conn = a.conn(left)
    assert (conn.scale_ok, conn.timestamps_ok, conn.sack_ok) == tuple(
        name != option for name in ("window_scaling", "timestamps", "sack"))


def test_the_last_octets_are_pushed_and_fin_rides_along():
    world, a, _b, left, _right = pair()
    a.write(left, b"bye", end=True)
    world.run(1)
    last = [segment for _, source, segment in world.log if source == A and segment.payload]
    assert [segment.flags for segment in last] == [ACK | PSH | FIN]


def test_rfc7323_2_4_rounding_promises_no_more_than_there_is_room_for():
    """Each segment ends within a unit of the scale; rounded up each time, the edge would creep past the ring."""
    _, _, b, _, right = pair()
    conn = b.engine.lookup.by_handle[right]
    assert conn.own_scale > 0
    promised = conn.advertised
    while conn.rcv_nxt + 1001 < promised:
        conn.rcv_nxt += 1001
        window_field(conn)
        assert promised <= conn.advertised <= conn.read + size_for(conn.rcv_limit)
        promised = conn.advertised


def test_an_application_that_lost_records_asks_for_room_and_octets_again():
    world, a, b, left, right = pair()
    a.write(left, octets(3000))
    b.write(right, octets(500))
    world.run(1, reading=False)
    ours, theirs = a.applications[left], b.applications[right]
    assert bytes(theirs.received) == octets(3000)
    limit, ours.limit, ours.again = ours.limit, 0, []
    theirs.received.clear()  # as if STREAM and ROOM records had been lost on their way up
    a.do(lambda host: host.calls.read(left, RESUME, 0, 500))
    assert ours.limit >= limit
    assert (ours.taken, a.again) == (3000, [left])
    b.do(lambda host: host.calls.read(right, RESUME, 0, 0))
    assert bytes(theirs.received) == octets(3000)


@pytest.mark.parametrize("missing", [0, 1, 700])
def test_a_peer_does_not_take_a_part_of_a_stream_for_all_of_it(missing):
    world, a, b, left, right = pair()
    a.write(left, octets(3000))
    world.run(1)
    world.do(A, lambda host: host.calls.close(left, -1, 3000 + missing, 0))  # what was written since has not arrived
    world.run(1)
    theirs = b.applications[right]
    assert bytes(theirs.received) == octets(3000)
    assert (theirs.ended, theirs.error) == ((False, errno.ECONNRESET) if missing else (True, None))
    assert a.engine.counters[Counters.closes_incomplete] == (missing > 0)


def test_an_end_by_error_is_told_again():
    world, a, _, left, right = pair()
    world.do(B, lambda host: host.calls.close(right, 0, WRITTEN_UNKNOWN, 0))
    world.run(1)
    application = a.applications[left]
    assert application.error == errno.ECONNRESET
    application.error = 0
    a.do(lambda host: host.calls.read(left, RESUME, 0, 0))
    assert application.error == errno.ECONNRESET


@pytest.mark.parametrize("lowat", [0, 16384])
def test_tcp_notsent_lowat_keeps_little_unsent_and_does_not_slow_the_stream(lowat):
    world, a, b, left, right = pair(0.01, a_options={"notsent_lowat": lowat})
    application, data, most = a.applications[left], octets(2_000_000), 0
    begun = world.now

    def writes_what_it_may():
        nonlocal most
        start, limit = len(application.written), application.limit
        if start < min(limit, len(data)):
            a.write(left, data[start:limit])
            conn = a.conn(left)
            most = max(most, conn.written - conn.snd_nxt)
        return len(b.applications[right].received) == len(data)

    assert world.run(60, writes_what_it_may)
    assert b.applications[right].received == data
    assert most <= (lowat or len(data))
    assert world.now - begun < 1.5  # fewer than 75 round trips of 20 ms: 40 windows of 64 kB, and slow start

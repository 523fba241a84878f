"""Fast Open (RFC 7413): both ends in memory, and each against literal segments."""

from __future__ import annotations

import errno

import pytest

from layers.tcp.connection import Ends
from layers.tcp.counters import Counters
from layers.tcp.fast_open import COOKIE_OCTETS, PEERS_MAX, Cookies, cookie_for
from layers.tcp.info import named, tcp_info
from packets.tcp import ACK, SYN, Options, parse_options
from tests.unit.tcp.host import A, B, Host, World
from tests.unit.tcp.peer import PORT, Peer

REQUEST = Options(mss=1000, cookie=b"")


def hosts(fate=None, **listening: object) -> tuple[World, Host, Host]:
    a, b = Host(A, seed=1), Host(B, seed=2)
    world = World(a, b, 0.05, fate)
    assert b.set(5, port=80, bind=True, **{"listen": 16, "fast_open": 5, **listening}) == 0
    return world, a, b


def opens(a: Host, handle: int, text: bytes) -> None:
    """What the library does for MSG_FASTOPEN: connect, and write without waiting."""
    assert a.set(handle, peer=B, peer_port=80, connect=1, fast_open=1) == 0
    a.write(handle, text)


def syns(world: World, source: bytes = A) -> list[tuple[bytes, bytes | None]]:
    return [(bytes(segment.payload), segment.options.cookie or None if segment.packed is None
             else parse_options(segment.packed).cookie)
            for _, sender, segment in world.log if sender == source and segment.flags & (SYN | ACK) == SYN]


def server(peer: Peer) -> bytes:
    """A listener with TCP_FASTOPEN, and the cookie that it gives the peer."""
    peer.listens(fast_open=2)
    assert peer.says("S", 0, options=REQUEST) == ["S. 0(0) ack 1"]
    cookie = peer.heard[-1].options.cookie
    assert cookie is not None
    assert peer.says("R", 1) == []
    peer.heard.clear()
    return cookie


# -- both ends --------------------------------------------------------------------------------------------------------


def test_rfc7413_the_second_connection_has_its_answer_after_one_round_trip():
    world, a, b = hosts()
    times = []
    for handle in (1, 2):
        begun = world.now
        opens(a, handle, b"question")
        assert world.run(5, lambda number=handle: len(b.accepted_handles) == number)
        accepted = b.accepted_handles[-1][1]
        assert world.run(5, lambda accepted=accepted: bytes(b.applications[accepted].received) == b"question")
        b.write(accepted, b"answer", end=True)
        assert world.run(5, lambda handle=handle: bytes(a.applications[handle].received) == b"answer")
        times.append(world.now - begun)
        assert world.run(1, lambda handle=handle: a.applications[handle].ended)
    assert times == [pytest.approx(0.2), pytest.approx(0.1)]
    (first, asked), (second, cookie) = syns(world)
    assert (first, asked, second) == (b"", b"", b"question")
    assert cookie == cookie_for(b.engine.secret, b.conn(b.accepted_handles[1][1]).ends)
    assert b.counters[Counters.fast_opens] == 1
    for host, handle in ((a, 2), (b, b.accepted_handles[1][1])):
        assert named(tcp_info(host.engine, host.conn(handle)))["options"] & 32  # TCPI_OPT_SYN_DATA


@pytest.mark.parametrize("octets", [0, 1, 5000, 100_000])
def test_any_length_arrives_once_and_in_order(octets):
    world, a, b = hosts()
    opens(a, 1, b"x")
    world.run(1)
    text = bytes(range(256)) * (octets // 256 + 1)
    opens(a, 2, text[:octets])
    a.do(lambda host: host.calls.stream(2, 2, octets, b""))  # STREAM_END
    assert world.run(5, lambda: len(b.accepted_handles) == 2)
    accepted = b.accepted_handles[1][1]
    assert world.run(5, lambda: b.applications[accepted].ended)
    assert bytes(b.applications[accepted].received) == text[:octets]


@pytest.mark.parametrize("drop", ["syn", "syn-ack", "ack"])
def test_a_loss_in_the_handshake_only_costs_time(drop):
    lost = []

    def fate(source, segment):
        kind = {SYN: "syn", SYN | ACK: "syn-ack"}.get(segment.flags & (SYN | ACK), "ack")
        if armed and kind == drop and not lost and (kind != "ack" or source == A):
            lost.append(segment)
            return []
        return [0.05]

    armed = False
    world, a, b = hosts(fate)
    opens(a, 1, b"x")
    world.run(1)
    armed = True
    opens(a, 2, b"question")
    assert world.run(10, lambda: len(b.accepted_handles) == 2)
    accepted = b.accepted_handles[1][1]
    assert world.run(10, lambda: bytes(b.applications[accepted].received) == b"question")
    b.write(accepted, b"answer")
    assert world.run(10, lambda: bytes(a.applications[2].received) == b"answer")
    world.run(3)
    assert lost
    assert (a.state_of(2), b.state_of(accepted)) == ("ESTABLISHED", "ESTABLISHED")
    if drop == "syn":  # RFC 7413 section 4.1.3.1: a middlebox may have dropped it
        assert syns(world)[-1] == (b"", None)
        assert a.engine.fast_open.get(B) is None


def test_a_server_that_does_not_take_the_text_gets_it_again_at_once():
    world, a, b = hosts()
    opens(a, 1, b"x")
    world.run(1)
    assert b.set(5, 9, port=80, bind=True, listen=16) == 0  # TCP_FASTOPEN is off now
    begun = world.now
    opens(a, 2, b"question")
    assert world.run(5, lambda: len(b.accepted_handles) == 2)
    accepted = b.accepted_handles[1][1]
    assert world.run(5, lambda: bytes(b.applications[accepted].received) == b"question")
    assert world.now - begun == pytest.approx(0.15)
    assert a.conn(2).recovery.cwnd >= 10 * 1448  # no sign of congestion


def test_a_successor_knows_its_cookies_and_its_connections():
    world, a, b = hosts()
    opens(a, 1, b"x")
    world.run(1)
    heir = b.successor(7)
    world.hosts[B], heir.world = heir, world
    opens(a, 2, b"question")
    world.run(0.06)  # it has arrived; the handshake is not over
    assert len(heir.accepted_handles) == 2
    accepted = heir.accepted_handles[1][1]
    assert heir.state_of(accepted) == "SYN-RECEIVED"
    third = heir.successor(8)
    world.hosts[B], third.world = third, world
    assert world.run(5, lambda: third.state_of(accepted) == "ESTABLISHED")
    third.write(accepted, b"answer")
    assert world.run(5, lambda: bytes(a.applications[2].received) == b"answer")
    assert bytes(third.applications[accepted].received) == b"question"
    assert len(third.accepted_handles) == 2


def test_a_client_that_dies_before_it_has_text_sends_a_plain_syn():
    world, a, b = hosts()
    opens(a, 1, b"x")
    world.run(1)
    assert a.set(2, peer=B, peer_port=80, connect=1, fast_open=1) == 0
    world.run(0.5)
    assert len(syns(world)) == 1
    heir = a.successor(7)
    world.hosts[A], heir.world = heir, world
    heir.write(2, b"question")
    assert world.run(5, lambda: len(b.accepted_handles) == 2)
    accepted = b.accepted_handles[1][1]
    assert world.run(5, lambda: bytes(b.applications[accepted].received) == b"question")


# -- the server against literal segments ------------------------------------------------------------------------------


def test_rfc7413_4_1_2_a_cookie_is_of_one_address_and_not_to_be_guessed():
    peer = Peer()
    cookie = server(peer)
    assert len(cookie) == COOKIE_OCTETS
    assert cookie != cookie_for(bytes(32), Ends(B, PORT, A, peer.port))  # another secret
    peer.port += 1
    wrong = bytes(COOKIE_OCTETS)
    assert peer.says("S", 0, options=Options(1000, cookie=wrong), text=b"text") == ["S. 0(0) ack 1"]
    assert peer.heard[-1].options.cookie == cookie  # it is told the right one
    assert peer.host.accepted_handles == []


def test_rfc7413_4_2_1_text_with_a_cookie_is_delivered_and_answered_before_the_handshake_is_over():
    peer = Peer()
    cookie = server(peer)
    peer.port += 1
    assert peer.says("S", 0, options=Options(1000, cookie=cookie), text=b"text") == ["S. 0(0) ack 5"]
    assert peer.heard[-1].options.cookie is None
    ((_, handle),) = peer.host.accepted_handles
    assert bytes(peer.host.applications[handle].received) == b"text"
    peer.heard.clear()
    assert peer.write(handle, b"answer") == ["P. 1(6) ack 5"]
    assert peer.host.state_of(handle) == "SYN-RECEIVED"
    assert peer.says("S", 0, options=Options(1000, cookie=cookie), text=b"text") == ["S. 0(0) ack 5"]  # again
    assert peer.says(".", 5, 7) == []
    assert peer.host.state_of(handle) == "ESTABLISHED"
    assert len(peer.host.accepted_handles) == 1


def test_a_close_before_the_handshake_is_over_sends_its_fin_after_it():
    peer = Peer()
    cookie = server(peer)
    peer.port += 1
    peer.says("S", 0, options=Options(1000, cookie=cookie), text=b"text")
    ((_, handle),) = peer.host.accepted_handles
    peer.host.take(handle)
    peer.host.close(handle)
    peer.heard.clear()
    assert peer.says(".", 5, 1) == ["F. 1(0) ack 5"]


def test_rfc7413_5_1_no_more_wait_than_the_listener_permits():
    peer = Peer()
    cookie = server(peer)
    for number in range(3):
        peer.port += 1
        (answer,) = peer.says("S", 0, options=Options(1000, cookie=cookie), text=b"text")
        assert answer == ("S. 0(0) ack 5" if number < 2 else "S. 0(0) ack 1")
    assert peer.host.counters[Counters.fast_open_refused] == 1
    peer.says(".", 1, 1)
    assert len(peer.host.accepted_handles) == 3  # the third in the usual way


def test_a_connection_that_was_passed_up_is_reset_or_times_out_visibly():
    for end, error in ((lambda peer: peer.says("R", 5), errno.ECONNRESET), (lambda peer: peer.passes(200),
                                                                        errno.ETIMEDOUT)):
        peer = Peer()
        cookie = server(peer)
        peer.port += 1
        peer.says("S", 0, options=Options(1000, cookie=cookie), text=b"text")
        ((_, handle),) = peer.host.accepted_handles
        end(peer)
        assert peer.host.applications[handle].error == error


def test_a_listener_that_closes_leaves_what_it_has_passed_up():
    peer = Peer()
    cookie = server(peer)
    peer.port += 1
    peer.says("S", 0, options=Options(1000, cookie=cookie), text=b"text")
    ((_, handle),) = peer.host.accepted_handles
    peer.host.close(5)
    peer.says(".", 5, 1)
    assert peer.host.state_of(handle) == "ESTABLISHED"


def test_without_tcp_fastopen_there_are_no_cookies():
    peer = Peer().listens()
    assert peer.says("S", 0, options=REQUEST, text=b"text") == ["S. 0(0) ack 1"]
    assert peer.heard[-1].options.cookie is None


# -- options, and the client's memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("octets", "cookie"), [
    (b"\x22\x02", b""), (b"\x22\x0a12345678", b"12345678"), (b"\x22\x12" + b"c" * 16, b"c" * 16),
    (b"\x22\x05abc", None), (b"\x22\x04ab", None), (b"\x22\x14" + b"c" * 18, None), (b"\x22\x0a1234", None),
])
def test_rfc7413_4_1_1_a_cookie_has_4_to_16_octets_and_an_even_number(octets, cookie):
    assert parse_options(octets).cookie == cookie


@pytest.mark.parametrize("cookie", [b"", b"1234", b"12345678", b"c" * 16])
def test_a_cookie_is_read_back_and_fills_whole_words(cookie):
    packed = Options(1460, 7, True, (1, 2), cookie=cookie).pack()
    assert len(packed) % 4 == 0
    assert parse_options(packed).cookie == cookie


def test_a_cookie_for_which_a_header_has_no_room_is_left_out():
    peer = Peer()
    peer.host.engine.fast_open.put(A, b"c" * 16, 1000)
    peer.host.set(9, peer=A, peer_port=1, connect=1, fast_open=1)
    peer.host.write(9, b"text")
    (syn,) = peer.host.out()
    assert (syn.payload, parse_options(syn.packed).cookie) == (b"", None)


def test_cookies_of_as_many_peers_as_there_is_memory_for():
    cookies = Cookies()
    for number in range(PEERS_MAX + 1):
        cookies.put(number.to_bytes(4, "big"), b"cookie", 536)
    assert cookies.get(bytes(4)) is None
    assert cookies.get((1).to_bytes(4, "big")) == (b"cookie", 536)

"""Explicit congestion notification: what is agreed on, and accurate feedback (RFC 9768)."""

from __future__ import annotations

import random

import pytest

from layers.tcp import info
from layers.tcp.ecn import CE, ECT_0, ECT_1, NOT_ECT
from packets.tcp import ACK, AE, CWR, ECE, SYN, Options, Segment, parse
from tests.unit.tcp.host import pair
from tests.unit.tcp.peer import Peer
from tests.unit.tcp.test_streams import octets

MSS = Options(mss=1000)


def accurate_server(peer: Peer | None = None, acknowledged_by: str = ".W") -> tuple[Peer, int]:
    peer = (peer or Peer()).listens(ecn=3)
    assert peer.says("SEWe", 0, options=MSS) == ["S.W 0(0) ack 1"]
    peer.says(acknowledged_by, 1, 1)
    peer.heard.clear()
    return peer, peer.host.accepted_handles[-1][1]


def accurate_client(field: int = NOT_ECT, answer: str = "S.W") -> tuple[Peer, int]:
    peer = Peer()
    peer.host.set(9, peer=bytes((10, 0, 0, 1)), peer_port=peer.port, connect=1, ecn=3)
    assert peer.hears() == ["SEWe 0(0)"]
    peer.says(answer, 0, 1, options=MSS, ecn=field)
    return peer, 9


def delivered_marked(peer: Peer, handle: int) -> int:
    return info.named(info.tcp_info(peer.host.engine, peer.host.conn(handle))).get("delivered_ce", 0)


def test_the_ninth_flag_is_the_lowest_bit_before_the_others():
    packed = Segment(1, 2, 3, 4, AE | CWR | ACK, 5).pack()
    assert packed[12:14] == bytes((0x51, CWR | ACK))
    assert parse(packed).flags == AE | CWR | ACK


# RFC 9768 section 3.1.2, table 2, and section 3.1.3; RFC 3168 section 6.1.1
@pytest.mark.parametrize(("setting", "asked", "agreed"), [
    (0, "SEW", "S."), (0, "SEWe", "S."), (1, "SEW", "S.E"), (2, "SEW", "S.E"), (1, "SEWe", "S.E"), (2, "SEWe", "S.E"),
    (3, "S", "S."), (3, "SEW", "S.E"), (3, "SEWe", "S.W"), (4, "SEWe", "S.W"), (5, "SEWe", "S.W"), (5, "SEW", "S.E"),
    (5, "Se", "S.W"), (5, "SE", "S.W"), (2, "SE", "S."), (2, "Se", "S.")])
def test_rfc9768_3_1_2_a_syn_ack_agrees_to_what_a_syn_asks_for(setting, asked, agreed):
    peer = Peer().listens(ecn=setting)
    assert peer.says(asked, 0, options=MSS) == [f"{agreed} 0(0) ack 1"]


@pytest.mark.parametrize(("setting", "request_"), [(0, "S"), (1, "SEW"), (2, "S"), (3, "SEWe"), (4, "SEW"), (5, "S")])
def test_rfc9768_3_1_1_a_syn_asks_as_the_socket_is_set_and_not_when_sent_again(setting, request_):
    peer = Peer()
    peer.host.set(9, peer=bytes((10, 0, 0, 1)), peer_port=peer.port, connect=1, ecn=setting)
    assert peer.hears() == [f"{request_} 0(0)"]
    peer.passes(1.5)
    assert peer.hears() == ["S 0(0)"]


@pytest.mark.parametrize(("answer", "agreed"), [
    ("S.", "none"), ("S.EWe", "none"), ("S.E", "3168"), ("S.W", "accurate"), ("S.EW", "accurate"), ("S.e", "accurate"),
    ("S.We", "accurate"), ("S.Ee", "accurate")])
def test_rfc9768_3_1_2_what_a_syn_ack_means_to_who_asked_for_accurate_feedback(answer, agreed):
    peer, handle = accurate_client(answer=answer)
    conn = peer.host.conn(handle)
    assert ("accurate" if conn.accurate else "3168" if conn.ecn_ok else "none") == agreed


@pytest.mark.parametrize(("field", "code"), [(NOT_ECT, "W"), (ECT_1, "EW"), (ECT_0, "e"), (CE, "We")])
def test_rfc9768_3_2_2_1_the_handshake_says_how_each_syn_arrived(field, code):
    peer = Peer().listens(ecn=3)
    assert peer.says("SEWe", 0, options=MSS, ecn=field) == [f"S.{code} 0(0) ack 1"]
    client, handle = accurate_client(field)
    assert client.hears()[-1] == f".{code} 1(0) ack 1"
    assert [line.split()[0] for line in client.write(handle, b"next")] == ["P.Ee"]  # from then on a counter, 5 at first


@pytest.mark.parametrize(("answer", "capable"), [
    ("S.W", True), ("S.EW", False), ("S.e", False), ("S.We", False), ("S.Ee", True)])
def test_rfc9768_3_2_2_3_a_path_that_spoils_the_ecn_field_is_found_by_the_client(answer, capable):
    peer, handle = accurate_client(answer=answer)
    peer.host.out()
    peer.host.write(handle, b"text")
    assert [sent[-1] for sent in peer.host.sent] == [capable]


@pytest.mark.parametrize(("acknowledged_by", "capable"), [
    (".W", True), (".EW", False), (".e", False), (".We", False), (".", False), (".Ee", True)])
def test_rfc9768_3_2_2_3_a_path_that_spoils_the_ecn_field_is_found_by_the_server(acknowledged_by, capable):
    peer, handle = accurate_server(acknowledged_by=acknowledged_by)
    peer.host.write(handle, b"text")
    assert [sent[-1] for sent in peer.host.sent] == [capable]


def test_rfc9768_3_2_2_4_a_path_that_clears_the_flags_is_found():
    peer, handle = accurate_client()
    peer.host.out()
    peer.says("P.", 1, 1, b"t")
    peer.host.out()
    peer.host.write(handle, b"text")
    assert [sent[-1] for sent in peer.host.sent] == [False]
    assert delivered_marked(peer, handle) == 0


def test_rfc9768_3_2_2_marked_packets_are_counted_modulo_8_whatever_they_contain():
    peer, handle = accurate_server()
    number, expected = 1, 5
    for _ in range(9):
        told = peer.says("P.Ee", number, 1, b"m", ecn=CE)
        number, expected = number + 1, (expected + 1) % 8
        letters = "".join(letter for bit, letter in ((1, "E"), (2, "W"), (4, "e")) if expected & bit)
        if told:
            assert told == [f".{letters} 1(0) ack {number}"]
    assert peer.host.conn(handle).accurate.received == expected
    peer.says(".Ee", number, 1, ecn=CE)  # an ACK alone
    assert peer.host.conn(handle).accurate.received == (expected + 1) % 8


def test_rfc9768_3_2_2_5_1_the_first_mark_and_every_second_one_is_acknowledged_at_once():
    peer, _ = accurate_server()
    for number in range(1, 20):  # no quick ACKs any more; what is not pushed has a delayed ACK then
        peer.says("P.Ee", number, 1, b"x", ecn=ECT_0)
    peer.passes(0.1)
    peer.hears()
    assert peer.says(".Ee", 20, 1, b"x", ecn=ECT_0) == []
    assert peer.says(".Ee", 21, 1, b"x", ecn=CE) == [".We 1(0) ack 22"]
    assert peer.says(".Ee", 22, 1, b"x", ecn=CE) == []
    assert peer.says(".Ee", 23, 1, b"x", ecn=CE) == [". 1(0) ack 24"]


def test_rfc9768_3_3_reported_marks_reduce_the_window_once_in_a_round_trip():
    peer, handle = accurate_server()
    peer.write(handle, b"e" * 8000)
    before = peer.host.conn(handle).recovery.cwnd
    peer.says(".We", 1, 2001)  # 6
    once = peer.host.conn(handle).recovery.cwnd
    peer.says(".EWe", 1, 3001)  # 7
    assert before // 2 <= once < before
    assert peer.host.conn(handle).recovery.cwnd <= once
    assert delivered_marked(peer, handle) == 2


def test_the_field_of_an_acknowledgment_that_was_overtaken_says_nothing():
    peer, handle = accurate_server()
    peer.write(handle, b"e" * 8000)
    peer.says(".We", 1, 3001)
    peer.says(".Ee", 1, 2001)
    peer.says(".Ee", 1, 3001)
    assert delivered_marked(peer, handle) == 1


def test_what_is_sent_again_is_not_ecn_capable():
    peer, handle = accurate_server()
    peer.host.write(handle, b"text")
    peer.host.out()
    peer.passes(5)
    assert not any(sent[-1] for sent in peer.host.sent)
    assert "P.Ee 1(4) ack 1" in peer.hears()


def test_no_super_segment_while_cwr_is_part_of_the_counter():
    world, a, b, left, right = pair(a_options={"ecn": 3}, b_options={"ecn": 3}, super_octets=64_000)
    a.write(left, octets(200_000))
    assert world.run(20, lambda: len(b.applications[right].received) == 200_000)
    assert max(len(segment.payload) for _, _, segment in world.log) <= 1460
    conn = a.conn(left)
    conn.recovery = conn.recovery or a.engine.loss_recovery(conn)
    for received, most in ((5, 64_000), (6, 1460), (7, 1460), (0, 64_000)):
        conn.accurate.received = received
        a.write(left, octets(20_000, received))
        sizes = [len(segment.payload) for _, _, segment, _, _ in a.sent]
        assert (max(sizes) > 1460) == (most > 1460)
        assert world.run(20, lambda: conn.snd_una == conn.written)


def test_a_successor_goes_on_with_the_counters():
    world, a, b, left, right = pair(a_options={"ecn": 3}, b_options={"ecn": 3})
    rng = random.Random(7)
    world.marks = lambda segment: rng.random() < 0.3
    a.write(left, octets(60_000))
    assert world.run(20, lambda: len(b.applications[right].received) == 60_000)
    before = a.conn(left).accurate.octet, b.conn(right).accurate.octet
    assert before != (45, 45)
    for number, host in enumerate((a, b)):
        heir = world.hosts[host.address] = host.successor(number)
        heir.world = world
    a, b = world.hosts.values()
    assert (a.conn(left).accurate.octet, b.conn(right).accurate.octet) == before
    a.write(left, octets(60_000))
    assert world.run(20, lambda: a.conn(left).snd_una == 120_001)
    assert a.conn(left).accurate.counted == b.conn(right).accurate.received


def test_every_mark_is_reported():
    world, a, b, left, right = pair(a_options={"ecn": 3}, b_options={"ecn": 3})
    rng, marked = random.Random(9), []

    def marks(segment: Segment) -> bool:
        if rng.random() < 0.2:
            marked.append(segment)
            return True
        return False

    world.marks = marks
    a.write(left, octets(200_000))
    assert world.run(60, lambda: a.conn(left).snd_una == 200_001)
    assert len(b.applications[right].received) == 200_000
    assert a.conn(left).accurate.delivered_marked == len(marked) > 20
    assert not any(segment.flags & SYN for segment in marked)
    assert {segment.flags & (AE | CWR | ECE) for _, source, segment in world.log if source == b.address} > {0, AE | ECE}

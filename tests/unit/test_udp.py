"""The UDP core, in memory; packets to it are made by scapy, packets from it are compared with scapy's."""

from __future__ import annotations

import errno
import random
from ipaddress import IPv4Address

import lengths
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import GROUP, REPORT, address, error, report, transmitted, up
from scapy.layers import inet
from scapy.packet import Raw

from bus.config import StackConfig
from bus.messages import (
    DATAGRAM,
    DATAGRAM_HEADER,
    ICMP_ERROR,
    INTERFACE_INDEX,
    ORIGIN_ICMP,
    ORIGIN_LOCAL,
    PACKET,
    PATH_MTU,
    PATH_MTU_HEAD,
    REPORT_ERROR,
    ROUTES,
    SEND,
    SEND_SEGMENTS,
    SOCKET_CLOSE,
    SOCKET_ERROR,
    SOCKET_REPLY,
    SOCKET_SET,
    TRANSMIT,
    TRANSMIT_BROADCAST,
    TRANSMIT_DONT_FRAGMENT,
    TRANSMIT_IGNORE_PATH_MTU,
    TRANSMIT_MAY_FRAGMENT,
    Route,
    Routes,
    SocketError,
    SocketState,
    datagram_header,
    decode_socket_reply,
    encode,
)
from bus.topology import ICMP, IP, LAYERS, SOCKETS, inputs
from layers.common.ports import EPHEMERAL_PORT_MAX, EPHEMERAL_PORT_MIN, EPHEMERAL_PORTS, Claim
from layers.udp import output, tables
from layers.udp.core import Core
from layers.udp.counters import Counters
from usernet.pipe.messages import SEND_TOS_GIVEN


def octets(text: str) -> bytes:
    return IPv4Address(text).packed


ME, ALIAS, PEER, OTHER, FAR = "10.0.0.2", "10.0.0.3", "10.0.0.1", "10.0.0.7", "8.8.8.8"
CONFIG = StackConfig(name="test", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=bytes(6))
ANNOUNCED = Routes([(address(ME), 24), (address(ALIAS), 24)], [Route(address("10.0.0.0"), 24, b"", address(ME), 1500)])


class Layer:
    """A UDP layer: its core, and its neighbours' side of the conversation."""

    def __init__(self, state: dict | None = None, routes: Routes | None = ANNOUNCED) -> None:
        self.state = {} if state is None else state
        self.counters = Counters.new()
        self.core = Core(CONFIG, self.state, self.counters, random.Random(1))
        assert self.core.start(0.0) == []
        if routes is not None:
            assert self.core.receive(IP, ROUTES, [encode(routes)], 0.0) == []

    def restarted(self) -> Layer:
        return Layer(self.state, routes=None)

    def count(self, name: str) -> int:
        return Counters.read(self.counters)[name]

    def set(self, handle: int, **fields):
        for name in ("local", "peer"):
            if name in fields:
                fields[name] = address(fields[name])
        state = SocketState(handle=handle, request=handle + 100, **fields)
        ((to, kind, record),) = self.core.receive(SOCKETS, SOCKET_SET, [encode(state)], 0.0)
        reply = decode_socket_reply(record)
        assert (to, kind, reply.handle, reply.request) == (SOCKETS, SOCKET_REPLY, handle, handle + 100)
        return reply

    def bind(self, handle: int, local: str = "0.0.0.0", port: int = 5000, **fields) -> None:
        reply = self.set(handle, local=local, port=port, bind=True, **fields)
        assert reply.errno == 0, errno.errorcode[reply.errno]

    def close(self, handle: int) -> None:
        assert self.core.receive(SOCKETS, SOCKET_CLOSE, [handle.to_bytes(4, "little")], 0.0) == []

    def packets(self, *packets: bytes, flags: int = 0) -> list:
        return self.core.receive(IP, PACKET, [up(packet, flags) for packet in packets], 0.0)

    def heard_by(self, *arguments, flags: int = 0, **fields) -> list[int]:
        sends = self.packets(packet(*arguments, **fields), flags=flags)
        return [DATAGRAM_HEADER.unpack_from(record)[0] for _, sent, record in sends if sent == DATAGRAM]

    def send(self, handle: int, to: str = PEER, port: int = 7, payload: bytes = b"payload", source: str = "0.0.0.0",
             ttl: int = 0, tos: int = 0, flags: int = 0) -> list:  # fmt: skip
        record = datagram_header(handle, octets(to), port, octets(source), ttl, tos, flags) + payload
        return self.core.receive(SOCKETS, SEND, [record], 0.0)

    def sent(self, *arguments, **fields) -> tuple[dict, bytes]:
        ((to, kind, record),) = self.send(*arguments, **fields)
        assert (to, kind) == (IP, TRANSMIT)
        names = ("source", "destination", "protocol", "ttl", "tos", "flags")
        header, options, segment = transmitted(record)
        assert not options
        return dict(zip(names, (octets(header[0]), octets(header[1]), *header[2:]), strict=True)), segment

    def icmp_error(self, quotation: bytes, icmp_type: int = 3, code: int = 3, origin: int = ORIGIN_ICMP, info: int = 0):
        record = error(icmp_type, code, quotation, origin, info, offender=OTHER)
        return self.core.receive(ICMP, ICMP_ERROR, [record], 0.0)


def packet(src: str = PEER, sport: int = 7, dst: str = ME, dport: int = 5000, payload: bytes = b"payload",
           ip_fields: dict | None = None, **udp_fields) -> bytes:  # fmt: skip
    head = inet.IP(src=src, dst=dst, **ip_fields or {})
    return bytes(head / inet.UDP(sport=sport, dport=dport, **udp_fields) / Raw(payload))


@pytest.fixture
def udp() -> Layer:
    return Layer()


# ---------------------------------------------------------------------- receiving


def test_rfc768_a_datagram_reaches_its_socket(udp):
    udp.bind(3)
    sends = udp.packets(packet(ip_fields={"ttl": 17, "tos": 0x2E}))
    head = datagram_header(3, octets(PEER), 7, octets(ME), 17, 0x2E, 0, INTERFACE_INDEX)
    assert sends == [(SOCKETS, DATAGRAM, head + b"payload")]
    assert udp.count("packets_in") == udp.count("delivered") == 1


def test_a_batch_keeps_its_order_and_a_bad_packet_harms_no_other(udp):
    udp.bind(3)
    good = [packet(payload=bytes([number])) for number in range(3)]
    sends = udp.packets(good[0], b"", good[1], good[2][:-1] + b"\xff", good[2])
    assert [record[-1] for _, _, record in sends] == [0, 1, 2]


@pytest.mark.parametrize("payload", [b"", b"x", b"xy", bytes(1472), bytes(65507)])
def test_payloads_of_any_length(udp, payload):
    udp.bind(3)
    ((_, _, record),) = udp.packets(packet(payload=payload))
    assert record[DATAGRAM_HEADER.size :] == payload


def test_rfc768_a_source_port_of_zero_means_no_port_and_is_accepted(udp):
    udp.bind(3)
    ((_, _, record),) = udp.packets(packet(sport=0))
    assert record == datagram_header(3, octets(PEER), 0, octets(ME), 64, 0, 0, INTERFACE_INDEX) + b"payload"


def test_ip_options_are_stepped_over(udp):
    udp.bind(3)
    ((_, _, record),) = udp.packets(packet(ip_fields={"options": [inet.IPOption_Timestamp()]}))
    assert record == datagram_header(3, octets(PEER), 7, octets(ME), 64, 0, 0, INTERFACE_INDEX) + b"payload"


def test_octets_behind_the_udp_length_are_cut(udp):
    udp.bind(3)
    whole = packet(payload=b"12")
    ((_, _, record),) = udp.packets(whole + b"trailer")
    assert record[DATAGRAM_HEADER.size :] == b"12"


@pytest.mark.parametrize("length", [0, 7, 16, 0xFFFF])
def test_rfc768_a_length_that_cannot_be_is_dropped(udp, length):
    udp.bind(3)
    assert udp.packets(packet(len=length)) == []
    assert udp.count("bad_length") == 1


def test_rfc1122_4_1_3_4_a_bad_checksum_is_dropped_silently(udp):
    udp.bind(3)
    damaged = packet()[:-1] + b"?"
    assert udp.packets(damaged) == []
    # No error either for a damaged datagram to a closed port: its sender is not certain.
    assert udp.packets(packet(dport=1, chksum=0x1234)) == []
    assert udp.count("bad_checksum") == 2


def test_rfc768_a_checksum_of_zero_means_no_checksum(udp):
    udp.bind(3)
    assert udp.heard_by(chksum=0) == [3]


@pytest.mark.parametrize("size", range(28))
def test_truncated_packets(udp, size):
    udp.bind(3)
    assert udp.packets(packet()[:size]) == []
    assert udp.packets(packet(ip_fields={"options": [inet.IPOption_Timestamp()]})[: size + 4]) == []
    assert udp.count("packet_truncated") == 2


def test_rfc1122_4_1_3_1_a_closed_port_is_reported(udp):
    udp.bind(3, port=5001)
    asked = packet(payload=bytes(1000))
    assert udp.packets(asked) == [(ICMP, REPORT_ERROR, report(3, 3, asked)[: REPORT + 576])]
    assert udp.count("no_port") == 1


@pytest.mark.parametrize("destination", [ME, "10.0.0.255", "224.0.0.251"])
def test_rfc1122_3_2_2_no_error_about_a_broadcast(udp, destination):
    assert udp.packets(packet(dst=destination), flags=GROUP) == []
    assert udp.count("no_port_group") == 1


# ---------------------------------------------------------------------- whose datagram it is


def test_the_most_specific_socket_gets_it(udp):
    udp.bind(1, reuse_address=True)
    assert udp.heard_by() == [1]
    udp.bind(2, ME, reuse_address=True)
    assert udp.heard_by() == [2]
    assert udp.heard_by(dst=ALIAS) == [1]
    udp.bind(3, ME, peer=PEER, peer_port=7, reuse_address=True)
    assert udp.heard_by() == [3]
    assert udp.heard_by(sport=8) == udp.heard_by(src=OTHER) == [2]
    for handle, next_best in ((3, [2]), (2, [1]), (1, [])):
        udp.close(handle)
        assert udp.heard_by() == next_best


def test_a_connected_socket_hears_its_peer_only(udp):
    udp.bind(1, peer=PEER, peer_port=7)
    assert udp.heard_by() == [1]
    assert udp.heard_by(sport=8) == udp.heard_by(src=OTHER) == []
    assert udp.count("report_port_unreachable") == 2


def test_a_connection_to_port_0_hears_all_ports_of_the_peer(udp):
    udp.bind(1, peer=PEER)
    assert udp.heard_by(sport=7) == udp.heard_by(sport=8) == [1]
    assert udp.heard_by(src=OTHER) == []


def test_so_reuseaddr_the_last_bound_gets_it(udp):
    for handle in (5, 9, 2):
        udp.bind(handle, reuse_address=True)
    assert udp.heard_by() == [2]
    udp.bind(5, reuse_address=True)  # declared again: no newer than it was
    assert udp.heard_by() == [2]
    assert udp.restarted().heard_by() == [2]
    udp.close(2)
    assert udp.heard_by() == [9]


def test_so_reuseport_spreads_flows_and_each_stays_where_it_is(udp):
    for handle in (1, 2, 3, 4):
        udp.bind(handle, reuse_port=True)
    before = [udp.heard_by(sport=port) for port in range(1000, 1400)]
    shares = [before.count([handle]) for handle in (1, 2, 3, 4)]
    assert sum(shares) == 400
    assert min(shares) > 60
    udp.core._sockets.flows.clear()
    assert [udp.heard_by(sport=port) for port in range(1000, 1400)] == before
    restarted = udp.restarted()
    assert [restarted.heard_by(sport=port) for port in range(1000, 1400)] == before


def test_so_reuseport_connected_twins_do_not_share_the_last_gets_it(udp):
    for handle in (1, 2, 3, 4):
        for twin_port in range(20):  # 20 flows, of which a group would give each its share
            udp.bind(handle + 10 * twin_port, port=6000 + twin_port, peer=PEER, peer_port=7, reuse_port=True)
    assert [udp.heard_by(dport=6000 + twin_port) for twin_port in range(20)] == [[4 + 10 * n] for n in range(20)]


def test_a_broadcast_reaches_every_socket_that_hears_it(udp):
    udp.bind(1, reuse_address=True)
    udp.bind(2, reuse_address=True)
    udp.bind(3, ME, reuse_address=True)
    udp.bind(4, "10.0.0.255", reuse_address=True)
    udp.bind(5, peer=PEER, peer_port=7, reuse_address=True)  # hears at ME alone, like 3
    udp.bind(6, port=5001)
    assert sorted(udp.heard_by(dst="10.0.0.255", flags=GROUP)) == [1, 2, 4]
    assert sorted(udp.heard_by(dst="255.255.255.255", flags=GROUP)) == [1, 2]
    # One that only its frame broadcast is for one socket, as on Linux.
    assert udp.heard_by(dst=ME, flags=GROUP) == [5]


def test_a_socket_at_a_multicast_address_hears_it_from_its_peer_only_when_connected(udp):
    udp.bind(1, "224.0.0.251", reuse_address=True)
    udp.bind(2, "224.0.0.251", peer=PEER, peer_port=7, reuse_address=True)
    assert sorted(udp.heard_by(dst="224.0.0.251", flags=GROUP)) == [1, 2]
    assert udp.heard_by(dst="224.0.0.251", src=OTHER, flags=GROUP) == [1]
    assert udp.heard_by(dst="224.0.0.251", sport=8, flags=GROUP) == [1]


def test_a_remembered_flow_follows_every_change(udp):
    udp.bind(1)
    assert udp.heard_by() == udp.heard_by() == [1]
    udp.bind(1, port=5001)
    assert udp.heard_by() == []
    assert udp.heard_by(dport=5001) == [1]
    udp.close(1)
    assert udp.heard_by(dport=5001) == []


def test_the_cache_of_flows_is_bounded(udp, monkeypatch):
    monkeypatch.setattr(tables, "FLOWS_MAX", 8)
    udp.bind(1)
    for port in range(1, 30):
        assert udp.heard_by(sport=port) == [1]
    assert len(udp.core._sockets.flows) <= 8


LOCALS = st.sampled_from(("0.0.0.0", ME, ALIAS))
PEERS = st.sampled_from(((None, 0), (PEER, 7), (PEER, 8), (OTHER, 7), (PEER, 0)))


@given(st.lists(st.tuples(st.integers(1, 5), LOCALS, PEERS, st.booleans()), max_size=10))
@settings(max_examples=150, deadline=None)
def test_the_receiver_is_the_socket_with_the_highest_score_on_linux(steps):
    udp = Layer()
    sockets: dict[int, tuple] = {}  # handle -> (where it receives, peer, peer's port), last placed last
    for handle, local, (peer, peer_port), closed in steps:
        if closed:
            udp.close(handle)
            sockets.pop(handle, None)
            continue
        connection = {"peer": peer, "peer_port": peer_port} if peer else {}
        udp.bind(handle, local, reuse_address=True, **connection)
        place = (ME if peer and local == "0.0.0.0" else local, peer, peer_port)
        if sockets.get(handle) != place:
            sockets.pop(handle, None)
            sockets[handle] = place

    def score(place: tuple, src: str, sport: int, dst: str) -> int:
        local, peer, peer_port = place  # Linux's udp_lookup: the address's sockets first, then any's; compute_score
        if local not in (dst, "0.0.0.0") or (peer and (peer != src or peer_port not in (0, sport))):
            return -1
        return (100 if local == dst else 0) + (4 if peer else 0) + (4 if peer_port else 0)

    for core in (udp, udp.restarted()):
        for src, sport, dst in ((PEER, 7, ME), (PEER, 8, ME), (OTHER, 7, ME), (PEER, 7, ALIAS), (OTHER, 9, ALIAS)):
            scores = {handle: score(place, src, sport, dst) for handle, place in sockets.items()}
            best = max(scores.values(), default=-1)
            expected = [handle for handle, reached in scores.items() if reached == best >= 0][-1:]
            assert core.heard_by(src=src, sport=sport, dst=dst) == expected


# ---------------------------------------------------------------------- sending


@given(st.binary(max_size=64), st.integers(1, 0xFFFF), st.integers(1, 0xFFFF))
@settings(deadline=None)
def test_rfc768_what_is_sent_is_what_scapy_would_send(payload, source_port, port):
    udp = Layer()
    udp.bind(3, port=source_port)
    header, segment = udp.sent(3, PEER, port, payload)
    assert header["source"] == octets(ME)
    assert header["destination"] == octets(PEER)
    assert header["protocol"] == 17
    assert segment == packet(ME, source_port, PEER, port, payload)[20:]


def test_rfc768_a_checksum_of_zero_is_sent_as_all_ones(udp):
    udp.bind(3)
    _, segment = udp.sent(3, payload=b"\0\0")
    zero_sum = segment[6:8]  # the word that makes the sum all ones
    _, segment = udp.sent(3, payload=zero_sum)
    assert segment[6:8] == b"\xff\xff"
    assert segment == packet(ME, 5000, PEER, 7, zero_sum)[20:]


def test_port_0_is_the_connected_peer_and_any_other_an_address_of_its_own(udp):
    udp.bind(3, peer=PEER, peer_port=9)
    header, segment = udp.sent(3, "0.0.0.0", 0)
    assert header["destination"] == octets(PEER)
    assert segment[2:4] == (9).to_bytes(2, "big")
    header, segment = udp.sent(3, OTHER, 11)
    assert header["destination"] == octets(OTHER)
    assert segment[2:4] == (11).to_bytes(2, "big")


def test_records_that_cannot_be_sent_are_counted(udp):
    udp.bind(3)
    udp.set(4)
    assert udp.send(3, port=0) == []
    assert udp.count("send_no_destination") == 1
    assert udp.send(9) == []
    assert udp.count("send_no_socket") == 1
    assert udp.send(4) == []
    assert udp.count("send_no_port") == 1
    ((to, kind, record),) = udp.send(3, FAR)
    assert (to, kind, SocketError.of(record).errno) == (SOCKETS, SOCKET_ERROR, errno.ENETUNREACH)
    assert udp.count("send_no_route") == 1
    assert udp.send(3, payload=bytes(65508)) == []
    assert udp.count("send_too_long") == 1
    assert udp.core.receive(SOCKETS, SEND, [bytes(DATAGRAM_HEADER.size - 1)], 0.0) == []
    assert udp.count("send_malformed") == 1
    assert udp.count("sends") == 6
    assert udp.count("packets_out") == 0
    assert udp.send(3, payload=bytes(65507)) != []


def test_a_family_and_an_interface_that_the_stack_does_not_have_are_refused(udp):
    udp.bind(3)
    six = bytes(range(16))
    for record, number, told, payload in (
        (datagram_header(3, six, 7, bytes(16)) + b"payload", errno.EAFNOSUPPORT, six, b"payload"),
        (datagram_header(3, six, 7, bytes(16))[:-1], errno.EAFNOSUPPORT, bytes(4), b""),
        (b"\x03\0\0\0\x09" + bytes(15), errno.EAFNOSUPPORT, bytes(4), b""),
        (datagram_header(3, octets(PEER), 7, bytes(4), interface=3) + b"x", errno.ENODEV, octets(PEER), b"x"),
    ):
        ((to, kind, answer),) = udp.core.receive(SOCKETS, SEND, [record], 0.0)
        error = SocketError.of(answer)
        assert (to, kind, error.handle, error.errno, error.destination) == (SOCKETS, SOCKET_ERROR, 3, number, told)
        assert answer[error.octets :] == payload
    ((_, kind, answer),) = udp.core.receive(SOCKETS, SEND_SEGMENTS, [datagram_header(3, six, 7, six) + b"\1\0ab"], 0.0)
    assert (kind, SocketError.of(answer).errno) == (SOCKET_ERROR, errno.EAFNOSUPPORT)
    assert (udp.count("send_misplaced"), udp.count("packets_out")) == (5, 0)
    assert udp.core.receive(SOCKETS, SEND, [datagram_header(3, octets(PEER), 7, bytes(4), interface=2)], 0.0) != []


@pytest.mark.parametrize(("bound", "wanted", "to", "source"), [
    ("0.0.0.0", "0.0.0.0", PEER, ME),
    ("0.0.0.0", ALIAS, PEER, ALIAS),
    ("0.0.0.0", FAR, PEER, ME),  # not ours: not sent
    (ALIAS, "0.0.0.0", PEER, ALIAS),
    (ALIAS, ME, PEER, ME),
    ("10.0.0.255", "0.0.0.0", PEER, ME),  # a broadcast address is no source
    ("0.0.0.0", "0.0.0.0", "127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "0.0.0.0", ALIAS, ALIAS),
    ("0.0.0.0", "0.0.0.0", "0.0.0.0", "127.0.0.1"),
    (ME, "0.0.0.0", "0.0.0.0", ME),
])  # fmt: skip
def test_rfc1122_4_1_3_5_source_address(udp, bound, wanted, to, source):
    udp.bind(3, bound)
    header, _ = udp.sent(3, to, source=wanted)
    assert header["source"] == octets(source)
    assert header["destination"] == octets(source if to == "0.0.0.0" else to)


def test_rfc1122_4_1_4_ttl_and_tos(udp):
    udp.bind(3, ttl=9, tos=4, multicast_ttl=2)
    header, _ = udp.sent(3)
    assert (header["ttl"], header["tos"]) == (9, 4)
    header, _ = udp.sent(3, ttl=77, tos=8)
    assert (header["ttl"], header["tos"]) == (77, 4)
    header, _ = udp.sent(3, tos=0, flags=SEND_TOS_GIVEN)
    assert (header["ttl"], header["tos"]) == (9, 0)


def test_rfc1112_6_1_multicasts_have_a_ttl_of_their_own(udp):
    udp.bind(3, ttl=9, multicast_ttl=2)
    assert udp.sent(3, "224.0.0.251")[0]["ttl"] == 2
    assert udp.sent(3, "224.0.0.251", ttl=5)[0]["ttl"] == 5


def test_flags_for_ip_follow_the_socket_at_once(udp):
    udp.bind(3)
    assert udp.sent(3)[0]["flags"] == TRANSMIT_DONT_FRAGMENT | TRANSMIT_MAY_FRAGMENT
    udp.bind(3, mtu_discover=0, broadcast=True)
    assert udp.sent(3)[0]["flags"] == TRANSMIT_BROADCAST | TRANSMIT_MAY_FRAGMENT


@pytest.mark.parametrize(("mode", "flags"), [
    (0, TRANSMIT_MAY_FRAGMENT), (1, TRANSMIT_DONT_FRAGMENT | TRANSMIT_MAY_FRAGMENT), (2, TRANSMIT_DONT_FRAGMENT),
    (3, TRANSMIT_DONT_FRAGMENT | TRANSMIT_IGNORE_PATH_MTU), (4, TRANSMIT_IGNORE_PATH_MTU),
    (5, TRANSMIT_IGNORE_PATH_MTU | TRANSMIT_MAY_FRAGMENT),
])  # fmt: skip
def test_the_modes_of_path_mtu_discovery(udp, mode, flags):
    udp.bind(3, mtu_discover=mode)
    assert udp.sent(3)[0]["flags"] == flags


def test_the_source_follows_a_change_of_routes_at_once(udp):
    udp.bind(3)
    assert udp.sent(3)[0]["source"] == octets(ME)
    udp.core.receive(IP, ROUTES, [encode(Routes(
        [(address(OTHER), 24)], [Route(bytes(4), 0, b"", address(OTHER), 1500)]))], 0.0)
    assert udp.sent(3)[0]["source"] == octets(OTHER)


@pytest.mark.parametrize("declared", [{"local": ALIAS}, {"local": ALIAS, "peer": PEER, "peer_port": 7}])
@pytest.mark.parametrize("source", ["0.0.0.0", ALIAS])
def test_a_socket_whose_address_has_gone_sends_nothing_until_it_is_back(udp, declared, source):
    udp.set(3, bind=True, port=5000, **declared)
    assert udp.sent(3, source=source)[0]["source"] == octets(ALIAS)
    without = Routes([(address(ME), 24)], ANNOUNCED.routes)
    udp.core.receive(IP, ROUTES, [encode(without)], 0.0)
    for layer in (udp, udp.restarted()):
        ((to, kind, record),) = layer.send(3, source=source)
        assert (to, kind) == (SOCKETS, SOCKET_ERROR)
        told = SocketError.of(record)
        assert (told[:3], told[-2:]) == ((3, errno.ENETUNREACH, ORIGIN_LOCAL), (octets(PEER), 7))
        assert record[told.octets :] == b"payload"
        assert layer.sent(3, source=ME)[0]["source"] == octets(ME)  # of the application's choice (IP_PKTINFO)
        layer.core.receive(IP, ROUTES, [encode(ANNOUNCED)], 0.0)
        assert layer.sent(3, source=source)[0]["source"] == octets(ALIAS)


def test_multicasts_from_an_interface_whose_address_has_gone_are_refused(udp):
    udp.bind(3, multicast_interface=address(FAR))
    ((_, kind, record),) = udp.send(3, "239.1.1.1")
    assert (kind, SocketError.of(record).errno) == (SOCKET_ERROR, errno.ENETUNREACH)
    assert udp.sent(3)[0]["source"] == octets(ME)


def test_the_cache_of_headers_is_bounded(udp, monkeypatch):
    monkeypatch.setattr(output, "PATHS_MAX", 8)
    udp.bind(3)
    for port in range(1, 30):
        assert len(udp.send(3, port=port)) == 1
    assert len(udp.core._output._paths) <= 8


# ---------------------------------------------------------------------- declaring sockets


def test_an_ephemeral_port_is_chosen_once(udp):
    reply = udp.set(1, bind=True)
    assert EPHEMERAL_PORT_MIN <= reply.port <= EPHEMERAL_PORT_MAX
    assert reply.local == b""
    assert udp.set(1, bind=True, ttl=3) == reply
    assert udp.set(1, bind=True, local=ME).port == reply.port
    assert udp.restarted().set(1, bind=True, local=ME).port == reply.port
    assert udp.set(2, bind=True).port != reply.port


def test_without_a_free_port_bind_is_eaddrinuse_and_connect_eagain(udp):
    for port in range(EPHEMERAL_PORTS):
        udp.core._sockets._ports.hold(-port - 1, Claim(b"", EPHEMERAL_PORT_MIN + port, 0))
    assert udp.set(1, bind=True).errno == errno.EADDRINUSE
    assert udp.set(1, peer=PEER, peer_port=7).errno == errno.EAGAIN


def test_a_declaration_without_bind_or_peer_takes_no_port(udp):
    reply = udp.set(1, ttl=3)
    assert (reply.errno, reply.local, reply.port) == (0, b"", 0)


def test_a_taken_port_is_eaddrinuse_and_leaves_everything_as_it_was(udp):
    udp.bind(1, ME)
    udp.bind(2, port=6000)
    before = dict(udp.state)
    assert udp.set(2, bind=True, port=5000).errno == errno.EADDRINUSE
    assert udp.set(3, bind=True, port=5000).errno == errno.EADDRINUSE
    assert udp.state == before
    assert udp.heard_by(dport=6000) == [2]
    assert udp.heard_by() == [1]
    udp.close(1)
    udp.bind(2)


@pytest.mark.parametrize(("local", "number"), [
    (FAR, errno.EADDRNOTAVAIL), (PEER, errno.EADDRNOTAVAIL), ("240.0.0.1", errno.EADDRNOTAVAIL),
    (ME, 0), (ALIAS, 0), ("127.9.9.9", 0), ("10.0.0.255", 0), ("255.255.255.255", 0), ("224.0.0.1", 0), ("0.0.0.0", 0),
])  # fmt: skip
def test_where_a_socket_can_be_bound(udp, local, number):
    reply = udp.set(1, local=local, bind=True, port=5000)
    assert reply.errno == number
    if not number:
        assert (reply.local, reply.port) == (address(local), 5000)


def test_connecting_chooses_address_and_port_and_dissolving_gives_them_back(udp):
    reply = udp.set(1, peer=PEER, peer_port=7)
    assert reply.local == address(ME)
    assert reply.port >= EPHEMERAL_PORT_MIN
    assert udp.heard_by(dport=reply.port) == [1]
    assert udp.set(1, peer=PEER, peer_port=7) == reply
    reply = udp.set(1)
    assert (reply.local, reply.port) == (b"", 0)


def test_dissolving_keeps_what_was_bound(udp):
    udp.bind(1, peer=PEER, peer_port=7)
    assert udp.set(1, bind=True, port=5000).local == b""
    assert udp.heard_by(src=OTHER, dst=ALIAS) == [1]
    udp.bind(1, ALIAS, peer=PEER, peer_port=7)
    assert udp.set(1, local=ALIAS, bind=True, port=5000).local == address(ALIAS)


def test_a_connected_socket_leaves_its_other_addresses_to_others_as_on_linux(udp):
    udp.bind(1, peer=PEER, peer_port=7)
    udp.bind(2, "127.0.0.1")
    assert udp.set(3, bind=True, port=5000).errno == errno.EADDRINUSE
    assert udp.set(1, bind=True, port=5000).errno == 0  # dissolved: 0.0.0.0 is not compared with 2 again


def test_connecting_again_moves_the_socket(udp):
    udp.bind(1, peer=PEER, peer_port=7)
    udp.bind(1, peer=OTHER, peer_port=8)
    assert udp.heard_by() == []
    assert udp.heard_by(src=OTHER, sport=8) == [1]
    assert udp.sent(1, port=0)[0]["destination"] == octets(OTHER)


def test_connect_errors(udp):
    assert udp.set(1, peer=FAR, peer_port=7).errno == errno.ENETUNREACH
    assert udp.set(1, peer="10.0.0.255", peer_port=7).errno == errno.EACCES
    assert udp.set(1, peer="10.0.0.255", peer_port=7, broadcast=True).errno == 0
    # SO_BROADCAST is asked for when connecting; taking it away later breaks nothing.
    assert udp.set(1, peer="10.0.0.255", peer_port=7).errno == 0


def test_connecting_to_0_0_0_0_is_connecting_to_oneself(udp):
    reply = udp.set(1, peer_port=7)
    assert reply.local == address("127.0.0.1")
    assert udp.sent(1, port=0)[0]["destination"] == octets("127.0.0.1")


def test_a_lost_address_or_route_does_not_break_a_declared_socket(udp):
    udp.bind(1, ALIAS, peer=PEER, peer_port=7)
    udp.core.receive(IP, ROUTES, [encode(Routes([], []))], 0.0)
    assert udp.set(1, local=ALIAS, bind=True, port=5000, peer=PEER, peer_port=7).errno == 0
    assert udp.set(2, local=ALIAS, bind=True, port=5001).errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("fields", [
    {"port": 65536}, {"port": -1}, {"peer_port": 65536}, {"ttl": 0}, {"ttl": 256}, {"tos": 256}, {"tos": -1},
    {"multicast_ttl": 256}, {"multicast_ttl": -1},
])  # fmt: skip
def test_numbers_out_of_range_are_einval(udp, fields):
    assert udp.set(1, bind=True, **fields).errno == errno.EINVAL
    assert udp.count("set_refused") == 1
    assert 1 not in udp.state


def test_addresses_out_of_range_are_einval(udp):
    for field in ("local", "peer"):
        for value in (bytes(4), bytes(3) + b"\1\0", bytes(15) + b"\1"):
            record = encode(SocketState(handle=1, request=1, **{field: value}))
            ((_, _, reply),) = udp.core.receive(SOCKETS, SOCKET_SET, [record], 0.0)
            assert decode_socket_reply(reply).errno == errno.EINVAL


def test_a_socket_of_a_family_that_is_not_there_is_refused(udp):
    record = encode(SocketState(handle=1, request=1, family=6, local=bytes(15) + b"\1", bind=True))
    ((_, _, reply),) = udp.core.receive(SOCKETS, SOCKET_SET, [record], 0.0)
    assert decode_socket_reply(reply).errno == errno.EAFNOSUPPORT
    assert 1 not in udp.state


@pytest.mark.parametrize("record", [
    b"", b"\x80", b"\xff", b"\x91" * 100_000, b"\x81\xa1x" + b"\x91" * 100_000, encode({"handle": 1, "request": "x"}),
    encode({"handle": 0, "request": 1}), encode({"handle": 1 << 32, "request": 1}),
    encode({"handle": -1, "request": 1}),
    encode({"handle": 1, "request": -1}), encode({"handle": 1, "request": 1, "local": bytes(17)}),
    encode({"handle": 1, "request": 1, "local": 0x0A000002}), encode({"handle": 1, "request": 1, "family": 5}),
])  # fmt: skip
def test_invalid_declarations_are_counted(udp, record):
    assert udp.core.receive(SOCKETS, SOCKET_SET, [record], 0.0) == []
    assert udp.count("control_malformed") == 1


def test_closing_is_idempotent_and_leaves_nothing(udp):
    before = dict(udp.state)
    udp.bind(1, peer=PEER, peer_port=7)
    udp.sent(1)
    udp.close(1)
    udp.close(1)
    udp.close(0)
    assert udp.state == before
    assert udp.count("closes") == 1
    assert udp.send(1) == []
    assert udp.core.receive(SOCKETS, SOCKET_CLOSE, [b"123"], 0.0) == []
    assert udp.count("control_malformed") == 1
    table = udp.core._sockets
    assert not table.sockets
    assert not table._index
    assert not table._at_port
    assert not table._ports._held


# ---------------------------------------------------------------------- ICMP errors


CONNECTED = {"peer": PEER, "peer_port": 7}


def test_rfc1122_4_1_3_3_a_connected_socket_is_told_of_a_closed_port(udp):
    udp.bind(3, **CONNECTED)
    ((to, kind, record),) = udp.icmp_error(packet(ME, 5000, PEER, 7, b"payload"), info=5)
    head = SocketError(3, errno.ECONNREFUSED, ORIGIN_ICMP, 3, 3, 5, octets(OTHER), octets(PEER), 7).pack()
    assert (to, kind, record) == (SOCKETS, SOCKET_ERROR, head + b"payload")
    assert udp.icmp_error(packet(ME, 5000, PEER, 7)[:28]) == [(SOCKETS, SOCKET_ERROR, head[:16] + bytes(4) + head[20:])]


def test_no_more_of_the_datagram_comes_back_than_an_icmp_error_carries(udp):
    udp.bind(3, **CONNECTED)
    ((_, _, record),) = udp.icmp_error(packet(ME, 5000, PEER, 7, bytes(2000)), origin=ORIGIN_LOCAL)
    assert len(record) == SocketError.of(record).octets + 548


UNREACH_HOST, UNREACH_PORT, TOO_BIG, EXPIRED, BAD_PARAMETER = (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)


@pytest.mark.parametrize(("fields", "error", "origin", "number"), [
    (CONNECTED, UNREACH_PORT, ORIGIN_ICMP, errno.ECONNREFUSED),
    (CONNECTED, TOO_BIG, ORIGIN_ICMP, errno.EMSGSIZE),
    (CONNECTED, BAD_PARAMETER, ORIGIN_ICMP, errno.EPROTO),
    (CONNECTED, UNREACH_HOST, ORIGIN_ICMP, 0),  # may mend by itself: RFC 1122 section 3.2.2.1
    (CONNECTED, EXPIRED, ORIGIN_ICMP, 0),
    (CONNECTED, UNREACH_HOST, ORIGIN_LOCAL, errno.EHOSTUNREACH),  # beyond Linux
    (CONNECTED | {"mtu_discover": 0}, TOO_BIG, ORIGIN_ICMP, 0),
    (CONNECTED | {"mtu_discover": 0, "receive_errors": True}, TOO_BIG, ORIGIN_ICMP, 0),
    (CONNECTED | {"receive_errors": True}, UNREACH_HOST, ORIGIN_ICMP, errno.EHOSTUNREACH),
    (CONNECTED | {"receive_errors": True}, (4, 0), ORIGIN_ICMP, 0),  # RFC 6633: source quench is ignored
    (CONNECTED | {"receive_errors": True}, (5, 1), ORIGIN_ICMP, 0),  # a redirect is ip's
    ({}, UNREACH_PORT, ORIGIN_ICMP, 0),
    ({}, UNREACH_HOST, ORIGIN_LOCAL, 0),
    ({"receive_errors": True}, UNREACH_PORT, ORIGIN_ICMP, errno.ECONNREFUSED),
    ({"receive_errors": True}, EXPIRED, ORIGIN_ICMP, errno.EHOSTUNREACH),
])  # fmt: skip
def test_errors_are_reported_as_by_linux_udp_err(udp, fields, error, origin, number):
    udp.bind(3, **fields)
    sends = udp.icmp_error(packet(ME, 5000, PEER, 7), *error, origin=origin)
    told = [record for to, _, record in sends if to == SOCKETS]
    assert [SocketError.of(record).errno for record in told] == ([number] if number else [])
    assert udp.count("error_ignored" if not number else "errors_told") == 1


@pytest.mark.parametrize(("fields", "origin", "believed"), [
    (CONNECTED, ORIGIN_ICMP, True), ({}, ORIGIN_ICMP, True), ({"mtu_discover": 0}, ORIGIN_ICMP, True),
    (CONNECTED, ORIGIN_LOCAL, False), ({"mtu_discover": 4}, ORIGIN_ICMP, False),
    (CONNECTED | {"mtu_discover": 5}, ORIGIN_ICMP, False),
])  # fmt: skip
def test_rfc1191_4_the_mtu_that_a_router_told_goes_to_ip(udp, fields, origin, believed):
    udp.bind(3, **fields)
    sends = udp.icmp_error(packet(ME, 5000, PEER, 7, bytes(1472))[:28], *TOO_BIG, origin=origin, info=1400)
    told = [(to, kind, record) for to, kind, record in sends if to == IP]
    assert told == ([(IP, PATH_MTU, PATH_MTU_HEAD.pack(1400, 1500) + octets(PEER))] if believed else [])


def test_rfc8201_4_the_mtu_of_a_datagram_that_no_socket_sent_is_not_believed(udp):
    udp.bind(3, **CONNECTED)
    for forged in (packet(ME, 5001, PEER, 7), packet(ME, 5000, PEER, 8), packet(ME, 5000, OTHER, 7)):
        assert udp.icmp_error(forged, *TOO_BIG, info=600) == []
    assert udp.count("error_no_socket") == 3


def test_an_error_about_what_no_socket_sent_is_dropped(udp):
    udp.bind(3, **CONNECTED)
    for forged in (packet(ME, 5000, PEER, 8), packet(ME, 5000, OTHER, 7), packet(ALIAS, 5000, PEER, 7)):
        assert udp.icmp_error(forged) == []
    assert udp.count("error_no_socket") == 3
    assert udp.icmp_error(b"") == []
    assert udp.count("error_malformed") == 1


# ---------------------------------------------------------------------- restarts


def test_a_restart_forgets_nothing(udp):
    udp.bind(1, ME, 5000, ttl=5)
    udp.bind(2, port=6000, **CONNECTED)
    ephemeral = udp.set(3, bind=True, local=ALIAS).port
    udp.set(4)
    restarted = udp.restarted()
    assert restarted.heard_by() == [1]
    assert restarted.heard_by(dport=6000) == [2]
    assert restarted.heard_by(dport=ephemeral, dst=ALIAS) == [3]
    assert restarted.sent(1)[0]["ttl"] == 5
    assert restarted.sent(2, port=0)[0]["destination"] == octets(PEER)
    assert restarted.set(5, bind=True, port=5000).errno == errno.EADDRINUSE
    assert restarted.send(4) == []
    assert restarted.count("send_no_port") == 1


def test_routes_outlive_a_restart_and_the_configured_ones_serve_before(udp):
    assert udp.restarted().set(1, local=ALIAS, bind=True).errno == 0
    fresh = Layer(routes=None)
    assert fresh.set(1, local=ME, bind=True).errno == 0
    assert fresh.set(2, local=ALIAS, bind=True).errno == errno.EADDRNOTAVAIL


def test_state_that_cannot_be_read_is_dropped_and_counted():
    udp = Layer({0: b"junk", 1: b"junk"}, routes=None)
    assert udp.state == {}
    assert udp.count("state_unreadable") == 2
    udp.bind(1)


def test_invalid_routes_are_counted_and_the_old_stay(udp):
    for record in (b"", encode(Routes([(bytes(5), 24)], [])), encode(Routes([], [Route(bytes(4), 99, b"", b"", 0)]))):
        assert udp.core.receive(IP, ROUTES, [record], 0.0) == []
    assert udp.count("control_malformed") == 3
    assert udp.set(1, local=ALIAS, bind=True).errno == 0


# ---------------------------------------------------------------------- any octets


EVERY_INPUT = sorted((LAYERS[producer], kind) for producer, kinds in inputs("udp").items() for kind in kinds)
OCTETS = lengths.octets(80) | lengths.damaged(st.sampled_from([
    up(packet()), error(3, 3, packet(ME, 5000, PEER, 7)),
    datagram_header(1, octets(PEER), 7, bytes(4), 0, 0, 0) + b"payload"]))


@given(st.lists(st.tuples(st.sampled_from(EVERY_INPUT), st.lists(OCTETS, max_size=4)), max_size=6))
@settings(max_examples=300, deadline=None)
def test_no_octets_raise(batches):
    udp = Layer()
    udp.bind(1)
    for (sender, kind), records in batches:
        for _, _, record in udp.core.receive(sender, kind, records, 0.0):
            assert isinstance(record, bytes)
    assert udp.core.wake(0.0) == udp.core.neighbor_started(SOCKETS, 0.0) == []
    assert udp.core.next_wake is None

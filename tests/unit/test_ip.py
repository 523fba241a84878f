"""The IP core: received packets, sent packets and requests to arp."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from itertools import pairwise

import lengths
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import LOOPED, OUT, REPORT, UP, from_link, octets, out, report, transmit, up
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.packet import Raw

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import (
    ERROR_HEAD,
    FLAG_GROUP,
    ICMP_ERROR,
    NEIGHBOR,
    ORIGIN_LOCAL,
    PACKET,
    PACKET_OUT,
    REPORT_ERROR,
    RESOLVE,
    ROUTES,
    TRANSMIT,
    TRANSMIT_BROADCAST,
    TRANSMIT_DONT_FRAGMENT,
    TRANSMIT_HEAD,
    UNREACHABLE,
    decode_routes,
)
from bus.topology import ARP, LINK
from layers.common.routes import configured
from layers.ip import neighbors
from layers.ip.core import Core
from layers.ip.counters import Counters
from layers.ip.flows import FLOWS_MAX
from layers.ip.identification import BLOCK
from layers.ip.neighbors import ASK_AGAIN_AFTER_S
from packets.ipv4 import with_checksum

ME, PEER, OTHER, GATEWAY, FAR = "10.0.0.2", "10.0.0.7", "10.0.0.8", "10.0.0.1", "198.51.100.7"
LIMITED, DIRECTED, GROUP = "255.255.255.255", "10.0.0.255", "224.0.0.251"
PEER_MAC = bytes.fromhex("02005e000007")
BROADCAST_MAC = b"\xff" * 6
HOST_UNREACHABLE, FRAGMENTATION_NEEDED = (3, 1), (3, 4)


class Layer:
    """An IP layer; a crash takes all of it but `state` and `counters`."""

    def __init__(self, gateway: str = GATEWAY, mtu: int = 1500, seed: int = 1) -> None:
        self.config = StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=bytes(6),
                                  mtu=mtu, gateway=IPv4Address(gateway).packed if gateway else b"")
        self.state: dict[int, bytes] = {}
        self.counters = Counters.new()
        self.now = 0.0
        self.crash(seed)

    def crash(self, seed: int = 1) -> None:
        self.core = Core(self.config, self.state, self.counters, random.Random(seed))
        self.told = self.core.start(self.now)

    def gives(self, sender: int, kind: int, *records: bytes) -> list:
        return self.core.receive(sender, kind, list(records), self.now)

    def hears(self, *packets, flags: int = 0) -> list:
        return self.gives(LINK, PACKET, *(from_link(packet, flags) for packet in packets))

    def sends(self, to: str, segment: bytes = b"segment.", source: str = "0.0.0.0", protocol: int = 17, ttl: int = 64,
              tos: int = 0, flags: int = TRANSMIT_DONT_FRAGMENT) -> list:
        head = transmit(source, to, protocol, ttl, tos, flags)
        return self.gives(topology.UDP if protocol == 17 else topology.ICMP, TRANSMIT, head + segment)

    def learns(self, address: str = PEER, mac: bytes = PEER_MAC) -> list:
        return self.gives(ARP, NEIGHBOR, octets(address) + mac)

    def counted(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: count for name, count in Counters.read(self.counters).items() if count}

    def dropped(self) -> dict[str, int]:
        return {name: count for name, count in self.counted().items() if Counters.declared[name].role == "drop"}


@pytest.fixture
def layer() -> Layer:
    return Layer()


def asks(address: str) -> tuple:
    return ARP, RESOLVE, octets(address)


def error_of(send: tuple) -> tuple:
    """(consumer, (type, code), info, quoted packet) of a local error."""
    consumer, kind, record = send
    told = ERROR_HEAD.unpack_from(record)
    icmp_type, code, origin, family, info = told[:5]
    assert (kind, origin, family) == (ICMP_ERROR, ORIGIN_LOCAL, 4)
    quoted = IP(record[ERROR_HEAD.size :])
    own = octets(quoted.src)
    assert told[5:] == (quoted.len, quoted.proto, quoted.ihl * 4, own, own, octets(quoted.dst))
    return consumer, (icmp_type, code), info, quoted


def udp(source: str = PEER, destination: str = ME, **fields):
    return IP(src=source, dst=destination, **fields) / UDP(sport=9, dport=7) / Raw(b"payload")


# -- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("packet", "upper"), [
    (udp(), topology.UDP), (udp(source=FAR), topology.UDP), (IP(src=PEER, dst=ME) / ICMP(), topology.ICMP),
    (udp(options=[IPOption_NOP()] * 40), topology.UDP), (udp(ttl=0), topology.UDP), (udp(flags="DF"), topology.UDP),
])  # fmt: skip
def test_a_packet_for_us_goes_to_its_transport_as_it_came(layer, packet, upper):
    assert layer.hears(packet) == [(upper, PACKET, up(packet))]
    assert layer.counted() == {"packets_in": 1}


def test_rfc894_padding_is_cut(layer):
    packet = bytes(udp())
    assert layer.hears(packet + bytes(18)) == [(topology.UDP, PACKET, up(packet))]


@pytest.mark.parametrize("destination", [LIMITED, DIRECTED])
@pytest.mark.parametrize("flags", [0, FLAG_GROUP])
def test_rfc1122_3_3_6_a_broadcast_is_marked_so_that_no_error_answers_it(layer, destination, flags):
    packet = udp(destination=destination)
    assert layer.hears(packet, flags=flags) == [(topology.UDP, PACKET, up(packet, FLAG_GROUP))]


def corrupt(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes([value]) + packet[at + 1 :]


PLAIN = bytes(udp())


@pytest.mark.parametrize(("counter", "packets"), {
    "truncated": [b"", PLAIN[:19], PLAIN[:-1], bytes(udp(len=19)), bytes(udp(ihl=6, len=23)) + bytes(40)],
    "bad_version": [corrupt(PLAIN, 0, 0x65), corrupt(PLAIN, 0, 0x05)],
    "bad_header_length": [corrupt(PLAIN, 0, 0x44), corrupt(PLAIN, 0, 0x40), corrupt(PLAIN, 0, 0x4F)],
    "bad_header_checksum": [udp(chksum=1), corrupt(PLAIN, 8, 1), corrupt(bytes(udp(options=[IPOption_NOP()])), 20, 7)],
    "bad_source": [udp(source=source) for source in
                   (ME, "127.0.0.1", "0.0.0.0", "0.1.2.3", LIMITED, DIRECTED, GROUP, "240.0.0.1")],
    "other_destination": [udp(destination=destination) for destination in
                          (PEER, FAR, "127.0.0.1", "0.0.0.0", "10.0.0.0")],
    "other_group": [udp(destination=destination) for destination in (GROUP, "224.0.0.0", "239.255.255.255")],
}.items())
def test_rfc1122_3_2_1_packets_that_are_silently_discarded(layer, counter, packets):
    assert layer.hears(*packets) == []
    assert layer.counted() == {"packets_in": len(packets), counter: len(packets)}


def test_rfc1122_3_3_6_a_packet_to_us_in_a_link_layer_broadcast_is_discarded(layer):
    assert layer.hears(udp(), flags=FLAG_GROUP) == []
    assert layer.dropped() == {"unicast_in_group_frame": 1}


def test_rfc1122_3_2_2_1_an_unknown_protocol_is_reported_to_icmp(layer):
    packet = bytes(IP(src=PEER, dst=ME, proto=132) / Raw(bytes(900)))
    ((consumer, kind, record),) = layer.hears(packet)
    assert (consumer, kind) == (topology.ICMP, REPORT_ERROR)
    assert record == report(3, 2, packet)[: REPORT + 576]
    assert layer.dropped() == {"unknown_protocol": 1}


def test_rfc1122_3_2_2_an_unknown_protocol_by_broadcast_is_not_reported(layer):
    assert layer.hears(IP(src=PEER, dst=LIMITED, proto=132) / Raw(b"x"), flags=FLAG_GROUP) == []
    assert layer.dropped() == {"unknown_protocol": 1}


# -- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "protocol"), [(TRANSMIT_DONT_FRAGMENT, 17), (0, 17), (0, 1)])
def test_a_segment_leaves_in_a_packet_that_scapy_would_have_made(layer, flags, protocol):
    layer.learns()
    ((consumer, kind, record),) = layer.sends(PEER, b"abc", protocol=protocol, ttl=7, tos=0x28, flags=flags)
    sent = IP(record[OUT:])
    expected = IP(src=ME, dst=PEER, proto=protocol, ttl=7, tos=0x28, flags="DF" if flags else 0, id=sent.id)
    assert (consumer, kind) == (LINK, PACKET_OUT)
    assert record == out(PEER_MAC, expected / Raw(b"abc"))
    assert layer.counted() == {"packets_out": 1}


def test_the_second_packet_of_a_flow_is_as_good_as_the_first(layer):
    layer.learns()
    first, second = layer.sends(PEER, b"abc"), layer.sends(PEER, b"defgh")
    assert second[0][2] == out(PEER_MAC, IP(src=ME, dst=PEER, proto=17, flags="DF", id=0) / Raw(b"defgh"))
    assert first != second


@pytest.mark.parametrize(("destination", "hop"), [(PEER, PEER), (FAR, GATEWAY), ("10.0.1.1", GATEWAY)])
def test_rfc1122_3_3_1_1_the_next_hop_is_the_neighbour_or_the_gateway(layer, destination, hop):
    assert layer.sends(destination) == [asks(hop)]
    ((_, _, record),) = layer.learns(hop)
    assert record[:OUT] == out(PEER_MAC, record[OUT:])[:OUT]
    assert IP(record[OUT:]).dst == destination


def test_rfc6864_4_1_a_packet_that_must_not_be_fragmented_needs_no_identification(layer):
    layer.learns()
    assert {IP(layer.sends(PEER)[0][2][OUT:]).id for _ in range(3)} == {0}


def test_rfc6864_4_2_each_destination_has_its_numbers_and_no_crash_repeats_one(layer):
    seen: dict[str, list[int]] = {PEER: [], OTHER: []}
    for life, packets in enumerate([1, BLOCK, 3, BLOCK + 1, 0, 2, 1]):
        layer.crash(seed=life)
        for number, to in enumerate(seen):
            layer.learns(to)
            for _ in range(packets * (1 + number)):
                seen[to].append(IP(layer.sends(to, flags=0)[-1][2][OUT:]).id)
    for numbers in seen.values():
        assert len(set(numbers)) == len(numbers)
    # a sequence for both would have skipped what went to the other
    assert {(after - before) & 0xFFFF for before, after in pairwise(seen[PEER][1 : 1 + BLOCK])} == {1}


@pytest.mark.parametrize("octets_over", [1, 65515 - 1480])
def test_rfc1191_what_is_longer_than_the_mtu_is_told_to_its_sender_with_the_mtu(layer, octets_over):
    layer.learns()
    assert len(layer.sends(PEER, bytes(1480))) == 1
    (send,) = layer.sends(PEER, bytes(1480 + octets_over))
    consumer, error, info, quoted = error_of(send)
    assert (consumer, error, info) == (topology.UDP, FRAGMENTATION_NEEDED, 1500)
    assert (quoted.src, quoted.dst, quoted.len) == (ME, PEER, 1500 + octets_over)
    assert layer.dropped() == {"over_mtu": 1}


@pytest.mark.parametrize("to", [PEER, ME])
def test_a_record_longer_than_any_packet_is_dropped(layer, to):
    layer.sends(to)
    assert layer.sends(to, bytes(65516)) == []
    assert layer.dropped() == {"over_length": 1}


@pytest.mark.parametrize("octets_more", [0, 60_000])
def test_without_a_route_the_network_is_unreachable(octets_more):
    layer = Layer(gateway="")
    for _ in range(2):
        (send,) = layer.sends(FAR, bytes(8 + octets_more))
        consumer, error, _, quoted = error_of(send)
        assert (consumer, error, quoted.dst, quoted.len) == (topology.UDP, (3, 0), FAR, 28 + octets_more)
    assert layer.sends(FAR, bytes(65516)) == []
    assert layer.dropped() == {"no_route": 3}


@pytest.mark.parametrize("source", [LIMITED, DIRECTED, GROUP, "10.0.0.0", "0.0.0.1"])
def test_rfc1122_3_2_1_3_no_group_is_a_source(layer, source):
    layer.learns()
    for destination in (PEER, FAR, LIMITED, ME):
        assert layer.sends(destination, source=source, flags=TRANSMIT_BROADCAST) == []
    assert layer.dropped() == {"bad_transmit": 4}


def test_a_source_that_is_not_ours_or_no_header_is_refused(layer):
    assert layer.sends(PEER, source=OTHER) == []
    assert layer.gives(topology.UDP, TRANSMIT, b"", bytes(TRANSMIT_HEAD.size - 1)) == []
    assert layer.dropped() == {"bad_transmit": 3}


def test_rfc1122_3_2_1_3_a_packet_from_127_never_leaves_the_host(layer):
    layer.learns()
    for send in layer.sends(PEER, source="127.0.0.1"):
        assert error_of(send)[1] == (3, 0)
    assert layer.dropped() == {"no_route": 1}


# -- to oneself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "source"), [(ME, ME), ("127.0.0.1", "127.0.0.1"), ("127.9.9.9", "127.0.0.1")])
@pytest.mark.parametrize("protocol", [1, 17])
def test_rfc1122_3_2_1_3_what_goes_to_ourselves_does_not_touch_the_link(layer, to, source, protocol):
    ((consumer, kind, record),) = layer.sends(to, b"abc", protocol=protocol)
    assert (consumer, kind) == (topology.UDP if protocol == 17 else topology.ICMP, PACKET)
    assert record == up(IP(src=source, dst=to, proto=protocol, flags="DF", id=0) / Raw(b"abc"), LOOPED)
    assert layer.counted() == {"looped": 1}


def test_a_packet_to_ourselves_may_be_longer_than_the_mtu(layer):
    ((_, kind, record),) = layer.sends(ME, bytes(65515))
    assert (kind, len(record)) == (PACKET, UP + 65535)


def test_an_unknown_protocol_to_ourselves_is_reported(layer):
    ((consumer, kind, _),) = layer.sends(ME, protocol=132)
    assert (consumer, kind) == (topology.ICMP, REPORT_ERROR)


# -- to everybody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [LIMITED, DIRECTED])
def test_rfc1122_3_3_6_a_broadcast_needs_leave_and_comes_back_to_us(layer, to):
    assert layer.sends(to) == []
    assert layer.dropped() == {"broadcast_denied": 1}
    back, down = layer.sends(to, b"abc", flags=TRANSMIT_BROADCAST | TRANSMIT_DONT_FRAGMENT)
    packet = bytes(IP(src=ME, dst=to, proto=17, flags="DF", id=0) / Raw(b"abc"))
    assert back == (topology.UDP, PACKET, up(packet, FLAG_GROUP | LOOPED))
    assert down == (LINK, PACKET_OUT, out(BROADCAST_MAC, packet))


def test_rfc1112_6_4_a_multicast_goes_to_the_groups_mac(layer):
    ((_, kind, record),) = layer.sends("239.129.2.3")
    assert (kind, record[6:OUT]) == (PACKET_OUT, bytes.fromhex("01005e010203"))


# -- neighbours ------------------------------------------------------------------------------------------------------


def test_rfc1122_2_3_2_2_packets_wait_for_the_neighbour_and_leave_in_order(layer):
    assert layer.sends(PEER, b"1") == [asks(PEER)]
    assert layer.sends(PEER, b"2") == []
    assert layer.sends(OTHER, b"3") == [asks(OTHER)]
    assert [record[-1:] for _, _, record in layer.learns()] == [b"1", b"2"]
    assert layer.learns() == []
    assert len(layer.sends(PEER)) == 1
    assert layer.counted() == {"packets_out": 3}


def test_rfc1122_2_3_2_2_the_latest_packets_wait_and_the_oldest_give_way(layer):
    for number in range(64 + 3):
        layer.sends(PEER, bytes([number]))
    assert [record[-1] for _, _, record in layer.learns()] == list(range(3, 64 + 3))
    assert layer.dropped() == {"neighbor_queue_full": 3}


def test_a_neighbour_that_does_not_answer_is_host_unreachable_to_each_sender(layer):
    layer.sends(PEER, b"u" * 8)
    layer.sends(PEER, b"i" * 8, protocol=1)
    found = [error_of(send) for send in layer.gives(ARP, UNREACHABLE, octets(PEER))]
    assert [(consumer, error) for consumer, error, _, _ in found] == [
        (topology.UDP, HOST_UNREACHABLE), (topology.ICMP, HOST_UNREACHABLE)]
    assert [(quoted.src, quoted.dst, bytes(quoted.payload)[:8]) for _, _, _, quoted in found] == [
        (ME, PEER, b"u" * 8), (ME, PEER, b"i" * 8)]
    assert layer.dropped() == {"neighbor_unreachable": 2}
    assert layer.sends(PEER) == [asks(PEER)]


def test_a_neighbour_that_was_known_and_is_no_longer_is_asked_for_again(layer):
    layer.learns()
    layer.sends(PEER)
    assert layer.gives(ARP, UNREACHABLE, octets(PEER)) == []
    assert layer.sends(PEER) == [asks(PEER)]
    assert len(layer.learns()) == 1


def test_a_neighbour_in_use_is_verified_without_a_pause_in_traffic(layer):
    layer.learns()
    layer.now = ASK_AGAIN_AFTER_S
    assert [kind for _, kind, _ in layer.sends(PEER)] == [PACKET_OUT]
    layer.now += 1
    assert [kind for _, kind, _ in layer.sends(PEER)] == [RESOLVE, PACKET_OUT]
    assert [kind for _, kind, _ in layer.sends(PEER)] == [PACKET_OUT]


def test_a_question_that_was_lost_is_asked_again(layer):
    assert layer.sends(PEER) == [asks(PEER)]
    layer.now = ASK_AGAIN_AFTER_S + 1
    assert layer.sends(PEER) == [asks(PEER)]
    assert len(layer.learns()) == 2


def test_a_neighbour_that_moves_gets_packets_at_its_new_address(layer):
    layer.learns()
    layer.sends(PEER)
    layer.learns(mac=b"\x02new!!")
    assert layer.sends(PEER)[0][2][6:OUT] == b"\x02new!!"


def test_when_arp_starts_again_it_is_asked_what_it_may_have_forgotten(layer):
    layer.sends(PEER)
    layer.learns(OTHER)
    assert [send for send in layer.core.neighbor_started(ARP, layer.now) if send[1] == RESOLVE] == [asks(PEER)]


def test_neighbours_are_remembered_up_to_a_bound(layer):
    for number in range(8192 + 1):
        layer.learns(str(IPv4Address(0x0A000100 + number)))
    assert len(layer.state) == 8192 + 1  # and the secret of identification numbers
    assert layer.sends("10.0.0.7", b"1") == [asks("10.0.0.7")]


def test_a_flow_survives_that_its_neighbour_gave_way_to_others(layer, monkeypatch):
    monkeypatch.setattr(neighbors, "NEIGHBORS_MAX", 4)
    layer.learns()
    layer.sends(PEER, b"1")
    layer.sends(OTHER, b"2")
    for number in range(20, 24):
        layer.learns(f"10.0.0.{number}")
    assert layer.dropped() == {"neighbor_queue_full": 1}  # the one that waited for OTHER
    assert layer.sends(PEER, b"3") == [asks(PEER)]
    assert len(layer.learns()) == 1
    assert [kind for _, kind, _ in layer.sends(PEER, b"4")] == [PACKET_OUT]


@pytest.mark.parametrize("kind", [NEIGHBOR, UNREACHABLE])
def test_announcements_that_do_not_parse_are_counted(layer, kind):
    assert layer.gives(ARP, kind, b"", octets(PEER)[:3], octets(PEER) + PEER_MAC[:5], bytes(11)) == []
    assert layer.dropped() == {"bad_announcement": 4}


def test_unsolicited_records_about_a_neighbour_are_no_error(layer):
    assert layer.gives(ARP, UNREACHABLE, octets(OTHER)) == []
    assert layer.counted() == {}


# -- routes ----------------------------------------------------------------------------------------------------------


def test_addresses_and_routes_are_sent_at_the_start_and_to_each_neighbour_that_starts(layer):
    hearers = {pipe.consumer for pipe in topology.PIPES if pipe.producer == "ip" and ROUTES in pipe.kinds}
    hearers &= set(layer.config.layers)
    assert {"icmp", "udp", "sockets"} <= hearers
    assert {topology.NAMES[consumer] for consumer, _, _ in layer.told} == hearers
    assert {(kind, decode_routes(record).addresses[0]) for _, kind, record in layer.told} == {
        (ROUTES, (IPv4Address(ME).packed, 24))}
    assert decode_routes(layer.told[0][2]) == configured(layer.config)
    for name, number in topology.LAYERS.items():
        told = [(number, ROUTES, layer.told[0][2])] if name in hearers else []
        assert layer.core.neighbor_started(number, 0.0) == told


def test_routes_are_read_back_after_a_crash(layer):
    before = layer.told
    layer.crash()
    assert layer.told == before


# -- anything --------------------------------------------------------------------------------------------------------


def repaired(packet: bytes) -> bytes:
    """With the right checksum of its header, if that is there."""
    end = (packet[0] & 15) * 4 if packet else 0
    return with_checksum(packet[:end]) + packet[end:] if 20 <= end <= len(packet) else packet


PACKETS = st.sampled_from([bytes(packet) for packet in (
    udp(), udp(destination=DIRECTED), udp(destination=GROUP), udp(options=[IPOption_NOP()] * 4), udp(id=7, flags="MF"),
    udp(id=7, frag=2), IP(src=PEER, dst=ME) / ICMP(), IP(src=PEER, dst=ME, proto=2) / Raw(bytes(8)),
    IP(src=PEER, dst=ME, proto=99) / Raw(b"unknown"))])
RECORD = st.one_of(
    lengths.octets(80),
    lengths.damaged(PACKETS),
    st.builds(lambda total: from_link(repaired(corrupt(PLAIN, 3, total))), st.integers(0, 40)),
    *[st.builds(lambda packet, flags, size: from_link(repaired(packet), flags, size), lengths.damaged(PACKETS),
                st.sampled_from([0, 0, 0, FLAG_GROUP]), st.sampled_from([0, 0, 0, 3]))] * 3,
    st.builds(lambda source, to, rest: transmit(source, to) + rest,
              st.sampled_from([bytes(4), octets(ME), b"\x7f\0\0\1"]),
              st.sampled_from([octets(address) for address in (ME, PEER, FAR, LIMITED, GROUP)]) | st.binary(
                  min_size=4, max_size=4), lengths.octets(70)),
    st.builds(lambda address, mac: address + mac, st.sampled_from([octets(PEER), octets(GATEWAY)]),
              st.binary(min_size=6, max_size=6)),
    st.just(bytes(70_000)),
)  # fmt: skip


def segments_of(record: bytes) -> int:
    """How many packets a super-packet stands for."""
    size, protocol = int.from_bytes(record[4:6], "big"), record[6]
    if not size:
        return 1
    header_octets = 8 if protocol == 17 else record[UP + 20 + 12] >> 4 << 2
    return -(-(len(record) - UP - 20 - header_octets) // size)


CALLS = st.lists(st.tuples(st.sampled_from(sorted(topology.NAMES)), st.integers(0, 255).filter(
    lambda kind: kind != messages.RAW_WANTED) | st.sampled_from(
    [PACKET, PACKET, PACKET, TRANSMIT, NEIGHBOR, UNREACHABLE]), st.lists(RECORD, max_size=4), st.floats(0, 100)))


@settings(max_examples=300, deadline=None)
@given(CALLS)
def test_no_records_of_any_kind_do_any_harm_and_every_packet_is_accounted_for(calls):
    layer = Layer()
    allowed = {consumer: topology.inputs(consumer)["ip"] for consumer in topology.outputs("ip")}
    delivered = 0
    for sender, kind, records, passed in calls:
        layer.now += passed
        sends = layer.gives(sender, kind, *records)
        assert all(sent_kind in allowed[topology.NAMES[consumer]] for consumer, sent_kind, _ in sends)
        assert all(len(record) - UP >= max(20, (record[UP] & 15) * 4) for _, sent_kind, record in sends
                   if sent_kind == PACKET)
        if kind == PACKET:
            delivered += sum(max(1, segments_of(record)) for _, sent_kind, record in sends if sent_kind == PACKET)
    incoming = ("truncated", "bad_version", "bad_header_length", "bad_header_checksum", "bad_source",
                "other_destination", "other_group", "unicast_in_group_frame", "unknown_protocol", "bad_options",
                "source_routed", "igmp_in", "fragments_in")
    counted = layer.counted()
    delivered -= counted.get("reassembled", 0)
    assert counted.get("packets_in", 0) == delivered + sum(counted.get(name, 0) for name in incoming)


def test_flows_are_remembered_up_to_a_bound(layer):
    header = [transmit(bytes(4), "127.0.0.1", ttl=ttl, tos=tos) for ttl in range(256) for tos in range(17)]
    assert len(layer.gives(topology.UDP, TRANSMIT, *header)) == len(header) > FLOWS_MAX
    assert len(layer.core._flows.by_head) <= FLOWS_MAX


def test_a_known_neighbour_is_still_known_after_a_crash_and_verified(layer):
    layer.learns()
    layer.crash()
    assert [kind for _, kind, _ in layer.sends(PEER)] == [RESOLVE, PACKET_OUT]


def test_a_neighbour_that_was_gone_before_a_crash_is_not_back_after_it(layer):
    layer.learns()
    layer.gives(ARP, UNREACHABLE, octets(PEER))
    layer.crash()
    assert layer.sends(PEER) == [asks(PEER)]

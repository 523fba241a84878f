"""Raw sockets: the core of raw, above a real core of ip."""

from __future__ import annotations

import errno
import random
from ipaddress import IPv4Address

import lengths
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import GROUP as FLAG_GROUP
from records import OUT, PARTIAL, address, error, from_link, transmit, up
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import DATAGRAM_HEADER, Route, Routes, SocketError, SocketState, SourceFilter, datagram_header
from layers.ip.core import Core as Ip
from layers.ip.counters import Counters as IpCounters
from layers.raw.core import Core
from layers.raw.counters import Counters
from layers.raw.tables import MAX_SOCKETS, SEND_ONLY
from packets.offload import completed

ME, PEER, OTHER, FAR = "10.0.0.2", "10.0.0.1", "10.0.0.9", "198.51.100.7"
PEER_MAC = bytes.fromhex("020000000001")
EXPERIMENT = 253  # RFC 3692
OSPF = 89
GROUP = "239.1.2.3"


def ip4(address: str) -> bytes:
    return IPv4Address(address).packed


CONFIG = StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=bytes(6), mtu=1500,
                     gateway=IPv4Address(PEER).packed, layers=tuple(topology.LAYERS))


class Host:
    """raw above ip. What raw tells the socket service is in `told`, what ip gives others in `out`."""

    def __init__(self) -> None:
        self.state, self.ip_state = {}, {}
        self.counts, self.ip_counts = Counters.new(), IpCounters.new()
        self.now = 1000.0
        self.told, self.out = [], []
        self.crash_ip()
        self.crash()
        self.give_ip(topology.ARP, messages.NEIGHBOR, ip4(PEER) + PEER_MAC)
        self.out = []

    def crash(self) -> None:
        self.core = Core(CONFIG, self.state, self.counts, random.Random(1))
        self.settle(topology.RAW, self.core.start(self.now))

    def crash_ip(self) -> None:
        self.ip = Ip(CONFIG, self.ip_state, self.ip_counts, random.Random(1))
        self.pending = self.ip.start(self.now)

    def settle(self, sender, sends) -> None:
        for consumer, kind, record in sends:
            if consumer == topology.IP:
                self.settle(topology.IP, self.ip.receive(sender, kind, [record], self.now))
            elif consumer == topology.RAW:
                self.settle(topology.RAW, self.core.receive(sender, kind, [record], self.now))
            elif consumer == topology.SOCKETS and sender == topology.RAW:
                self.told.append((kind, record))
            else:
                self.out.append((consumer, kind, record))

    def give(self, sender: int, kind: int, *given: bytes) -> None:
        self.settle(topology.RAW, self.core.receive(sender, kind, list(given), self.now))

    def give_ip(self, sender: int, kind: int, *given: bytes) -> None:
        self.settle(topology.IP, self.ip.receive(sender, kind, list(given), self.now))

    def hears(self, *packets) -> list[tuple[int, int]]:
        """Packets come in from link: (consumer, kind) of what ip hands to others than raw."""
        self.out = []
        self.give_ip(topology.LINK, messages.PACKET, *map(from_link, packets))
        return [send[:2] for send in self.out]

    def declares(self, handle: int = 1, protocol: int = EXPERIMENT, **state) -> messages.SocketReply:
        for name in ("local", "peer", "multicast_interface"):
            if name in state:
                state[name] = address(state[name])
        wanted = SocketState(handle=handle, request=7, protocol=protocol, port=protocol, bind=True, **state)
        self.give(topology.SOCKETS, messages.SOCKET_SET, messages.encode(wanted))
        ((kind, record),) = self.taken(messages.SOCKET_REPLY)
        assert kind == messages.SOCKET_REPLY
        return messages.decode_socket_reply(record)

    def closes(self, handle: int) -> None:
        self.give(topology.SOCKETS, messages.SOCKET_CLOSE, handle.to_bytes(4, "little"))

    def taken(self, kind: int) -> list[tuple[int, bytes]]:
        found = [each for each in self.told if each[0] == kind]
        self.told = [each for each in self.told if each[0] != kind]
        return found

    def received(self) -> list[tuple[int, str, bytes]]:
        """(handle, source, packet) of what raw sockets got."""
        return [(int.from_bytes(record[:4], "little"), str(IPv4Address(record[12:16])), record[DATAGRAM_HEADER.size :])
                for _, record in self.taken(messages.DATAGRAM)]

    def errors(self) -> list[tuple[int, int, bytes]]:
        """(handle, errno, what was sent) of what raw sockets were told."""
        return [(*SocketError.of(record)[:2], record[SocketError.of(record).octets :])
                for _, record in self.taken(messages.SOCKET_ERROR)]

    def sends(self, data: bytes, to: str = PEER, handle: int = 1, source: str = "0.0.0.0", ttl: int = 0) -> list[bytes]:
        """What goes to link thereupon, without its MAC address."""
        self.out = []
        header = datagram_header(handle, ip4(to), 0, ip4(source), ttl, 0, 0)
        self.give(topology.SOCKETS, messages.SEND, header + bytes(data))
        return [
            record[OUT:]
            for consumer, kind, record in self.out
            if (consumer, kind) == (topology.LINK, messages.PACKET_OUT)
        ]

    def counted(self, name: str) -> int:
        return self.counts[getattr(Counters, name)]


@pytest.fixture
def host() -> Host:
    return Host()


def packet(protocol: int = EXPERIMENT, source: str = PEER, destination: str = ME, data: bytes = b"payload!") -> bytes:
    return bytes(IP(src=source, dst=destination, proto=protocol, id=9) / Raw(data))


def error_about(ours: bytes, icmp_type: int = 3, code: int = 2, origin: int = messages.ORIGIN_ICMP) -> bytes:
    return error(icmp_type, code, ours, origin, offender=PEER)


# -- in ----------------------------------------------------------------------------------------------------------------


def test_a_raw_socket_gets_whole_packets_with_their_headers(host):
    host.declares()
    host.hears(packet() + b"padding")
    assert host.received() == [(1, PEER, packet())]


def test_only_the_sockets_of_the_protocol_get_a_copy(host):
    host.declares(1)
    host.declares(2)
    host.declares(3, protocol=OSPF)
    host.hears(packet())
    assert [handle for handle, _, _ in host.received()] == [1, 2]


def test_a_transport_gets_its_packet_beside_the_copy_for_raw(host):
    datagram = IP(src=PEER, dst=ME) / UDP(sport=1, dport=2) / b"data"
    assert host.hears(datagram) == [(topology.UDP, messages.PACKET)]
    host.declares(protocol=17)
    assert host.hears(datagram) == [(topology.UDP, messages.PACKET)]
    assert host.received() == [(1, PEER, bytes(datagram))]


def test_rfc1122_3_2_2_1_protocol_unreachable_only_without_a_raw_socket(host):
    complaint = [(topology.ICMP, messages.REPORT_ERROR)]
    assert host.hears(packet()) == complaint
    host.declares()
    assert host.hears(packet()) == []
    host.closes(1)
    assert host.hears(packet()) == complaint
    assert len(host.received()) == 1


def test_a_packet_in_fragments_comes_whole(host):
    host.declares()
    first = IP(src=PEER, dst=ME, proto=EXPERIMENT, id=5, flags="MF") / Raw(b"8 octets")
    last = IP(src=PEER, dst=ME, proto=EXPERIMENT, id=5, frag=1) / Raw(b"the rest")
    host.hears(last)
    assert host.received() == []
    host.hears(first)
    ((_, _, whole),) = host.received()
    assert bytes(IP(whole).payload) == b"8 octetsthe rest"


def test_a_packet_whose_checksum_only_the_device_knows_is_copied_with_a_right_one(host):
    host.declares(protocol=17)
    datagram = bytes(IP(src=PEER, dst=ME) / UDP(sport=1, dport=2) / b"data")
    pseudo = (sum(int.from_bytes(ip4(address)[at : at + 2], "big") for address in (PEER, ME) for at in (0, 2))
              + 17 + 12) % 65535
    partial = datagram[:26] + pseudo.to_bytes(2, "big") + datagram[28:]
    assert completed(partial, 17) == datagram
    host.give_ip(topology.LINK, messages.PACKET, from_link(partial, PARTIAL))
    assert host.received() == [(1, PEER, datagram)]


@pytest.mark.parametrize(("named", "heard"), [
    ({"local": ME}, True), ({"local": "10.0.0.255"}, False), ({"peer": PEER}, True), ({"peer": OTHER}, False),
    ({"local": ME, "peer": PEER}, True), ({}, True)])
def test_raw7_bind_and_connect_choose_what_is_received(host, named, heard):
    host.declares(**named)
    host.hears(packet())
    assert bool(host.received()) == heard
    assert host.counted("unwanted") == 1 - heard


@pytest.mark.parametrize(("icmp_filter", "icmp_type", "heard"), [
    (0, 8, True), (1 << 8, 8, False), (1 << 8, 0, True), (~1, 0, True), (~1, 8, False), (-1, 31, False), (-1, 32, True),
    (-1, 200, True)])
def test_raw7_icmp_filter(host, icmp_filter, icmp_type, heard):
    host.declares(protocol=1, icmp_filter=icmp_filter)
    host.hears(packet(1, data=bytes([icmp_type]) + bytes(7)))
    assert bool(host.received()) == heard


@pytest.mark.parametrize("icmp_type", [0, 14, 16, 18])
def test_rfc1122_3_2_2_8_the_reply_to_a_query_that_icmp_does_not_ask_is_handed_up(host, icmp_type):
    host.declares(protocol=1)
    reply = IP(src=PEER, dst=ME) / ICMP(type=icmp_type, id=77, seq=1)
    assert host.hears(reply) == [(topology.ICMP, messages.PACKET)]
    assert host.received() == [(1, PEER, bytes(reply))]


def test_the_filter_is_for_icmp_only(host):
    host.declares(icmp_filter=-1)
    host.hears(packet())
    assert len(host.received()) == 1


def test_broadcasts_are_copied_too(host):
    host.declares()
    host.give_ip(topology.LINK, messages.PACKET, from_link(packet(destination="10.0.0.255"), FLAG_GROUP))
    assert len(host.received()) == 1


def joins(host, group: str = GROUP) -> None:
    membership = messages.Membership(1, (messages.SourceFilter(address(group)),))
    host.give_ip(topology.SOCKETS, messages.MEMBERSHIP, messages.encode(membership))


@pytest.mark.parametrize(("groups", "hears_all", "heard"), [
    ((), True, True), ((), False, False), ((SourceFilter(address(GROUP)),), False, True),
    ((SourceFilter(address(GROUP), True, (address(PEER),)),), True, False),
    ((SourceFilter(address(GROUP), False, (address(PEER),)),), False, True),
    ((SourceFilter(address(GROUP), False, (address(OTHER),)),), True, False)])
def test_as_linux_a_raw_socket_hears_its_groups_from_its_sources(host, groups, hears_all, heard):
    joins(host)
    host.declares(groups=groups, multicast_all=hears_all)
    host.give_ip(topology.LINK, messages.PACKET, from_link(packet(destination=GROUP), FLAG_GROUP))
    assert len(host.received()) == heard
    host.hears(packet())
    assert len(host.received()) == 1  # what comes to us alone is no matter of groups


@pytest.mark.parametrize("crafted", [False, True])
@pytest.mark.parametrize(("loop", "ttl"), [(True, 7), (False, 7), (True, 0), (False, 0)])
def test_rfc1112_6_1_multicasts_of_raw_sockets(host, crafted, loop, ttl):
    joins(host)
    host.declares(2)  # another, which hears them if they come back
    host.declares(1, header_included=crafted, multicast_loop=loop, multicast_ttl=9 if crafted else ttl)
    data = bytes(IP(src="0.0.0.0", dst=GROUP, proto=EXPERIMENT, ttl=ttl) / b"data") if crafted else b"data"
    sent = host.sends(data, GROUP)
    assert [(IP(one).src, IP(one).dst, IP(one).ttl) for one in sent] == [(ME, GROUP, ttl)] * bool(ttl)
    assert sorted({handle for handle, _, _ in host.received()}) == ([1, 2] if loop else [])


def test_ip_multicast_if_chooses_the_source_and_must_be_ours(host):
    host.declares(multicast_interface=OTHER)
    assert host.sends(b"data", GROUP) == []
    assert host.errors() == [(1, errno.ENETUNREACH, b"data")]
    host.declares(multicast_interface=ME)
    assert [IP(one).src for one in host.sends(b"data", GROUP)] == [ME]
    assert [IP(one).src for one in host.sends(b"data", PEER)] == [ME]


def test_a_socket_whose_address_has_gone_sends_nothing_until_it_is_back(host):
    two, one = ([(address(each), 24) for each in own] for own in ((ME, OTHER), (ME,)))
    link = [Route(address("10.0.0.0"), 24, b"", address(ME), 1500)]
    host.give(topology.IP, messages.ROUTES, messages.encode(Routes(two, link)))
    host.declares(local=OTHER)
    host.give(topology.IP, messages.ROUTES, messages.encode(Routes(one, link)))
    assert host.sends(b"data") == []
    assert host.errors() == [(1, errno.ENETUNREACH, b"data")]
    assert host.declares(local=OTHER, ttl=3).errno == 0  # an option is no bind
    host.give(topology.IP, messages.ROUTES, messages.encode(Routes(two, link)))
    host.sends(b"data")
    assert host.errors() == []


def test_raw7_ipproto_raw_is_send_only(host):
    host.declares(protocol=SEND_ONLY, header_included=True)
    assert host.hears(packet(SEND_ONLY)) == [(topology.ICMP, messages.REPORT_ERROR)]
    assert host.received() == []


# -- out ---------------------------------------------------------------------------------------------------------------


def test_a_payload_gets_a_header_with_the_sockets_options(host):
    host.declares(ttl=9, tos=0x20, mtu_discover=0)
    (sent,) = map(IP, host.sends(b"payload!"))
    assert (sent.src, sent.dst, sent.proto, sent.ttl, sent.tos, int(sent.flags)) == (ME, PEER, EXPERIMENT, 9, 0x20, 0)
    assert bytes(sent.payload) == b"payload!"
    assert bytes(IP(bytes(sent))) == bytes(sent)
    assert IP(host.sends(b"payload!", ttl=3)[0]).ttl == 3


def test_a_long_payload_goes_in_fragments(host):
    host.declares(mtu_discover=0)
    assert len(host.sends(bytes(3000))) == 3


def test_ip7_hdrincl_what_is_given_is_sent_but_for_length_and_checksum(host):
    host.declares(header_included=True)
    given = bytes(IP(src=FAR, dst=OTHER, proto=OSPF, ttl=3, tos=7, id=99, flags="DF") / Raw(b"crafted"))
    assert host.sends(given[:2] + b"\xff\xff" + given[4:10] + b"\0\0" + given[12:]) == [given]


def test_ip7_hdrincl_source_and_identification_are_filled_in_where_they_are_zero(host):
    host.declares(header_included=True)
    given = IP(src="0.0.0.0", dst=PEER, proto=OSPF, id=0) / Raw(b"crafted")
    one, other = IP(host.sends(bytes(given))[0]), IP(host.sends(bytes(given))[0])
    assert one.src == ME
    assert 0 not in (one.id, other.id)
    assert one.id != other.id
    fresh = one.copy()
    del fresh.chksum, fresh.len
    assert bytes(fresh) == bytes(one)


def test_ip7_hdrincl_options_are_kept(host):
    host.declares(header_included=True)
    given = bytes(IP(src=ME, dst=PEER, proto=OSPF, id=1, options=b"\x01\x01\x01\x01") / Raw(b"crafted"))
    assert host.sends(given) == [given]


@pytest.mark.parametrize("given", [b"", b"\x45", bytes(19), b"\x44" + bytes(30), b"\x4f" + bytes(30)])
def test_ip7_hdrincl_what_is_no_packet_is_refused(host, given):
    host.declares(header_included=True)
    assert host.sends(given) == []
    assert host.errors() == [(1, errno.EINVAL, given)]


def test_ip7_hdrincl_a_packet_is_never_fragmented(host):
    host.declares(protocol=OSPF, header_included=True, receive_errors=True)
    given = bytes(IP(src=ME, dst=PEER, proto=OSPF, id=1) / Raw(bytes(1481)))
    assert host.sends(given) == []
    assert [error[:2] for error in host.errors()] == [(1, errno.EMSGSIZE)]
    assert len(host.sends(given[:-1])) == 1


@pytest.mark.parametrize("to", [ME, "127.0.0.1"])
def test_a_raw_packet_to_an_own_address_comes_back(host, to):
    host.declares()
    assert host.sends(b"payload!", to) == []
    assert [(handle, IP(data).dst, bytes(IP(data).payload)) for handle, _, data in host.received()] == [
        (1, to, b"payload!")]


def test_a_crafted_packet_to_ourselves_comes_back_where_its_header_says_so_too(host):
    host.declares(header_included=True)
    given = bytes(IP(src=FAR, dst=ME, proto=EXPERIMENT, id=1) / Raw(b"crafted"))
    host.sends(given, ME)
    assert host.received() == [(1, FAR, given)]
    for fields in ({"dst": PEER}, {"dst": ME, "flags": "MF"}):
        host.sends(bytes(IP(src=FAR, id=1, proto=EXPERIMENT, **fields) / Raw(b"crafted!")), ME)
    assert host.received() == []
    assert host.ip_counts[IpCounters.bad_crafted] == 2


def test_a_transports_packet_to_an_own_address_is_copied(host):
    host.declares(protocol=1)
    echo = bytes(ICMP(type=8) / b"data")
    host.give_ip(topology.ICMP, messages.TRANSMIT, transmit(bytes(4), ME, 1) + echo)
    ((_, _, copy),) = host.received()
    assert bytes(IP(copy).payload) == echo
    assert [send[:2] for send in host.out] == [(topology.ICMP, messages.PACKET)]


@pytest.mark.parametrize(("data", "to", "source", "number"), [
    (bytes(65516), PEER, "0.0.0.0", errno.EMSGSIZE), (b"data", "0.0.0.0", "0.0.0.0", errno.EDESTADDRREQ),
    (b"data", PEER, OTHER, errno.ENETUNREACH)])
def test_requests_that_linux_refuses_are_refused(host, data, to, source, number):
    host.declares()
    assert host.sends(data, to, source=source) == []
    assert host.errors() == [(1, number, data)]
    assert host.counted("send_refused") == 1


def test_a_connected_socket_sends_to_its_peer(host):
    host.declares(peer=PEER)
    assert IP(host.sends(b"data", "0.0.0.0")[0]).dst == PEER


def test_a_socket_bound_to_a_broadcast_address_sends_from_our_own(host):
    host.declares(local="10.0.0.255")
    assert IP(host.sends(b"data")[0]).src == ME


# -- errors ------------------------------------------------------------------------------------------------------------


OURS = packet(source=ME, destination=FAR)


@pytest.mark.parametrize(("state", "icmp_type", "code", "number"), [
    ({}, 3, 2, 0), ({"peer": FAR}, 3, 2, errno.ENOPROTOOPT), ({"peer": FAR}, 3, 1, 0), ({"peer": PEER}, 3, 2, 0),
    ({"receive_errors": True}, 3, 1, errno.EHOSTUNREACH), ({"receive_errors": True}, 11, 0, errno.EHOSTUNREACH),
    ({"receive_errors": True, "local": "10.0.0.255"}, 3, 1, 0), ({"peer": FAR}, 12, 0, errno.EPROTO),
    ({"peer": FAR}, 3, 4, errno.EMSGSIZE), ({"peer": FAR, "mtu_discover": 0}, 3, 4, 0),
    ({"receive_errors": True, "mtu_discover": 0}, 3, 4, errno.EMSGSIZE)])
def test_errors_reach_the_same_sockets_as_on_linux(host, state, icmp_type, code, number):
    host.declares(**state)
    host.give(topology.ICMP, messages.ICMP_ERROR, error_about(OURS, icmp_type, code))
    assert host.errors() == ([(1, number, b"payload!")] if number else [])
    assert host.counted("error_no_socket") == (not number)


@pytest.mark.parametrize(("states", "believed"), [
    ([{}], True), ([{"peer": FAR}] * 2, True), ([{"peer": PEER}], False), ([{"mtu_discover": 4}], False), ([], False)])
def test_rfc1191_4_the_mtu_that_a_router_told_goes_to_ip_once(host, states, believed):
    for handle, state in enumerate(states, 1):
        host.declares(handle, **state)
    sends = host.core.receive(topology.ICMP, messages.ICMP_ERROR, [error_about(OURS, 3, 4)], host.now)
    assert [kind for to, kind, _ in sends if to == topology.IP] == [messages.PATH_MTU] * believed


def test_with_hdrincl_an_error_quotes_the_header_as_well(host):
    host.declares(receive_errors=True, header_included=True)
    host.give(topology.ICMP, messages.ICMP_ERROR, error_about(OURS))
    assert host.errors()[0][2] == OURS


def test_a_neighbour_that_does_not_answer_is_told(host):
    host.declares(peer=OTHER)
    assert host.sends(b"anybody?", OTHER) == []
    host.give_ip(topology.ARP, messages.UNREACHABLE, ip4(OTHER))
    assert host.errors() == [(1, errno.EHOSTUNREACH, b"anybody?")]


# -- sockets -----------------------------------------------------------------------------------------------------------


def test_as_linux_the_port_of_a_raw_socket_is_its_protocol(host):
    reply = host.declares(local=ME)
    assert (reply.errno, reply.local, reply.port) == (0, address(ME), EXPERIMENT)


def test_an_address_that_is_not_ours_cannot_be_bound(host):
    assert host.declares(local=OTHER).errno == errno.EADDRNOTAVAIL
    assert not host.state.keys() - {0}


def test_sockets_are_bounded(host):
    for handle in range(1, MAX_SOCKETS + 1):
        assert host.declares(handle).errno == 0
    assert host.declares(MAX_SOCKETS + 1).errno == errno.ENOBUFS
    assert host.declares(5).errno == 0


@pytest.mark.parametrize("state", [
    {"handle": 0}, {"handle": 1 << 32}, {"protocol": 0}, {"protocol": 256}, {"ttl": 256}])
def test_invalid_declarations_are_counted(host, state):
    wanted = {"handle": 1, "request": 1, "protocol": 1} | state
    host.give(topology.SOCKETS, messages.SOCKET_SET, messages.encode(SocketState(**wanted)), b"{}", b"[")
    assert host.told == []
    assert host.counted("control_malformed") == 3


@pytest.mark.parametrize("victim", ["raw", "ip", "both"])
def test_a_crash_loses_no_socket_and_no_complaint_is_made_of_what_it_listens_to(host, victim):
    host.declares(1)
    host.declares(2, protocol=OSPF)
    host.closes(2)
    if victim != "raw":
        host.crash_ip()
        assert host.hears(packet()) == []  # before raw has noticed
        host.settle(topology.RAW, host.core.neighbor_started(topology.IP, host.now))
    if victim != "ip":
        host.crash()
    host.received()
    assert host.hears(packet()) == []
    assert len(host.received()) == 1
    assert host.hears(packet(OSPF)) == [(topology.ICMP, messages.REPORT_ERROR)]


def test_without_raw_ip_tells_it_nothing():
    config = StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=bytes(6))
    assert "raw" not in config.layers
    sends = Ip(config, {}, IpCounters.new(), random.Random(1)).start(0.0)
    assert topology.RAW not in {consumer for consumer, _, _ in sends}


@given(st.dictionaries(st.integers(1, 6), st.binary(max_size=40) | st.tuples(
    st.sampled_from([0, 0, 0, 1]), st.sampled_from([1, 253, 255, 0, 256, -1]))))
@example({1: (0, 253), 2: (0, 253), 3: (1, 253), 4: (0, -1)})
def test_invalid_stored_records_are_deleted(state):
    """Valid is what has its own handle and a protocol."""
    stored = {key: value if isinstance(value, bytes) else messages.encode(
        SocketState(handle=key + value[0], request=0, protocol=value[1])) for key, value in state.items()}
    valid = {key: stored[key] for key, value in state.items() if value in ((0, 1), (0, 253), (0, 255))}
    counts = Counters.new()
    core = Core(CONFIG, stored, counts, random.Random(1))
    core.start(0.0)
    assert stored == valid
    assert counts[Counters.state_unreadable] == len(state) - len(valid)


EVENTS = st.sampled_from(
    sorted((producer, kind) for producer, kinds in topology.inputs("raw").items() for kind in kinds)
)
RECORDS = lengths.damaged(st.sampled_from([up(packet()), error_about(OURS), up(packet(1))]))
OCTETS = lengths.octets(80) | RECORDS | st.builds(
    lambda rest: datagram_header(1, ip4(PEER), 0, bytes(4), 0, 0, 0) + rest,
    lengths.octets(40) | lengths.damaged(st.just(packet())))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, OCTETS), max_size=20), st.booleans())
def test_nothing_raises_and_every_packet_is_counted(events, header_included):
    host = Host()
    host.declares(receive_errors=True, header_included=header_included)
    outcomes = ("malformed", "unwanted", "delivered", "errors_told", "error_no_socket", "send_malformed",
                "send_no_socket", "send_refused", "sent")
    counted_kinds = (messages.PACKET, messages.ICMP_ERROR, messages.SEND)
    for (producer, kind), octets in events:
        before = sum(map(host.counted, outcomes))
        if kind == messages.SOCKET_CLOSE:
            octets += b"\xff"  # the socket is to stay
        sends = host.core.receive(topology.LAYERS[producer], kind, [octets], host.now)
        assert all(sent in topology.inputs(topology.NAMES[consumer])["raw"] for consumer, sent, _ in sends)
        assert sum(map(host.counted, outcomes)) == before + (kind in counted_kinds)

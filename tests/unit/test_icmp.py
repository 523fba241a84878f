"""The ICMP core: echo, errors in both directions, ping sockets."""

from __future__ import annotations

import errno
import ipaddress
import random

import lengths
import msgspec
import pytest
import records
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import address
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import (
    DATAGRAM_HEADER,
    INTERFACE_INDEX,
    PATH_MTU_HEAD,
    SocketError,
    SocketReply,
    SocketState,
    datagram_header,
)
from layers.icmp import core as icmp
from layers.icmp import tables
from layers.icmp.counters import Counters
from packets.checksum import checksum

OUR = "10.0.0.2"
PEER = "10.0.0.1"
ROUTER = "192.0.2.1"
FAR = "198.51.100.7"


def ip4(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed




class Host:
    """A core, its clock and its state, which outlives it."""

    def __init__(self, state: dict[int, bytes] | None = None, mtu: int = 1500, **settings) -> None:
        self.state = {} if state is None else state
        self.counts = Counters.new()
        self.now = 1000.0
        config = StackConfig(
            name="t", run_dir="", address=ipaddress.IPv4Address(OUR).packed, prefix=24, mac=bytes(6),
            gateway=ipaddress.IPv4Address(PEER).packed, mtu=mtu, **settings)
        self.core = icmp.Core(config, self.state, self.counts, random.Random(1))
        assert self.core.start(self.now) == []

    def gives(self, sender: int, kind: int, *given: bytes) -> list:
        sends = self.core.receive(sender, kind, list(given), self.now)
        assert self.core.next_wake is None
        return sends

    def hears(self, *packets) -> list:
        return self.gives(topology.IP, messages.PACKET, *map(records.up, packets))

    def reports(self, packet, icmp_type: int = 3, code: int = 3, info: int = 0) -> list:
        return self.gives(topology.UDP, messages.REPORT_ERROR, records.report(icmp_type, code, packet, info))

    def declares(self, **state) -> SocketReply:
        wanted = SocketState(**{"handle": 1, "request": 7, **state})
        ((consumer, kind, record),) = self.gives(topology.SOCKETS, messages.SOCKET_SET, messages.encode(wanted))
        assert (consumer, kind) == (topology.SOCKETS, messages.SOCKET_REPLY)
        return messages.decode_socket_reply(record)

    def sends(self, message, destination: str = PEER, handle: int = 1, source: str = "0.0.0.0", ttl: int = 0,
              tos: int = 0, flags: int = 0) -> list:
        header = datagram_header(handle, ip4(destination), 0, ip4(source), ttl, tos, flags)
        return self.gives(topology.SOCKETS, messages.SEND, header + bytes(message))

    def counted(self, name: str) -> int:
        return self.counts[getattr(Counters, name)]


@pytest.fixture
def host() -> Host:
    return Host()


def echo(data: bytes = b"data", source: str = PEER, destination: str = OUR, **fields) -> IP:
    return IP(src=source, dst=destination, **fields) / ICMP(type=8, id=77, seq=5) / Raw(data)


def transmitted(send: tuple) -> tuple[tuple, ICMP]:
    """(source, destination, protocol, TTL, TOS, flags) and the message, whose checksum scapy agrees with."""
    consumer, kind, record = send
    assert (consumer, kind) == (topology.IP, messages.TRANSMIT)
    header, options, message = records.transmitted(record)
    assert not options
    parsed = ICMP(message)
    afresh = ICMP(message)
    del afresh.chksum
    assert bytes(afresh) == message
    return header, parsed


# Echo


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 65507])
def test_rfc1122_3_2_2_6_echo_is_answered_from_the_address_asked_with_all_its_data(host, size):
    data = bytes(range(256)) * 256
    (send,) = host.hears(echo(data[:size], tos=0x28, ttl=3))
    header, reply = transmitted(send)
    assert header == (OUR, PEER, 1, 64, 0x28, messages.TRANSMIT_MAY_FRAGMENT)
    assert (reply.type, reply.code, reply.id, reply.seq, bytes(reply.payload)) == (0, 0, 77, 5, data[:size])


def test_echo_in_a_packet_with_ip_options(host):
    plain = bytes(echo())
    (send,) = host.hears(b"\x46" + plain[1:20] + b"\x94\x04\0\0" + plain[20:])
    assert transmitted(send)[1].type == 0


RECORDED = b"\x07\x07\x08" + ip4(OUR)  # record route, its only slot filled
STAMPED = b"\x44\x08\x09\x00" + bytes(4)  # timestamp, the same


@pytest.mark.parametrize(("options", "echoed"), [
    (RECORDED + b"\0", RECORDED + b"\0"), (b"\x01" * 3 + STAMPED + b"\0", STAMPED),
    (RECORDED + b"\x01" + STAMPED, RECORDED + STAMPED + b"\0"), (b"\x94\x04\0\0" + STAMPED, STAMPED),
    (STAMPED + b"\x94\x09\0\0", STAMPED),  # ip lets nothing like this pass
])  # fmt: skip
def test_rfc1122_3_2_2_6_record_route_and_timestamp_come_back(host, options, echoed):
    plain = bytes(echo())
    header = bytes([0x45 + len(options) // 4]) + plain[1:20] + options
    ((consumer, kind, record),) = host.hears(header + plain[20:])
    assert (consumer, kind) == (topology.IP, messages.TRANSMIT)
    sent, sent_options, message = records.transmitted(record)
    assert (sent[5], sent_options) == (messages.TRANSMIT_MAY_FRAGMENT, echoed)
    assert ICMP(message).type == 0


def test_several_echoes_are_answered_in_order(host):
    sends = host.hears(*[echo(bytes((n,))) for n in range(10)])
    assert [bytes(transmitted(send)[1].payload) for send in sends] == [bytes((n,)) for n in range(10)]


def test_rfc1122_3_2_2_a_bad_checksum_is_dropped_silently(host):
    packet = bytes(echo())
    for position in (20, 24, len(packet) - 1):
        assert host.hears(packet[:position] + bytes((packet[position] ^ 1,)) + packet[position + 1 :]) == []
    assert host.counted("bad_checksum") == 3


@pytest.mark.parametrize("kinds", [(131,), (137,), (131, 137), (131, 131)])
def test_rfc1122_3_2_1_8_c_no_source_route_is_sent_let_alone_two(host, kinds):
    """Though ip let one through: all options that this stack sends of itself are those of an echo that it answers."""
    plain = bytes(echo())
    options = b"".join(bytes((kind, 7, 8)) + ip4(ROUTER) + b"\1" for kind in kinds)
    (send,) = host.hears(bytes([0x45 + len(options) // 4]) + plain[1:20] + options + plain[20:])
    header, reply = transmitted(send)
    assert (header[5], reply.type) == (messages.TRANSMIT_MAY_FRAGMENT, 0)


def test_rfc1122_3_2_2_6_echo_to_a_group_is_silent(host):
    assert host.gives(topology.IP, messages.PACKET, records.up(echo(destination="10.0.0.255"), records.GROUP)) == []
    assert host.counted("to_group") == 1


@pytest.mark.parametrize("octets", [b"", b"\x45", bytes(echo())[:27], b"\x4f" + bytes(echo())[1:]])
def test_a_packet_too_short_for_its_headers_is_counted(host, octets):
    assert host.hears(octets) == []
    assert host.counted("malformed") == 1


@pytest.mark.parametrize(("icmp_type", "counter"), [
    (4, "source_quench"), (5, "redirect"), (9, "router_discovery"), (10, "router_discovery"), (14, "timestamp_reply"),
    (15, "information"), (16, "information"), (17, "address_mask"), (18, "address_mask"), (1, "unknown_type"),
    (42, "unknown_type"), (255, "unknown_type")])
def test_rfc1122_3_2_2_what_is_not_handled_is_dropped_silently(host, icmp_type, counter):
    assert host.hears(IP(src=PEER, dst=OUR) / ICMP(type=icmp_type) / Raw(bytes(28))) == []
    assert host.counted(counter) == 1


# Timestamps


MIDNIGHT = 1_700_006_400.0  # 2023-11-15, 00:00 UT


def timestamp_request(**fields) -> IP:
    return IP(src=PEER, dst=OUR, **fields) / ICMP(type=13, id=77, seq=5, ts_ori=123, ts_rx=7, ts_tx=8)


@pytest.mark.parametrize(("epoch", "now", "milliseconds"), [
    (MIDNIGHT, 0.0, 0), (MIDNIGHT, 1000.25, 1_000_250), (MIDNIGHT - 0.5, 0.0, 86_399_500), (MIDNIGHT, 86400.001, 1)])
def test_rfc1122_3_2_2_8_a_timestamp_request_is_answered_with_the_time_since_midnight(epoch, now, milliseconds):
    host = Host(epoch=epoch)
    host.now = now
    (send,) = host.hears(timestamp_request(tos=0x28))
    header, reply = transmitted(send)
    assert header == (OUR, PEER, 1, 64, 0x28, messages.TRANSMIT_MAY_FRAGMENT)
    assert (reply.type, reply.code, reply.id, reply.seq) == (14, 0, 77, 5)
    assert (reply.ts_ori, reply.ts_rx, reply.ts_tx) == (123, milliseconds, milliseconds)
    assert host.counted("timestamp_replies_sent") == 1


def test_rfc792_a_timestamp_reply_is_twenty_octets_whatever_the_request_was(host):
    message = checked(bytearray(bytes(timestamp_request())[20:32] + bytes(100)))
    (send,) = host.hears(IP(src=PEER, dst=OUR, proto=1) / Raw(message))
    assert transmitted(send)[1].ts_ori == 123
    assert len(send[2]) == records.TRANSMIT + 20


@pytest.mark.parametrize(("octets", "answers"), [(12, 1), (11, 0)])
def test_as_linux_a_timestamp_request_needs_no_more_than_its_originate_timestamp(host, octets, answers):
    message = checked(bytearray(bytes(timestamp_request())[20 : 20 + octets]))
    assert len(host.hears(IP(src=PEER, dst=OUR, proto=1) / Raw(message))) == answers
    assert host.counted("malformed") == 1 - answers


def test_rfc1122_3_2_2_8_a_timestamp_request_to_a_group_is_silent(host):
    assert host.gives(topology.IP, messages.PACKET, records.up(timestamp_request(), records.GROUP)) == []


def test_rfc1122_3_2_2_8_options_come_back_as_with_an_echo(host):
    plain = bytes(timestamp_request())
    ((_, _, record),) = host.hears(b"\x47" + plain[1:20] + RECORDED + b"\0" + plain[20:])
    header, options, _ = records.transmitted(record)
    assert (header[5], options) == (messages.TRANSMIT_MAY_FRAGMENT, RECORDED + b"\0")


# Errors that we send


def datagram(source: str = PEER, destination: str = OUR, size: int = 20, **fields) -> IP:
    data = bytes(number % 251 for number in range(size))
    return IP(src=source, dst=destination, **fields) / UDP(sport=1, dport=2) / Raw(data)


def test_rfc1122_3_2_2_1_port_unreachable_comes_from_the_address_that_was_sent_to(host):
    offending = bytes(datagram(tos=0x1B))
    header, error = transmitted(host.reports(offending)[0])
    # RFC 1122 section 3.2.2: TOS 0, whatever the packet's was; RFC 1812 section 4.3.2.5: precedence 6.
    assert header == (OUR, PEER, 1, 64, 0xC0, messages.TRANSMIT_MAY_FRAGMENT)
    assert (error.type, error.code) == (3, 3)
    assert bytes(error)[8:] == offending


@pytest.mark.parametrize(("mtu", "octets"), [(1500, 576), (576, 576), (296, 296)])
def test_rfc1812_4_3_2_3_an_error_quotes_as_much_as_fits(mtu, octets):
    offending = bytes(datagram(size=2000))
    (send,) = Host(mtu=mtu).reports(offending)
    quoted = bytes(transmitted(send)[1])[8:]
    assert 20 + 8 + len(quoted) == octets
    assert quoted == offending[: len(quoted)]


def test_parameter_problem_and_fragmentation_needed_carry_their_info(host):
    _, problem = transmitted(host.reports(datagram(), 12, 0, 20)[0])
    assert (problem.type, problem.ptr) == (12, 20)
    _, too_big = transmitted(host.reports(datagram(), 3, 4, 1400)[0])
    assert (too_big.type, too_big.code, too_big.nexthopmtu) == (3, 4, 1400)


@pytest.mark.parametrize("icmp_type", [3, 4, 5, 11, 12, 1, 99])
def test_rfc1122_3_2_2_no_error_about_an_error_or_what_may_be_one(host, icmp_type):
    assert host.reports(IP(src=PEER, dst=OUR) / ICMP(type=icmp_type) / Raw(bytes(28)), 11, 1) == []
    assert host.counted("report_about_icmp") == 1


def test_rfc1122_3_2_2_a_query_may_be_complained_of(host):
    assert len(host.reports(echo(flags="MF"), 11, 1)) == 1


@pytest.mark.parametrize("destination", ["255.255.255.255", "10.0.0.255", "224.0.0.1", PEER, "0.0.0.0"])
def test_rfc1122_3_2_2_no_error_about_a_broadcast(host, destination):
    assert host.reports(datagram(destination=destination)) == []
    assert host.counted("report_to_group") == 1


@pytest.mark.parametrize("source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
                                    "10.0.0.255"])
def test_rfc1122_3_2_2_no_error_to_a_source_that_is_no_single_host(host, source):
    assert host.reports(datagram(source=source)) == []
    assert host.counted("report_from_group") == 1


def test_rfc1122_3_2_2_no_error_about_a_fragment_other_than_the_first(host):
    assert host.reports(datagram(frag=3)) == []
    assert host.counted("report_fragment") == 1
    assert len(host.reports(datagram(flags="MF"))) == 1


@pytest.mark.parametrize("icmp_type", [0, 4, 5, 8, 13, 255])
def test_only_errors_are_complained_with(host, icmp_type):
    assert host.reports(datagram(), icmp_type, 0) == []
    assert host.counted("report_malformed") == 1


def test_a_report_too_short_is_counted(host):
    for octets in (b"", bytes(11), bytes(26), records.report(3, 3, bytes(datagram())[:19])):
        assert host.gives(topology.IP, messages.REPORT_ERROR, octets) == []
    assert host.counted("report_malformed") == 4


def test_rfc1812_4_3_2_8_errors_to_one_host_are_limited_as_on_linux(host):
    assert sum(len(host.reports(datagram())) for _ in range(20)) == 6
    assert len(host.reports(datagram(source="10.0.0.3"))) == 1  # another host
    host.now += 1.001
    assert sum(len(host.reports(datagram())) for _ in range(20)) == 1
    host.now += 100
    assert sum(len(host.reports(datagram())) for _ in range(20)) == 6
    assert host.counted("report_limited") == 14 + 19 + 14


def test_rfc1812_4_3_2_8_errors_to_all_hosts_are_limited_as_on_linux(host):
    def storm() -> int:
        return sum(len(host.reports(datagram(source=f"198.51.{n // 250}.{n % 250 + 1}"))) for n in range(1200))

    assert storm() == 50
    host.now += 0.0101
    assert storm() == 10
    host.now += 10
    assert storm() == 50


def test_a_limit_for_all_hosts_does_not_use_up_that_of_one(host):
    for n in range(50):
        host.reports(datagram(source=f"198.51.100.{n + 1}"))
    assert host.reports(datagram()) == []
    host.now += 1
    assert sum(len(host.reports(datagram())) for _ in range(20)) == 6


def test_the_hosts_that_got_errors_are_remembered_in_bounded_address():
    limits = tables.ErrorLimits()
    for n in range(3 * tables.MAX_TARGETS):
        assert limits.allow(n.to_bytes(4, "big"), float(n))
    assert len(limits._targets) == tables.MAX_TARGETS


@pytest.mark.parametrize(("icmp_type", "code"), [(11, 1), (12, 0), (12, 1), (3, 2)])
def test_rfc1122_3_2_2_what_ip_complains_of_is_sent(host, icmp_type, code):
    offending = bytes(datagram(flags="MF"))
    header, error = transmitted(host.reports(offending, icmp_type, code)[0])
    assert (header[:2], error.type, error.code) == ((OUR, PEER), icmp_type, code)
    assert bytes(error)[8:] == offending


# Errors that we receive


def upward(sends: list) -> list:
    """What is not for ip."""
    return [send for send in sends if send[0] != topology.IP]


def error_about(quoted, icmp_type: int = 3, code: int = 3, source: str = ROUTER, **fields) -> IP:
    return IP(src=source, dst=OUR) / ICMP(type=icmp_type, code=code, **fields) / Raw(bytes(quoted))


@pytest.mark.parametrize(("icmp_type", "code", "rest"), [
    (3, 3, b"\xff\0\xff\xff"), (3, 1, b"\xff\0\xff\xff"), (11, 0, b"\xff\0\xff\xff"), (12, 0, b"\0\0\xff\xff")])
def test_rfc792_unused_fields_are_not_looked_at(host, icmp_type, code, rest):
    """All of them but the length that RFC 4884 has put into the second octet."""
    ours = bytes(datagram(source=OUR, destination=FAR))[:28]
    message = checked(bytearray(bytes((icmp_type, code, 0, 0)) + rest + ours))
    ((consumer, _, record),) = upward(host.hears(IP(src=ROUTER, dst=OUR, proto=1) / Raw(message)))
    assert (consumer, record) == (
        topology.UDP, records.error(icmp_type, code, ours, offender=ROUTER))


@pytest.mark.parametrize(("icmp_type", "code", "fields", "info"), [
    (3, 3, {}, 0), (3, 1, {}, 0), (3, 4, {"nexthopmtu": 1400}, 1400), (11, 0, {}, 0), (12, 0, {"ptr": 9}, 9)])
def test_rfc1122_4_1_3_3_an_error_about_a_udp_packet_goes_to_udp(host, icmp_type, code, fields, info):
    ours = bytes(datagram(source=OUR, destination=FAR))[:28]
    ((consumer, kind, record),) = upward(host.hears(error_about(ours, icmp_type, code, **fields)))
    assert (consumer, kind) == (topology.UDP, messages.ICMP_ERROR)
    assert record == records.error(icmp_type, code, ours, info=info, offender=ROUTER)


def checked(message: bytearray) -> bytes:
    """The message with the right checksum."""
    message[2:4] = bytes(2)
    message[2:4] = checksum(bytes(message)).to_bytes(2, "big")
    return bytes(message)


@pytest.mark.parametrize("code", range(16))
def test_rfc1122_3_2_2_1_every_code_of_a_destination_unreachable_is_passed_on(host, code):
    ((consumer, _, record),) = upward(host.hears(error_about(OURS, 3, code)))
    assert (consumer, record[:2]) == (topology.UDP, bytes((3, code)))


EXTENSION = bytes.fromhex("2000dfff000801010000a140")  # RFC 4884 section 7, RFC 4950: one MPLS label


@pytest.mark.parametrize("icmp_type", [3, 11, 12])
@pytest.mark.parametrize("size", [20, 100, 200])
def test_rfc4884_4_extensions_are_no_part_of_the_quote(host, icmp_type, size):
    ours = bytes(datagram(source=OUR, destination=FAR, size=size))
    quote = ours[:128].ljust(128, b"\0")
    message = bytearray(bytes(ICMP(type=icmp_type) / Raw(quote + EXTENSION)))
    message[5] = len(quote) // 4
    ((_, _, record),) = upward(host.hears(IP(src=ROUTER, dst=OUR, proto=1) / Raw(checked(message))))
    assert record[records.ERROR :] == ours[:128]


@pytest.mark.parametrize("words", [0, 1, 6, 31, 36, 255])
def test_rfc4884_5_a_length_that_cannot_be_changes_nothing(host, words):
    ours = bytes(datagram(source=OUR, destination=FAR, size=116))
    message = bytearray(bytes(ICMP(type=3, code=3) / Raw(ours)))
    message[5] = words
    ((_, _, record),) = upward(host.hears(IP(src=ROUTER, dst=OUR, proto=1) / Raw(checked(message))))
    assert record[records.ERROR :] == ours


def test_rfc1122_3_2_2_an_error_of_any_protocol_goes_to_raw_where_it_is_booted():
    host = Host(layers=tuple(topology.LAYERS))
    ours = bytes(IP(src=OUR, dst=FAR, proto=253) / Raw(bytes(8)))
    assert [(send[0], send[2][records.ERROR :]) for send in upward(host.hears(error_about(ours)))] == [
        (topology.RAW, ours)]
    assert [send[0] for send in upward(host.hears(error_about(OURS)))] == [topology.RAW, topology.UDP]
    assert host.counted("errors_to_raw") == 2


@pytest.mark.parametrize("mtu", [0, 68, 1400, 65535])
def test_rfc1191_4_fragmentation_needed_about_an_echo_request_is_told_to_ip(host, mtu):
    host.declares(bind=True, port=77)
    ours = IP(src=OUR, dst=FAR) / ICMP(type=8, id=77, seq=5) / Raw(b"data")
    record = PATH_MTU_HEAD.pack(mtu, len(ours)) + ip4(FAR)
    assert host.hears(error_about(ours, 3, 4, nexthopmtu=mtu)) == [(topology.IP, messages.PATH_MTU, record)]


@pytest.mark.parametrize("quoted", [
    IP(src=OUR, dst=FAR) / ICMP(type=8, id=78, seq=5), IP(src=OUR, dst=FAR) / ICMP(type=0, id=77, seq=5),
    IP(src=OUR, dst=FAR, proto=132) / Raw(bytes(20)),
], ids=["no socket", "a reply", "no transport"])  # fmt: skip
def test_rfc8201_4_fragmentation_needed_about_what_no_socket_sent_is_not_believed(host, quoted):
    host.declares(bind=True, port=77)
    assert host.hears(error_about(quoted, 3, 4, nexthopmtu=600)) == []


def test_whether_fragmentation_needed_is_about_a_datagram_of_ours_is_for_udp_to_say(host):
    assert [send[0] for send in host.hears(error_about(OURS, 3, 4, nexthopmtu=1400))] == [topology.UDP]


@pytest.mark.parametrize("quoted", [
    datagram(source=PEER, destination=FAR), datagram(source=OUR, destination="224.0.0.9"), bytes(27), b"",
    datagram(source=OUR, destination="10.0.0.255"),
], ids=["not ours", "multicast", "short", "empty", "broadcast"])  # fmt: skip
def test_rfc1191_4_fragmentation_needed_about_no_packet_of_ours_is_not(host, quoted):
    assert host.hears(error_about(quoted, 3, 4, nexthopmtu=1400)) == []


OURS = datagram(source=OUR, destination=FAR)


@pytest.mark.parametrize(("packet", "counter"), [
    (error_about(OURS, 3, 16), "error_unknown_code"),
    (error_about(b""), "error_bad_quote"),
    (error_about(bytes(OURS)[:27]), "error_bad_quote"),
    (error_about(datagram(source=OUR, destination=FAR, frag=1)), "error_bad_quote"),
    (error_about(datagram(source=PEER, destination=FAR)), "error_not_ours"),
    (error_about(datagram(source=OUR, destination="10.0.0.255")), "error_about_group"),
    (error_about(datagram(source=OUR, destination="224.0.0.9")), "error_about_group"),
    (error_about(IP(src=OUR, dst=FAR, proto=132) / Raw(bytes(20))), "error_no_transport"),
    (error_about(echo(source=OUR, destination=FAR)), "error_no_socket"),
])
def test_an_error_that_cannot_be_about_our_packets_is_counted(host, packet, counter):
    assert host.hears(packet) == []
    assert host.counted(counter) == 1


def ping_error(host: Host, icmp_type: int, code: int, **fields) -> list:
    ours = IP(src=OUR, dst=FAR) / ICMP(type=8, id=77, seq=5) / Raw(b"data")
    return upward(host.hears(error_about(ours, icmp_type, code, **fields)))


@pytest.mark.parametrize(("icmp_type", "code", "expected"), [
    (3, 1, errno.EHOSTUNREACH), (3, 3, errno.ECONNREFUSED), (11, 0, errno.EHOSTUNREACH), (12, 0, errno.EPROTO),
    (3, 4, errno.EMSGSIZE)])
def test_an_error_about_an_echo_request_goes_to_its_socket(host, icmp_type, code, expected):
    host.declares(bind=True, port=77, receive_errors=True)
    ((consumer, kind, record),) = ping_error(host, icmp_type, code)
    assert (consumer, kind) == (topology.SOCKETS, messages.SOCKET_ERROR)
    assert SocketError.of(record) == (
        1, expected, messages.ORIGIN_ICMP, icmp_type, code, 0, ip4(ROUTER), ip4(FAR), 0)
    assert bytes(ICMP(record[SocketError.of(record).octets :]).payload) == b"data"


@pytest.mark.parametrize(("declared", "icmp_type", "code", "told"), [
    ({}, 3, 3, 0), ({"peer": address(FAR)}, 3, 3, 1), ({"peer": address(FAR)}, 3, 1, 0),
    ({"peer": address(FAR)}, 11, 0, 0), ({"peer": address(FAR)}, 3, 4, 1),
    ({"peer": address(FAR), "mtu_discover": 0}, 3, 4, 0),
    ({"receive_errors": True, "mtu_discover": 0}, 3, 4, 0)])
def test_errors_are_reported_to_sockets_as_on_linux(host, declared, icmp_type, code, told):
    host.declares(bind=True, port=77, **declared)
    assert len(ping_error(host, icmp_type, code)) == told
    assert host.counted("error_ignored") == 1 - told


def test_an_error_of_ip_itself_reaches_a_connected_socket(host):
    host.declares(bind=True, port=77, peer=address(PEER))
    ours = records.local_error(1, echo(source=OUR, destination=PEER))
    ((_, kind, record),) = host.gives(topology.IP, messages.ICMP_ERROR, ours)
    assert kind == messages.SOCKET_ERROR
    assert SocketError.of(record)[:3] == (1, errno.EHOSTUNREACH, messages.ORIGIN_LOCAL)
    assert host.gives(topology.IP, messages.ICMP_ERROR, ours[: records.ERROR], b"", ours[: records.ERROR + 27]) == []


# Ping sockets


def test_a_ping_socket_sends_echo_requests_under_its_identifier(host):
    host.declares(bind=True, port=77)
    (send,) = host.sends(ICMP(type=8, id=1, seq=9, chksum=0xBAD) / b"hello")
    header, message = transmitted(send)
    assert header == ("0.0.0.0", PEER, 1, 64, 0, messages.TRANSMIT_DONT_FRAGMENT | messages.TRANSMIT_MAY_FRAGMENT)
    assert (message.type, message.code, message.id, message.seq, bytes(message.payload)) == (8, 0, 77, 9, b"hello")


def test_a_ping_socket_sends_with_its_options_and_those_of_the_message(host):
    host.declares(
        bind=True, port=77, local=address(OUR), ttl=9, tos=4, multicast_ttl=2, mtu_discover=0, broadcast=True)
    message = ICMP(type=8)
    assert transmitted(host.sends(message)[0])[0] == (
        OUR, PEER, 1, 9, 4, messages.TRANSMIT_BROADCAST | messages.TRANSMIT_MAY_FRAGMENT)
    assert transmitted(host.sends(message, "224.0.0.1")[0])[0][3] == 2
    assert transmitted(host.sends(message, ttl=3, tos=8, flags=1)[0])[0][3:5] == (3, 8)
    assert transmitted(host.sends(message, tos=8)[0])[0][4] == 4


def test_a_connected_ping_socket_sends_to_its_peer(host):
    reply = host.declares(bind=True, port=77, peer=address(FAR))
    assert reply.local == address(OUR)
    assert transmitted(host.sends(ICMP(type=8), "0.0.0.0")[0])[0][:2] == (OUR, FAR)


@pytest.mark.parametrize(("declared", "message", "keywords", "expected"), [
    ({}, bytes(ICMP(type=8)), {"destination": "0.0.0.0"}, errno.EDESTADDRREQ),
    ({}, bytes(ICMP(type=0)), {}, errno.EINVAL),
    ({}, bytes(ICMP(type=8, code=1)), {}, errno.EINVAL),
    ({}, b"\x08\0\0\0\0\0\0", {}, errno.EINVAL),
    ({}, bytes(ICMP(type=8)), {"source": PEER}, errno.ENETUNREACH),
    ({"bind": False}, bytes(ICMP(type=8)), {}, errno.EINVAL),
    ({}, bytes(ICMP(type=8)) + bytes(65508), {}, errno.EMSGSIZE),
])
def test_a_ping_that_may_not_be_sent_fails_with_the_errno_of_linux(host, declared, message, keywords, expected):
    host.declares(**{"bind": True, **declared})
    ((consumer, kind, record),) = host.sends(message, **keywords)
    assert (consumer, kind) == (topology.SOCKETS, messages.SOCKET_ERROR)
    assert SocketError.of(record)[:3] == (1, expected, messages.ORIGIN_LOCAL)
    assert host.counted("send_refused") == 1


def test_the_longest_message_fits(host):
    host.declares(bind=True)
    assert transmitted(host.sends(bytes(ICMP(type=8)) + bytes(65507))[0])[1].type == 8


def test_malformed_messages_to_send_and_those_of_unknown_sockets_are_counted(host):
    assert host.sends(ICMP(type=8), handle=5) == []
    assert host.gives(topology.SOCKETS, messages.SEND, b"", bytes(DATAGRAM_HEADER.size - 1)) == []
    assert (host.counted("send_no_socket"), host.counted("send_malformed")) == (1, 2)


def echo_reply(identifier: int = 77, destination: str = OUR) -> IP:
    return IP(src=PEER, dst=destination, ttl=60, tos=4) / ICMP(type=0, id=identifier, seq=5) / Raw(b"data")


def test_an_echo_reply_goes_to_the_socket_of_its_identifier(host):
    host.declares(bind=True, port=77)
    packet = bytes(echo_reply())
    ((consumer, kind, record),) = host.hears(packet)
    assert (consumer, kind) == (topology.SOCKETS, messages.DATAGRAM)
    assert messages.DATAGRAM_HEADER.unpack_from(record) == (1, 4, 0, 60, 4, 0, INTERFACE_INDEX, ip4(PEER), ip4(OUR))
    assert record[messages.DATAGRAM_HEADER.size :] == packet[20:]
    assert host.hears(echo_reply(78)) == []
    assert host.counted("reply_no_socket") == 1


def test_a_socket_bound_to_an_address_hears_no_other(host):
    two = messages.Routes([(address(OUR), 24), (address("10.0.0.3"), 24)], [])
    host.gives(topology.IP, messages.ROUTES, messages.encode(two))
    host.declares(bind=True, port=77, local=address(OUR))
    assert len(host.hears(echo_reply())) == 1
    assert host.hears(echo_reply(destination="10.0.0.3")) == []


def test_a_closed_socket_is_gone(host):
    host.declares(bind=True, port=77)
    closing = (1).to_bytes(4, "little")
    assert host.gives(topology.SOCKETS, messages.SOCKET_CLOSE, closing, closing, b"", bytes(5)) == []
    assert host.hears(echo_reply()) == []
    assert host.state == {}
    assert (host.counted("closes"), host.counted("control_malformed")) == (1, 2)
    assert host.declares(handle=2, bind=True, port=77).errno == 0


def test_port_0_chooses_an_identifier_once(host):
    chosen = host.declares(bind=True)
    assert (chosen.errno, chosen.handle, chosen.request) == (0, 1, 7)
    assert 1 <= chosen.port <= 65535
    again = host.declares(bind=True, request=8)
    assert (again.port, again.request) == (chosen.port, 8)
    assert host.declares(handle=2, bind=True).port != chosen.port


def test_an_identifier_has_one_holder(host):
    host.declares(bind=True, port=77)
    assert host.declares(handle=2, bind=True, port=77).errno == errno.EADDRINUSE
    assert host.declares(bind=True, port=77).errno == 0
    assert host.declares(bind=True, port=78).port == 78
    assert host.declares(handle=2, bind=True, port=77).errno == 0
    assert host.declares(handle=2).port == 0  # no longer bound
    assert host.hears(echo_reply()) == []


@pytest.mark.parametrize(("wanted", "expected"), [
    ({"local": address(PEER)}, errno.EADDRNOTAVAIL), ({"local": address("10.0.0.255")}, errno.EADDRNOTAVAIL),
    ({"local": address("224.0.0.1")}, errno.EADDRNOTAVAIL), ({"peer": address("10.0.0.255")}, errno.EACCES)])
def test_a_refused_declaration_leaves_the_socket_as_it_was(host, wanted, expected):
    host.declares(bind=True, port=77)
    assert host.declares(bind=True, port=78, **wanted).errno == expected
    assert len(host.hears(echo_reply(77))) == 1
    assert host.hears(echo_reply(78)) == []


def test_a_peer_that_no_route_leads_to_is_unreachable(host):
    host.gives(topology.IP, messages.ROUTES, messages.encode(messages.Routes([(address(OUR), 24)], [])))
    assert host.declares(bind=True, peer=address(FAR)).errno == errno.ENETUNREACH


def test_sockets_are_bounded(host):
    ports = {host.declares(handle=handle, bind=True).port for handle in range(1, tables.MAX_SOCKETS + 1)}
    assert len(ports) == tables.MAX_SOCKETS
    assert host.declares(handle=tables.MAX_SOCKETS + 1, bind=True).errno == errno.ENOBUFS
    assert host.declares(handle=5, bind=True).errno == 0


@pytest.mark.parametrize("field", ["handle", "request", "local", "port", "peer", "ttl", "tos", "multicast_ttl"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_numbers_that_fit_no_header_are_refused(host, field, value):
    wanted = msgspec.structs.replace(SocketState(handle=1, request=7, bind=True), **{field: value})
    assert host.gives(topology.SOCKETS, messages.SOCKET_SET, msgspec.json.encode(wanted)) == []
    assert host.counted("control_malformed") == 1
    assert host.state == {}


# Restarts


def test_a_restart_keeps_sockets_and_routes(host):
    moved = messages.Routes([(address("10.9.0.2"), 16)], [])
    host.gives(topology.IP, messages.ROUTES, messages.encode(moved))
    chosen = host.declares(bind=True, local=address("10.9.0.2"), ttl=9)
    again = Host(state=host.state)
    assert transmitted(again.sends(ICMP(type=8))[0])[0][:4] == ("10.9.0.2", PEER, 1, 9)
    assert again.declares(bind=True, local=address("10.9.0.2")) == chosen
    assert again.declares(handle=2, bind=True, port=chosen.port).errno == errno.EADDRINUSE
    assert again.reports(datagram()) == []
    assert len(again.reports(datagram(destination="10.9.0.2"))) == 1


def test_a_socket_is_stored_before_it_is_answered_for():
    class Watched(dict):
        def __setitem__(self, key, value):
            raise KeyboardInterrupt  # the process is killed here

    with pytest.raises(KeyboardInterrupt):
        Host(state=Watched()).declares(bind=True)


def test_invalid_routes_are_ignored(host):
    bad = messages.Routes([(address(OUR), 99)], [])
    assert host.gives(topology.IP, messages.ROUTES, b"", b"{", b'{"addresses": 1}', messages.encode(bad)) == []
    assert host.counted("control_malformed") == 4
    assert host.state == {}
    assert len(host.reports(datagram())) == 1


@given(st.dictionaries(st.integers(1, 6), st.binary(max_size=40) | st.tuples(
    st.sampled_from([0, 0, 0, 1]), st.sampled_from([1, 2, 3, 0, 65535, 65536, -1]))))
@example({1: (0, 2), 2: (0, 2), 3: (1, 3), 4: (0, 0), 5: (0, 0)})
def test_invalid_stored_records_are_deleted(state):
    """Valid is what has its own handle and an identifier, which several may have (see test_turns_cut_short.py)."""
    stored = {key: value if isinstance(value, bytes) else messages.encode(
        SocketState(handle=key + value[0], request=0, port=value[1], bind=True)) for key, value in state.items()}
    valid = {key for key, value in state.items()
             if not isinstance(value, bytes) and not value[0] and 0 <= value[1] < 65536}
    host = Host(state=dict(stored))
    assert host.state == {key: stored[key] for key in valid}
    assert host.counted("state_unreadable") == len(state) - len(valid)
    for key in valid:
        host.gives(topology.SOCKETS, messages.SOCKET_CLOSE, key.to_bytes(4, "little"))
    assert host.state == {}


# Anything


def whole_sum(packet: bytes) -> bytes:
    """With the checksum of its ICMP message."""
    return packet[:22] + checksum(packet[20:22] + bytes(2) + packet[24:]).to_bytes(2) + packet[24:]


QUOTES = lengths.octets(40) | st.sampled_from([
    bytes(OURS), bytes(OURS), bytes(echo(source=OUR)), bytes(echo(source=FAR)),
    bytes(IP(src=OUR, dst=FAR, proto=99) / Raw(bytes(9))), bytes(IP(src=OUR, dst="224.0.0.9") / UDP() / Raw(bytes(9)))])
MESSAGES = st.builds(lambda icmp_type, code, identifier, quote: bytes(
    IP(src=PEER, dst=OUR, proto=1) / Raw(bytes((icmp_type, code, 0, 0)) + identifier.to_bytes(2) + bytes(2) + quote)),
    st.sampled_from([0, 3, 3, 4, 5, 8, 9, 11, 12, 13, 14, 15, 17]) | st.integers(0, 255), st.integers(0, 17),
    st.sampled_from([77, 78]), QUOTES)
PACKETS = lengths.octets(80) | st.builds(
    lambda header, message: header + message,
    st.sampled_from([bytes(echo())[:20], bytes(echo_reply())[:20], bytes(OURS)[:20]]), lengths.octets(60)
) | MESSAGES.map(whole_sum) | MESSAGES.map(whole_sum)
RECORDS = {
    messages.PACKET: PACKETS.map(records.up) | st.builds(records.up, PACKETS, st.just(records.GROUP)) | PACKETS,
    messages.ICMP_ERROR: st.builds(records.error, st.sampled_from([3, 11, 12]), st.integers(0, 15), QUOTES) | PACKETS,
    messages.REPORT_ERROR: st.builds(
        records.report, st.sampled_from([3, 11, 12, 0]), st.integers(0, 15), PACKETS | st.sampled_from([
            datagram(), datagram(destination=FAR), datagram(source="0.0.0.0"), datagram(frag=3), echo()])),
    messages.SEND: st.builds(lambda message: datagram_header(1, ip4(PEER), 0, bytes(4), 0, 0, 0) + message,
                             PACKETS.map(lambda packet: packet[20:]))}
EVENTS = st.sampled_from(
    sorted((producer, kind) for producer, kinds in topology.inputs("icmp").items() for kind in kinds)
).flatmap(lambda event: st.tuples(st.just(event), RECORDS.get(event[1], st.nothing()) | st.builds(
    lambda prefix, octets: prefix + octets, st.binary(min_size=12, max_size=12), PACKETS)))


@settings(max_examples=150, deadline=None)
@given(lengths.lists(EVENTS, 12), st.booleans())
def test_nothing_raises_and_every_packet_is_counted(events, accept_redirects):
    host = Host(accept_redirects=accept_redirects)
    host.declares(bind=True, port=77, receive_errors=True)
    taken = ("malformed", "bad_checksum", "to_group", "reply_no_socket", "unknown_type", "source_quench", "redirect",
             "router_discovery", "information", "address_mask", "timestamp_reply", "timestamp_replies_sent",
             "error_unknown_code", "error_bad_quote", "error_not_ours", "error_about_group", "error_no_transport",
             "error_no_socket", "error_ignored", "echo_replies_sent", "replies_delivered", "errors_to_transports",
             "errors_to_sockets", "redirects_to_ip")
    reported = ("report_malformed", "report_about_icmp", "report_to_group", "report_from_group", "report_fragment",
                "report_limited", "errors_sent")
    for (producer, kind), octets in events:
        before, before_reported = sum(map(host.counted, taken)), sum(map(host.counted, reported))
        host.gives(topology.LAYERS[producer], kind, octets)
        assert sum(map(host.counted, taken)) == before + (kind in (messages.PACKET, messages.ICMP_ERROR))
        assert sum(map(host.counted, reported)) == before_reported + (kind == messages.REPORT_ERROR)


# Multicasts and addresses that go


@pytest.mark.parametrize("loop", [True, False])
def test_rfc1112_6_1_multicasts_of_ping_sockets(host, loop):
    host.declares(bind=True, multicast_ttl=7, multicast_loop=loop, multicast_interface=address(OUR))
    (send,) = host.sends(bytes(ICMP(type=8)), "239.1.2.3")
    (source, destination, _, ttl, _, flags), _ = transmitted(send)
    assert (source, destination, ttl) == (OUR, "239.1.2.3", 7)
    assert bool(flags & messages.TRANSMIT_LOOP) is loop
    (send,) = host.sends(bytes(ICMP(type=8)))
    assert not transmitted(send)[0][5] & messages.TRANSMIT_LOOP


@pytest.mark.parametrize("peer", [b"", address(PEER)])
def test_a_ping_socket_whose_address_has_gone_sends_nothing_until_it_is_back(host, peer):
    request = bytes(ICMP(type=8))
    link = [messages.Route(address("10.0.0.0"), 24, b"", address(OUR), 1500)]
    two, one = (messages.encode(messages.Routes([(address(each), 24) for each in own], link))
                for own in ((OUR, "10.0.0.9"), (OUR,)))
    host.gives(topology.IP, messages.ROUTES, two)
    assert host.declares(bind=True, local=address("10.0.0.9"), peer=peer).errno == 0
    host.gives(topology.IP, messages.ROUTES, one)
    ((consumer, kind, record),) = host.sends(request)
    assert (consumer, kind, SocketError.of(record).errno) == (topology.SOCKETS, messages.SOCKET_ERROR,
                                                                     errno.ENETUNREACH)
    assert host.declares(bind=True, local=address("10.0.0.9"), peer=peer, ttl=3).errno == 0  # an option is no bind
    host.gives(topology.IP, messages.ROUTES, two)
    (send,) = host.sends(request)
    assert transmitted(send)[0][0] == "10.0.0.9"


def test_a_message_of_a_family_or_over_an_interface_that_is_not_there_is_refused(host):
    host.declares(bind=True, port=77)
    for record, number in ((datagram_header(1, bytes(16), 0, bytes(16)), errno.EAFNOSUPPORT),
                           (datagram_header(1, ip4(PEER), 0, bytes(4), interface=3), errno.ENODEV)):
        ((consumer, kind, answer),) = host.gives(topology.SOCKETS, messages.SEND, record + bytes(ICMP() / b"data"))
        assert (consumer, kind, SocketError.of(answer).errno) == (topology.SOCKETS, messages.SOCKET_ERROR, number)
    assert host.counted("send_misplaced") == 2

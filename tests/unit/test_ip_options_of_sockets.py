"""IP options that applications send and are told of: which may be sent, and their way through the layers."""

from __future__ import annotations

import errno
import random
from binascii import b2a_base64
from ipaddress import IPv4Address
from struct import pack

import lengths
import pytest
from glue import Stack, ip4
from hypothesis import example, given
from hypothesis import strategies as st
from records import transmitted, up
from scapy.layers.inet import ICMP, IP, UDP, IPOption
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from test_sockets import Bench

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import (
    DATAGRAM_HEADER,
    DATAGRAM_OVERHEAD,
    SEGMENT_SIZE,
    SEND_OPTIONS,
    TRANSMIT_RECORD,
    SocketError,
    SocketState,
    datagram_header,
    encode,
)
from layers.raw.core import Core as Raws
from layers.raw.counters import Counters as RawCounters
from usernet.sockets import cmsg, ip_options
from usernet.sockets.ip_options import before, checked

ME, MY_MAC = "10.0.0.2", "02:00:5e:00:00:02"
PEER, PEER_MAC = "10.0.0.1", "02:00:5e:00:00:01"
PORT, PEER_PORT = 5000, 9
NOP4 = b"\x01" * 4
ROUTE = bytes((7, 11, 4)) + bytes(8) + b"\0"  # room for two
STAMP = bytes((68, 12, 5, 1)) + bytes(8)
INVALID, DENIED = errno.EINVAL, errno.EPERM

# (options, what Linux 6.18 makes of them without CAP_NET_RAW, and with it): an errno, or as getsockopt gives them back.
# Source routes aside, which Linux lets the privileged send.
SAME = None
AS_LINUX = [
    ("", "", SAME), ("01", "01000000", SAME), ("010101", "01010100", SAME), ("0007ffff", "00000000", SAME),
    ("01000107", "01000000", SAME), ("01" * 40, "01" * 40, SAME), ("01" * 41, INVALID, SAME), ("07", INVALID, SAME),
    ("07070400000000", "0707040000000000", SAME), ("07070801020304", "0707080102030400", SAME),
    ("0702", INVALID, SAME), ("070304", "07030400", SAME), ("07070300000000", INVALID, SAME),
    ("07070500000000", INVALID, SAME), ("07070000000000", INVALID, SAME), ("07070400000000" * 2, INVALID, SAME),
    ("4408050000000000", "4408050000000000", SAME), ("440c05010000000000000000", "440c05010000000000000000", SAME),
    ("440c05030a09090100000000", "440c05030a09090100000000", SAME), ("4408050200000000", INVALID, "4408050200000000"),
    ("440305", INVALID, SAME), ("4408090000000000", "4408090000000000", SAME), ("440809f000000000", INVALID, SAME),
    ("4408040000000000", INVALID, SAME), ("4408060000000000", INVALID, SAME), ("4408050000000000" * 2, INVALID, SAME),
    ("83070a7f000001", INVALID, SAME), ("8307087f000001", INVALID, SAME), ("8307047f000001", DENIED, SAME),
    ("830b047f0000017f000002", DENIED, SAME), ("8907047f000001", DENIED, SAME), ("94040000", "94040000", SAME),
    ("940300", INVALID, SAME), ("94040001", "94040001", SAME), ("820b" + "00" * 9, INVALID, "820b" + "00" * 10),
    ("88040007", INVALID, "88040007"), ("5e040102", INVALID, "5e040102"), ("5e01", INVALID, SAME),
    ("5e090102", INVALID, SAME), ("860600000000", INVALID, SAME),
]  # fmt: skip


def outcome(options: bytes, privileged: bool) -> str | int | None:
    try:
        return checked(options, privileged).hex()
    except OSError as error:
        return error.errno


@pytest.mark.parametrize(("options", "unprivileged", "privileged"), AS_LINUX)
def test_ip_7_what_may_be_sent_is_what_linux_lets_be_sent(options, unprivileged, privileged):
    octets = bytes.fromhex(options)
    assert outcome(octets, False) == unprivileged
    assert outcome(octets, True) == (unprivileged if privileged is SAME else privileged)


PIECES = st.lists(st.sampled_from([b"\1", ROUTE[:11], STAMP, b"\x94\x04\0\0", b"\0"])).map(b"".join)


@given(lengths.octets(44) | PIECES, st.booleans())
@example(ROUTE[:11], False)
@example(b"\x94\x04\0\0" + STAMP, False)
def test_accepted_options_are_whole_words_and_are_accepted_again(options, privileged):
    made = outcome(options, privileged)
    if isinstance(made, str):
        assert len(made) % 8 == 0
        assert outcome(bytes.fromhex(made), privileged) == made
    else:
        assert made in (INVALID, DENIED)


@given(st.builds(lambda octets, rest: bytes((octets,)) + rest, st.sampled_from(range(0, 48, 4)) | st.integers(0, 255),
                 lengths.octets(60)) | st.binary(max_size=2))
@example(b"\x28" + bytes(41))
@example(b"\x28" + bytes(40))
@example(b"\x28" + bytes(39))
def test_any_octets_are_options_and_data_or_not(data):
    found = ip_options.split(data)
    whole = data[:1] and data[0] in range(0, 44, 4) and len(data) > data[0]
    assert (before(*found) == data and len(found[0]) == data[0]) if whole else found is None


# -- through udp, icmp and ip ------------------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Stack:
    made = Stack(ME, MY_MAC, gateway=PEER)
    question = Ether(src=PEER_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=ME)
    assert len(made.hears(question)) == 1
    return made


def sent(stack: Stack) -> list[tuple[bytes, bytes]]:
    """(options, payload) of the datagrams that went out; headers and checksums are right."""
    found = []
    for frame in stack.sent():
        packet = IP(frame[14:])
        right = packet.copy()
        del right.chksum, right[UDP].chksum
        assert bytes(right) == frame[14:]
        found.append((frame[34 : 14 + packet.ihl * 4], bytes(packet[UDP].payload)))
    return found


def send(stack: Stack, payload: bytes, kind: int = messages.SEND, flags: int = SEND_OPTIONS) -> None:
    head = datagram_header(1, ip4(PEER), PEER_PORT, bytes(4), 0, 0, flags)
    stack.tells("udp", topology.SOCKETS, kind, head + payload)


def test_rfc1122_4_1_3_2_a_sockets_options_go_with_each_datagram(stack):
    stack.declares(1, bind=True, port=PORT, peer=PEER, peer_port=PEER_PORT, ip_options=NOP4)
    for payload in (b"one", b"two", b""):
        stack.sends(1, payload)
    assert sent(stack) == [(NOP4, b"one"), (NOP4, b"two"), (NOP4, b"")]
    stack.crash("udp")
    stack.sends(1, b"three")
    stack.declares(1, bind=True, port=PORT, peer=PEER, peer_port=PEER_PORT)
    stack.sends(1, b"four")
    assert sent(stack) == [(NOP4, b"three"), (b"", b"four")]


def test_rfc1122_4_1_4_a_datagrams_own_options_take_the_place_of_its_sockets(stack):
    stack.declares(1, bind=True, port=PORT, ip_options=NOP4)
    router_alert = b"\x94\x04\0\0"
    send(stack, before(router_alert, b"own"))
    send(stack, before(b"", b"none"))
    send(stack, b"the socket's", flags=0)
    assert sent(stack) == [(router_alert, b"own"), (b"", b"none"), (NOP4, b"the socket's")]
    assert stack.counted("udp")["packets_out"] == 3


def test_our_address_and_the_time_are_recorded_as_a_host_on_the_way_would(stack):
    stack.declares(1, bind=True, port=PORT)
    for options in (ROUTE, STAMP, bytes((68, 8, 9, 0)) + bytes(4)):
        send(stack, before(options, b""))
    ((route, _), (stamp, _), (full, _)) = sent(stack)
    assert route == bytes((7, 11, 8)) + ip4(ME) + bytes(5)
    assert stamp == bytes((68, 12, 13, 1)) + ip4(ME) + pack("!I", int(stack.now * 1000))
    assert full == bytes((68, 8, 9, 0)) + bytes(4)  # a host that finds no room counts that; the sender does not


@pytest.mark.parametrize(("options", "number"), [
    (bytes((131, 7, 4)) + ip4(PEER) + b"\0", DENIED), (b"\x5e\x04ab", INVALID), (b"\x07\x02\0\0", INVALID)])
def test_options_that_may_not_be_sent_are_told_to_the_socket(stack, options, number):
    stack.declares(1, bind=True, port=PORT)
    send(stack, before(options, b"payload"))
    assert stack.sent() == []
    ((told, _, record),) = [entry for entry in stack.told if entry[1] == messages.SOCKET_ERROR]
    assert (told, SocketError.of(record).errno, record[SocketError.of(record).octets :]) == (
        topology.UDP,
        number,
        b"payload",
    )
    assert stack.dropped("udp") == {"send_bad_options": 1}


@pytest.mark.parametrize("data", [b"", b"\x04\x01\x01\x01", b"\x03\x01\x01\x01x", b"\x2c" + bytes(60)])
def test_a_record_without_the_options_that_it_announces_is_dropped(stack, data):
    stack.declares(1, bind=True, port=PORT)
    send(stack, data)
    assert stack.sent() == []
    assert stack.dropped("udp") == {"send_malformed": 1}


@pytest.mark.parametrize("options", [NOP4, None])
def test_datagrams_in_one_piece_are_cut_for_their_options(stack, options):
    """UDP_SEGMENT, with options of the socket's or in front of each payload."""
    stack.declares(1, bind=True, port=PORT, ip_options=NOP4)
    parts = [b"aaaa", b"bbbb", b"c"]
    pieces = [part if options is None else before(options, part) for part in parts]
    size = SEGMENT_SIZE.pack(len(pieces[0]))
    send(stack, size + b"".join(pieces), messages.SEND_SEGMENTS, 0 if options is None else SEND_OPTIONS)
    assert sent(stack) == [(NOP4, part) for part in parts]


def test_options_take_their_room_from_the_payload(stack):
    stack.declares(1, bind=True, port=PORT)
    for octets in (65503, 65504):
        send(stack, before(NOP4, bytes(octets)))
    assert stack.dropped("udp") == {"send_too_long": 1}
    fragments = [IP(frame[14:]) for frame in stack.sent()]
    assert sum(len(fragment.payload) for fragment in fragments) == 65503 + 8


def with_header(options: bytes, port: int = PORT, segment=None) -> bytes:
    """A packet to us with these options."""
    segment = UDP(sport=PEER_PORT, dport=port) / Raw(b"payload") if segment is None else segment
    return bytes(IP(src=PEER, dst=ME, id=7, options=IPOption(options) if options else []) / segment)


def comes(stack: Stack, packet: bytes) -> list[bytes]:
    """The frames that answer it."""
    return stack.hears(Ether(src=PEER_MAC, dst=MY_MAC, type=0x0800) / Raw(packet))


def test_rfc1122_4_1_3_2_a_socket_that_asks_is_told_the_options_that_came(stack):
    stack.declares(1, bind=True, port=PORT, receive_options=True)
    stack.told.clear()
    for options in (NOP4, b"\x5e\x04ab", ROUTE, b""):
        comes(stack, with_header(options))
    assert [(kind, record[DATAGRAM_HEADER.size :]) for _, kind, record in stack.told] == [
        (messages.DATAGRAM_OPTIONS, before(NOP4, b"payload")),
        (messages.DATAGRAM_OPTIONS, before(b"\x5e\x04ab", b"payload")),
        (messages.DATAGRAM_OPTIONS, before(bytes((7, 11, 8)) + ip4(ME) + bytes(5), b"payload")),
        (messages.DATAGRAM, b"payload")]
    assert (stack.counted("udp")["packets_in"], stack.counted("udp")["delivered"]) == (4, 4)


def test_a_socket_that_does_not_ask_gets_the_datagram_alone(stack):
    stack.declares(1, bind=True, port=PORT)
    comes(stack, with_header(NOP4))
    assert stack.received() == [(1, PEER, PEER_PORT, b"payload")]


def test_rfc1122_3_2_2_an_error_quotes_the_options_as_they_came(stack):
    packet = with_header(NOP4, port=77)
    (frame,) = comes(stack, packet)
    error = IP(frame[14:])
    assert (error[ICMP].type, error[ICMP].code) == (3, 3)
    assert bytes(error[ICMP].payload) == packet


def test_a_header_that_is_longer_than_its_packet_is_counted(stack):
    """No other layer lets it come so far."""
    packet = b"\x4f" + with_header(b"")[1:]
    stack.tells("udp", topology.IP, messages.PACKET, up(packet))
    assert stack.dropped("udp") == {"packet_truncated": 1}


def test_a_ping_socket_sends_and_is_told_options(stack):
    stack.declares(1, "icmp", bind=True, port=77, ip_options=ROUTE, receive_options=True)
    stack.told.clear()
    stack.sends(1, b"\x08\0" + bytes(6) + b"data", PEER, layer="icmp")
    (frame,) = stack.sent()
    request = IP(frame[14:])
    assert frame[34 : 14 + request.ihl * 4] == bytes((7, 11, 8)) + ip4(ME) + bytes(5)
    reply = ICMP(type=0, id=77) / Raw(b"data")
    comes(stack, with_header(NOP4, segment=reply))
    comes(stack, with_header(b"", segment=reply))
    assert [(kind, record[DATAGRAM_HEADER.size :]) for _, kind, record in stack.told] == [
        (messages.DATAGRAM_OPTIONS, before(NOP4, bytes(reply))), (messages.DATAGRAM, bytes(reply))]


# -- raw ---------------------------------------------------------------------------------------------------------------


class RawLayer:
    def __init__(self, **fields) -> None:
        config = StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=bytes(6))
        self.core = Raws(config, {}, RawCounters.new(), random.Random(1))
        self.core.start(0.0)
        state = SocketState(handle=1, request=1, protocol=253, **fields)
        self.core.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(state)], 0.0)

    def sends(self, data: bytes, flags: int = 0) -> tuple:
        """(flag, options, payload), or (errno, data)."""
        head = datagram_header(1, ip4(PEER), 0, bytes(4), 0, 0, flags)
        ((_, kind, record),) = self.core.receive(topology.SOCKETS, messages.SEND, [head + data], 0.0)
        if kind == messages.SOCKET_ERROR:
            return SocketError.of(record).errno, record[SocketError.of(record).octets :]
        header, options, payload = transmitted(record)
        return header[5] & TRANSMIT_RECORD, options, payload


def test_a_raw_socket_sends_any_options():
    any_option = b"\x5e\x04ab"
    assert RawLayer(ip_options=any_option).sends(b"data") == (TRANSMIT_RECORD, any_option, b"data")
    assert RawLayer().sends(before(any_option, b"data"), SEND_OPTIONS) == (
        TRANSMIT_RECORD, any_option, b"data")
    assert RawLayer(ip_options=NOP4).sends(before(b"", b"data"), SEND_OPTIONS) == (0, b"", b"data")
    assert RawLayer().sends(before(b"\x83\x07\x04abcd\0", b"data"), SEND_OPTIONS)[0] == DENIED
    assert RawLayer().sends(b"\x05", SEND_OPTIONS)[0] == INVALID


def test_a_whole_packet_has_its_options_in_its_header():
    """Linux, raw_sendmsg."""
    packet = bytes(IP(src=ME, dst=PEER, proto=253) / Raw(b"data"))
    assert RawLayer(header_included=True).sends(packet)[0] == 0
    assert RawLayer(header_included=True, ip_options=NOP4).sends(packet) == (INVALID, packet)
    assert RawLayer(header_included=True).sends(before(NOP4, packet), SEND_OPTIONS)[0] == INVALID


def test_options_that_are_no_words_are_no_sockets():
    layer = RawLayer(ip_options=b"\x01")
    head = datagram_header(1, ip4(PEER), 0, bytes(4), 0, 0, 0)
    assert layer.core.receive(topology.SOCKETS, messages.SEND, [head + b"data"], 0.0) == []


# -- the socket service ------------------------------------------------------------------------------------------------



def b64(octets: bytes) -> str:
    return b2a_base64(octets, newline=False).decode()


def test_the_options_of_a_socket_are_stored_and_told():
    service = Bench()
    handle = service.bound(PORT)
    option = {"handle": handle, "level": 0, "name": 4}
    whole = service.ask("prepare", handle=handle, address=PEER, port=9)["mtu"]
    assert service.ask("setsockopt", **option, value=b64(b"\x01"))["value"] == 4
    service.crash()
    assert service.ask("getsockopt", **option)["octets"] == b64(b"\x01\0\0\0")
    for op in ("prepare", "connect"):
        assert service.ask(op, handle=handle, address=PEER, port=9)["mtu"] == whole - 4
    for refused, number in ((b64(b"\x5e\x04ab"), INVALID), (5, INVALID), (b64(b"\x83\x07\x04abcd"), DENIED)):
        assert service.ask("setsockopt", **option, value=refused)["errno"] == number
    assert service.ask("setsockopt", **option, value="")["value"] == 0
    assert service.ask("getsockopt", **option)["octets"] == ""


def test_options_received_cost_no_receive_buffer():
    service = Bench()
    handle = service.bound(PORT)
    service.ask("setsockopt", handle=handle, level=1, name=8, value=1)  # SO_RCVBUF: the least that there is
    head = datagram_header(handle, ip4(PEER), 9, ip4(ME), 64, 0)
    room = 2304 // (DATAGRAM_OVERHEAD + 500)

    def deliver() -> list[int]:
        record = head + before(NOP4 * 10, bytes(500))
        return [kind for _, kind, _ in service.core.receive(topology.UDP, messages.DATAGRAM_OPTIONS, [record], 0.0)]

    assert [deliver() for _ in range(room + 2)] == [[messages.DATAGRAM_OPTIONS]] * room + [[messages.CREDIT], []]
    for nonsense in (b"", head, head + b"\x04ab", bytes(4) + head[4:] + b"\0payload"):
        assert service.core.receive(topology.UDP, messages.DATAGRAM_OPTIONS, [nonsense], 0.0) == []


# -- the library -------------------------------------------------------------------------------------------------------

RECVOPTS, RETOPTS = 6, 7


def test_ancillary_data_of_options_is_as_linux_makes_it():
    head = datagram_header(1, ip4(PEER), 9, ip4(ME), 64, 0)
    both = cmsg.OPTIONS_WANTED
    record = cmsg.with_options(head + before(ROUTE + NOP4, b"payload"))
    assert record == head + b"payload"
    assert cmsg.told(both, record, ip4(ME)) == [(0, RECVOPTS, ROUTE + NOP4), (0, RETOPTS, ROUTE)]
    nothing_to_echo = cmsg.with_options(head + before(NOP4, b"payload"))
    assert cmsg.told(both, nothing_to_echo, ip4(ME)) == [(0, RECVOPTS, NOP4), (0, RETOPTS, b"")]
    assert cmsg.told(both, head + b"payload", ip4(ME)) == []
    assert cmsg.with_options(head + b"\x09") is None
    packet = with_header(NOP4)
    assert cmsg.told(both, head + packet, ip4(ME), raw=True) == [(0, RECVOPTS, NOP4), (0, RETOPTS, b"")]


def test_options_in_ancillary_data_to_send():
    assert cmsg.steering([(0, RETOPTS, b"\x01")]).options == b"\x01\0\0\0"
    assert cmsg.steering([(0, RETOPTS, b"\x01" * 44)]).options == b"\x01" * 40  # Linux takes 40 of them
    assert cmsg.steering([(0, RETOPTS, b"")]).options == b""
    header = datagram_header(1, ip4(PEER), 9, bytes(4), 0, 0, 0)
    assert DATAGRAM_HEADER.unpack(cmsg.Steering(options=b"").header(header))[2] == SEND_OPTIONS
    for kind, value, number in ((RETOPTS, b"\x5e\x04ab", INVALID), (RETOPTS, b"\x83\x07\x04abcd", DENIED),
                                (RECVOPTS, NOP4, INVALID)):
        with pytest.raises(OSError) as refusal:
            cmsg.steering([(0, kind, value)])
        assert refusal.value.errno == number
    assert cmsg.steering([(0, RETOPTS, b"\x5e\x04ab")], privileged=True).options == b"\x5e\x04ab"


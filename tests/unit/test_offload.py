"""Checksum and segmentation offload, from the frame at the TAP to the record at the application; scapy is the judge."""

from __future__ import annotations

import base64
import json
import random
from ipaddress import IPv4Address
from itertools import pairwise
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from scapy.utils import rdpcap

from bus import messages, topology
from bus.config import CHECKSUM, SEGMENTATION, StackConfig
from bus.messages import (
    DATAGRAM_HEADER,
    DATAGRAM_OVERHEAD,
    ICMP_ERROR_HEADER,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    SEND_HEADER,
    SUPER_HEADER,
    TRANSMIT_DONT_FRAGMENT,
    TRANSMIT_HEADER,
    TRANSMIT_MAY_FRAGMENT,
    TRANSMIT_PARTIAL,
    SocketState,
    encode,
)
from layers.ip.core import Core as Ip
from layers.ip.counters import Counters as IpCounters
from layers.link.core import Core as Link
from layers.link.counters import Counters as LinkCounters
from layers.sockets.core import Core as Sockets
from layers.sockets.counters import Counters as SocketsCounters
from layers.sockets.tables import RECEIVE_BUFFER_DEFAULT
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters
from packets import offload
from supervisor.poison import write_poison
from usernet.sockets.sendmmsg import RUN_OCTETS_MAX, Runs

ME, PEER = "10.0.0.2", "10.0.0.1"
MAC, PEER_MAC = bytes.fromhex("02005e000002"), bytes.fromhex("02005e000001")
EVERYTHING = (CHECKSUM, SEGMENTATION)
VIRTIO = Struct("=BBHHHH")  # flags, GSO type, header length, GSO size, checksum start, checksum offset
PLAIN, PARTIAL = VIRTIO.pack(0, 0, 0, 0, 0, 0), VIRTIO.pack(1, 0, 0, 0, 34, 6)
CLIENT = topology.CLIENT_ID_MIN + 1
SIZES = st.integers(1, 1472).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, 6 * size)))


def config(*kinds: str, mtu: int = 1500) -> StackConfig:
    return StackConfig(name="t", run_dir="", address=int(IPv4Address(ME)), prefix=24, mac=MAC, mtu=mtu, offload=kinds)


def octets(address: str) -> bytes:
    return IPv4Address(address).packed


def datagram(payload: bytes, source: str = PEER, destination: str = ME, sport: int = 9, dport: int = 7, **ip) -> bytes:
    """A packet as a wire carries it."""
    return bytes(IP(src=source, dst=destination, id=0, flags="DF", **ip) / UDP(sport=sport, dport=dport) / Raw(payload))


def partial(packet: bytes) -> bytes:
    """The same as Linux hands it over: the sum of the pseudo header (RFC 768) in the checksum's place."""
    start = (packet[0] & 15) * 4
    length = len(packet) - start
    total = sum(packet[at] << 8 | packet[at + 1] for at in range(12, 20, 2)) + 17 + length
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[: start + 6] + total.to_bytes(2, "big") + packet[start + 8 :]


def summed_anew(packet: bytes) -> bytes:
    taken_apart = IP(packet)
    del taken_apart.chksum, taken_apart[UDP].chksum
    return bytes(taken_apart)


def cut(payload: bytes, size: int) -> list[bytes]:
    return [payload[start : start + size] for start in range(0, len(payload), size)]


def payload_of(count: int) -> bytes:
    return random.Random(count).randbytes(count)


# -- packets with and without ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_rfc768_a_partial_checksum_completed_is_the_one_that_a_wire_carries(payload):
    whole = datagram(payload)
    assert offload.settled(partial(whole)) == whole
    assert offload.settled(whole) == whole, "one that is right is left alone"


def test_rfc768_no_checksum_is_left_alone():
    none = bytes(IP(src=PEER, dst=ME) / UDP(sport=1, dport=2, chksum=0) / b"data")
    assert offload.settled(none) == none


def test_rfc768_a_sum_of_zero_becomes_all_ones():
    whole = datagram(datagram(bytes(2))[26:28])  # what a sum lacks to all ones, in place of the zeros that it was over
    assert whole[26:28] == b"\xff\xff"
    assert offload.settled(partial(whole)) == whole


@settings(deadline=None)
@given(SIZES)
def test_a_super_packet_is_cut_into_what_its_sender_would_have_sent(sizes):
    size, total = sizes
    payload = payload_of(total)
    whole = bytes(IP(src=PEER, dst=ME, id=65534) / UDP(sport=9, dport=7) / Raw(payload))
    expected = [bytes(IP(src=PEER, dst=ME, id=(65534 + number) & 0xFFFF) / UDP(sport=9, dport=7) / Raw(part))
                for number, part in enumerate(cut(payload, size))]
    assert offload.packets(partial(whole), size) == expected


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 65535))
def test_nothing_raises_whatever_the_octets(junk, size):
    offload.complete(junk)
    offload.settled(junk)
    offload.packets(junk, size)
    offload.segments(junk, size)


def test_a_captured_poison_record_is_as_a_wire_would_show_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    whole = datagram(b"data")
    frame = MAC + PEER_MAC + b"\x08\x00" + whole
    cases = (messages.ETHERNET, PARTIAL + frame, frame), (messages.PACKET_CHECKED, partial(whole), whole)
    for kind, record, shown in cases:
        message = {"kind": kind, "record": base64.b64encode(record).decode()}
        assert write_poison("t", "link", message, offload=True).read_bytes().endswith(shown)
    plain = {"kind": messages.ETHERNET, "record": base64.b64encode(frame).decode()}
    (caught,) = rdpcap(str(write_poison("t", "link", plain, offload=False)))
    assert bytes(caught) == frame


# -- link --------------------------------------------------------------------------------------------------------------


class LinkLayer:
    def __init__(self, *kinds: str) -> None:
        self.counters = LinkCounters.new()
        self.core = Link(config(*kinds), {}, self.counters, random.Random(1))

    def up(self, *frames: bytes) -> list:
        return self.core.receive(topology.DEVICE, messages.ETHERNET, list(frames), 0.0)

    def down(self, kind: int, record: bytes) -> list[bytes]:
        sends = self.core.receive(topology.IP, kind, [record], 0.0)
        assert all(send[:2] == (topology.DEVICE, messages.ETHERNET) for send in sends)
        return [frame for _, _, frame in sends]


def framed(header: bytes, packet: bytes, destination: bytes = MAC) -> bytes:
    return header + destination + PEER_MAC + b"\x08\x00" + packet


@pytest.fixture
def link() -> LinkLayer:
    return LinkLayer(*EVERYTHING)


def test_a_frame_as_on_a_wire_goes_up_as_without_offload(link):
    whole = datagram(b"data")
    assert link.up(framed(PLAIN, whole)) == [(topology.IP, messages.PACKET, whole)]
    arp = bytes(Ether(dst=MAC, src=PEER_MAC) / ARP())
    assert link.up(PLAIN + arp) == [(topology.ARP, messages.ARP_IN, arp[14:])]


def test_a_partial_udp_checksum_goes_up_as_it_is(link):
    packet = partial(datagram(b"data"))
    assert link.up(framed(PARTIAL, packet)) == [(topology.IP, messages.PACKET_CHECKED, packet)]


def test_a_checksum_that_the_kernel_verified_is_not_verified_again(link):
    valid = VIRTIO.pack(2, 0, 0, 0, 0, 0)
    assert link.up(framed(valid, datagram(b"data"))) == [(topology.IP, messages.PACKET_CHECKED, datagram(b"data"))]
    other = bytes(IP(src=PEER, dst=ME) / TCP())
    assert link.up(framed(valid, other)) == [(topology.IP, messages.PACKET, other)]


def test_other_partial_checksums_are_completed_here(link):
    for protocol, start, offset in ((TCP(), 34, 16), (UDP() / b"odd", 38, 6)):
        options = [IPOption_NOP()] * 4 if start == 38 else []
        whole = bytes(IP(src=PEER, dst=ME, options=options) / protocol)
        size = (len(whole) - start + 14).to_bytes(2, "big")
        pseudo = sum(int.from_bytes(part, "big") for part in
                     (whole[12:14], whole[14:16], whole[16:18], whole[18:20], size)) + whole[9]
        at = start - 14 + offset
        given_up = whole[:at] + (pseudo % 65535).to_bytes(2, "big") + whole[at + 2 :]
        header = VIRTIO.pack(1, 0, 0, 0, start, offset)
        assert link.up(framed(header, given_up)) == [(topology.IP, messages.PACKET, whole)]


def test_groups_get_whole_checksums(link):
    whole = datagram(b"data", destination="10.0.0.255")
    assert link.up(framed(PARTIAL, partial(whole), b"\xff" * 6)) == [(topology.IP, messages.PACKET_GROUP, whole)]


def test_a_super_packet_goes_up_in_one_piece_however_long(link):
    packet = partial(datagram(payload_of(40_000)))
    header = VIRTIO.pack(1, 5, 42, 1000, 34, 6)
    assert link.up(framed(header, packet)) == [
        (topology.IP, messages.PACKET_SEGMENTS, SUPER_HEADER.pack(1000, 0) + packet)
    ]
    assert link.up(framed(PLAIN, packet)) == []
    assert link.counters[LinkCounters.oversize] == 1


@pytest.mark.parametrize("header", [
    VIRTIO.pack(1, 0, 0, 0, 34, 600), VIRTIO.pack(1, 0, 0, 0, 3, 6), VIRTIO.pack(1, 0, 0, 0, 65535, 65535),
    VIRTIO.pack(1, 1, 0, 1000, 34, 16), VIRTIO.pack(1, 5, 0, 0, 34, 6), VIRTIO.pack(0, 5, 0, 100, 34, 6)])
def test_what_no_packet_can_be_is_dropped_and_counted(link, header):
    assert link.up(framed(header, datagram(b"data"))) == []
    assert link.counters[LinkCounters.bad_offload] == 1


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80) | st.builds(framed, st.binary(min_size=10, max_size=10), st.binary(max_size=60),
                                                   st.sampled_from([MAC, b"\xff" * 6]))))
def test_every_frame_goes_up_or_is_counted(frames):
    link = LinkLayer(CHECKSUM)
    sends = link.up(*frames)
    values = LinkCounters.read(link.counters)
    drops = sum(count for name, count in values.items() if LinkCounters.declared[name].role == "drop")
    assert len(sends) + drops == values["frames_in"] == len(frames)


def test_frames_down_say_what_is_left_to_the_kernel(link):
    whole = datagram(b"data", ME, PEER)
    frame = PEER_MAC + MAC + b"\x08\x00" + whole
    assert link.down(messages.PACKET_OUT, PEER_MAC + whole) == [PLAIN + frame]
    assert link.down(messages.PACKET_OUT_PARTIAL, PEER_MAC + whole) == [PARTIAL + frame]
    assert link.down(messages.PACKET_OUT_SEGMENTS, SEGMENT_SIZE.pack(2) + PEER_MAC + whole) == [
        VIRTIO.pack(1, 5, 42, 2, 34, 6) + frame]
    for record in (b"", SEGMENT_SIZE.pack(0) + PEER_MAC + whole, SEGMENT_SIZE.pack(5) + PEER_MAC):
        assert link.down(messages.PACKET_OUT_SEGMENTS, record) == []
    assert link.counters[LinkCounters.bad_request] == 3


def test_a_device_without_offload_is_never_given_a_header():
    plain = LinkLayer()
    whole = datagram(b"data", ME, PEER)
    assert plain.down(messages.PACKET_OUT, PEER_MAC + whole) == [PEER_MAC + MAC + b"\x08\x00" + whole]
    assert plain.down(messages.PACKET_OUT_PARTIAL, PEER_MAC + whole) == []
    assert plain.down(messages.PACKET_OUT_SEGMENTS, SEGMENT_SIZE.pack(2) + PEER_MAC + whole) == []


# -- ip ----------------------------------------------------------------------------------------------------------------


class IpLayer:
    def __init__(self, *kinds: str, mtu: int = 1500, resolved: bool = True) -> None:
        self.counters = IpCounters.new()
        self.core = Ip(config(*kinds, mtu=mtu), {}, self.counters, random.Random(1))
        self.core.start(0.0)
        if resolved:
            self.resolve()

    def resolve(self) -> list:
        return self.core.receive(topology.ARP, messages.NEIGHBOR, [octets(PEER) + PEER_MAC], 0.0)

    def up(self, kind: int, record: bytes) -> list:
        return self.core.receive(topology.LINK, kind, [record], 0.0)

    def down(self, payload: bytes, size: int = 0, to: str = PEER, flags: int = TRANSMIT_DONT_FRAGMENT) -> list:
        """With `size`, as segments of that."""
        segment = partial(datagram(payload, ME, to))[20:]
        header = TRANSMIT_HEADER.pack(octets(ME), octets(to), 17, 64, 0, flags | TRANSMIT_PARTIAL)
        if size:
            record = SEGMENT_SIZE.pack(size) + header + segment
            return self.core.receive(topology.UDP, messages.TRANSMIT_SEGMENTS, [record], 0.0)
        return self.core.receive(topology.UDP, messages.TRANSMIT, [header + segment], 0.0)


def test_checked_packets_are_passed_on_as_checked():
    ip, packet = IpLayer(), partial(datagram(b"data"))
    assert ip.up(messages.PACKET_CHECKED, packet) == [(topology.UDP, messages.PACKET_CHECKED, packet)]


def test_what_was_said_of_a_fragment_is_not_said_of_the_packet():
    ip, whole = IpLayer(), bytes(IP(src=PEER, dst=ME, id=5) / UDP(sport=9, dport=7) / Raw(bytes(100)))
    first, last = (bytes(each) for each in IP(whole).fragment(64))
    assert ip.up(messages.PACKET_CHECKED, first) == []
    ((to, kind, packet),) = ip.up(messages.PACKET_CHECKED, last)
    assert (to, kind, packet[20:]) == (topology.UDP, messages.PACKET, whole[20:])


def test_a_broadcast_in_a_frame_for_us_has_its_checksum_completed():
    whole = datagram(b"data", destination="10.0.0.255")
    assert IpLayer().up(messages.PACKET_CHECKED, partial(whole)) == [(topology.UDP, messages.PACKET_GROUP, whole)]


def test_a_super_packet_goes_up_in_one_piece():
    ip, packet = IpLayer(), partial(datagram(payload_of(2500)))
    record = SUPER_HEADER.pack(1000, 0) + packet
    assert ip.up(messages.PACKET_SEGMENTS, record) == [(topology.UDP, messages.PACKET_SEGMENTS, record)]
    assert ip.counters[IpCounters.packets_in] == 3


@pytest.mark.parametrize(("group", "fields"), [
    (1, {"destination": "10.0.0.255"}), (0, {"destination": "10.0.0.255"}), (0, {"options": [IPOption_NOP()] * 4})])
def test_super_packets_that_udp_cannot_take_so_are_cut(group, fields):
    payload = payload_of(2500)
    sends = IpLayer().up(
        messages.PACKET_SEGMENTS, SUPER_HEADER.pack(1000, group) + partial(datagram(payload, **fields))
    )
    assert [IP(packet)[UDP].load for _, _, packet in sends] == cut(payload, 1000)
    reach = messages.PACKET_GROUP if "destination" in fields else messages.PACKET
    assert {send[:2] for send in sends} == {(topology.UDP, reach)}
    assert all(packet == summed_anew(packet) for _, _, packet in sends)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_super_packet_raises(junk):
    IpLayer().up(messages.PACKET_SEGMENTS, junk)
    IpLayer().core.receive(topology.UDP, messages.TRANSMIT_SEGMENTS, [junk], 0.0)


def test_a_partial_checksum_goes_out_partial_where_the_device_completes_it():
    ((to, kind, record),) = IpLayer(CHECKSUM).down(b"data")
    assert (to, kind, record) == (
        topology.LINK,
        messages.PACKET_OUT_PARTIAL,
        PEER_MAC + partial(datagram(b"data", ME, PEER)),
    )


def test_a_partial_checksum_is_completed_here_where_it_does_not():
    ((to, kind, record),) = IpLayer().down(b"data")
    assert (to, kind, record) == (topology.LINK, messages.PACKET_OUT, PEER_MAC + datagram(b"data", ME, PEER))


def test_a_packet_that_waits_or_is_fragmented_has_its_whole_checksum():
    ip = IpLayer(*EVERYTHING, resolved=False)
    assert [send[:2] for send in ip.down(b"data")] == [(topology.ARP, messages.RESOLVE)]
    assert ip.resolve() == [(topology.LINK, messages.PACKET_OUT, PEER_MAC + datagram(b"data", ME, PEER))]
    payload = payload_of(3000)
    sends = ip.down(payload, flags=TRANSMIT_MAY_FRAGMENT)
    assert {send[:2] for send in sends} == {(topology.LINK, messages.PACKET_OUT)}
    whole = b"".join(record[26:] for _, _, record in sends)
    assert whole == datagram(payload, ME, PEER)[20:]


def test_what_stays_in_the_host_is_neither_summed_nor_verified():
    assert IpLayer().down(b"data", to=ME) == [
        (topology.UDP, messages.PACKET_CHECKED, partial(datagram(b"data", ME, ME)))
    ]
    payload = payload_of(5000)
    super_packet = SUPER_HEADER.pack(1000, 0) + partial(datagram(payload, ME, ME))
    assert IpLayer().down(payload, 1000, to=ME) == [(topology.UDP, messages.PACKET_SEGMENTS, super_packet)]


def test_segments_go_out_as_one_super_packet():
    ip, payload = IpLayer(*EVERYTHING), payload_of(5001)
    packet = PEER_MAC + partial(datagram(payload, ME, PEER))
    assert ip.down(payload, 1472) == [(topology.LINK, messages.PACKET_OUT_SEGMENTS, SEGMENT_SIZE.pack(1472) + packet)]
    assert ip.counters[IpCounters.packets_out] == 4


def test_rfc791_3_2_identification_numbers_of_a_super_packet_are_not_used_again():
    ip = IpLayer(*EVERYTHING)
    numbers = [int.from_bytes(record[12:14], "big") for size in (100, 100, 100)
               for _, _, record in ip.down(bytes(1000), size, flags=TRANSMIT_MAY_FRAGMENT)]
    assert [(after - before) & 0xFFFF for before, after in pairwise(numbers)] == [10, 10]


@pytest.mark.parametrize(("kinds", "kind"), [((CHECKSUM,), messages.PACKET_OUT_PARTIAL), ((), messages.PACKET_OUT)])
def test_segments_are_cut_here_where_the_device_does_not(kinds, kind):
    payload = payload_of(5001)
    sends = IpLayer(*kinds).down(payload, 1472)
    assert {send[:2] for send in sends} == {(topology.LINK, kind)}
    assert [offload.settled(record[6:]) for _, _, record in sends] == [
        datagram(part, ME, PEER) for part in cut(payload, 1472)]


def test_rfc791_3_2_each_segment_has_the_mtu_to_itself():
    payload = payload_of(3000)
    fragments = IpLayer(*EVERYTHING, mtu=600).down(payload, 1000, flags=TRANSMIT_MAY_FRAGMENT)
    assert {send[:2] for send in fragments} == {(topology.LINK, messages.PACKET_OUT)}
    assert all(len(record) <= 606 for _, _, record in fragments)
    assert sum(len(record) - 26 for _, _, record in fragments) == 3000 + 3 * 8
    told = IpLayer(*EVERYTHING, mtu=600).down(payload, 1000)
    assert [send[:2] for send in told] == [(topology.UDP, messages.ICMP_ERROR)] * 3


def test_segments_wait_for_their_neighbour_one_by_one():
    ip, payload = IpLayer(*EVERYTHING, resolved=False), payload_of(2000)
    assert [send[:2] for send in ip.down(payload, 1000)] == [(topology.ARP, messages.RESOLVE)]
    assert [record[6:] for _, _, record in ip.resolve()] == [datagram(part, ME, PEER) for part in cut(payload, 1000)]


# -- udp ---------------------------------------------------------------------------------------------------------------


class UdpLayer:
    """With one socket, handle 1, at port 7."""

    def __init__(self, *kinds: str) -> None:
        self.counters = UdpCounters.new()
        self.core = Udp(config(*kinds), {}, self.counters, random.Random(1))
        self.core.start(0.0)
        state = SocketState(handle=1, request=1, port=7, bind=True)
        self.core.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(state)], 0.0)

    def up(self, kind: int, record: bytes) -> list:
        return self.core.receive(topology.IP, kind, [record], 0.0)

    def down(self, payload: bytes, size: int = 0, to: str = PEER) -> list:
        header = SEND_HEADER.pack(1, octets(to), 9, bytes(4), 0, 0, 0)
        if size:
            record = header + SEGMENT_SIZE.pack(size) + payload
            return self.core.receive(topology.SOCKETS, messages.SEND_SEGMENTS, [record], 0.0)
        return self.core.receive(topology.SOCKETS, messages.SEND, [header + payload], 0.0)


HEAD = DATAGRAM_HEADER.pack(1, octets(PEER), 9, octets(ME), 64, 0)


def test_a_checked_packet_is_not_verified_and_any_other_is():
    udp, packet = UdpLayer(*EVERYTHING), partial(datagram(b"data"))
    assert udp.up(messages.PACKET_CHECKED, packet) == [(topology.SOCKETS, messages.DATAGRAM, HEAD + b"data")]
    assert udp.up(messages.PACKET, packet) == []
    assert udp.counters[UdpCounters.bad_checksum] == 1


def test_an_error_quotes_the_packet_as_a_wire_would_have_carried_it():
    whole = datagram(b"data", dport=99)
    payload = payload_of(1000)
    first = datagram(payload[:400], dport=99)
    for kind, record, quoted in (
        (messages.PACKET_CHECKED, partial(whole), whole),
        (messages.PACKET_CHECKED, whole, whole),
        (messages.PACKET_SEGMENTS, SUPER_HEADER.pack(400, 0) + partial(datagram(payload, dport=99)), first),
    ):
        ((to, kind_out, report),) = UdpLayer().up(kind, record)
        assert (to, kind_out, report[ICMP_ERROR_HEADER.size :]) == (topology.ICMP, messages.REPORT_ERROR, quoted)


def test_a_super_packet_is_one_record_for_its_socket():
    udp, payload = UdpLayer(), payload_of(2500)
    record = SUPER_HEADER.pack(1000, 0) + partial(datagram(payload))
    assert udp.up(messages.PACKET_SEGMENTS, record) == [
        (topology.SOCKETS, messages.DATAGRAM_SEGMENTS, HEAD + SEGMENT_SIZE.pack(1000) + payload)]
    assert udp.counters[UdpCounters.delivered] == 3
    assert udp.up(messages.PACKET_SEGMENTS, record + b"more") == []
    assert udp.counters[UdpCounters.bad_length] == 1


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_segments_raise(junk):
    udp = UdpLayer(*EVERYTHING)
    udp.up(messages.PACKET_SEGMENTS, junk)
    udp.up(messages.PACKET_CHECKED, junk)
    udp.core.receive(topology.SOCKETS, messages.SEND_SEGMENTS, [junk], 0.0)


@pytest.mark.parametrize(("kinds", "to", "is_partial"), [((), PEER, False), ((CHECKSUM,), PEER, True), ((), ME, True)])
def test_rfc768_only_what_goes_to_a_wire_is_summed_here(kinds, to, is_partial):
    ((_, kind, record),) = UdpLayer(*kinds).down(b"data", to=to)
    flags = TRANSMIT_HEADER.unpack_from(record)[5]
    whole = datagram(b"data", ME, to, 7, 9)
    assert (kind, bool(flags & TRANSMIT_PARTIAL)) == (messages.TRANSMIT, is_partial)
    assert record[TRANSMIT_HEADER.size :] == (partial(whole) if is_partial else whole)[20:]


def test_segments_go_on_in_one_piece_where_they_need_no_sums():
    payload = payload_of(2500)
    ((to, kind, record),) = UdpLayer(CHECKSUM).down(payload, 1000)
    assert (to, kind, record[:2]) == (topology.IP, messages.TRANSMIT_SEGMENTS, SEGMENT_SIZE.pack(1000))
    assert record[2 + TRANSMIT_HEADER.size :] == partial(datagram(payload, ME, PEER, 7, 9))[20:]
    sends = UdpLayer().down(payload, 1000)
    assert {send[:2] for send in sends} == {(topology.IP, messages.TRANSMIT)}
    assert [record[TRANSMIT_HEADER.size :] for _, _, record in sends] == [
        datagram(part, ME, PEER, 7, 9)[20:] for part in cut(payload, 1000)]


def test_segments_beyond_the_limits_are_refused():
    udp = UdpLayer(CHECKSUM)
    assert udp.down(bytes(SEGMENTS_MAX), 1) != []
    assert udp.down(bytes(SEGMENTS_MAX + 1), 1) == udp.down(bytes(65508), 1000) == []
    assert udp.counters[UdpCounters.send_too_long] == 2


# -- sockets and the library -------------------------------------------------------------------------------------------


def service(segments: bool) -> tuple[Sockets, list[int]]:
    counters = SocketsCounters.new()
    core = Sockets(config(), {}, counters, random.Random(1))
    core.client_joined(CLIENT, {"pid": 1}, 0.0)
    for request in ({"op": "socket", "type": "dgram", "segments": segments}, {"op": "socket", "type": "ping"}):
        request["id"] = 1 + (request["type"] == "ping")
        core.receive(CLIENT, messages.REQUEST, [json.dumps(request).encode()], 0.0)
    return core, counters


def test_an_application_that_did_not_ask_for_segments_gets_datagrams():
    payload = payload_of(2500)
    record = HEAD + SEGMENT_SIZE.pack(1000) + payload
    for segments in (True, False):
        core, counters = service(segments)
        sends = core.receive(topology.UDP, messages.DATAGRAM_SEGMENTS, [record], 0.0)
        whole = [(CLIENT, messages.DATAGRAM_SEGMENTS, record)]
        assert sends == (
            whole if segments else [(CLIENT, messages.DATAGRAM, HEAD + part) for part in cut(payload, 1000)]
        )
        assert counters[SocketsCounters.delivered] == 3
        listed = core.receive(CLIENT, messages.REQUEST, [b'{"id":9,"op":"list"}'], 0.0)
        assert json.loads(listed[0][2])["sockets"][0]["queued"] == 2500 + 3 * 256, "the same, however they came"


def test_a_buffer_takes_as_many_of_the_segments_as_it_has_room_for_and_counts_the_others():
    core, counters = service(True)
    record = HEAD + SEGMENT_SIZE.pack(1000) + bytes(60_000)
    told = [send for _ in range(4) for send in core.receive(topology.UDP, messages.DATAGRAM_SEGMENTS, [record], 0.0)]
    assert [kind for _, kind, _ in told] == [messages.DATAGRAM_SEGMENTS] * 3 + [messages.CREDIT]
    fitting = RECEIVE_BUFFER_DEFAULT // (1000 + DATAGRAM_OVERHEAD)
    assert told[2][2] == record[: len(HEAD) + SEGMENT_SIZE.size + (fitting - 120) * 1000]
    assert (counters[SocketsCounters.delivered], counters[SocketsCounters.buffer_full]) == (fitting, 240 - fitting)


def test_segments_are_for_udp_alone():
    core, counters = service(True)
    for handle, taken in ((1, True), (2, False), (3, False)):
        record = SEND_HEADER.pack(handle, octets(PEER), 9, bytes(4), 0, 0, 0) + SEGMENT_SIZE.pack(2) + b"1234"
        sends = core.receive(CLIENT, messages.SEND_SEGMENTS, [record], 0.0)
        assert sends == ([(topology.UDP, messages.SEND_SEGMENTS, record)] if taken else [])
    assert (counters[SocketsCounters.sent], counters[SocketsCounters.send_foreign]) == (2, 2)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_no_segments_raise_in_the_service(junk):
    core, _ = service(True)
    core.receive(topology.UDP, messages.DATAGRAM_SEGMENTS, [junk, HEAD + junk], 0.0)
    core.receive(CLIENT, messages.SEND_SEGMENTS, [junk], 0.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([0, 1, 500, 1000, 60_000])), max_size=300),
       st.booleans())
def test_runs_carry_every_datagram_in_order_and_within_the_limits(datagrams, segmenting):
    runs = Runs(segmenting)
    for number, (letter, octets_) in enumerate(datagrams):
        runs.add(letter * SEND_HEADER.size, bytes([number & 255]) * octets_)
    found = []
    for kind, records, count in runs.frames():
        before = len(found)
        assert kind == messages.SEND or segmenting
        for record in records:
            letter, body = record[:1], record[SEND_HEADER.size :]
            size = len(body)
            if kind == messages.SEND_SEGMENTS:
                (size,), body = SEGMENT_SIZE.unpack_from(body), body[SEGMENT_SIZE.size :]
                assert size < len(body) <= min(RUN_OCTETS_MAX, size * SEGMENTS_MAX)
            found += [(letter, part) for part in cut(body, size)] if size else [(letter, b"")]
        assert len(found) - before == count
    assert found == [(letter, bytes([number & 255]) * octets_) for number, (letter, octets_) in enumerate(datagrams)]

"""Checksum and segmentation offload, from the frame at the TAP to the record at the application; scapy is the judge."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from ipaddress import IPv4Address
from itertools import pairwise
from struct import Struct

import lengths
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import GROUP, KNOWN, LOOPED, OUT, REPORT, TRANSMIT, UP, from_link, out, transmit, transmitted, up
from records import PARTIAL as FLAG_PARTIAL
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from scapy.utils import rdpcap

from bus import messages, topology
from bus.config import CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION, StackConfig
from bus.messages import (
    DATAGRAM_HEADER,
    DATAGRAM_OVERHEAD,
    INTERFACE_INDEX,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    TRANSMIT_DONT_FRAGMENT,
    TRANSMIT_MAY_FRAGMENT,
    TRANSMIT_PARTIAL,
    SocketState,
    datagram_header,
    encode,
)
from layers.ip.core import Core as Ip
from layers.ip.counters import Counters as IpCounters
from layers.link.core import Core as Link
from layers.link.counters import Counters as LinkCounters
from layers.sockets.core import Core as Sockets
from layers.sockets.counters import Counters as SocketsCounters
from layers.sockets.entry import RECEIVE_BUFFER_DEFAULT
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters
from packets import offload
from packets.checksum import verifies
from supervisor.poison import write_poison
from usernet.sockets.sendmmsg import RUN_OCTETS_MAX, Runs

ME, PEER = "10.0.0.2", "10.0.0.1"
MAC, PEER_MAC = bytes.fromhex("02005e000002"), bytes.fromhex("02005e000001")
EVERYTHING = (CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION)
VIRTIO = Struct("=BBHHHH")  # flags, GSO type, header length, GSO size, checksum start, checksum offset
PLAIN, PARTIAL = VIRTIO.pack(0, 0, 0, 0, 0, 0), VIRTIO.pack(1, 0, 0, 0, 34, 6)
PARTIAL_TCP = VIRTIO.pack(1, 0, 0, 0, 34, 16)
CLIENT = topology.CLIENT_ID_MIN + 1
SIZES = st.integers(1, 1472).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, 6 * size)))


def config(*kinds: str, mtu: int = 1500) -> StackConfig:
    return StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=MAC, mtu=mtu, offload=kinds)


def octets(address: str) -> bytes:
    return IPv4Address(address).packed


def datagram(payload: bytes, source: str = PEER, destination: str = ME, sport: int = 9, dport: int = 7, **ip) -> bytes:
    """A packet as a wire carries it."""
    return bytes(IP(src=source, dst=destination, id=0, flags="DF", **ip) / UDP(sport=sport, dport=dport) / Raw(payload))


def partial(packet: bytes) -> bytes:
    """The same as Linux hands it over: the sum of the pseudo header (RFC 768) in the checksum's place."""
    start = (packet[0] & 15) * 4
    length = len(packet) - start
    total = sum(packet[at] << 8 | packet[at + 1] for at in range(12, 20, 2)) + packet[9] + length
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = start + (6 if packet[9] == 17 else 16)
    return packet[:at] + total.to_bytes(2, "big") + packet[at + 2 :]


def segment(payload: bytes, source: str = PEER, destination: str = ME, **ip) -> bytes:
    """A packet of TCP as a wire carries it."""
    tcp = TCP(sport=9, dport=7, seq=1000, ack=77, flags="PA", options=[("NOP", None)] * 12)
    return bytes(IP(src=source, dst=destination, id=0, flags="DF", **ip) / tcp / Raw(payload))


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
@given(lengths.octets(300))
@example(datagram(bytes(2))[26:28])  # with the checksum as its text it has the checksum 0, which is sent as all ones
def test_rfc768_a_partial_checksum_completed_is_the_one_that_a_wire_carries(payload):
    whole = datagram(payload)
    assert offload.completed(partial(whole), 17) == whole
    whole = segment(payload)
    assert offload.completed(partial(whole), 6) == whole


def test_a_protocol_without_a_checksum_of_that_kind_is_left_alone():
    whole = bytes(IP(src=PEER, dst=ME, proto=47) / b"data of another protocol")
    assert offload.completed(whole, 47) == whole


def test_rfc768_a_sum_of_zero_becomes_all_ones():
    whole = datagram(datagram(bytes(2))[26:28])  # what a sum lacks to all ones, in place of the zeros that it was over
    assert whole[26:28] == b"\xff\xff"
    assert offload.completed(partial(whole), 17) == whole


def test_a_sum_of_zero_stays_zero_in_a_tcp_segment():
    whole = segment(segment(bytes(2))[36:38])
    assert whole[36:38] == bytes(2)
    assert offload.completed(partial(whole), 6) == whole


@settings(deadline=None)
@given(SIZES)
def test_a_super_packet_is_cut_into_what_its_sender_would_have_sent(sizes):
    size, total = sizes
    payload = payload_of(total)
    whole = bytes(IP(src=PEER, dst=ME, id=65534) / UDP(sport=9, dport=7) / Raw(payload))
    expected = [bytes(IP(src=PEER, dst=ME, id=(65534 + number) & 0xFFFF) / UDP(sport=9, dport=7) / Raw(part))
                for number, part in enumerate(cut(payload, size))]
    assert offload.packets(partial(whole), 17, size) == expected


@settings(deadline=None)
@given(SIZES, st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.sampled_from([[], [("NOP", None)] * 12]))
def test_a_super_segment_is_cut_as_linux_cuts_it(sizes, sequence, flags, options):
    """Linux, tcp_gso_segment: sequence numbers go on, FIN and PSH with the last, CWR with the first."""
    size, total = sizes
    payload = payload_of(total)

    def packet(at: int, part: bytes, kept: int) -> bytes:
        tcp = TCP(sport=9, dport=7, seq=(sequence + at) & 0xFFFFFFFF, ack=77, window=5, urgptr=3, flags=kept,
                  options=options)
        return bytes(IP(src=PEER, dst=ME, id=(65534 + at // size) & 0xFFFF) / tcp / Raw(part))

    parts = cut(payload, size)
    expected = []
    for number, part in enumerate(parts):
        kept = flags & ~(0 if number == 0 else 0x80) & ~(0 if number == len(parts) - 1 else 0x09)
        expected.append(packet(number * size, part, kept))
    assert offload.packets(partial(packet(0, payload, flags)), 6, size) == expected


PACKETS = st.sampled_from([partial(datagram(bytes(60))), partial(segment(bytes(60)))])


@settings(deadline=None)
@given(lengths.octets(80) | lengths.damaged(PACKETS) | lengths.damaged(PACKETS.map(lambda packet: packet[20:])),
       st.integers(0, 70) | st.integers(0, 65535), st.sampled_from([6, 6, 17, 17, 1, 0, 255]))
def test_nothing_raises_whatever_the_octets(junk, size, protocol):
    offload.complete(junk, 6)
    offload.completed(junk, protocol)
    for each in offload.packets(junk, protocol, size):
        assert verifies(each[: (each[0] & 15) * 4])
    header = {6: junk[12] >> 4 << 2 if len(junk) >= 20 else 0, 17: 8}.get(protocol, 0)
    possible = size and header >= (20 if protocol == 6 else 8) and header < len(junk)
    assert bool(offload.segments(junk, protocol, size)) == bool(possible)


def test_a_captured_poison_record_is_as_a_wire_would_show_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    whole = datagram(b"data")
    frame = MAC + PEER_MAC + b"\x08\x00" + whole
    cases = (messages.ETHERNET, PARTIAL + frame, frame), (messages.PACKET, up(partial(whole), FLAG_PARTIAL), whole)
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

    def down(self, record: bytes) -> list[bytes]:
        sends = self.core.receive(topology.IP, messages.PACKET_OUT, [record], 0.0)
        assert all(send[:2] == (topology.DEVICE, messages.ETHERNET) for send in sends)
        return [frame for _, _, frame in sends]


def framed(header: bytes, packet: bytes, destination: bytes = MAC) -> bytes:
    return header + destination + PEER_MAC + b"\x08\x00" + packet


@pytest.fixture
def link() -> LinkLayer:
    return LinkLayer(*EVERYTHING)


def test_a_frame_as_on_a_wire_goes_up_as_without_offload(link):
    whole = datagram(b"data")
    assert link.up(framed(PLAIN, whole)) == [(topology.IP, messages.PACKET, from_link(whole))]
    arp = bytes(Ether(dst=MAC, src=PEER_MAC) / ARP())
    assert link.up(PLAIN + arp) == [(topology.ARP, messages.ARP_IN, arp[14:])]


@pytest.mark.parametrize(("destination", "flags"), [(MAC, FLAG_PARTIAL), (b"\xff" * 6, FLAG_PARTIAL | GROUP)])
def test_a_partial_checksum_goes_up_as_it_is(link, destination, flags):
    for header, whole in ((PARTIAL, datagram(b"data")), (PARTIAL_TCP, segment(b"data"))):
        record = from_link(partial(whole), flags)
        assert link.up(framed(header, partial(whole), destination)) == [(topology.IP, messages.PACKET, record)]


def test_a_checksum_that_the_kernel_verified_is_not_verified_again(link):
    valid = VIRTIO.pack(2, 0, 0, 0, 0, 0)
    for whole in (datagram(b"data"), segment(b"data")):
        assert link.up(framed(valid, whole)) == [(topology.IP, messages.PACKET, from_link(whole, KNOWN))]
    other = bytes(IP(src=PEER, dst=ME, proto=47) / b"data")
    assert link.up(framed(valid, other)) == [(topology.IP, messages.PACKET, from_link(other))]


def test_other_partial_checksums_are_completed_here(link):
    for protocol, start, offset in ((TCP(), 38, 16), (UDP() / b"odd", 38, 6)):
        options = [IPOption_NOP()] * 4 if start == 38 else []
        whole = bytes(IP(src=PEER, dst=ME, options=options) / protocol)
        size = (len(whole) - start + 14).to_bytes(2, "big")
        pseudo = sum(int.from_bytes(part, "big") for part in
                     (whole[12:14], whole[14:16], whole[16:18], whole[18:20], size)) + whole[9]
        at = start - 14 + offset
        given_up = whole[:at] + (pseudo % 65535).to_bytes(2, "big") + whole[at + 2 :]
        header = VIRTIO.pack(1, 0, 0, 0, start, offset)
        assert link.up(framed(header, given_up)) == [(topology.IP, messages.PACKET, from_link(whole))]


def test_a_super_packet_goes_up_in_one_piece_however_long(link):
    packet = partial(datagram(payload_of(40_000)))
    for header, whole in ((VIRTIO.pack(1, 5, 42, 1000, 34, 6), packet),
                          (VIRTIO.pack(1, 1, 66, 1000, 34, 16), partial(segment(payload_of(40_000))))):
        record = from_link(whole, FLAG_PARTIAL, 1000)
        assert link.up(framed(header, whole)) == [(topology.IP, messages.PACKET, record)]
    assert link.up(framed(PLAIN, packet)) == []
    assert link.counters[LinkCounters.oversize] == 1


@pytest.mark.parametrize("header", [
    VIRTIO.pack(1, 0, 0, 0, 34, 600), VIRTIO.pack(1, 0, 0, 0, 3, 6), VIRTIO.pack(1, 0, 0, 0, 65535, 65535),
    VIRTIO.pack(1, 1, 0, 1000, 34, 6), VIRTIO.pack(1, 4, 0, 1000, 34, 16),
    VIRTIO.pack(0, 1, 0, 1000, 34, 16), VIRTIO.pack(1, 5, 0, 0, 34, 6), VIRTIO.pack(0, 5, 0, 100, 34, 6)])
def test_an_impossible_super_packet_is_dropped_and_counted(link, header):
    assert link.up(framed(header, datagram(b"data"))) == []
    assert link.counters[LinkCounters.bad_offload] == 1


@settings(deadline=None)
@given(st.lists(lengths.octets(80) | st.builds(
    framed, st.binary(min_size=10, max_size=10) | st.sampled_from([
        PLAIN, PARTIAL, PARTIAL_TCP, VIRTIO.pack(1, 1, 54, 9, 34, 16), VIRTIO.pack(1, 5, 42, 9, 34, 6)]),
    lengths.damaged(PACKETS), st.sampled_from([MAC, MAC, b"\xff" * 6]))))
def test_every_frame_goes_up_or_is_counted(frames):
    link = LinkLayer(CHECKSUM)
    sends = [send for frame in frames for send in link.up(frame)]  # each by itself: they are not joined
    values = LinkCounters.read(link.counters)
    drops = sum(count for name, count in values.items() if LinkCounters.declared[name].role == "drop")
    assert len(sends) + drops == values["frames_in"] == len(frames)


def test_frames_down_say_what_is_left_to_the_kernel(link):
    whole = datagram(b"data", ME, PEER)
    frame = PEER_MAC + MAC + b"\x08\x00" + whole
    assert link.down(out(PEER_MAC, whole)) == [PLAIN + frame]
    assert link.down(out(PEER_MAC, whole, partial=True)) == [PARTIAL + frame]
    assert link.down(out(PEER_MAC, whole, partial=True, size=2)) == [VIRTIO.pack(1, 5, 42, 2, 34, 6) + frame]
    whole = segment(bytes(40_000), ME, PEER)
    frame = PEER_MAC + MAC + b"\x08\x00" + whole
    assert link.down(out(PEER_MAC, whole, partial=True, size=1448)) == [VIRTIO.pack(1, 1, 54, 1448, 34, 16) + frame]
    other = bytes(IP(src=ME, dst=PEER, proto=47) / b"data")
    for record in (b"", out(PEER_MAC, b"", size=5), out(PEER_MAC, other, partial=True), out(PEER_MAC, other, size=2)):
        assert link.down(record) == []
    assert link.counters[LinkCounters.bad_request] == 4


def test_a_device_without_offload_is_never_given_a_header():
    plain = LinkLayer()
    whole = datagram(b"data", ME, PEER)
    assert plain.down(out(PEER_MAC, whole)) == [PEER_MAC + MAC + b"\x08\x00" + whole]
    assert plain.down(out(PEER_MAC, whole, partial=True)) == []
    assert plain.down(out(PEER_MAC, whole, partial=True, size=2)) == []


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

    def up(self, packet: bytes, flags: int = 0, size: int = 0) -> list:
        return self.core.receive(topology.LINK, messages.PACKET, [from_link(packet, flags, size)], 0.0)

    def down(self, payload: bytes, size: int = 0, to: str = PEER, flags: int = TRANSMIT_DONT_FRAGMENT,
             make: Callable[..., bytes] = datagram) -> list:
        """With `size`, as segments of that."""
        packet = partial(make(payload, ME, to))
        head = transmit(ME, to, packet[9], flags=flags | TRANSMIT_PARTIAL, size=size)
        return self.core.receive(topology.UDP, messages.TRANSMIT, [head + packet[20:]], 0.0)


@pytest.mark.parametrize("flags", [0, KNOWN, FLAG_PARTIAL])
def test_the_state_of_a_checksum_is_passed_on(flags):
    ip, packet = IpLayer(), partial(datagram(b"data"))
    assert ip.up(packet, flags) == [(topology.UDP, messages.PACKET, up(packet, flags))]


def test_a_verified_checksum_of_a_fragment_does_not_count_for_the_packet():
    ip, whole = IpLayer(), bytes(IP(src=PEER, dst=ME, id=5) / UDP(sport=9, dport=7) / Raw(bytes(100)))
    first, last = (bytes(each) for each in IP(whole).fragment(64))
    assert ip.up(first, KNOWN) == []
    ((to, kind, record),) = ip.up(last, FLAG_PARTIAL)
    assert (to, kind, record) == (topology.UDP, messages.PACKET, up(record[UP : UP + 20] + whole[20:]))


def test_a_broadcast_in_a_frame_for_us_is_one_all_the_same():
    packet = partial(datagram(b"data", destination="10.0.0.255"))
    assert IpLayer().up(packet, FLAG_PARTIAL) == [(topology.UDP, messages.PACKET, up(packet, FLAG_PARTIAL | GROUP))]


def test_a_super_packet_goes_up_in_one_piece():
    ip, packet = IpLayer(), partial(datagram(payload_of(2500)))
    record = up(packet, FLAG_PARTIAL, 1000)
    assert ip.up(packet, FLAG_PARTIAL, 1000) == [(topology.UDP, messages.PACKET, record)]
    assert ip.counters[IpCounters.packets_in] == 3


@pytest.mark.parametrize(("group", "fields"), [
    (GROUP, {"destination": "10.0.0.255"}), (0, {"destination": "10.0.0.255"}), (0, {"options": [IPOption_NOP()] * 4})])
def test_super_packets_that_udp_cannot_take_so_are_cut(group, fields):
    payload = payload_of(2500)
    sends = IpLayer().up(partial(datagram(payload, **fields)), FLAG_PARTIAL | group, 1000)
    assert [IP(record[UP:])[UDP].load for _, _, record in sends] == cut(payload, 1000)
    flags = GROUP if "destination" in fields else 0
    assert sends == [(topology.UDP, messages.PACKET, up(summed_anew(record[UP:]), flags)) for _, _, record in sends]


TRANSPORTS = st.sampled_from([partial(make(bytes(60), ME, PEER))[20:] for make in (datagram, segment)])


@settings(deadline=None)
@given(lengths.octets(60) | lengths.damaged(TRANSPORTS))
def test_no_super_packet_raises(junk):
    for protocol in (6, 17, 1):
        for packet in (junk, bytes(IP(src=PEER, dst=ME, proto=protocol) / junk)):
            IpLayer().up(packet, FLAG_PARTIAL, 3)
        for to in (ME, PEER, "10.0.0.255"):
            for size in (0, 3):
                head = transmit(ME, to, protocol, flags=TRANSMIT_PARTIAL | TRANSMIT_MAY_FRAGMENT, size=size)
                IpLayer().core.receive(topology.UDP, messages.TRANSMIT, [head + junk, junk], 0.0)


def test_a_partial_checksum_goes_out_partial_where_the_device_completes_it():
    for make in (datagram, segment):
        record = out(PEER_MAC, partial(make(b"data", ME, PEER)), partial=True)
        assert IpLayer(CHECKSUM).down(b"data", make=make) == [(topology.LINK, messages.PACKET_OUT, record)]


def test_a_partial_checksum_is_completed_here_where_it_does_not():
    for make in (datagram, segment):
        record = out(PEER_MAC, make(b"data", ME, PEER))
        assert IpLayer().down(b"data", make=make) == [(topology.LINK, messages.PACKET_OUT, record)]


def test_a_packet_that_waits_or_is_fragmented_has_its_whole_checksum():
    ip = IpLayer(*EVERYTHING, resolved=False)
    assert [send[:2] for send in ip.down(b"data")] == [(topology.ARP, messages.RESOLVE)]
    assert ip.resolve() == [(topology.LINK, messages.PACKET_OUT, out(PEER_MAC, datagram(b"data", ME, PEER)))]
    payload = payload_of(3000)
    sends = ip.down(payload, flags=TRANSMIT_MAY_FRAGMENT)
    assert {send[:2] for send in sends} == {(topology.LINK, messages.PACKET_OUT)}
    whole = b"".join(record[OUT + 20 :] for _, _, record in sends)
    assert whole == datagram(payload, ME, PEER)[20:]


def test_checksums_of_local_packets_are_neither_computed_nor_verified():
    flags = LOOPED | FLAG_PARTIAL
    record = up(partial(datagram(b"data", ME, ME)), flags)
    assert IpLayer().down(b"data", to=ME) == [(topology.UDP, messages.PACKET, record)]
    payload = payload_of(5000)
    record = up(partial(datagram(payload, ME, ME)), flags, 1000)
    assert IpLayer().down(payload, 1000, to=ME) == [(topology.UDP, messages.PACKET, record)]


def test_segments_go_out_as_one_super_packet():
    payload = payload_of(5001)
    for make, size in ((datagram, 1472), (segment, 1448)):
        ip = IpLayer(*EVERYTHING)
        record = out(PEER_MAC, partial(make(payload, ME, PEER)), partial=True, size=size)
        assert ip.down(payload, size, make=make) == [(topology.LINK, messages.PACKET_OUT, record)]
        assert ip.counters[IpCounters.packets_out] == 4
        ip.down(payload, size + 1, make=make)
        assert ip.counters[IpCounters.over_mtu] == 3, "its segments are longer than the MTU, but for the last"


@pytest.mark.parametrize("kinds", [(CHECKSUM,), (CHECKSUM, UDP_SEGMENTATION)])
def test_a_super_segment_is_cut_here_where_the_device_cuts_no_tcp(kinds):
    payload = payload_of(5001)
    sends = IpLayer(*kinds).down(payload, 1448, make=segment)
    pieces = offload.packets(partial(segment(payload, ME, PEER)), 6, 1448)
    assert [IP(each)[TCP].load for each in pieces] == cut(payload, 1448)
    assert [offload.completed(record[OUT:], 6)[20:] for _, _, record in sends] == [each[20:] for each in pieces]


def test_rfc791_3_2_identification_numbers_of_a_super_packet_are_not_used_again():
    ip = IpLayer(*EVERYTHING)
    numbers = [int.from_bytes(record[OUT + 4 : OUT + 6], "big") for size in (100, 100, 100)
               for _, _, record in ip.down(bytes(1000), size, flags=TRANSMIT_MAY_FRAGMENT)]
    assert [(after - before) & 0xFFFF for before, after in pairwise(numbers)] == [10, 10]


@pytest.mark.parametrize("kinds", [(CHECKSUM,), (CHECKSUM, TCP_SEGMENTATION), ()])
def test_segments_are_cut_here_where_the_device_does_not(kinds):
    payload = payload_of(5001)
    expected = [datagram(part, ME, PEER) for part in cut(payload, 1472)]
    records = [out(PEER_MAC, partial(each) if kinds else each, partial=bool(kinds)) for each in expected]
    assert IpLayer(*kinds).down(payload, 1472) == [(topology.LINK, messages.PACKET_OUT, record) for record in records]


def test_rfc791_3_2_each_segment_has_the_mtu_to_itself():
    payload = payload_of(3000)
    fragments = IpLayer(*EVERYTHING, mtu=600).down(payload, 1000, flags=TRANSMIT_MAY_FRAGMENT)
    assert {send[:2] for send in fragments} == {(topology.LINK, messages.PACKET_OUT)}
    assert all(len(record) <= OUT + 600 for _, _, record in fragments)
    assert sum(len(record) - OUT - 20 for _, _, record in fragments) == 3000 + 3 * 8
    told = IpLayer(*EVERYTHING, mtu=600).down(payload, 1000)
    assert [send[:2] for send in told] == [(topology.UDP, messages.ICMP_ERROR)] * 3


def test_segments_wait_for_their_neighbour_one_by_one():
    ip, payload = IpLayer(*EVERYTHING, resolved=False), payload_of(2000)
    assert [send[:2] for send in ip.down(payload, 1000)] == [(topology.ARP, messages.RESOLVE)]
    assert [record[OUT:] for _, _, record in ip.resolve()] == [datagram(part, ME, PEER) for part in cut(payload, 1000)]


# -- udp ---------------------------------------------------------------------------------------------------------------


class UdpLayer:
    """With one socket, handle 1, at port 7."""

    def __init__(self, *kinds: str) -> None:
        self.counters = UdpCounters.new()
        self.core = Udp(config(*kinds), {}, self.counters, random.Random(1))
        self.core.start(0.0)
        state = SocketState(handle=1, request=1, port=7, bind=True)
        self.core.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(state)], 0.0)

    def up(self, record: bytes) -> list:
        return self.core.receive(topology.IP, messages.PACKET, [record], 0.0)

    def down(self, payload: bytes, size: int = 0, to: str = PEER) -> list:
        header = datagram_header(1, octets(to), 9, bytes(4), 0, 0, 0)
        if size:
            record = header + SEGMENT_SIZE.pack(size) + payload
            return self.core.receive(topology.SOCKETS, messages.SEND_SEGMENTS, [record], 0.0)
        return self.core.receive(topology.SOCKETS, messages.SEND, [header + payload], 0.0)


HEAD = datagram_header(1, octets(PEER), 9, octets(ME), 64, 0, 0, INTERFACE_INDEX)


def test_a_checked_packet_is_not_verified_and_any_other_is():
    udp, packet = UdpLayer(*EVERYTHING), partial(datagram(b"data"))
    for flags in (KNOWN, FLAG_PARTIAL):
        assert udp.up(up(packet, flags)) == [(topology.SOCKETS, messages.DATAGRAM, HEAD + b"data")]
    assert udp.up(up(packet)) == []
    assert udp.counters[UdpCounters.bad_checksum] == 1


def test_an_error_quotes_the_packet_as_a_wire_would_have_carried_it():
    whole = datagram(b"data", dport=99)
    payload = payload_of(1000)
    first = datagram(payload[:400], dport=99)
    for record, quoted in (
        (up(partial(whole), FLAG_PARTIAL), whole),
        (up(whole, KNOWN), whole),
        (up(partial(datagram(payload, dport=99)), FLAG_PARTIAL, 400), first),
    ):
        ((to, kind_out, told),) = UdpLayer().up(record)
        assert (to, kind_out, told[REPORT:]) == (topology.ICMP, messages.REPORT_ERROR, quoted)


def test_a_super_packet_is_one_record_for_its_socket():
    udp, payload = UdpLayer(), payload_of(2500)
    record = up(partial(datagram(payload)), FLAG_PARTIAL, 1000)
    assert udp.up(record) == [
        (topology.SOCKETS, messages.DATAGRAM_SEGMENTS, HEAD + SEGMENT_SIZE.pack(1000) + payload)]
    assert udp.counters[UdpCounters.delivered] == 3
    assert udp.up(record + b"more") == []
    assert udp.counters[UdpCounters.bad_length] == 1


@settings(deadline=None)
@given(lengths.octets(60)
       | lengths.damaged(st.sampled_from([partial(datagram(bytes(60)))[20:], HEAD + b"\3\0ninechars"])))
def test_no_segments_raise(junk):
    udp = UdpLayer(*EVERYTHING)
    packet = bytes(IP(src=PEER, dst=ME, proto=17) / junk)
    for record in (junk, up(junk, FLAG_PARTIAL, 3), up(junk, FLAG_PARTIAL), up(packet, 0, 1)):
        udp.up(record)
    udp.core.receive(topology.SOCKETS, messages.SEND_SEGMENTS, [junk], 0.0)


@pytest.mark.parametrize(("kinds", "to", "is_partial"), [((), PEER, False), ((CHECKSUM,), PEER, True), ((), ME, True)])
def test_rfc768_only_what_goes_to_a_wire_is_summed_here(kinds, to, is_partial):
    ((_, kind, record),) = UdpLayer(*kinds).down(b"data", to=to)
    header, _, sent = transmitted(record)
    flags = header[5]
    whole = datagram(b"data", ME, to, 7, 9)
    assert (kind, bool(flags & TRANSMIT_PARTIAL)) == (messages.TRANSMIT, is_partial)
    assert sent == (partial(whole) if is_partial else whole)[20:]


def test_segments_go_on_in_one_piece_where_they_need_no_sums():
    payload = payload_of(2500)
    ((to, kind, record),) = UdpLayer(CHECKSUM).down(payload, 1000)
    assert (to, kind, record[:2]) == (topology.IP, messages.TRANSMIT, (1000).to_bytes(2, "big"))
    assert record[TRANSMIT:] == partial(datagram(payload, ME, PEER, 7, 9))[20:]
    sends = UdpLayer().down(payload, 1000)
    assert {send[:2] for send in sends} == {(topology.IP, messages.TRANSMIT)}
    assert [record[TRANSMIT:] for _, _, record in sends] == [
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
        assert core.receive(CLIENT, messages.REQUEST, [b'{"id":9,"op":"list"}'], 0.0) == []
        listed = core.wake(0.0)
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
        record = datagram_header(handle, octets(PEER), 9, bytes(4), 0, 0, 0) + SEGMENT_SIZE.pack(2) + b"1234"
        sends = core.receive(CLIENT, messages.SEND_SEGMENTS, [record], 0.0)
        assert sends == ([(topology.UDP, messages.SEND_SEGMENTS, record)] if taken else [])
    assert (counters[SocketsCounters.sent], counters[SocketsCounters.send_foreign]) == (2, 2)


@settings(deadline=None)
@given(lengths.octets(40) | lengths.damaged(st.just(HEAD + SEGMENT_SIZE.pack(3) + b"ninechars")))
def test_no_segments_raise_in_the_service(junk):
    core, _ = service(True)
    core.receive(topology.UDP, messages.DATAGRAM_SEGMENTS, [junk, HEAD + junk], 0.0)
    core.receive(CLIENT, messages.SEND_SEGMENTS, [junk], 0.0)


@settings(deadline=None)
@given(lengths.runs(st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([0, 1, 500, 1000, 60_000])), 9,
                    1, 2, 3, SEGMENTS_MAX, SEGMENTS_MAX + 1), st.booleans())
def test_runs_carry_every_datagram_in_order_and_within_the_limits(datagrams, segmenting):
    runs = Runs(segmenting)
    for number, (letter, octets_) in enumerate(datagrams):
        runs.add(letter * DATAGRAM_HEADER.size, bytes([number & 255]) * octets_)
    found = []
    for kind, records, count in runs.frames():
        before = len(found)
        assert kind == messages.SEND or segmenting
        for record in records:
            letter, body = record[:1], record[DATAGRAM_HEADER.size :]
            size = len(body)
            if kind == messages.SEND_SEGMENTS:
                (size,), body = SEGMENT_SIZE.unpack_from(body), body[SEGMENT_SIZE.size :]
                assert size < len(body) <= min(RUN_OCTETS_MAX, size * SEGMENTS_MAX)
            found += [(letter, part) for part in cut(body, size)] if size else [(letter, b"")]
        assert len(found) - before == count
    assert found == [(letter, bytes([number & 255]) * octets_) for number, (letter, octets_) in enumerate(datagrams)]

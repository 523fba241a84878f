"""link's core: whose frames are taken, where they go, and what frames it makes; and the TAP's batches."""

from __future__ import annotations

import os
import random
import socket

import lengths
import pytest
from durable import Killed
from hypothesis import example, given
from hypothesis import strategies as st
from records import GROUP, from_link, out
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1Q, Dot3, Ether
from scapy.packet import Raw

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.rx_log import RxLog
from layers.link.core import Core
from layers.link.counters import Counters as C
from layers.link.tap import Tap

MAC = bytes.fromhex("02005e000002")
PEER = bytes.fromhex("02005e000001")
US, THEM = MAC.hex(":"), PEER.hex(":")
SNAP_IPV4 = bytes.fromhex("aaaa030000000800")


def link(wire: str = "", mtu: int = 1500) -> tuple[Core, list[int]]:
    counters = C.new()
    config = StackConfig(name="t", run_dir="/", address=bytes((10, 0, 0, 2)), prefix=24, mac=MAC, mtu=mtu, wire=wire)
    return Core(config, {}, counters, random.Random(1)), counters


def up(core: Core, *frames: bytes) -> list[tuple[int, int, bytes]]:
    return core.receive(topology.DEVICE, messages.ETHERNET, list(frames), 0.0)


# -- from the device -----------------------------------------------------------------------------------------------


def test_rfc894_ipv4_packet_goes_to_ip_without_its_header():
    core, counters = link()
    packet = IP(src="10.0.0.1", dst="10.0.0.2") / ICMP()
    assert up(core, bytes(Ether(dst=US, src=THEM) / packet)) == [(topology.IP, messages.PACKET, from_link(packet))]
    assert counters[C.frames_in] == 1


@pytest.mark.parametrize("destination", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_rfc1122_3_2_2_ip_is_told_of_a_link_layer_broadcast_or_multicast(destination):
    core, _ = link()
    packet = IP(src="10.0.0.1", dst="10.0.0.2") / ICMP()
    frame = bytes(Ether(dst=destination, src=THEM) / packet)
    assert up(core, frame) == [(topology.IP, messages.PACKET, from_link(packet, GROUP))]


def test_rfc826_arp_packet_goes_to_arp_with_its_padding():
    core, _ = link()
    request = bytes(ARP(op=1, hwsrc=THEM, psrc="10.0.0.1", pdst="10.0.0.2")).ljust(46, b"\0")
    frame = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=THEM, type=0x0806) / Raw(request))
    assert up(core, frame) == [(topology.ARP, messages.ARP_IN, request)]


@pytest.mark.parametrize("destination", [US, "ff:ff:ff:ff:ff:ff"])
def test_rfc1042_packets_are_taken_as_those_of_rfc894_are(destination):
    """RFC 1122 section 2.3.3: intermixed with them."""
    core, counters = link()
    packet = IP(src="10.0.0.1", dst="10.0.0.2") / ICMP()
    request = ARP(hwtype=6, op=1, hwsrc=THEM, psrc="10.0.0.1", pdst="10.0.0.2")
    older = [bytes(Dot3(dst=destination, src=THEM) / LLC(dsap=170, ssap=170, ctrl=3) / SNAP(code=code) / content)
             for code, content in ((0x0800, packet), (0x0806, request))]
    record = from_link(packet, 0 if destination == US else GROUP)
    assert up(core, older[0].ljust(60, b"\0"), bytes(Ether(dst=destination, src=THEM) / packet), older[1]) == [
        (topology.IP, messages.PACKET, record),
        (topology.IP, messages.PACKET, record),
        (topology.ARP, messages.ARP_IN, bytes(request)),
    ]
    assert counters[C.unknown_type] == 0


@pytest.mark.parametrize("content", [
    LLC(dsap=6, ssap=6, ctrl=3) / IP(),  # RFC 948: K1 = 6
    LLC(dsap=170, ssap=170, ctrl=3) / SNAP(OUI=0xF8, code=0x0800) / IP(),
    LLC(dsap=170, ssap=170, ctrl=3) / SNAP(code=0x86DD) / Raw(bytes(40)), Raw(b"\xaa\xaa\x03\0\0\0\x08")])
def test_other_frames_of_ieee_802_3_are_counted(content):
    core, counters = link()
    assert up(core, bytes(Dot3(dst=US, src=THEM) / content).ljust(60, b"\0")) == []
    assert counters[C.unknown_type] == 1


@pytest.mark.parametrize("length", [7, 47, 1501])
def test_a_length_that_cannot_be_is_counted(length):
    core, counters = link()
    assert up(core, MAC + PEER + length.to_bytes(2, "big") + SNAP_IPV4 + bytes(38)) == []
    assert counters[C.unknown_type] == 1


@pytest.mark.parametrize(("frame", "counter"), [
    (Ether(dst="02:00:5e:00:00:09", src=THEM) / IP(), C.other_host),
    (Ether(dst=US, src=US) / IP(), C.own_source),
    (Ether(dst="ff:ff:ff:ff:ff:ff", src=US) / ARP(), C.own_source),
    (Ether(dst=US, src=THEM, type=0x86DD), C.unknown_type),
    (Ether(dst=US, src=THEM) / Dot1Q(vlan=1) / IP(), C.unknown_type),
    (Ether(dst=US, src=THEM, type=46) / Raw(b"\x42\x42\x03".ljust(46, b"\0")), C.unknown_type),  # IEEE 802.3 length
    (Raw(MAC + PEER + b"\x08"), C.runt),
    (Raw(b""), C.runt),
])
def test_frames_not_for_us_are_counted(frame, counter):
    core, counters = link()
    assert up(core, bytes(frame)) == []
    assert counters[counter] == 1


def test_frame_of_the_mtu_passes_and_one_octet_more_does_not():
    core, counters = link(mtu=68)
    head = MAC + PEER + b"\x08\x00"
    assert up(core, head + bytes(68), head + bytes(69)) == [(topology.IP, messages.PACKET, from_link(bytes(68)))]
    assert counters[C.oversize] == 1


def test_order_is_kept_within_a_batch():
    core, _ = link()
    head = MAC + PEER + b"\x08\x00"
    packets = [bytes([n]) for n in range(5)]
    assert [record for _, _, record in up(core, *(head + packet for packet in packets))] == [*map(from_link, packets)]


# -- from above ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sender", "kind", "before", "ethertype"), [
    (topology.IP, messages.PACKET_OUT, out(PEER, b""), 0x0800), (topology.ARP, messages.ARP_OUT, PEER, 0x0806)])
@pytest.mark.parametrize("wire", ["", "lab"])
def test_rfc894_frame_is_what_scapy_makes_and_padded_on_a_wire_only(sender, kind, before, ethertype, wire):
    core, counters = link(wire)
    payload = bytes(range(28))
    [(consumer, out_kind, frame)] = core.receive(sender, kind, [before + payload], 0.0)
    assert (consumer, out_kind) == (topology.DEVICE, messages.ETHERNET)
    assert frame == bytes(Ether(dst=THEM, src=US, type=ethertype) / Raw(payload)).ljust(60 if wire else 42, b"\0")
    assert counters[C.frames_out] == 1


def test_a_packet_that_needs_no_padding_is_not_padded():
    core, _ = link("lab")
    [(_, _, frame)] = core.receive(topology.IP, messages.PACKET_OUT, [out(PEER, bytes(47))], 0.0)
    assert len(frame) == 61


@pytest.mark.parametrize("record", [b"", PEER, out(PEER, b""), out(PEER, bytes(1501)), b"\1\6\0\0\0\0" + PEER + b"6"])
def test_a_record_that_is_no_packet_to_send_is_counted(record):
    core, counters = link()
    sends = core.receive(topology.IP, messages.PACKET_OUT, [record, out(PEER, bytes(1500))], 0.0)
    assert sends[0][2][14:] == bytes(1500)
    assert (counters[C.bad_request], counters[C.frames_out]) == (1, 1)


FRAMES = lengths.octets(60) | st.builds(
    lambda *parts: b"".join(parts), st.sampled_from([MAC, MAC, b"\xff" * 6, PEER]), st.sampled_from([PEER, PEER, MAC]),
    st.sampled_from([b"\x08\0", b"\x08\6", b"\x86\xdd", b"\0\x26", b"\0\x26" + SNAP_IPV4, b"\x08"]), lengths.octets(60))


@given(lengths.lists(FRAMES, 10))
@example([MAC + PEER + b"\x08\0" + bytes(1501)])
def test_any_octets_are_passed_on_or_counted(frames):
    core, counters = link()
    passed = len(up(core, *frames))
    dropped = sum(counters[index] for index, counter in enumerate(C.declared.values()) if counter.role == "drop")
    assert passed + dropped == len(frames) == counters[C.frames_in]


# -- the TAP -------------------------------------------------------------------------------------------------------


def socket_as_tap(offload: bool = False) -> tuple[Tap, socket.socket, list[int]]:
    """A socket that keeps frames apart, as a TAP does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    counters = C.new()
    return Tap(ours.detach(), counters, offload), theirs, counters


@pytest.mark.parametrize(("octets", "count"), [(60, 200), (1514, 80), (65535, 4), (32000, 8)])
def test_tap_batch_is_kept_and_loses_nothing(durable, octets, count):
    tap, kernel, _ = socket_as_tap()
    sent = 0
    try:
        while sent < count:
            kernel.send(sent.to_bytes(2, "big").ljust(octets, b"\0"))
            sent += 1
    except BlockingIOError:
        pass  # as much as the socket holds
    assert sent > 2
    seen = []
    batch = RxLog(durable.map())
    while frames := tap.read(batch):
        assert RxLog(durable.map()).left(tap.length)[1] == frames  # what a successor would find
        batch.close()
        seen += frames
    assert [int.from_bytes(frame[:2], "big") for frame in seen] == list(range(sent))
    kernel.close()


def test_tap_counts_what_the_kernel_refuses():
    tap, kernel, counters = socket_as_tap()
    tap.write(b"frame")
    assert kernel.recv(100) == b"frame"
    kernel.close()
    tap.write(b"frame")
    assert counters[C.device_refused] == 1


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("content", [
    Ether(dst=US, src=THEM) / IP(src="10.0.0.1", dst="10.0.0.2") / Raw(b"x" * 300),
    Ether(dst=US, src=THEM) / ARP(), Dot3(dst=US, src=THEM, len=5) / Raw(b"abcde")], ids=["IPv4", "ARP", "802.3"])
def test_a_frame_that_was_read_and_not_counted_is_found_after_a_death(durable, monkeypatch, content, offload):
    tap, kernel, _ = socket_as_tap(offload)
    frame = bytes(10 * offload) + bytes(content)
    read = os.readv

    def killed_behind(descriptor, buffers):
        read(descriptor, buffers)
        raise Killed

    for first in (b"", frame, frame + b"more"):  # what the batch before left in this memory
        batch = RxLog(durable.map())
        if first:
            batch.keep([first, first])
            batch.close()
        batch.open(7)
        kernel.send(frame)
        monkeypatch.setattr(os, "readv", killed_behind)
        with pytest.raises(Killed):
            tap.read(batch)
        monkeypatch.undo()
        assert RxLog(durable.map()).left(tap.length) == (7, [frame])
        batch.open(8)
        assert RxLog(durable.map()).left(tap.length) == (8, [])
    kernel.close()


@given(FRAMES)
def test_any_octets_have_a_length_or_are_refused(octets):
    tap, kernel, _ = socket_as_tap()
    assert tap.length(memoryview(octets)) >= 0
    os.close(tap.fileno())
    kernel.close()

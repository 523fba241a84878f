"""Frames with a virtio_net_hdr as the switch gives them to a port that takes plain ones; scapy is the judge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from packets import vnet
from switch import plain

SIZES = st.integers(1, 1460).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, 20 * size)))


def frame(transport, octets: int) -> bytes:
    """As an application's octets leave its stack, with a partial checksum."""
    packet = bytes(IP(src="10.0.0.2", dst="10.0.0.3", id=7, flags="DF") / transport
                   / Raw(random.Random(octets).randbytes(octets)))
    at = 20 + (16 if packet[9] == 6 else 6)
    total = sum(packet[place] << 8 | packet[place + 1] for place in range(12, 20, 2)) + packet[9] + len(packet) - 20
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return bytes(Ether(dst="02:00:5e:00:00:03", src="02:00:5e:00:00:02", type=0x800)) + (
        packet[:at] + total.to_bytes(2, "big") + packet[at + 2 :])


def summed_anew(octets: bytes) -> bytes:
    """The frame with the checksums that scapy computes."""
    taken_apart = Ether(octets)
    del taken_apart[IP].chksum
    del taken_apart[IP].payload.chksum
    return bytes(taken_apart)


def text(octets: bytes) -> bytes:
    packet = Ether(octets)[IP]
    return bytes(packet.payload.payload)[: packet.len - 20 - (packet.payload.dataofs * 4 if TCP in packet else 8)]


@given(SIZES, st.sampled_from((TCP(sport=9, dport=7, seq=1000, ack=77, flags="A"), UDP(sport=9, dport=7))))
def test_a_super_packet_becomes_frames_of_its_size(sizes, transport):
    size, octets = sizes
    whole = frame(transport, octets)
    if len(whole) - 14 > 65535 // 48 * size:
        return
    pieces = plain.frames(vnet.header(whole[23], True, size) + whole)
    assert [summed_anew(each) for each in pieces] == pieces
    assert b"".join(map(text, pieces)) == random.Random(octets).randbytes(octets)
    assert all(len(each) >= 60 for each in pieces)
    assert len(pieces) == -(-octets // size)


@pytest.mark.parametrize("transport", [TCP(sport=9, dport=7, flags="A"), UDP(sport=9, dport=7)])
def test_a_partial_checksum_is_completed(transport):
    whole = frame(transport, 100)
    assert plain.frames(vnet.header(whole[23], True) + whole) == [summed_anew(whole)]


@pytest.mark.parametrize("header", [vnet.PLAIN, vnet.HEADER.pack(vnet.DATA_VALID, 0, 0, 0, 0, 0)])
def test_any_other_frame_is_left_as_it_is(header):
    whole = summed_anew(frame(UDP(sport=9, dport=7), 100))
    assert plain.frames(header + whole) == [whole]


@pytest.mark.parametrize("header", [
    vnet.HEADER.pack(1, 4, 0, 1000, 34, 16),  # of a version 6
    vnet.HEADER.pack(1, vnet.GSO_TCPV4, 0, 0, 34, 16),  # of segments without octets
    vnet.HEADER.pack(1, vnet.GSO_TCPV4, 0, 1, 34, 16),  # more segments than a stack makes
    vnet.HEADER.pack(0, vnet.GSO_TCPV4, 0, 1000, 34, 16),
    vnet.HEADER.pack(1, vnet.GSO_UDP_L4, 0, 1000, 34, 16),
    vnet.HEADER.pack(1, vnet.GSO_NONE, 0, 0, 34, 5000)])  # a checksum beyond the frame
def test_what_no_device_would_send_is_refused(header):
    assert plain.frames(header + frame(TCP(sport=9, dport=7, flags="A"), 4000)) == []


@given(st.binary(min_size=10, max_size=10) | st.builds(
    vnet.HEADER.pack, st.just(1), st.sampled_from((0, 1, 5)), st.integers(0, 65535), st.integers(0, 65535),
    st.integers(0, 80), st.sampled_from((6, 16))), st.binary(min_size=60, max_size=200))
def test_nothing_raises(header, octets):
    assert len(plain.frames(header + octets)) <= 65535 // 48
    assert len(plain.frames(header + octets[:12] + b"\x08\x00\x45\0" + octets[16:])) <= 65535 // 48

"""bus.views: the packets of every kind of record, whatever its octets."""

from __future__ import annotations

import random

import lengths
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from bus import messages as m
from bus import views
from packets import offload, vnet
from packets.checksum import checksum

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
MAC = bytes.fromhex("020000000002")
PACKET = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=6) / b"hello")
SEGMENT = PACKET[20:]


def partial(segment: bytes) -> bytes:
    """The same with the sum of its pseudo header in the checksum's place."""
    pseudo = 65535 - checksum(A + B + b"\0\x11" + len(segment).to_bytes(2, "big"))
    return segment[:6] + pseudo.to_bytes(2, "big") + segment[8:]


def super_packet(payload: int) -> bytes:
    whole = bytes(IP(src="10.0.0.1", dst="10.0.0.2", id=9) / UDP(sport=5, dport=6) / (b"ab" * (payload // 2)))
    return whole[:20] + partial(whole[20:])


def well_formed(packet: bytes) -> bytes:
    """Scapy's payload, if both checksums are as scapy makes them."""
    read = IP(packet)
    again = read.copy()
    del again.chksum, again[UDP].chksum
    assert bytes(again) == packet
    return bytes(read[UDP].payload)


def packet_head(flags: int, size: int = 0) -> bytes:
    return m.PACKET_HEAD.pack(1, 4, flags, 20, size, 0, 0, 0, bytes(4), bytes(4))


def out_head(flags: int, size: int = 0) -> bytes:
    return m.PACKET_OUT_HEAD.pack(1, 4, flags, 17, size, MAC)


def transmit_head(flags: int, size: int = 0) -> bytes:
    return m.TRANSMIT_HEAD.pack(size, 0, 4, flags, 17, 64, 0, 0, A, B)


PARTIAL = m.FLAG_CHECKSUM_PARTIAL
TRANSMIT = transmit_head(m.TRANSMIT_PARTIAL) + partial(SEGMENT)
CHECKED = PACKET[:20] + partial(SEGMENT)


@pytest.mark.parametrize(("kind", "record"), [
    (m.PACKET, packet_head(0) + PACKET), (m.PACKET, packet_head(PARTIAL) + CHECKED),
    (m.PACKET_OUT, out_head(0) + PACKET), (m.PACKET_OUT, out_head(PARTIAL) + CHECKED), (m.TRANSMIT, TRANSMIT),
    (m.ICMP_ERROR, bytes(m.ERROR_HEAD.size) + PACKET),
    (m.REPORT_ERROR, bytes(m.REPORT_HEAD.size + m.PACKET_HEAD.size) + PACKET),
    (m.ETHERNET, vnet.PARTIAL_UDP + MAC + MAC + b"\x08\0" + CHECKED),
    (m.ETHERNET, vnet.PLAIN + MAC + MAC + b"\x08\0" + PACKET)])
def test_the_packet_of_a_record(kind, record):
    (packet,) = views.packets_of(kind, [record], with_vnet=True)
    if views.is_frame(kind):
        assert Ether(packet).type == 0x800
        packet = packet[14:]
    assert well_formed(packet) == b"hello"


def test_datagrams_of_applications_are_shown_as_packets():
    send = m.datagram_header(4, B, 53, A, 64, 0, 0) + b"hello"
    (packet,) = views.packets_of(m.SEND, [send], False, 17)
    assert (IP(packet).dst, IP(packet)[UDP].dport, bytes(IP(packet)[UDP].payload)) == ("10.0.0.2", 53, b"hello")
    datagram = m.datagram_header(4, B, 53, A, 64, 0) + b"hello"
    (packet,) = views.packets_of(m.DATAGRAM, [datagram], False, 17)
    assert (IP(packet).src, IP(packet)[UDP].sport, bytes(IP(packet)[UDP].payload)) == ("10.0.0.2", 53, b"hello")


@pytest.mark.parametrize(("kind", "protocol", "headers"), [
    (m.SEND, 17, 28), (m.DATAGRAM, 17, 28), (m.SEND, 0, 28), (m.SEND, 1, 20), (m.DATAGRAM, 1, 20)])
@pytest.mark.parametrize("octets", [0, 1, 65507, 65508, 65515, 65516, 70000])
def test_a_payload_that_no_packet_has_room_for_is_cut(kind, protocol, headers, octets):
    record = m.datagram_header(4, B, 53, A, 64, 0, 0) + bytes(octets)
    (packet,) = views.packets_of(kind, [record], False, protocol)
    assert len(packet) == min(headers + octets, 65535)
    assert IP(packet).len == len(packet)
    assert checksum(packet[:20]) == 0
    if headers == 28:
        assert IP(packet)[UDP].len == len(packet) - 20


SUPER = super_packet(2000)
SUPERS = [(m.PACKET, packet_head(PARTIAL, 900) + SUPER), (m.PACKET_OUT, out_head(PARTIAL, 900) + SUPER),
          (m.TRANSMIT, transmit_head(m.TRANSMIT_PARTIAL, 900) + SUPER[20:]),
          (m.ETHERNET, vnet.header(17, True, 900) + MAC + MAC + b"\x08\0" + SUPER)]


@pytest.mark.parametrize(("kind", "record"), SUPERS)
def test_a_super_packet_is_its_packets(kind, record):
    packets = views.packets_of(kind, [record], with_vnet=True)
    payloads = [well_formed(packet[14:] if views.is_frame(kind) else packet) for packet in packets]
    assert [len(payload) for payload in payloads] == [900, 900, 200]
    assert b"".join(payloads) == b"ab" * 1000
    cut = views.pieces(kind, record, with_vnet=True)
    assert [packet for part in cut for packet in views.packets_of(part[0], part[1:], with_vnet=True)] == packets


def test_payloads_of_applications_are_cut():
    send = m.datagram_header(4, B, 53, A, 64, 0, 0) + m.SEGMENT_SIZE.pack(3) + b"abcdefgh"
    head = m.datagram_header(4, B, 53, A, 64, 0, 0)
    assert views.pieces(m.SEND_SEGMENTS, send, False) == [(m.SEND, head + part) for part in (b"abc", b"def", b"gh")]


@pytest.mark.parametrize(("kind", "record"), [
    (m.PACKET, packet_head(0) + PACKET), (m.PACKET, packet_head(PARTIAL) + CHECKED),
    (m.PACKET_OUT, out_head(PARTIAL) + CHECKED), (m.TRANSMIT, TRANSMIT),
    (m.ETHERNET, vnet.PARTIAL_UDP + MAC + MAC + b"\x08\0" + CHECKED)])
@given(seed=st.integers(0, 2**32))
def test_corruption_is_one_bit_that_no_partial_checksum_hides(kind, record, seed):
    (whole,) = views.packets_of(kind, [record], with_vnet=True)
    changed, octets = views.corrupted(kind, record, True, random.Random(seed))
    (other,) = views.packets_of(changed, [octets], with_vnet=True)
    assert sum((a ^ b).bit_count() for a, b in zip(whole, other, strict=True)) == 1
    assert changed == kind
    assert not octets[2] & m.FLAG_CHECKED or kind not in (m.PACKET, m.PACKET_OUT)
    assert not octets[5] & m.TRANSMIT_PARTIAL or kind != m.TRANSMIT


@given(st.sampled_from([*m.KIND_NAMES, 77, *[kind for kind, _ in SUPERS] * 5]),
       lengths.octets(100) | lengths.damaged(st.sampled_from([*[record for _, record in SUPERS], TRANSMIT])),
       st.booleans(), st.sampled_from([0, 1, 17]))
def test_no_octets_raise(kind, record, with_vnet, protocol):
    views.packets_of(kind, [record], with_vnet, protocol)
    views.pieces(kind, record, with_vnet)
    views.corrupted(kind, record, with_vnet, random.Random(0))


RECORDS = [*SUPERS, (m.PACKET, packet_head(0) + PACKET), (m.PACKET, packet_head(PARTIAL) + CHECKED),
           (m.PACKET, packet_head(m.FLAG_CHECKSUM_KNOWN) + PACKET), (m.PACKET_OUT, out_head(0) + PACKET),
           (m.PACKET_OUT, out_head(PARTIAL) + CHECKED), (m.TRANSMIT, TRANSMIT),
           (m.TRANSMIT, transmit_head(m.TRANSMIT_WHOLE) + PACKET),
           (m.ETHERNET, vnet.PARTIAL_UDP + MAC + MAC + b"\x08\0" + CHECKED),
           (m.ETHERNET, vnet.PLAIN + MAC + MAC + b"\x08\0" + PACKET)]


@given(st.sampled_from(RECORDS), st.integers(0, 90) | st.none(), st.booleans())
def test_a_record_shows_the_packets_of_what_an_impairment_makes_of_it(whole, kept, with_vnet):
    kind, record = whole[0], whole[1][:kept]
    made = [views.completed(*piece, with_vnet) for piece in views.pieces(kind, record, with_vnet)]
    shown = [packet for kind, record in made for packet in views.packets_of(kind, [record], with_vnet)]
    assert views.packets_of(kind, [record], with_vnet) == shown


def test_a_record_without_a_packet_does_not_hide_the_others():
    records = [out_head(0) + PACKET, b"short", out_head(0) + PACKET]
    assert len(views.packets_of(m.PACKET_OUT, records, False)) == 2


@given(st.sampled_from(SUPERS), st.integers(0, 120), st.binary(max_size=8))
def test_damaged_super_packets_do_not_raise(whole, kept, rest):
    kind, record = whole
    views.packets_of(kind, [record[:kept] + rest], True)
    assert offload.packets(record[:kept], 17, 5) is not None

"""UDP on the wire, with scapy as the second opinion."""

from __future__ import annotations

import lengths
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_NOP, IPOption_Timestamp
from scapy.packet import Raw

from packets.checksum import checksum
from packets.ipv4 import quoted
from packets.udp import LENGTH_CHECKSUM, PORTS, flow_sum

PORT = st.integers(0, 0xFFFF)
SOURCE, DESTINATION = "10.0.0.1", "10.0.0.2"
ADDRESSES = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A, B = ADDRESSES


def packet(payload: bytes = b"payload", options: list | None = None, **ip_fields) -> bytes:
    head = IP(src=SOURCE, dst=DESTINATION, options=options or [], **ip_fields)
    return bytes(head / UDP(sport=7, dport=9) / Raw(payload))


@given(st.binary(max_size=64), PORT, PORT)
def test_rfc768_the_sum_of_a_flow_and_of_its_payload_give_scapys_checksum(payload, source_port, port):
    length = len(payload) + 8
    total = checksum(payload, flow_sum(A, B, source_port, port) + 2 * length) or 0xFFFF
    segment = PORTS.pack(source_port, port) + LENGTH_CHECKSUM.pack(length, total) + payload
    theirs = IP(src=SOURCE, dst=DESTINATION) / UDP(sport=source_port, dport=port) / Raw(payload)
    assert segment == bytes(theirs)[20:]


def test_rfc768_a_checksum_of_zero_is_sent_as_all_ones():
    # The payload is the word that makes the sum come out as all ones.
    rest = (flow_sum(A, B, 7, 9) + 2 * 10) % 65535
    assert checksum((65535 - rest).to_bytes(2, "big"), flow_sum(A, B, 7, 9) + 2 * 10) == 0


def test_a_quotation_gives_what_its_header_says():
    assert quoted(packet(tos=3, ttl=9)) == (20, 3, 35, 9, 17, *ADDRESSES)
    assert quoted(packet(options=[IPOption_Timestamp()])) == (32, 0, 47, 64, 17, *ADDRESSES)


def test_rfc792_a_quotation_of_header_and_8_octets_is_enough():
    assert quoted(packet()[:28]) == quoted(packet())
    assert quoted(packet()[:27]) is None
    with_options = packet(options=[IPOption_Timestamp()])
    header_octets = (with_options[0] & 15) * 4
    assert quoted(with_options[: header_octets + 8]) is not None
    assert quoted(with_options[: header_octets + 7]) is None


def test_octets_that_do_not_begin_a_packet_are_no_quotation():
    assert quoted(packet(frag=1)) is None
    assert quoted(packet(flags="MF")) is not None
    assert quoted(b"\x65" + packet()[1:]) is None
    assert quoted(b"\x44" + packet()[1:]) is None


PACKETS = st.sampled_from([bytes(IP(src=SOURCE, dst=DESTINATION, options=options) / UDP() / Raw(b"payload"))
                           for options in ([], [IPOption_NOP()] * 4)])


@given(lengths.octets(80) | lengths.damaged(PACKETS))
@example(bytes(IP() / UDP()))
@example(bytes(IP() / UDP())[:27])
@example(bytes(IP(frag=1) / UDP()))
def test_any_octets_are_parsed_as_a_quotation_or_refused(octets):
    result = quoted(octets)
    start = (octets[0] & 15) * 4 if octets else 0
    assert (result is not None) == (octets[:1] > b"\x44" and octets[0] >> 4 == 4 and start + 8 <= len(octets)
                                    and not (octets[6] & 0x1F or octets[7]))
    assert result is None or result.header_octets == start

"""IPv4 headers, with scapy as the second opinion."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.packet import Raw

from packets.checksum import verifies
from packets.ipv4 import (
    HEADER_OCTETS,
    LENGTH_MAX,
    build,
    finish_header,
    header_sum,
    header_template,
)

ADDRESS = st.binary(min_size=4, max_size=4)
OCTET = st.integers(0, 255)
U16 = st.integers(0, 65535)


def scapy_packet(source, destination, protocol, payload, ttl, tos, identification, dont_fragment) -> bytes:
    return bytes(IP(src=str(IPv4Address(source)), dst=str(IPv4Address(destination)), proto=protocol, ttl=ttl, tos=tos,
                    id=identification, flags="DF" if dont_fragment else 0) / Raw(payload))


@given(ADDRESS, ADDRESS, OCTET, st.binary(max_size=60), OCTET, OCTET, U16, st.booleans())
def test_rfc791_3_1_packets_are_scapys(source, destination, protocol, payload, ttl, tos, identification, dont_fragment):
    packet = build(source, destination, protocol, payload, ttl=ttl, tos=tos, identification=identification,
                   dont_fragment=dont_fragment)
    assert packet == scapy_packet(source, destination, protocol, payload, ttl, tos, identification, dont_fragment)
    assert verifies(packet[:HEADER_OCTETS])


@given(ADDRESS, ADDRESS, U16, st.integers(HEADER_OCTETS, LENGTH_MAX))
@example(bytes(4), bytes(4), 65535 - 0x4500 - 0x4011, 20)
@example(b"\xff" * 4, b"\xff" * 4, 0xFFFF, 0xFFFF)
def test_a_template_finished_verifies_at_any_length_and_identification(source, destination, identification, length):
    template = header_template(source, destination, 17, 64, 0, True)
    header = finish_header(template, header_sum(template), length, identification)
    assert verifies(header)
    assert (len(header), int.from_bytes(header[2:4], "big")) == (HEADER_OCTETS, length)
    assert header[4:6] == identification.to_bytes(2, "big")

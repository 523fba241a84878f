"""UDP datagrams on the wire (RFC 768).

     0      7 8     15 16    23 24    31
    +--------+--------+--------+--------+
    |   source port   | destination port|
    +--------+--------+--------+--------+
    |     length      |    checksum     |
    +--------+--------+--------+--------+

The layer works on an *addressed segment*: source address, destination address, segment, one behind the other. In a
packet without IP options that is everything from octet 12 on, so one slice yields the two things that UDP wants joined:
the flow (the first FLOW_OCTETS, addresses and ports) and what the checksum covers.
"""

from __future__ import annotations

from struct import Struct

PROTOCOL = 17  # RFC 768
HEADER_OCTETS = 8
ADDRESSES_OCTETS = 8
FLOW_OCTETS = 12
ADDRESSED_HEADER_OCTETS = ADDRESSES_OCTETS + HEADER_OCTETS
IP_HEADER_OCTETS = 20  # RFC 791 section 3.1, without options
IP_NO_OPTIONS = 0x45  # version 4, five words of header
PAYLOAD_OCTETS_MAX = 65535 - IP_HEADER_OCTETS - HEADER_OCTETS

ADDRESSED_HEADER = Struct(">4s4sH2xHH")  # source, destination, source port, length, checksum
FLOW = Struct(">IIHH")  # source, destination, source port, destination port
PORTS = Struct(">HH")
LENGTH_CHECKSUM = Struct(">HH")

_FRAGMENT_OFFSET = 0x1FFF  # RFC 791 section 3.1


def addressed_segment(packet: bytes) -> bytes:
    """The addressed segment of an IPv4 packet of at least IP_HEADER_OCTETS, with or without options."""
    return packet[12:20] + packet[(packet[0] & 15) * 4 :]


def flow_sum(source: int, destination: int, source_port: int, port: int) -> int:
    """What the addresses, the protocol and the ports of a flow add to the checksum of each of its datagrams.

    Not folded; an address is worth the sum of its two words because 2**16 is 1 modulo 65535.
    """
    return source + destination + PROTOCOL + source_port + port


def quoted(packet: bytes) -> tuple[bytes, bytes] | None:
    """(flow, start of the payload) of a UDP packet quoted in an ICMP error, which may have cut it behind the header."""
    if len(packet) < IP_HEADER_OCTETS + HEADER_OCTETS or packet[0] >> 4 != 4 or packet[0] & 15 < 5:
        return None
    if packet[9] != PROTOCOL or (packet[6] << 8 | packet[7]) & _FRAGMENT_OFFSET:
        return None
    segment = addressed_segment(packet)
    if len(segment) < ADDRESSED_HEADER_OCTETS:
        return None
    return segment[:FLOW_OCTETS], segment[ADDRESSED_HEADER_OCTETS:]

"""UDP datagrams on the wire (RFC 768).

     0      7 8     15 16    23 24    31
    +--------+--------+--------+--------+
    |   source port   | destination port|
    +--------+--------+--------+--------+
    |     length      |    checksum     |
    +--------+--------+--------+--------+

A *flow*: source address, destination address, source port, destination port, one behind the other, in network order.
"""

from __future__ import annotations

from struct import Struct

PROTOCOL = 17  # RFC 768
HEADER = Struct("!4sHH")  # ports, length, checksum
HEADER_OCTETS = HEADER.size
CHECKSUM_AT = 6
PAYLOAD_OCTETS_MAX = 65535 - 20 - HEADER_OCTETS  # in an IPv4 packet without options

PORTS = Struct(">HH")
PORTS_OCTETS = PORTS.size
LENGTH_CHECKSUM = Struct(">HH")
AFTER_PORTS = slice(PORTS_OCTETS, HEADER_OCTETS)


def flow_sum(source: bytes, destination: bytes, source_port: int, port: int) -> int:
    """What the addresses, the protocol and the ports of a flow add to the checksum of each of its datagrams.

    Modulo 65535, where all octets of an address are as good as one number as their words one by one; never zero.
    """
    return (int.from_bytes(source + destination, "big") + PROTOCOL + source_port + port) % 65535 or 65535

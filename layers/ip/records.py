"""PACKET records made from packets, for uses where speed does not matter."""

from __future__ import annotations

from bus.messages import FAMILY_4, INTERFACE, PACKET_HEAD, QUOTE_OCTETS
from packets import ipv4

HEAD_OCTETS = PACKET_HEAD.size


def record_of(packet: bytes, flags: int = 0) -> bytes:
    """A PACKET record for an IPv4 packet with a valid header."""
    version, tos, _, _, _, ttl, protocol, _, source, destination = ipv4.HEADER.unpack_from(packet)
    return PACKET_HEAD.pack(INTERFACE, FAMILY_4, flags, (version & 15) << 2, 0, protocol, ttl, tos, source,
                            destination) + packet


def quote(packet: bytes, flags: int = 0) -> bytes:
    """The same for as much of the packet as an ICMP error can quote."""
    return record_of(packet[:QUOTE_OCTETS], flags)

"""Ethernet II frames (IEEE 802.3 clause 3.2; RFC 894)."""

from __future__ import annotations

HEADER_OCTETS = 14  # destination (6), source (6), EtherType (2, network order)
MAC_OCTETS = 6
ARP_OCTETS = 28  # RFC 826, for Ethernet and IPv4
LENGTH_MAX = 1500  # IEEE 802.3 clause 3.2.6: up to there the field is no EtherType but the content's length
PAYLOAD_MIN_OCTETS = 46  # RFC 894: data is padded to 46 octets on a real Ethernet
TYPE_IPV4 = b"\x08\x00"  # RFC 894
TYPE_ARP = b"\x08\x06"  # RFC 826
TYPE_VLAN = b"\x81\x00"
BROADCAST = b"\xff" * 6


def is_group(mac: bytes) -> bool:
    """True for broadcast and multicast addresses: the lowest bit of the first octet (IEEE 802 clause 8)."""
    return bool(mac[0] & 1)


def pad(payload: bytes) -> bytes:
    """`payload` padded with zeros to the least that an Ethernet carries."""
    return payload if len(payload) >= PAYLOAD_MIN_OCTETS else payload.ljust(PAYLOAD_MIN_OCTETS, b"\0")

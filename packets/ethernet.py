"""Ethernet II frames (IEEE 802.3 clause 3.2; RFC 894)."""

from __future__ import annotations

HEADER_OCTETS = 14  # destination (6), source (6), EtherType (2, network order)
MAC_OCTETS = 6
ARP_OCTETS = 28  # RFC 826, for Ethernet and IPv4
PAYLOAD_MIN_OCTETS = 46  # RFC 894: data is padded to 46 octets on an Ethernet
TYPE_IPV4 = b"\x08\x00"  # RFC 894
TYPE_ARP = b"\x08\x06"  # RFC 826
TYPE_VLAN = b"\x81\x00"
BROADCAST = b"\xff" * 6
LENGTH_MAX = 1500  # IEEE 802.3: up to this value the type field is a length
SNAP = b"\xaa\xaa\x03\0\0\0"  # RFC 1042: SAP 170 to SAP 170, unnumbered information, organization code of EtherTypes


def is_group(mac: bytes) -> bool:
    """True for broadcast and multicast addresses: the lowest bit of the first octet (IEEE 802 clause 8)."""
    return bool(mac[0] & 1)


def from_ieee802(length: bytes, content: bytes) -> tuple[bytes, bytes]:
    """(EtherType, payload) of an IEEE 802.3 frame as in RFC 1042. The EtherType is empty for any other frame.

    `length`: the value in the place of an Ethernet II frame's type. Padding is removed.
    """
    octets = int.from_bytes(length, "big")
    if not len(SNAP) + 2 <= octets <= min(LENGTH_MAX, len(content)) or content[: len(SNAP)] != SNAP:
        return b"", b""
    return content[len(SNAP) : len(SNAP) + 2], content[len(SNAP) + 2 : octets]


def pad(payload: bytes) -> bytes:
    """`payload` padded with zeros to the minimum of an Ethernet frame."""
    return payload if len(payload) >= PAYLOAD_MIN_OCTETS else payload.ljust(PAYLOAD_MIN_OCTETS, b"\0")

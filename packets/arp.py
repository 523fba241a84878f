"""ARP packets for IPv4 over Ethernet (RFC 826), without their Ethernet header.

The 28 octets: hardware type, protocol type, both address lengths, operation; then the MAC and IPv4 address of the
sender and of the target, all in network order.
"""

from __future__ import annotations

from struct import Struct

PACKET = Struct("!6sH6s4s6s4s")  # types and lengths, operation, sender's MAC and address, target's MAC and address
PACKET_OCTETS = PACKET.size

IEEE802_IPV4 = bytes.fromhex("0006 0800 06 04")  # RFC 1042: hosts on IEEE 802 networks say 6; RFC 1122 section 2.3.3
ETHERNET_IPV4 = bytes.fromhex("0001 0800 06 04")  # hardware Ethernet, protocol IPv4, 6 and 4 octets
REQUEST = 1
REPLY = 2

MAC_BROADCAST = b"\xff" * 6
MAC_ZERO = bytes(6)
ADDRESS_ZERO = bytes(4)


def request(mac: bytes, source: bytes, target: bytes) -> bytes:
    """A request for the MAC of `target`. The target's MAC is zero, as Linux sends it."""
    return PACKET.pack(ETHERNET_IPV4, REQUEST, mac, source, MAC_ZERO, target)


def reply(mac: bytes, source: bytes, target_mac: bytes, target: bytes) -> bytes:
    """A reply to `target`, which says that `source` has `mac`."""
    return PACKET.pack(ETHERNET_IPV4, REPLY, mac, source, target_mac, target)


def probe(mac: bytes, target: bytes) -> bytes:
    """A probe for `target` (RFC 5227 section 2.1.1): its sender address is zero, so that it changes no neighbour's
    cache."""
    return request(mac, ADDRESS_ZERO, target)


def announcement(mac: bytes, address: bytes) -> bytes:
    """An announcement that `address` has `mac` (RFC 5227 section 2.3): a request whose sender and target are the
    same."""
    return request(mac, address, address)


def is_station(mac: bytes) -> bool:
    """True for the MAC of a single station: not a group or broadcast address (lowest bit of the first octet), not
    zero."""
    return not mac[0] & 1 and mac != MAC_ZERO


def dotted(address: bytes) -> str:
    """An IPv4 address of 4 octets in dotted notation."""
    return ".".join(map(str, address))

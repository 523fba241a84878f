"""Addresses as octets of their family's width: 4 for IPv4 (RFC 791), 16 for IPv6 (RFC 4291). What each can stand for.

Inside the stack an address is these octets and nothing else. ANY, no octets at all, stands where there is none: any
local address, no gateway. Every other function wants octets of one of the two widths.
"""

from __future__ import annotations

ANY = b""
IPV4_OCTETS, IPV6_OCTETS = 4, 16
WIDTHS = (IPV4_OCTETS, IPV6_OCTETS)

LOOPBACK = {IPV4_OCTETS: b"\x7f\0\0\1", IPV6_OCTETS: bytes(15) + b"\1"}  # by width; RFC 1122 section 3.2.1.3 (g)
UNSPECIFIED = {width: bytes(width) for width in WIDTHS}  # 0.0.0.0 and ::, as in packets
LIMITED_BROADCAST = b"\xff" * IPV4_OCTETS  # RFC 919 section 7
LOOPBACK_BROADCAST = b"\x7f\xff\xff\xff"  # Linux: the loopback interface is 127.0.0.1/8
BROADCAST_PREFIX_MAX = 30  # RFC 3021: a /31 has no broadcast address, nor has a single host


def is_unspecified(address: bytes) -> bool:
    """True for 0.0.0.0 and ::, and for ANY."""
    return not any(address)


def is_loopback(address: bytes) -> bool:
    """RFC 1122 section 3.2.1.3 (g): 127/8. RFC 4291 section 2.5.3: ::1 alone."""
    return address[0] == 127 if len(address) == IPV4_OCTETS else address == LOOPBACK[IPV6_OCTETS]


def is_multicast(address: bytes) -> bool:
    """RFC 1112 section 4: class D, 224.0.0.0/4. RFC 4291 section 2.7: ff00::/8."""
    return address[0] >> 4 == 0xE if len(address) == IPV4_OCTETS else address[0] == 0xFF


def is_destination(address: bytes) -> bool:
    """False for 0/8, which is never a destination (RFC 1122 section 3.2.1.3 (a), (b)), and for :: (RFC 4291)."""
    # Linux since 5.3 takes 0/8
    return address[0] != 0 if len(address) == IPV4_OCTETS else any(address)


def is_unicast(address: bytes) -> bool:
    """True if a single host on a link can have it: not 0/8, 127/8, class D and E (RFC 1122 section 3.2.1.3); ::, ::1,
    ff00::/8 (RFC 4291 section 2.5). Broadcast addresses by the prefix of a network are not checked."""
    if len(address) == IPV4_OCTETS:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and address != LOOPBACK[IPV6_OCTETS] and any(address)


def network(address: bytes, prefix: int) -> bytes:
    """The address with all bits after the first `prefix` zero."""
    return (int.from_bytes(address, "big") & mask(len(address), prefix)).to_bytes(len(address), "big")


def mask(width: int, prefix: int) -> int:
    """The netmask of a prefix length as an integer, for addresses of `width` octets."""
    host_bits = width * 8 - prefix
    return (1 << width * 8) - (1 << host_bits)


def is_host(address: bytes, prefix: int) -> bool:
    """False for the address of a network itself, or the broadcast address in it (RFC 1122 section 3.2.1.3).

    RFC 3021: a /31 has neither. RFC 4291 section 2.6.1: in IPv6 routers have the former, and the latter does not exist.
    """
    if len(address) != IPV4_OCTETS or prefix > BROADCAST_PREFIX_MAX:
        return True
    return address not in (network(address, prefix), broadcast(address, prefix))


def broadcast(address: bytes, prefix: int) -> bytes:
    """The directed broadcast address of the network of an address (RFC 919); ANY: there is none."""
    if len(address) != IPV4_OCTETS or prefix > BROADCAST_PREFIX_MAX:
        return ANY
    return (int.from_bytes(address, "big") | (1 << 32 - prefix) - 1).to_bytes(IPV4_OCTETS, "big")

"""IPv4 headers (RFC 791 section 3.1)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from packets.checksum import checksum

# Version and IHL, TOS, length, identification, flags and fragment offset, TTL, protocol, checksum, source, destination.
HEADER = Struct("!BBHHHBBH4s4s")
HEADER_OCTETS = 20
VERSION_4_NO_OPTIONS = 0x45
DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
FRAGMENT_MASK = 0x3FFF  # more fragments, and the offset: zero in an unfragmented packet
FRAGMENT_OFFSET = 0x1FFF  # the fragment offset, in units of 8 octets
LENGTH_MAX = 65535
PROTOCOL_AT = 9
TTL, PROTOCOL = 5, 6  # indices in the result of HEADER.unpack
SOURCE, DESTINATION, ADDRESSES = slice(12, 16), slice(16, 20), slice(12, 20)
LENGTH, VERSION_TO_LENGTH, FRAGMENT_TO_PROTOCOL = slice(2, 4), slice(0, 4), slice(6, 10)
TTL_DEFAULT = 64  # RFC 1700; Linux: net.ipv4.ip_default_ttl
ICMP, IGMP, TCP, UDP = 1, 2, 6, 17


def build(source: bytes, destination: bytes, protocol: int, payload: bytes, *, ttl: int = 64, tos: int = 0,
          identification: int = 0, dont_fragment: bool = False) -> bytes:
    """A whole packet without options. Addresses are 4 octets; the payload has at most 65,515."""
    template = header_template(source, destination, protocol, ttl, tos, dont_fragment)
    return finish_header(template, header_sum(template), HEADER_OCTETS + len(payload), identification) + payload


def header_template(source: bytes, destination: bytes, protocol: int, ttl: int, tos: int, dont_fragment: bool) -> bytes:
    """A header with length, identification and checksum zero: the constant part of the headers of a flow."""
    fragment = DONT_FRAGMENT if dont_fragment else 0
    return HEADER.pack(VERSION_4_NO_OPTIONS, tos, 0, 0, fragment, ttl, protocol, 0, source, destination)


def header_sum(template: bytes) -> int:
    """The one's complement sum of a template, for `finish_header`."""
    return 65535 - checksum(template)


_LENGTH_AND_ID = Struct("!HH")
_CHECKSUM = Struct("!H")
# A template in parts, with the variable fields between them: TOS before; length, identification; flags to protocol;
# checksum; addresses. One `pack` makes a header from them, as output does for each packet.
PARTS = Struct("!2sHH4sH8s")


def parts(template: bytes) -> tuple[bytes, bytes, bytes]:
    """The arguments of PARTS for a template."""
    return template[:2], template[6:10], template[12:]


def finish_header(template: bytes, template_sum: int, length_octets: int, identification: int) -> bytes:
    """The template with length, identification and checksum.

    The sum is never zero (version and IHL are not), so modulo 65535 the only ambiguous value is 0, which stands for
    65535 and gives the checksum 0.
    """
    total = (template_sum + length_octets + identification) % 65535 or 65535
    start, middle, end = parts(template)
    return PARTS.pack(start, length_octets, identification, middle, 65535 - total, end)


def header_with_options(template: bytes, options: bytes, length_octets: int, identification: int) -> bytes:
    """As `finish_header`, followed by options (whole words)."""
    words = (HEADER_OCTETS + len(options)) // 4
    return with_checksum(bytes([0x40 | words]) + template[1:2] + _LENGTH_AND_ID.pack(length_octets, identification)
                         + template[6:HEADER_OCTETS] + options)


def with_checksum(header: bytes) -> bytes:
    """The header with its checksum recomputed."""
    return header[:10] + _CHECKSUM.pack(checksum(header[:10] + header[12:])) + header[12:]


def with_length(header: bytes, length_octets: int) -> bytes:
    """The header for a packet of this length, with its new checksum."""
    return with_checksum(header[:2] + length_octets.to_bytes(2, "big") + header[4:])


def header_octets(packet: bytes) -> int:
    """The header length of a packet by its IHL field; more than the packet if it has no such field."""
    octets = (packet[0] & 15) * 4 if packet else 0
    return octets if octets >= HEADER_OCTETS else len(packet) + 1


def tos_of(packet: bytes) -> int:
    """The type of service, or DSCP and ECN (RFC 2474, RFC 3168)."""
    return packet[1]


def is_fragment(packet: bytes) -> bool:
    """True if a packet is a fragment."""
    return bool((packet[6] << 8 | packet[7]) & FRAGMENT_MASK)


def is_later_fragment(packet: bytes) -> bool:
    """True if a packet is a fragment but not the first."""
    return bool((packet[6] << 8 | packet[7]) & FRAGMENT_OFFSET)


class Quoted(NamedTuple):
    """The fields of the header of a packet that an ICMP error quotes, perhaps truncated."""

    header_octets: int
    tos: int
    total: int
    ttl: int
    protocol: int
    source: bytes
    destination: bytes


QUOTED_PAYLOAD_OCTETS = 8  # RFC 792: the minimum of payload that an error quotes


def quoted(packet: bytes) -> Quoted | None:
    """The header of an IPv4 packet. None: not a first fragment with QUOTED_PAYLOAD_OCTETS of payload."""
    if len(packet) < HEADER_OCTETS + QUOTED_PAYLOAD_OCTETS:
        return None
    version, tos, total, _, fragment, ttl, protocol, _, source, destination = HEADER.unpack_from(packet)
    octets = (version & 15) << 2
    if version >> 4 != 4 or octets < HEADER_OCTETS or len(packet) < octets + QUOTED_PAYLOAD_OCTETS:
        return None
    if fragment & FRAGMENT_OFFSET:
        return None
    return Quoted(octets, tos, total, ttl, protocol, source, destination)


def completed(packet: bytes, source: bytes, identification: int) -> bytes:
    """A packet of an application with length and checksum set, and source and identification if they are zero."""
    end = header_octets(packet)
    number = packet[4:6] if packet[4] or packet[5] else identification.to_bytes(2, "big")
    origin = packet[12:16] if any(packet[12:16]) else source
    header = packet[:2] + len(packet).to_bytes(2, "big") + number + packet[6:12] + origin + packet[16:end]
    return with_checksum(header) + packet[end:]


def group_mac(group: bytes) -> bytes:
    """RFC 1112 section 6.4: the MAC address of a multicast group is 01-00-5E and its lower 23 bits."""
    return b"\x01\x00\x5e" + bytes((group[1] & 0x7F,)) + group[2:]


def is_this_network(source: bytes) -> bool:
    """RFC 1122 section 3.2.1.3 (a), (b): 0/8, the source of a host that does not know its address."""
    return source[0] == 0


def is_link_local_group(destination: bytes) -> bool:
    """RFC 5771 section 4: 224.0.0.0/24 is never passed on by a router."""
    return destination.startswith(b"\xe0\0\0")

"""Checksum and segmentation offload, done in software where the device does not do it.

A *partial* checksum is the sum of the pseudo header in the place of the checksum; `complete` adds the rest. A
*super-packet* is many packets of one flow behind one header. Each has a given number of octets of payload, the last
perhaps fewer; length fields and the partial checksum are those of the whole. Each packet is a datagram for UDP (Linux:
USO), and a segment for TCP (TSO). Linux uses both internally, and exchanges them through a TAP.

Nothing here raises, whatever the octets.
"""

from __future__ import annotations

from struct import Struct

from packets import tcp, udp
from packets.checksum import checksum
from packets.ipv4 import HEADER_OCTETS as IP_HEADER_OCTETS
from packets.ipv4 import header_octets, with_checksum

CHECKSUM_AT = {udp.PROTOCOL: udp.CHECKSUM_AT, tcp.PROTOCOL: tcp.CHECKSUM_AT}  # offset in the segment, by protocol

_LENGTH_AND_ID = Struct("!HH")


def complete(octets: bytes, at: int, start: int = 0) -> bytes:
    """A segment, from octet `start` on, with the partial checksum at its octet `at` completed. Unchanged if it has no
    such octet."""
    place = start + at
    if len(octets) < place + 2:
        return octets
    value = checksum(octets[start:] if start else octets)
    if not value and at == udp.CHECKSUM_AT:
        value = 0xFFFF  # RFC 768: zero is sent as all ones, which is the same number; zero itself means none
    return octets[:place] + value.to_bytes(2, "big") + octets[place + 2 :]


def completed(packet: bytes, protocol: int) -> bytes:
    """An IPv4 packet with its partial transport checksum completed. Unchanged if its protocol has no checksum."""
    at = CHECKSUM_AT.get(protocol)
    return complete(packet, at, header_octets(packet)) if at is not None else packet


def segment_header_octets(segment: bytes, protocol: int) -> int:
    """The length of the transport header of a segment; 0: malformed, or a protocol that cannot be segmented."""
    if protocol == udp.PROTOCOL:
        octets = udp.HEADER_OCTETS
    elif protocol == tcp.PROTOCOL and len(segment) >= tcp.HEADER_OCTETS:
        octets = tcp.header_octets(segment)
        if octets < tcp.HEADER_OCTETS:
            return 0
    else:
        return 0
    return octets if octets < len(segment) else 0


def segments(whole: bytes, protocol: int, size: int) -> list[bytes]:
    """The segments of a super-packet's segment, with partial checksums like its own. Empty: not a super-packet."""
    start = segment_header_octets(whole, protocol)
    if not start or not size:
        return []
    return _datagrams(whole, size) if protocol == udp.PROTOCOL else _tcp_segments(whole, start, size)


def _datagrams(whole: bytes, size: int) -> list[bytes]:
    ports, payload = whole[:4], whole[udp.HEADER_OCTETS :]
    length, total = udp.LENGTH_CHECKSUM.unpack_from(whole, 4)
    pack, pseudo = udp.LENGTH_CHECKSUM.pack, total - length
    cut = []
    for at in range(0, len(payload), size):
        part = payload[at : at + size]
        octets = len(part) + udp.HEADER_OCTETS
        cut.append(ports + pack(octets, (pseudo + octets) % 65535 or 65535) + part)
    return cut


def _tcp_segments(whole: bytes, start: int, size: int) -> list[bytes]:
    """As Linux's tcp_gso_segment: FIN and PSH are in the last segment, CWR in the first (RFC 3168 section 6.1.2)."""
    source, destination, sequence, acknowledgment, offset, flags, window, total, urgent = tcp.HEADER.unpack_from(whole)
    options, end = whole[tcp.HEADER_OCTETS : start], len(whole)
    pseudo = total - end
    cut = []
    for at in range(start, end, size):
        part = whole[at : at + size]
        kept = flags if at == start else flags & ~tcp.CWR
        if at + size < end:
            kept &= ~(tcp.FIN | tcp.PSH)
        check = (pseudo + start + len(part)) % 65535 or 65535
        number = (sequence + at - start) & 0xFFFFFFFF
        header = tcp.HEADER.pack(source, destination, number, acknowledgment, offset, kept, window, check, urgent)
        cut.append(b"".join((header, options, part)))
    return cut


def packets(whole: bytes, protocol: int, size: int) -> list[bytes]:
    """The packets of a super-packet, as on a wire, with consecutive identification numbers."""
    octets = header_octets(whole)
    header = whole[:octets]
    if not IP_HEADER_OCTETS <= octets <= len(whole):
        return []
    identification = header[4] << 8 | header[5]
    at = CHECKSUM_AT.get(protocol, 0)
    cut = []
    for number, segment in enumerate(segments(whole[octets:], protocol, size)):
        fresh = header[:2] + _LENGTH_AND_ID.pack(octets + len(segment), (identification + number) & 0xFFFF)
        cut.append(with_checksum(fresh + header[6:]) + complete(segment, at))
    return cut

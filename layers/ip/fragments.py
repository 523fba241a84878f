"""A packet cut into fragments (RFC 791 section 3.2, "An Example Fragmentation Procedure")."""

from __future__ import annotations

from struct import Struct

from packets.ip_options import COPIED, join, walk
from packets.ipv4 import HEADER_OCTETS, MORE_FRAGMENTS

# Version to TOS, total length, identification, flags and offset, TTL and protocol, checksum; the rest follows.
_START = Struct("!2sH2sH2sH")


def split(packet: bytes, mtu_octets: int) -> list[bytes]:
    """The fragments of a whole packet, in order; none is longer than `mtu_octets`, of which 68 always suffice.

    DF is not set in them. The first carries all options of the packet, the others those that are to be copied.
    """
    header_octets = (packet[0] & 15) * 4
    first, payload = packet[:header_octets], packet[header_octets:]
    later = _later_header(first)
    fragments = []
    start, end = 0, len(payload)
    header = first
    while start < end:
        room = mtu_octets - len(header)
        if end - start <= room:
            stop, more = end, 0
        else:
            stop, more = start + (room & ~7), MORE_FRAGMENTS
        fragments.append(_header(header, stop - start, more | start >> 3) + payload[start:stop])
        start, header = stop, later
    return fragments


def _later_header(first: bytes) -> bytes:
    options = join(option for _, option in walk(first[HEADER_OCTETS:]) if option and option[0] & COPIED)
    words = (HEADER_OCTETS + len(options)) // 4
    return bytes([0x40 | words]) + first[1:HEADER_OCTETS] + options


def _header(model: bytes, payload_octets: int, field: int) -> bytes:
    """`model` with this length and this flags and offset, and the checksum that follows."""
    start, _, identification, _, ttl_protocol, _ = _START.unpack_from(model)
    total = len(model) + payload_octets
    rest = model[_START.size :]
    number = int.from_bytes(start + identification + ttl_protocol + rest, "big") + total + field
    # RFC 1071: as in packets.checksum; a sum is never zero here, so 0 modulo 65535 stands for 65535.
    return _START.pack(start, total, identification, field, ttl_protocol, 65535 - (number % 65535 or 65535)) + rest

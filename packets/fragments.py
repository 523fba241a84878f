"""Fragments of IPv4 packets: splitting a packet, and decoding fragments for reassembly (RFC 791 section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

from packets.ip_options import COPIED, join, walk
from packets.ipv4 import FRAGMENT_OFFSET, HEADER, HEADER_OCTETS, LENGTH_MAX, MORE_FRAGMENTS, with_checksum

# Version to TOS, total length, identification, flags and offset, TTL and protocol, checksum; the rest follows.
_START = Struct("!2sH2sH2sH")
_KEY_END = Struct("!BH")
CONGESTION = 3  # RFC 3168 section 5: the ECN field, in the lowest bits of TOS; all of them set: congestion experienced


class Fragment(NamedTuple):
    """A fragment as reassembly sees it, the same for every family."""

    source: bytes
    key: bytes  # what all fragments of a datagram have in common: with the source, it identifies the datagram
    start: int  # offset of its data, in octets
    more: bool  # it is not the last
    room: int  # maximum octets of data of a datagram
    ecn: int  # RFC 3168 section 5: 0 to 3
    header: bytes
    data: bytes
    whole: Callable[[bytes, Sequence[bytes], bool], bytes | None]  # makes the packet, as `whole` does for IPv4


def parse(packet: bytes) -> Fragment:
    """Decode a fragment with a valid header; octets beyond its total length have been removed."""
    version, tos, _, number, field, _, protocol, _, source, destination = HEADER.unpack_from(packet)
    header_octets = (version & 15) << 2
    # RFC 791 section 2.3: source, destination, protocol, identification
    key = source + destination + _KEY_END.pack(protocol, number)
    start, more = (field & FRAGMENT_OFFSET) << 3, bool(field & MORE_FRAGMENTS)
    return Fragment(source, key, start, more, LENGTH_MAX - HEADER_OCTETS, tos & CONGESTION, packet[:header_octets],
                    packet[header_octets:], whole)


def whole(first_header: bytes, pieces: Sequence[bytes], congested: bool) -> bytes | None:
    """The packet of these pieces, with the header of its first fragment; None: too long for a packet."""
    total = len(first_header) + sum(map(len, pieces))
    if total > LENGTH_MAX:  # the first fragment's header was longer than that of the last
        return None
    tos = first_header[1] | (CONGESTION if congested else 0)
    start = first_header[:1] + bytes((tos,)) + total.to_bytes(2, "big") + first_header[4:6] + b"\0\0"
    return with_checksum(start + first_header[8:]) + b"".join(pieces)


def split(packet: bytes, mtu_octets: int) -> list[bytes]:
    """The fragments of a whole packet, in order; none is longer than `mtu_octets`, of which 68 always suffice.

    DF is not set in them. The first contains all options of the packet, the others those with the copied flag.
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
    """`model` with this length, flags and offset, and the resulting checksum."""
    start, _, identification, _, ttl_protocol, _ = _START.unpack_from(model)
    total = len(model) + payload_octets
    rest = model[_START.size :]
    number = int.from_bytes(start + identification + ttl_protocol + rest, "big") + total + field
    # RFC 1071: as in packets.checksum; a sum is never zero here, so 0 modulo 65535 stands for 65535.
    return _START.pack(start, total, identification, field, ttl_protocol, 65535 - (number % 65535 or 65535)) + rest

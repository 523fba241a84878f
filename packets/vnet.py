"""What stands before each frame with offload, at a TAP or a wire: struct virtio_net_hdr (Linux linux/virtio_net.h).

     0        1          2         4          6             8              10
    +--------+----------+---------+----------+-------------+--------------+
    | flags  | GSO type | header  | GSO size | checksum    | checksum     |   integers in the machine's byte order
    |        |          | octets  |          | starts at   | stands at    |   (Linux tuntap.rst, TUNSETVNETLE unset)
    +--------+----------+---------+----------+-------------+--------------+
"""

from __future__ import annotations

from struct import Struct

from packets import tcp, udp

HEADER = Struct("=BBHHHH")
HEADER_OCTETS = HEADER.size

NEEDS_CHECKSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is partial
DATA_VALID = 2  # VIRTIO_NET_HDR_F_DATA_VALID: the checksum has been verified
GSO_NONE = 0
GSO_TCPV4 = 1  # VIRTIO_NET_HDR_GSO_TCPV4: a super-packet of TCP segments
GSO_UDP_L4 = 5  # VIRTIO_NET_HDR_GSO_UDP_L4: a super-packet of UDP datagrams

_SEGMENT_AT = 14 + 20  # of an Ethernet frame whose IPv4 packet has no options
# By protocol: GSO type, offset of the checksum, octets of header.
_PROTOCOLS = {udp.PROTOCOL: (GSO_UDP_L4, udp.CHECKSUM_AT, udp.HEADER_OCTETS),
              tcp.PROTOCOL: (GSO_TCPV4, tcp.CHECKSUM_AT, tcp.HEADER_OCTETS)}  # fmt: skip
_SUPER = {GSO_UDP_L4: udp.CHECKSUM_AT, GSO_TCPV4: tcp.CHECKSUM_AT}
SUPER_TYPES = frozenset(_SUPER)

PLAIN = bytes(HEADER_OCTETS)  # a frame as on a wire
PARTIAL_UDP = HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, _SEGMENT_AT, udp.CHECKSUM_AT)
PARTIAL_TCP = HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, _SEGMENT_AT, tcp.CHECKSUM_AT)


def header(protocol: int, partial: bool, size: int = 0) -> bytes | None:
    """The virtio header of a frame whose packet has no IP options.

    `partial`: its transport checksum is partial. `size`: it is a super-packet, whose packets have this many octets of
    payload, 1 to 65535; then the checksum is always partial. None: no device supports this protocol.
    """
    if not partial and not size:
        return PLAIN
    if protocol not in _PROTOCOLS:
        return None
    gso, checksum_at, octets = _PROTOCOLS[protocol]
    if not size:
        return HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, _SEGMENT_AT, checksum_at)
    # The header length is only a hint (Linux virtio_net.h) and need not include TCP options.
    return HEADER.pack(NEEDS_CHECKSUM, gso, _SEGMENT_AT + octets, size, _SEGMENT_AT, checksum_at)


def is_super(flags: int, gso: int, size: int, offset: int) -> bool:
    """True if these fields describe a super-packet like those of `header`, with or without IP options."""
    return _SUPER.get(gso) == offset and bool(flags & NEEDS_CHECKSUM) and size > 0

"""What stands before each frame at a TAP with offload: struct virtio_net_hdr (Linux include/uapi/linux/virtio_net.h).

     0        1          2         4          6             8              10
    +--------+----------+---------+----------+-------------+--------------+
    | flags  | GSO type | header  | GSO size | checksum    | checksum     |   integers in the machine's byte order
    |        |          | octets  |          | starts at   | stands at    |   (Linux tuntap.rst, TUNSETVNETLE unset)
    +--------+----------+---------+----------+-------------+--------------+
"""

from __future__ import annotations

from struct import Struct

HEADER = Struct("=BBHHHH")
HEADER_OCTETS = HEADER.size

NEEDS_CHECKSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is partial
DATA_VALID = 2  # VIRTIO_NET_HDR_F_DATA_VALID: the checksum has been verified
GSO_NONE = 0
GSO_UDP_L4 = 5  # VIRTIO_NET_HDR_GSO_UDP_L4: a super-packet of UDP datagrams

_UDP_AT = 14 + 20  # of an Ethernet frame with an IPv4 packet without options
_CHECKSUM_AT = 6  # RFC 768
_HEADERS_OCTETS = _UDP_AT + 8

PLAIN = bytes(HEADER_OCTETS)  # a frame as on a wire
PARTIAL_UDP = HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, _UDP_AT, _CHECKSUM_AT)


def super_header(size: int) -> bytes:
    """For a UDP super-packet whose datagrams have `size` octets of payload, 1 to 65535."""
    return HEADER.pack(NEEDS_CHECKSUM, GSO_UDP_L4, _HEADERS_OCTETS, size, _UDP_AT, _CHECKSUM_AT)


def is_udp_super(flags: int, gso: int, size: int, offset: int) -> bool:
    """Whether these fields announce a super-packet such as `super_header` does, with or without IP options."""
    return gso == GSO_UDP_L4 and bool(flags & NEEDS_CHECKSUM) and size > 0 and offset == _CHECKSUM_AT

"""Frames with a virtio_net_hdr as they are on a cable, for ports that take no others (packets.offload)."""

from __future__ import annotations

from packets import ethernet, ipv4, vnet
from packets.offload import complete, packets

SEGMENT_MIN_OCTETS = 48  # Linux tcp_min_snd_mss
_MOST = 65535 // SEGMENT_MIN_OCTETS  # more pieces would only cost the switch's time


def frames(octets: bytes) -> list[bytes]:
    """The frames that a virtio_net_hdr and the frame behind it stand for; empty: they are no valid ones.

    `octets`: at least so many that there is a whole Ethernet header.
    """
    flags, gso, _, size, start, offset = vnet.HEADER.unpack_from(octets)
    frame = octets[vnet.HEADER_OCTETS :]
    if gso == vnet.GSO_NONE:
        if not flags & vnet.NEEDS_CHECKSUM:
            return [frame]
        return [complete(frame, offset, start)] if start + offset <= len(frame) - 2 else []
    packet = frame[ethernet.HEADER_OCTETS :]
    if (not vnet.is_super(flags, gso, size, offset) or len(packet) > size * _MOST
            or frame[12:14] != ethernet.TYPE_IPV4 or len(packet) < ipv4.HEADER_OCTETS):
        return []
    head = frame[: ethernet.HEADER_OCTETS]
    return [head + ethernet.pad(piece) for piece in packets(packet, packet[ipv4.PROTOCOL_AT], size)]

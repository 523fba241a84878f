"""The packets in data records, in the form that they have on a wire.

For code that watches a pipe (captures, poison) and code that impairs it. This is the only module that knows the
position of a packet in a record of each kind. Nothing here raises, whatever the octets. If a record has only a part of
the headers, the rest is synthesised: unknown ports and addresses are zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812

from bus import messages as m
from packets import ethernet, ipv4, offload, udp, vnet

_FRAME_KINDS = frozenset({m.ETHERNET, m.ARP_IN, m.ARP_OUT, m.PACKET_OUT})
_NO_MAC = bytes(ethernet.MAC_OCTETS)
_PACKET_OCTETS, _OUT_OCTETS = m.PACKET_HEAD.size, m.PACKET_OUT_HEAD.size
_TRANSMIT_OCTETS, _ERROR_OCTETS, _REPORT_OCTETS = m.TRANSMIT_HEAD.size, m.ERROR_HEAD.size, m.REPORT_HEAD.size
_DATAGRAM_OCTETS, _DATAGRAM_FLAGS_AT = m.DATAGRAM_HEADER.size, 5
_SIZE_OCTETS = m.SEGMENT_SIZE.size
_UDP_HEADER = Struct("!HHHH")  # ports, length, checksum
_NO_SIZE = b"\0\0"  # the segment size of a record that is no super-packet
_NO_CHECKSUM = 1 << 16  # offset of the checksum in the segments of a protocol that has none
_FRAME_AT = vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS
Records = list[tuple[int, bytes]]  # (kind, record)


def is_frame(kind: int) -> bool:
    """True if the packets of such a record have an Ethernet header."""
    return kind in _FRAME_KINDS


def shows_packets(kind: int) -> bool:
    """True if records of this kind contain packets."""
    return kind in _VIEWS


def packets_of(kind: int, records: Iterable[bytes], with_vnet: bool, protocol: int = 0) -> list[bytes]:
    """The packets in records: Ethernet frames or IPv4 packets (`is_frame`), with complete checksums. A record that is
    shorter than its kind requires has none.

    `with_vnet`: an ETHERNET record starts with a virtio_net_hdr. `protocol`: that of the pipe's transport; 0: unknown.
    """
    if kind == m.ETHERNET and not with_vnet:
        return list(records)
    view, cutter = _VIEWS.get(kind), _CUTTERS.get(kind)
    packets: list[bytes] = []
    if view is None:
        return packets
    for record in records:
        try:
            cut = cutter(record) if cutter else None
            if cut:
                packets += [view(piece, protocol) for _, piece in cut]
            else:
                packets.append(view(record, protocol))
        except (StructError, IndexError):
            pass
    return packets


# -- seeing ---------------------------------------------------------------------------------------------------------


def _ethernet(record: bytes, _: int) -> bytes:
    flags, gso, _, _, start, offset = vnet.HEADER.unpack_from(record)
    frame = record[vnet.HEADER_OCTETS :]
    return offload.complete(frame, offset, start) if flags & vnet.NEEDS_CHECKSUM and gso == vnet.GSO_NONE else frame


def _packet_in(record: bytes, _: int) -> bytes:
    packet = record[_PACKET_OCTETS:]
    if record[2] & m.FLAG_CHECKSUM_PARTIAL and len(packet) > ipv4.PROTOCOL_AT:
        packet = offload.completed(packet, packet[ipv4.PROTOCOL_AT])
    return packet


def _packet_out(record: bytes, _: int) -> bytes:
    _, _, flags, protocol, _, mac = m.PACKET_OUT_HEAD.unpack_from(record)
    packet = record[_OUT_OCTETS:]
    if flags & m.FLAG_CHECKSUM_PARTIAL:
        packet = offload.completed(packet, protocol)
    return b"".join((mac, _NO_MAC, ethernet.TYPE_IPV4, packet))


def _transmit(record: bytes, _: int) -> bytes:
    _, _, _, flags, protocol, ttl, tos, options, source, destination = m.TRANSMIT_HEAD.unpack_from(record)
    segment = record[_TRANSMIT_OCTETS + options :]
    if flags & m.TRANSMIT_PARTIAL:
        segment = offload.complete(segment, offload.CHECKSUM_AT.get(protocol, _NO_CHECKSUM))
    if flags & m.TRANSMIT_WHOLE:
        return segment
    segment = segment[: ipv4.LENGTH_MAX - ipv4.HEADER_OCTETS]
    return _ip_header(source, destination, protocol, len(segment), ttl, tos) + segment


@lru_cache(1024)  # to make it takes 2 us, and most packets of a flow have the same
def _ip_header(source: bytes, destination: bytes, protocol: int, octets: int, ttl: int, tos: int) -> bytes:
    """The header for a payload of so many octets."""
    template = ipv4.header_template(source, destination, protocol, ttl, tos, False)
    return ipv4.finish_header(template, ipv4.header_sum(template), ipv4.HEADER_OCTETS + octets, 0)


@lru_cache(1024)  # likewise: with it, a datagram of an application takes half of the time
def _message_head(head: bytes, octets: int, sent: bool, protocol: int) -> bytes:
    """The headers for `octets` of payload that an application sends or receives with this DATAGRAM_HEADER.

    `protocol` 0: UDP if there is a port, else ICMP.
    """
    _, _, _, ttl, tos, port, _, peer, own = m.DATAGRAM_HEADER.unpack_from(head)
    source, destination = (own, peer) if sent else (peer, own)
    protocol = protocol or (udp.PROTOCOL if port else ipv4.ICMP)
    octets = min(octets, ipv4.LENGTH_MAX - ipv4.HEADER_OCTETS)
    if protocol != udp.PROTOCOL:
        return _ip_header(source, destination, protocol, octets, ttl, tos)
    octets = min(octets + udp.HEADER_OCTETS, ipv4.LENGTH_MAX - ipv4.HEADER_OCTETS)
    ports = (0, port) if sent else (port, 0)
    return _ip_header(source, destination, protocol, octets, ttl, tos) + _UDP_HEADER.pack(*ports, octets, 0)


def _send(record: bytes, protocol: int) -> bytes:
    payload = record[_DATAGRAM_OCTETS:]
    if record[_DATAGRAM_FLAGS_AT] & m.SEND_OPTIONS:
        payload = payload[1 + payload[0] :]
    return (_message_head(record[:_DATAGRAM_OCTETS], len(payload), True, protocol) + payload)[: ipv4.LENGTH_MAX]


def _datagram(record: bytes, protocol: int) -> bytes:
    payload = record[_DATAGRAM_OCTETS:]
    return (_message_head(record[:_DATAGRAM_OCTETS], len(payload), False, protocol) + payload)[: ipv4.LENGTH_MAX]


def _datagram_options(record: bytes, protocol: int) -> bytes:
    head = _DATAGRAM_OCTETS
    return _datagram(record[:head] + record[head + 1 + record[head] :], protocol)


_VIEWS: dict[int, Callable[[bytes, int], bytes]] = {
    m.ETHERNET: _ethernet,
    m.ARP_IN: lambda record, _: _NO_MAC + _NO_MAC + ethernet.TYPE_ARP + record,
    m.ARP_OUT: lambda record, _: record[:6] + _NO_MAC + ethernet.TYPE_ARP + record[6:],
    m.PACKET: _packet_in,
    m.PACKET_OUT: _packet_out,
    m.TRANSMIT: _transmit,
    m.REPORT_ERROR: lambda record, _: record[_REPORT_OCTETS + _PACKET_OCTETS :],
    m.ICMP_ERROR: lambda record, _: record[_ERROR_OCTETS:],
    m.SEND: _send,
    m.DATAGRAM: _datagram,
    m.DATAGRAM_OPTIONS: _datagram_options,
    m.SEND_SEGMENTS: _send,  # the first piece of it
    m.DATAGRAM_SEGMENTS: _datagram,
}


# -- disturbing -----------------------------------------------------------------------------------------------------


def pieces(kind: int, record: bytes, with_vnet: bool) -> Records:
    """The records with one packet each that are equivalent to a record with a super-packet; any other record
    unchanged."""
    cutter = _CUTTERS.get(kind)
    try:
        cut = cutter(record) if cutter and (with_vnet or kind != m.ETHERNET) else []
    except (StructError, IndexError):
        cut = []
    return cut or [(kind, record)]


def _cut_packet(record: bytes) -> Records:
    if record[4:6] == _NO_SIZE or len(record) < _PACKET_OCTETS + ipv4.HEADER_OCTETS:
        return []
    interface, family, flags, header, size, protocol, *rest = m.PACKET_HEAD.unpack_from(record)
    packet = record[_PACKET_OCTETS:]
    head = m.PACKET_HEAD.pack(interface, family, flags & ~m.FLAG_CHECKED, header, 0, protocol, *rest)
    return [(m.PACKET, head + piece) for piece in offload.packets(packet, packet[9], size)]


def _cut_packet_out(record: bytes) -> Records:
    if record[4:6] == _NO_SIZE:
        return []
    interface, family, flags, protocol, size, mac = m.PACKET_OUT_HEAD.unpack_from(record)
    head = m.PACKET_OUT_HEAD.pack(interface, family, flags & ~m.FLAG_CHECKSUM_PARTIAL, protocol, 0, mac)
    return [(m.PACKET_OUT, head + piece) for piece in offload.packets(record[_OUT_OCTETS:], protocol, size)]


def _cut_transmit(record: bytes) -> Records:
    if record[:2] == _NO_SIZE:
        return []
    size, *rest = m.TRANSMIT_HEAD.unpack_from(record)
    start = _TRANSMIT_OCTETS + record[9]  # options
    head = m.TRANSMIT_HEAD.pack(0, *rest) + record[_TRANSMIT_OCTETS:start]
    return [(m.TRANSMIT, head + piece) for piece in offload.segments(record[start:], rest[3], size)]


def _cut_send(record: bytes) -> Records:
    if m.DATAGRAM_HEADER.unpack_from(record)[2] & m.SEND_OPTIONS:
        return []
    return [(m.SEND, piece) for piece in _payloads(record, m.DATAGRAM_HEADER.size)]


def _cut_datagram(record: bytes) -> Records:
    return [(m.DATAGRAM, piece) for piece in _payloads(record, m.DATAGRAM_HEADER.size)]


def _payloads(record: bytes, head: int) -> list[bytes]:
    size = m.SEGMENT_SIZE.unpack_from(record, head)[0] or 1 << 16
    payload = record[head + _SIZE_OCTETS :]
    return [record[:head] + payload[at : at + size] for at in range(0, len(payload), size)]


def _cut_frame(record: bytes) -> Records:
    if record[1] == vnet.GSO_NONE or len(record) < _FRAME_AT + ipv4.HEADER_OCTETS:
        return []
    flags, gso, _, size, _, offset = vnet.HEADER.unpack_from(record)
    if not vnet.is_super(flags, gso, size, offset):
        return []
    packet, head = record[_FRAME_AT:], vnet.PLAIN + record[vnet.HEADER_OCTETS : _FRAME_AT]
    return [(m.ETHERNET, head + piece) for piece in offload.packets(packet, packet[9], size)]


_CUTTERS: dict[int, Callable[[bytes], Records]] = {
    m.PACKET: _cut_packet, m.PACKET_OUT: _cut_packet_out, m.TRANSMIT: _cut_transmit, m.SEND_SEGMENTS: _cut_send,
    m.DATAGRAM_SEGMENTS: _cut_datagram, m.ETHERNET: _cut_frame}


def completed(kind: int, record: bytes, with_vnet: bool) -> tuple[int, bytes]:
    """The record with its checksum complete, and the flag in its head set; not for super-packets. Never raises."""
    try:
        if kind == m.PACKET and record[2] & m.FLAG_CHECKED:
            packet = record[_PACKET_OCTETS:]
            if record[2] & m.FLAG_CHECKSUM_PARTIAL:
                packet = offload.completed(packet, packet[9])
            return kind, record[:2] + bytes([record[2] & ~m.FLAG_CHECKED]) + record[3:_PACKET_OCTETS] + packet
        if kind == m.PACKET_OUT and record[2] & m.FLAG_CHECKSUM_PARTIAL:
            head = record[:2] + bytes([record[2] & ~m.FLAG_CHECKSUM_PARTIAL]) + record[3:_OUT_OCTETS]
            return kind, head + offload.completed(record[_OUT_OCTETS:], record[3])
        if kind == m.TRANSMIT and record[5] & m.TRANSMIT_PARTIAL:
            start = _TRANSMIT_OCTETS + record[9]
            head = record[:5] + bytes([record[5] & ~m.TRANSMIT_PARTIAL]) + record[6:start]
            return kind, head + offload.complete(record[start:], offload.CHECKSUM_AT.get(record[6], _NO_CHECKSUM))
        if kind == m.ETHERNET and with_vnet:
            flags, gso, _, _, start, offset = vnet.HEADER.unpack_from(record)
            if flags & vnet.NEEDS_CHECKSUM and gso == vnet.GSO_NONE:
                at = vnet.HEADER_OCTETS + start
                return kind, vnet.PLAIN + record[vnet.HEADER_OCTETS : at] + offload.complete(record[at:], offset)
    except (StructError, IndexError):
        pass
    return kind, record


_PACKET_AT = {m.PACKET: _PACKET_OCTETS, m.PACKET_OUT: _OUT_OCTETS, m.ARP_OUT: 6, m.TRANSMIT: _TRANSMIT_OCTETS,
              m.REPORT_ERROR: _REPORT_OCTETS + _PACKET_OCTETS, m.ICMP_ERROR: _ERROR_OCTETS,
              m.SEND: m.DATAGRAM_HEADER.size, m.DATAGRAM: m.DATAGRAM_HEADER.size}


def corrupted(kind: int, record: bytes, with_vnet: bool, rng: random.Random) -> tuple[int, bytes]:
    """The record with one bit of its packet flipped, at a position that a checksum protects."""
    kind, record = completed(kind, record, with_vnet)
    at = vnet.HEADER_OCTETS if kind == m.ETHERNET and with_vnet else _PACKET_AT.get(kind, 0)
    if len(record) <= at:
        return kind, record
    where = rng.randrange(at, len(record))
    return kind, record[:where] + bytes([record[where] ^ 1 << rng.randrange(8)]) + record[where + 1 :]

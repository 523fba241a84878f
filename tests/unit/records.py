"""Records between layers as a test writes them down: made field by field, of packets that scapy made."""

from __future__ import annotations

from ipaddress import IPv4Address

from bus.messages import (
    ERROR_HEAD,
    FLAG_CHECKSUM_KNOWN,
    FLAG_CHECKSUM_PARTIAL,
    FLAG_GROUP,
    FLAG_LOOPED,
    ORIGIN_ICMP,
    ORIGIN_LOCAL,
    PACKET_HEAD,
    PACKET_OUT_HEAD,
    REPORT_HEAD,
    TRANSMIT_HEAD,
)

GROUP, KNOWN, PARTIAL, LOOPED = FLAG_GROUP, FLAG_CHECKSUM_KNOWN, FLAG_CHECKSUM_PARTIAL, FLAG_LOOPED
UP, OUT, TRANSMIT, ERROR = PACKET_HEAD.size, PACKET_OUT_HEAD.size, TRANSMIT_HEAD.size, ERROR_HEAD.size
REPORT = REPORT_HEAD.size + PACKET_HEAD.size
NOTHING = bytes(4)


def address(text: str) -> bytes:
    """The octets of an address in a record of control; none for 0.0.0.0."""
    octets = IPv4Address(text).packed
    return octets if any(octets) else b""


def octets(address: str | bytes) -> bytes:
    return address if isinstance(address, bytes) else IPv4Address(address).packed


def from_link(packet: object, flags: int = 0, size: int = 0) -> bytes:
    """A PACKET record as link makes it."""
    return PACKET_HEAD.pack(1, 4, flags, 0, size, 0, 0, 0, NOTHING, NOTHING) + bytes(packet)  # type: ignore[call-overload]


def up(packet: object, flags: int = 0, size: int = 0) -> bytes:
    """A PACKET record as ip makes it; of octets that are no packet, whatever comes of it."""
    given = bytes(packet)  # type: ignore[call-overload]
    header = given.ljust(20, b"\0")
    head = PACKET_HEAD.pack(1, 4, flags, (header[0] & 15) * 4, size, header[9], header[8], header[1], header[12:16],
                            header[16:20])
    return head + given


def out(mac: bytes, packet: object, partial: bool = False, size: int = 0) -> bytes:
    """A PACKET_OUT record."""
    given = bytes(packet)  # type: ignore[call-overload]
    protocol = given[9] if len(given) > 9 else 0
    return PACKET_OUT_HEAD.pack(1, 4, PARTIAL if partial else 0, protocol, size, mac) + given


def transmit(source: str | bytes, to: str | bytes, protocol: int = 17, ttl: int = 64, tos: int = 0, flags: int = 0,
             options: bytes = b"", size: int = 0) -> bytes:
    """The head of a TRANSMIT record, and the options."""
    return TRANSMIT_HEAD.pack(size, 0, 4, flags, protocol, ttl, tos, len(options), octets(source), octets(to)) + options


def transmitted(record: bytes) -> tuple[tuple[str, str, int, int, int, int], bytes, bytes]:
    """(source, destination, protocol, TTL, TOS, flags), options and segment of a TRANSMIT record of one packet."""
    size, interface, family, flags, protocol, ttl, tos, length, source, to = TRANSMIT_HEAD.unpack_from(record)
    assert (size, interface in (0, 1), family) == (0, True, 4)
    header = str(IPv4Address(source)), str(IPv4Address(to)), protocol, ttl, tos, flags
    return header, record[TRANSMIT : TRANSMIT + length], record[TRANSMIT + length :]


def error(icmp_type: int, code: int, quoted: object, origin: int = ORIGIN_ICMP, info: int = 0,
          offender: str | bytes | None = None) -> bytes:
    """An ICMP_ERROR record; `offender`: by default the packet's own source."""
    given = bytes(quoted)  # type: ignore[call-overload]
    header = given.ljust(20, b"\0")
    source = header[12:16]
    return ERROR_HEAD.pack(icmp_type, code, origin, 4, info, int.from_bytes(header[2:4], "big"), header[9],
                           (header[0] & 15) * 4, source if offender is None else octets(offender), source,
                           header[16:20]) + given


def local_error(code: int, quoted: object, info: int = 0) -> bytes:
    """An ICMP_ERROR record of ip's own."""
    return error(3, code, quoted, ORIGIN_LOCAL, info)


def report(icmp_type: int, code: int, packet: object, info: int = 0, flags: int = 0) -> bytes:
    """A REPORT_ERROR record."""
    return REPORT_HEAD.pack(icmp_type, code, info) + up(packet, flags)

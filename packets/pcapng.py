"""Capture files in pcapng (draft-ietf-opsawg-pcapng): encoding, and for tests and `replay` decoding.

Pure: it does not write files. All blocks are little-endian, times are nanoseconds since 1970. A file is a `section`,
then an `interface` for each place where packets were seen (numbered from 0 in their order in the file), then blocks of
`packets`. `statistics` may follow anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import NamedTuple

LINKTYPE_ETHERNET, LINKTYPE_RAW, LINKTYPE_USER0 = 1, 101, 147  # tcpdump.org/linktypes.html
LINKTYPE_WIRESHARK_UPPER_PDU = 252
SNAP_OCTETS = 1 << 18  # the maximum length of a packet

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6  # block types
BYTE_ORDER_MAGIC = 0x1A2B3C4D
INBOUND, OUTBOUND = 1, 2  # epb_flags, bits 0 and 1

_END, _COMMENT = 0, 1  # options of every block
_HARDWARE, _SYSTEM, _APPLICATION = 2, 3, 4  # of a section
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11  # of an interface
_FLAGS, _DROPPED = 2, 4  # of a packet
_START, _FINISH, _RECEIVED, _LOST = 2, 3, 4, 5  # of statistics
_NANOSECONDS = b"\x09"  # if_tsresol: 10 to the power of -9

_BLOCK = Struct("<II")  # type, length of the whole block
_LENGTH = Struct("<I")
_OPTION = Struct("<HH")
_SECTION = Struct("<IHHq")  # magic, version 1.0, length of the section (-1: unspecified)
_INTERFACE = Struct("<HHI")  # link type, 0, the longest packet
_PACKET = Struct("<IIIII")  # interface, time (high, low), captured octets, octets of the packet
_PACKET_BLOCK = Struct("<IIIIIII")  # the same behind the two words of _BLOCK
_STATISTICS = Struct("<III")
_UINT64 = Struct("<Q")


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)


def _options(options: Sequence[tuple[int, bytes]]) -> bytes:
    if not options:
        return b""
    options = [(code, value[:0xFFFF]) for code, value in options]
    return b"".join(_OPTION.pack(code, len(value)) + _padded(value) for code, value in options) + _OPTION.pack(_END, 0)


def _texts(*options: tuple[int, str]) -> list[tuple[int, bytes]]:
    return [(code, text.encode()) for code, text in options if text]


def _block(kind: int, body: bytes) -> bytes:
    octets = 12 + len(body)
    return _BLOCK.pack(kind, octets) + body + _LENGTH.pack(octets)


def _time(when_ns: int) -> tuple[int, int]:
    return when_ns >> 32, when_ns & 0xFFFFFFFF


def section(application: str = "", hardware: str = "", system: str = "", comment: str = "") -> bytes:
    """The first block of a file (section 4.1)."""
    options = _texts((_COMMENT, comment), (_HARDWARE, hardware), (_SYSTEM, system), (_APPLICATION, application))
    return _block(SECTION, _SECTION.pack(BYTE_ORDER_MAGIC, 1, 0, -1) + _options(options))


def interface(name: str, link_type: int, description: str = "", filter_expression: str = "") -> bytes:
    """An interface, a place where packets are seen, with timestamps in nanoseconds (section 4.2)."""
    options = [*_texts((_NAME, name), (_DESCRIPTION, description)), (_RESOLUTION, _NANOSECONDS)]
    if filter_expression:
        options.append((_FILTER, b"\0" + filter_expression.encode()))
    return _block(INTERFACE, _INTERFACE.pack(link_type, 0, SNAP_OCTETS) + _options(options))


def packet_options(comment: str = "", direction: int = 0, dropped: int = 0) -> bytes:
    """The options of packets. `dropped`: number of packets that this capture lost at the interface since the packet
    before."""
    options = _texts((_COMMENT, comment))
    if direction:
        options.append((_FLAGS, _LENGTH.pack(direction)))
    if dropped:
        options.append((_DROPPED, _UINT64.pack(dropped)))
    return _options(options)


def packets(number: int, when_ns: int, packets: Iterable[bytes], options: bytes = b"") -> bytes:
    """Packets seen at interface `number` at one time (section 4.3), each with these options (`packet_options`).

    What precedes and follows a packet is made once for packets of one length: they take a third of the time.
    """
    parts: list[bytes] = []
    length, head, tail = -1, b"", b""
    for octets in packets:
        if len(octets) != length:
            length = len(octets)
            padding = -length % 4
            block = _PACKET_BLOCK.size + length + padding + len(options) + _LENGTH.size
            head = _PACKET_BLOCK.pack(PACKET, block, number, *_time(when_ns), length, length)
            tail = bytes(padding) + options + _LENGTH.pack(block)
        parts += (head, octets, tail)
    return b"".join(parts)


def complete(octets: bytes, end: int) -> int:
    """The end of the last block that is complete in `octets[:end]`, which begin with a block."""
    at = 0
    while at + _BLOCK.size <= end and (after := at + _BLOCK.unpack_from(octets, at)[1]) <= end:
        at = after
    return at


def statistics(number: int, when_ns: int, *, start_ns: int, received: int, lost: int) -> bytes:
    """What interface `number` saw from `start_ns` to `when_ns`, and how many of these packets are missing (section
    4.6)."""
    times = [(code, Struct("<II").pack(*_time(ns))) for code, ns in ((_START, start_ns), (_FINISH, when_ns))]
    counts = [(_RECEIVED, _UINT64.pack(received)), (_LOST, _UINT64.pack(lost))]
    return _block(STATISTICS, _STATISTICS.pack(number, *_time(when_ns)) + _options([*times, *counts]))


class Interface(NamedTuple):
    """A decoded block of `interface`."""

    name: str
    link_type: int
    description: str


class Packet(NamedTuple):
    """A decoded block of `packet`."""

    interface: int
    when_ns: int
    octets: bytes
    length: int
    comment: str
    dropped: int


class Statistics(NamedTuple):
    """A decoded block of `statistics`."""

    interface: int
    received: int
    lost: int


def _read_options(octets: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + _OPTION.size <= len(octets):
        code, length = _OPTION.unpack_from(octets, at)
        if code == _END:
            break
        found[code] = octets[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4
    return found


def _text(options: dict[int, bytes], code: int) -> str:
    return options.get(code, b"").decode(errors="replace")


def _number(options: dict[int, bytes], code: int) -> int:
    return int.from_bytes(options.get(code, b""), "little")


def read(octets: bytes) -> Iterator[Interface | Packet | Statistics]:
    """The blocks of a file that this module wrote; unknown blocks are skipped. ValueError: not such a file."""
    at = 0
    while at < len(octets):
        try:
            kind, length = _BLOCK.unpack_from(octets, at)
            body = octets[at + 8 : at + length - 4]
            if length < 12 or length % 4 or _LENGTH.unpack_from(octets, at + length - 4) != (length,):
                raise ValueError(f"octet {at}: a block's two lengths differ")
            if at == 0 and (kind != SECTION or _SECTION.unpack_from(body)[0] != BYTE_ORDER_MAGIC):
                raise ValueError("not a little-endian pcapng file")
            at += length
            if kind == INTERFACE:
                options = _read_options(body[_INTERFACE.size :])
                yield Interface(_text(options, _NAME), _INTERFACE.unpack_from(body)[0], _text(options, _DESCRIPTION))
            elif kind == PACKET:
                number, high, low, kept, whole = _PACKET.unpack_from(body)
                end = _PACKET.size + kept
                options = _read_options(body[end + -kept % 4 :])
                yield Packet(number, high << 32 | low, body[_PACKET.size : end], whole, _text(options, _COMMENT),
                             _number(options, _DROPPED))
            elif kind == STATISTICS:
                options = _read_options(body[_STATISTICS.size :])
                yield Statistics(_STATISTICS.unpack_from(body)[0], _number(options, _RECEIVED), _number(options, _LOST))
        except StructError as error:
            raise ValueError(f"octet {at}: the block is incomplete") from error

"""IGMP messages, as a host reads and writes them: versions 1 (RFC 1112 appendix I), 2 (RFC 2236) and 3 (RFC 3376).

Addresses are 4 octets.
"""

from __future__ import annotations

from collections.abc import Collection
from struct import Struct
from typing import NamedTuple

from packets.checksum import checksum

QUERY, V1_REPORT, V2_REPORT, LEAVE, V3_REPORT = 0x11, 0x12, 0x16, 0x17, 0x22
IS_IN, IS_EX, TO_IN, TO_EX, ALLOW, BLOCK = range(1, 7)  # RFC 3376 section 4.2.12: types of group records
ALL_SYSTEMS = bytes((224, 0, 0, 1))
ALL_ROUTERS = bytes((224, 0, 0, 2))  # RFC 2236 section 9: destination of leave messages
V3_ROUTERS = bytes((224, 0, 0, 22))  # RFC 3376 section 4.2.14: destination of reports
NO_GROUP = bytes(4)  # the group of a general query

HEADER_OCTETS = 8
V3_QUERY_OCTETS = 12
V1_RESPONSE_S = 10.0  # RFC 3376 section 4.1.1: the meaning of 0 in a query of version 1
ROBUSTNESS_DEFAULT = 2  # RFC 3376 section 8.1
QUERY_INTERVAL_DEFAULT_S = 125.0  # RFC 3376 section 8.2

_SHORT = Struct("!BBH4s")  # type, maximum response time, checksum, group
_QUERY_TAIL = Struct("!BBH")  # flags and robustness, query interval, number of sources
_REPORT = Struct("!BxHxxH")  # type, checksum, number of group records
_RECORD = Struct("!BxH4s")  # type, number of sources, group


class Query(NamedTuple):
    """A membership query of any version. `robustness` and `interval_s` are the defaults if it does not contain them."""

    version: int
    group: bytes  # NO_GROUP: a general query
    sources: frozenset[bytes]
    response_s: float  # the response must be sent within this time
    robustness: int
    interval_s: float


class Record(NamedTuple):
    """A group record of a report of version 3."""

    kind: int
    group: bytes
    sources: Collection[bytes]


def group_of(message: bytes) -> bytes:
    """The group of a query, of a report of version 1 or 2, or of a leave, of HEADER_OCTETS at least."""
    return message[4:8]


def parse_query(message: bytes) -> Query | None:
    """The query in a message. None: the message is malformed, or its checksum is wrong."""
    octets = len(message)
    code, group = message[1], group_of(message)
    # RFC 3376 section 7.1: the version follows from the length and the response time
    if octets == HEADER_OCTETS:
        version, response_s = (2, code / 10) if code else (1, V1_RESPONSE_S)
        return Query(version, group, frozenset(), response_s, ROBUSTNESS_DEFAULT, QUERY_INTERVAL_DEFAULT_S)
    if octets < V3_QUERY_OCTETS:
        return None
    flags, interval, count = _QUERY_TAIL.unpack_from(message, HEADER_OCTETS)
    end = V3_QUERY_OCTETS + 4 * count
    if octets < end:
        return None
    sources = frozenset(message[at : at + 4] for at in range(V3_QUERY_OCTETS, end, 4))
    return Query(3, group, sources, _unfloat(code) / 10, flags & 7 or ROBUSTNESS_DEFAULT,
                 float(_unfloat(interval)) or QUERY_INTERVAL_DEFAULT_S)


def _unfloat(code: int) -> int:
    """RFC 3376 sections 4.1.1 and 4.1.7: a code from 128 on is a floating-point number."""
    return code if code < 128 else (code & 15 | 16) << ((code >> 4 & 7) + 3)


def short(kind: int, group: bytes) -> bytes:
    """A report of version 1 or 2, or a leave message."""
    return _SHORT.pack(kind, 0, checksum(_SHORT.pack(kind, 0, 0, group)), group)


def reports(records: list[Record], room_octets: int) -> list[bytes]:
    """Reports of version 3 with these records, each of at most `room_octets`."""
    messages: list[bytes] = []
    body, count = b"", 0
    for record in _fitting(records, (room_octets - HEADER_OCTETS - _RECORD.size) // 4):
        octets = _RECORD.pack(record.kind, len(record.sources), record.group) + b"".join(sorted(record.sources))
        if count and HEADER_OCTETS + len(body) + len(octets) > room_octets:
            messages.append(_report(body, count))
            body, count = b"", 0
        body, count = body + octets, count + 1
    if count:
        messages.append(_report(body, count))
    return messages


def _fitting(records: list[Record], sources_max: int) -> list[Record]:
    """RFC 3376 section 4.2.16: a record too long for any report is split, or truncated if splitting would change it."""
    fitting = []
    for kind, group, sources in records:
        ordered = sorted(sources)
        pieces = [ordered[at : at + sources_max] for at in range(0, len(ordered), sources_max)] or [ordered]
        fitting += [Record(kind, group, piece) for piece in (pieces[:1] if kind in (IS_EX, TO_EX) else pieces)]
    return fitting


def _report(body: bytes, count: int) -> bytes:
    return _REPORT.pack(V3_REPORT, checksum(_REPORT.pack(V3_REPORT, 0, count) + body), count) + body

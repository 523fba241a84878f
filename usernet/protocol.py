"""The message protocol between an application and the socket service (docs/app-protocol.md).

A *frame* is one ZeroMQ message: a header, the lengths of its records, the records. All integers are little-endian;
addresses are 4 octets in network order. The layers of the stack use the same frames among themselves, so `bus/`
builds on this module; nothing here depends on anything else of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812

VERSION = 1
HEADER = Struct("<BBHIQQ")  # version, kind, record count, sender's incarnation, sender's id, sequence number
HEADER_OCTETS = HEADER.size
MAX_RECORDS = 256  # records that one frame may carry
MAX_FRAME_OCTETS = 1 << 18  # longer frames are refused by the receiving socket

# Kinds of frame. Below 128: data, dropped and counted where a pipe is full. From 128: control, never dropped.
SEND = 1  # application -> sockets: datagrams to send (SEND_HEADER + payload)
DATAGRAM = 2  # sockets -> application: datagrams received (DATAGRAM_HEADER + payload)
SEND_SEGMENTS = 13  # application -> sockets: SEND_HEADER + SEGMENT_SIZE + payloads of that size, the last at most
DATAGRAM_SEGMENTS = 14  # sockets -> application that asked for it: DATAGRAM_HEADER + SEGMENT_SIZE + payloads likewise
DATAGRAM_OPTIONS = 21  # likewise: DATAGRAM_HEADER + an octet, so many of IP options + payload
HELLO = 128  # both ways, first frame after a start: JSON Hello
RESUME = 129  # both ways: JSON Resume; the next frames are repetitions from that sequence number on
REQUEST = 130  # application -> sockets: JSON Request, answered by one REPLY
REPLY = 131  # sockets -> application: JSON Reply
CREDIT = 132  # both ways: octets of receive buffer, given back by the application or asked about (CREDIT_RECORD)
SOCKET_ERROR = 133  # sockets -> application: an error for one socket (ERROR_RECORD + the offending datagram's start)
BYE = 134  # application -> sockets, its last frame, no records: close all its sockets and forget it

SEND_HEADER = Struct("<I4sH4sBBH")  # handle, destination, port (0: the peer), source (0: any), TTL, TOS, flags
DATAGRAM_HEADER = Struct("<I4sH4sBB")  # handle, source, port, destination, TTL, TOS
SEGMENT_SIZE = Struct("<H")  # octets of payload in each datagram but perhaps the last, which is not empty
SEGMENTS_MAX = 128  # datagrams in one such record (Linux UDP_MAX_SEGMENTS)
CREDIT_RECORD = Struct("<II")  # handle, octets (with CREDIT_TOTAL: all that is queued now)
ERROR_RECORD = Struct("<IIBBBBI4s4sH")  # handle, errno, origin, type, code, 0, info, offender, destination, port

SEND_TTL_DEFAULT = 0  # SEND_HEADER.TTL: take the socket's
SEND_TOS_GIVEN = 1  # SEND_HEADER.flags: take TOS from the record, not the socket's
SEND_OPTIONS = 2  # SEND_HEADER.flags: before each payload stands an octet, so many of IP options, not the socket's
CREDIT_TOTAL = 1 << 31
DATAGRAM_OVERHEAD = 256  # octets of receive buffer that a queued datagram costs beside its payload

_HEADER_AND_LENGTH = Struct("<BBHIQQI")  # and that of the first record
_LONE_RECORD = _HEADER_AND_LENGTH.size
_lengths = [Struct(f"<{count}I") for count in range(MAX_RECORDS + 1)]


def inbox_name(application: int) -> str:
    """File name, in the run directory, of the socket on which an application receives."""
    return f"app-{application:x}.sock"


class FrameError(ValueError):
    """The octets are not a frame of this protocol; the text says why."""


def pack_frame(kind: int, sender: int, incarnation: int, sequence: int, records: Sequence[bytes]) -> bytes:
    """One frame out of 0 to MAX_RECORDS records."""
    count = len(records)
    if count == 1:
        record = records[0]
        return _HEADER_AND_LENGTH.pack(VERSION, kind, 1, incarnation, sender, sequence, len(record)) + record
    head = HEADER.pack(VERSION, kind, count, incarnation, sender, sequence)
    return b"".join((head, _lengths[count].pack(*map(len, records)), *records))


def with_incarnation(frame: bytes, incarnation: int) -> bytes:
    """The same frame from a later incarnation of its sender: repetitions must not look stale."""
    return frame[:4] + _lengths[1].pack(incarnation) + frame[8:]


def unpack_frame(frame: bytes) -> tuple[int, int, int, int, list[bytes]]:
    """(kind, incarnation, sender, sequence, records) of a frame; FrameError for anything else."""
    try:
        version, kind, count, incarnation, sender, sequence, length = _HEADER_AND_LENGTH.unpack_from(frame)
        if count == 1 and version == VERSION:  # a lone record: most frames while little is going on
            record = frame[_LONE_RECORD:]
            if len(record) != length:
                raise FrameError("record length does not match the frame")
            return kind, incarnation, sender, sequence, [record]
    except StructError:
        pass  # no records, or no frame
    try:
        version, kind, count, incarnation, sender, sequence = HEADER.unpack_from(frame)
        if version != VERSION:
            raise FrameError(f"version {version}, expected {VERSION}")
        if count > MAX_RECORDS:
            raise FrameError(f"{count} records, at most {MAX_RECORDS}")
        lengths = _lengths[count].unpack_from(frame, HEADER_OCTETS)
    except StructError as error:
        raise FrameError("shorter than its header says") from error
    end = HEADER_OCTETS + 4 * count
    records = []
    for length in lengths:
        start = end
        end += length
        records.append(frame[start:end])
    if end != len(frame):
        raise FrameError("record lengths do not add up to the frame")
    return kind, incarnation, sender, sequence, records

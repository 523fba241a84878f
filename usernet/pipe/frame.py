"""Frames: the messages on a pipe (docs/app-protocol.md).

A *frame* is one ZeroMQ message: a header, the lengths of its records, and the records. All integers are little-endian.
Applications and layers use the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import TypeVar

import msgspec

VERSION = 2  # of the application protocol; the first octet of each frame, also between layers
HEADER = Struct("<BBHIQQ")  # version, kind, number of records, sender's incarnation, sender's id, sequence number
HEADER_OCTETS = HEADER.size
MAX_RECORDS = 256  # maximum number of records in a frame
MAX_FRAME_OCTETS = 1 << 18  # the receiving socket refuses longer frames

_HEADER_AND_LENGTH = Struct("<BBHIQQI")  # with the length of the first record
_LONE_RECORD = _HEADER_AND_LENGTH.size
_lengths = [Struct(f"<{count}I") for count in range(MAX_RECORDS + 1)]


T = TypeVar("T")


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A function that decodes the JSON of a record to `kind`. It raises ValueError for anything else."""
    decode = msgspec.json.Decoder(kind).decode

    def checked(octets: bytes) -> T:
        try:
            return decode(octets)
        except RecursionError as error:  # brackets nested deeper than Python's stack, in an unknown field
            raise ValueError("nested too deep") from error

    return checked


def of_version(frame: bytes, version: int) -> bytes:
    """The same frame with another version number. Greetings have the same format in all versions."""
    return bytes((version,)) + frame[1:]


def kind_of(frame: bytes) -> int:
    """The kind of the records in a frame that `pack_frame` made."""
    return frame[1]


class FrameError(ValueError):
    """The octets are not a valid frame; the text says why."""


def pack_frame(kind: int, sender: int, incarnation: int, sequence: int, records: Sequence[bytes]) -> bytes:
    """Encode a frame with 0 to MAX_RECORDS records."""
    count = len(records)
    if count == 1:
        record = records[0]
        return _HEADER_AND_LENGTH.pack(VERSION, kind, 1, incarnation, sender, sequence, len(record)) + record
    head = HEADER.pack(VERSION, kind, count, incarnation, sender, sequence)
    return b"".join((head, _lengths[count].pack(*map(len, records)), *records))


def with_incarnation(frame: bytes, incarnation: int) -> bytes:
    """The same frame with a later incarnation of its sender, so that a repetition is not stale."""
    return frame[:4] + _lengths[1].pack(incarnation) + frame[8:]


def with_sequence(frame: bytes, incarnation: int, sequence: int) -> bytes:
    """The same frame with the incarnation and the sequence number of another numbering."""
    version, kind, count, _, sender, _ = HEADER.unpack_from(frame)
    head = HEADER.pack(version, kind, count, incarnation, sender, sequence)
    return b"".join((head, memoryview(frame)[HEADER_OCTETS:]))


def unpack_frame(frame: bytes) -> tuple[int, int, int, int, list[bytes]]:
    """(kind, incarnation, sender, sequence, records) of a frame. FrameError: not a valid frame."""
    try:
        version, kind, count, incarnation, sender, sequence, length = _HEADER_AND_LENGTH.unpack_from(frame)
        if count == 1 and version == VERSION:  # a single record: most frames at low load
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
        raise FrameError("shorter than its header requires") from error
    end = HEADER_OCTETS + 4 * count
    records = []
    for length in lengths:
        start = end
        end += length
        records.append(frame[start:end])
    if end != len(frame):
        raise FrameError("record lengths do not add up to the frame")
    return kind, incarnation, sender, sequence, records

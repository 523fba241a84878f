"""The records of streams (docs/decisions/streams.md): their kinds and formats, and how waiting records are merged.

Streams are a third class of record beside data and control: never dropped, bounded by credit. Offsets are totals, so
behind a full pipe a record may replace an older one of its kind and handle.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

STREAM_KIND_MIN, STREAM_KIND_END = 160, 192  # stream kinds are from the first up to, but not including, the second

STREAM = 160  # both ways: STREAM_HEADER + octets
STREAM_HELD = 161  # both ways: HELD_RECORD, for octets in the memory of the application (usernet.pipe.rings)
READ = 162  # down: READ_RECORD
ROOM = 163  # up: ROOM_RECORD, or ROOM_OF_RING
ACCEPT = 164  # down: ACCEPT_RECORD
ACCEPTED = 165  # up: ACCEPTED_HEADER + local address + peer's address
STREAM_RESET = 166  # up: RESET_RECORD
STREAM_MEMORY = 168  # down: MEMORY_RECORD
STREAM_INFO = 167  # both ways: INFO_HEADER; upwards then the answer

STREAM_HEADER = Struct("<IIQ")  # handle, flags, offset of the first octet
HELD_RECORD = Struct("<IIQIQ")  # STREAM_HELD: as STREAM_HEADER, length, the ring's reference
READ_RECORD = Struct("<IIQQ")  # handle, flags, octets that the application has taken, octets that its process holds
ROOM_RECORD = Struct("<IIQQQ")  # handle, flags, octets stored by tcp, octets acknowledged, limit of writing
ROOM_OF_RING = Struct("<IIQQQQ")  # the same, and the reference of the ring for octets to send
MEMORY_RECORD = Struct("<IIQ")  # handle, number of the application's memory, its token
ACCEPT_RECORD = Struct("<IIQQ")  # listener, flags, connections stored, connections that may be handed up
ACCEPTED_HEADER = Struct("<IIQHHBxH")  # listener, handle, number, local port, peer's port, family, interface
RESET_RECORD = Struct("<II")  # handle, errno
INFO_HEADER = Struct("<IIQ")  # handle, 0, request
# Upwards followed by: state, timer, 0, milliseconds until it expires, retransmissions, 0, octets unread,
# unacknowledged, unsent
INFO_ANSWER = Struct("<BBHIIIQQQ")
CLOSE_RECORD = Struct("<IiQQ")  # SOCKET_CLOSE to tcp: handle, linger (-1: none), octets written, octets taken
WRITTEN_UNKNOWN = (1 << 64) - 1  # in a CLOSE_RECORD: as many as tcp has taken

STREAM_MORE = 1  # flags of STREAM and STREAM_HELD
STREAM_END = 2
STREAM_URGENT = 4
RESUME = 1  # flag of READ, ROOM and ACCEPT: send again from `have`, from `taken`
FINISHED = 2  # flag of ROOM: the peer has acknowledged our FIN

READ_OCTETS_MIN = 4096  # an application that has read everything need not say so while its last READ is less behind

TCP_HANDLE_MIN = 1 << 31  # tcp assigns handles from here on
HANDLE_END = (1 << 32) - 1

_HANDLE_AND_FLAGS = Struct("<II")
_HELD_HEAD = Struct("<IIQI")


def is_stream(kind: int) -> bool:
    """True for the kinds of stream records."""
    return STREAM_KIND_MIN <= kind < STREAM_KIND_END


def _latest(older: bytes, newer: bytes) -> bytes:
    """Totals: the newer record replaces the older, but keeps the flags of both."""
    handle, flags = _HANDLE_AND_FLAGS.unpack_from(newer)
    return _HANDLE_AND_FLAGS.pack(handle, flags | _HANDLE_AND_FLAGS.unpack_from(older)[1]) + newer[8:]


def _consecutive(older: bytes, newer: bytes) -> bytes | None:
    """Descriptors of consecutive octets in the same memory."""
    handle, flags, offset, length = _HELD_HEAD.unpack_from(older)
    _, further, start, more = _HELD_HEAD.unpack_from(newer)
    head = _HELD_HEAD.size
    if flags & ~STREAM_MORE or further & STREAM_URGENT or start != offset + length or older[head:] != newer[head:]:
        return None
    return _HELD_HEAD.pack(handle, further, offset, length + more) + older[head:]


# {kind: function that merges an older and a newer record of one handle, neither of which has left}; None: not
# mergeable.
MERGES: dict[int, Callable[[bytes, bytes], bytes | None]] = {
    READ: _latest,
    ROOM: _latest,
    ACCEPT: _latest,
    STREAM_HELD: _consecutive,
}


def accepted_addresses(record: bytes) -> tuple[bytes, bytes]:
    """(own, peer's) address in an ACCEPTED record."""
    middle = (len(record) + ACCEPTED_HEADER.size) // 2
    return record[ACCEPTED_HEADER.size : middle], record[middle:]


def handle_of(record: bytes) -> bytes:
    """The key that records to be merged have in common."""
    return record[:4]

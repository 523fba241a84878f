"""The messages between an application and the socket service (docs/app-protocol.md): kinds of frame, and their records.

All integers are little-endian; addresses are 4 octets in network order.
"""

from __future__ import annotations

from struct import Struct

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


def inbox_name(application: int) -> str:
    """File name, in the run directory, of the socket on which an application receives."""
    return f"app-{application:x}.sock"

"""The messages between an application and the socket service (docs/app-protocol.md): kinds of frames, and their
records.

All integers are little-endian; addresses are octets in network order, with the width of their family. The fifth octet
of a record's head is the family; each family has one layout.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple

# Kinds of frames. Below 128: data, dropped and counted if a pipe is full. From 128 on: control, never dropped.
SEND = 1  # application -> sockets: datagrams to send (DATAGRAM_HEADER + payload)
DATAGRAM = 2  # sockets -> application: datagrams received (DATAGRAM_HEADER + payload)
SEND_SEGMENTS = 13  # application -> sockets: DATAGRAM_HEADER + SEGMENT_SIZE + payloads of that size, the last at most
DATAGRAM_SEGMENTS = 14  # sockets -> application that asked for it: DATAGRAM_HEADER + SEGMENT_SIZE + payloads as above
# application -> sockets: DATAGRAM_HEADER + SEGMENT_SIZE + a reference to the payloads (usernet.pipe.buffers)
SEND_SEGMENTS_HELD = 44
# the same with options: DATAGRAM_HEADER + an octet with the number of octets of IP options + options + payload
DATAGRAM_OPTIONS = 21
HELLO = 128  # both ways, first frame after a start: JSON Hello
RESUME = 129  # both ways: JSON Resume; the next frames are repetitions from that sequence number on
REQUEST = 130  # application -> sockets: JSON Request, answered by one REPLY
REPLY = 131  # sockets -> application: JSON Reply
CREDIT = 132  # both ways: octets of receive buffer, returned by the application or asked for (CREDIT_RECORD)
SOCKET_ERROR = 133  # sockets -> application: an error for one socket (SocketError + start of the offending datagram)
BYE = 134  # application -> sockets, its last frame, no records: close all its sockets and forget it
REFUSAL = 135  # sockets -> a process whose HELLO is refused: JSON Refusal, in a frame of the HELLO's version
WANT = 136  # application -> sockets: a process reads from a socket that it shares (WANT_RECORD)
SHARED = 137  # sockets -> application: the number of processes that own a socket has changed (SHARED_RECORD)

INBOX_NUMBER_END = 1 << 64
_INBOX = re.compile("app-([1-9a-f][0-9a-f]{0,15})[.]sock")

FAMILY_4, FAMILY_6 = 4, 6  # families of addresses: IPv4, 4 octets; IPv6, 16

# Of datagrams in both directions: handle, family, flags, TTL (hop limit), TOS (traffic class), the peer's port,
# interface, the peer's address, the own address. SEND: port 0: the connected peer; TTL 0: the socket's; interface 0 and
# own address 0: the route's. A received datagram can be answered with the same head, with TTL and flags 0.
DATAGRAM_HEADER = Struct("<IBBBBHH4s4s")
DATAGRAM_HEADER_6 = Struct("<IBBBBHH16s16s")
# Handle, family, origin, type, code, port, interface, errno, info, destination, offender
_ERROR_HEADER = Struct("<IBBBBHHII4s4s")
_ERROR_HEADER_6 = Struct("<IBBBBHHII16s16s")
SEGMENT_SIZE = Struct("<H")  # octets of payload in each datagram except perhaps the last, which is not empty
SEGMENTS_MAX = 128  # maximum number of datagrams in such a record (Linux UDP_MAX_SEGMENTS)
CREDIT_RECORD = Struct("<II")  # handle, octets (with CREDIT_TOTAL: the total that is queued now)

SEND_TOS_GIVEN = 1  # flag in a SEND's head: use its TOS, not the socket's
# flag in a SEND's head: an octet with the number of octets of IP options, and these, precede the payload
SEND_OPTIONS = 2
CREDIT_TOTAL = 1 << 31
WANT_RECORD = Struct("<II")  # handle, flags; no flag: no longer
WANT_NOW = 1  # flags of WANT: one datagram or connection, if one is there
WANT_WAITS = 2  # and otherwise the next one that arrives
WANT_TAKEN = 4  # the program has a datagram of the socket, or the connection: it is for no other process any more
SHARED_RECORD = Struct("<IIIQ")  # handle, number of owners, state, of a listener: connections handed up so far
SHARED_TAKEN = 1  # state of a connection: another process has taken it
SHARED_RETURNED = 2  # it belongs to this process: its position in both directions follows
LOOPBACK_INDEX = 1  # index of the loopback, as on Linux: of datagrams from the stack itself, except to groups
INTERFACE_INDEX = 2  # index of the stack's only other interface
DATAGRAM_OVERHEAD = 256  # octets of receive buffer for a queued datagram, in addition to its payload
DATAGRAM_COST = DATAGRAM_OVERHEAD - DATAGRAM_HEADER.size  # likewise, in addition to the length of its record


def family_of(address: bytes) -> int:
    """The family of an address, by its width."""
    return FAMILY_4 if len(address) == 4 else FAMILY_6


def datagram_header(handle: int, peer: bytes, port: int, own: bytes, ttl: int = 0, tos: int = 0, flags: int = 0,
                    interface: int = 0) -> bytes:
    """The head of a SEND or DATAGRAM record, of the family of both addresses: 4 or 16 octets."""
    family = family_of(peer)
    layout = DATAGRAM_HEADER if family == FAMILY_4 else DATAGRAM_HEADER_6
    return layout.pack(handle, family, flags, ttl, tos, port, interface, peer, own)


class SocketError(NamedTuple):
    """The part of a SOCKET_ERROR record before the start of the offending datagram. Addresses are of one family."""

    handle: int
    errno: int
    origin: int  # SO_EE_ORIGIN_*
    icmp_type: int
    code: int
    info: int  # MTU or pointer
    offender: bytes  # the host that sent the error; zeros: none
    destination: bytes  # destination of the datagram
    port: int

    def pack(self) -> bytes:
        """The encoded octets."""
        family = family_of(self.destination)
        layout = _ERROR_HEADER if family == FAMILY_4 else _ERROR_HEADER_6
        return layout.pack(self.handle, family, self.origin, self.icmp_type, self.code, self.port, 0, self.errno,
                           self.info, self.destination, self.offender)

    @classmethod
    def of(cls, record: bytes) -> SocketError:
        """Decode a SOCKET_ERROR record. struct.error: it is too short."""
        layout = _ERROR_HEADER_6 if record[4:5] == b"\x06" else _ERROR_HEADER
        handle, _, origin, kind, code, port, _, number, info, destination, offender = layout.unpack_from(record)
        return cls(handle, number, origin, kind, code, info, offender, destination, port)

    @property
    def octets(self) -> int:
        """The number of its octets; the payload of the datagram follows."""
        return (_ERROR_HEADER if len(self.destination) == 4 else _ERROR_HEADER_6).size


def inbox_name(number: int) -> str:
    """The file name of an application's inbox in the run directory, with a random number."""
    return f"app-{number:x}.sock"


def inbox_number(name: str) -> int:
    """The number in the file name of an inbox; 0: not such a name."""
    found = _INBOX.fullmatch(name)
    return int(found[1], 16) if found else 0

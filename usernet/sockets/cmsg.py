"""Ancillary data of sendmsg and recvmsg, with the structures and limits of Linux (ip(7), cmsg(3))."""

from __future__ import annotations

import errno
import socket as _std
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from usernet.errors import os_error
from usernet.pipe.messages import (
    DATAGRAM_HEADER,
    INTERFACE_INDEX,
    LOOPBACK_INDEX,
    SEND_OPTIONS,
    SEND_TOS_GIVEN,
    SocketError,
    datagram_header,
)
from usernet.sockets import ip_options
from usernet.sockets.arguments import as_int

# linux/in.h
IP_OPTIONS, IP_RECVOPTS, IP_RETOPTS = 4, 6, 7
IP_TOS, IP_TTL, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_MTU = 1, 2, 8, 10, 11, 12, 13, 14
IP_UNBLOCK_SOURCE, IP_BLOCK_SOURCE, IP_ADD_SOURCE_MEMBERSHIP, IP_DROP_SOURCE_MEMBERSHIP = 37, 38, 39, 40
IP_MSFILTER, MCAST_JOIN_GROUP, MCAST_BLOCK_SOURCE, MCAST_UNBLOCK_SOURCE, MCAST_LEAVE_GROUP = range(41, 46)
MCAST_JOIN_SOURCE_GROUP, MCAST_LEAVE_SOURCE_GROUP, MCAST_MSFILTER, IP_MULTICAST_ALL = range(46, 50)
MCAST_EXCLUDE, MCAST_INCLUDE = 0, 1
SOL_UDP, UDP_CORK, UDP_SEGMENT = 17, 1, 103  # linux/udp.h
TCP_INQ = 36  # linux/tcp.h; TCP_CM_INQ, the type of what recvmsg returns for it, is the same number
SO_EE_ORIGIN_LOCAL, SO_EE_ORIGIN_ICMP = 1, 2  # linux/errqueue.h; only an error from ICMP has an offender

# Ancillary data that recvmsg returns for a datagram, by the options that request it: bits of Description.ancillary.
WANTED = {IP_PKTINFO: 1, IP_RECVTTL: 2, IP_RECVTOS: 4, IP_RECVOPTS: 8, IP_RETOPTS: 16}
OPTIONS_WANTED = WANTED[IP_RECVOPTS] | WANTED[IP_RETOPTS]

IGNORED = {(_std.SOL_SOCKET, 1), (_std.SOL_SOCKET, 2)}  # SCM_RIGHTS, SCM_CREDENTIALS: Linux, __sock_cmsg_send
_INT = Struct("=i")
_SHORT = Struct("=H")
_PKTINFO = Struct("=i4s4s")  # struct in_pktinfo: interface, local address, header destination
_EXTENDED_ERROR = Struct("=IBBBBII")  # struct sock_extended_err: errno, origin, type, code, pad, info, data
_OFFENDER = Struct("=H2x4s8x")  # struct sockaddr_in
_CMSG_HEADER_OCTETS = 16
IP_HEADER_OCTETS = 20

Control = tuple[int, int, bytes]  # level, type, data


class Steering(NamedTuple):
    """The requests in the ancillary data of sendmsg."""

    ttl: int | None = None
    tos: int | None = None
    source: bytes = b""  # empty: not given
    segment: int = 0  # UDP_SEGMENT; 0: not given
    options: bytes | None = None  # IP options instead of the socket's (IP_RETOPTS)

    def header(self, header: bytes) -> bytes:
        """The head of a SEND with the requested flags, TTL and TOS."""
        flags, ttl, tos = header[5:8]
        ttl = ttl if self.ttl is None else self.ttl
        if self.tos is not None:
            tos, flags = self.tos, SEND_TOS_GIVEN
        if self.options is not None:
            flags |= SEND_OPTIONS
        return header[:5] + bytes((flags, ttl, tos)) + header[8:]


def steering(controls: Iterable[Control], privileged: bool = False) -> Steering:
    """Decode sendmsg's ancillary data. EINVAL: refused by Linux (ip_cmsg_send); other levels are ignored.

    `privileged`: a raw socket, which may send any IP options.
    """
    options = None
    ttl = tos = None
    source = b""
    segment = 0
    for level, kind, data in controls:
        if (level, kind) == (SOL_UDP, UDP_SEGMENT) and len(data) == _SHORT.size:
            (segment,) = _SHORT.unpack(data)
            continue
        if (level, kind) in IGNORED:
            continue
        if level in (_std.SOL_SOCKET, SOL_UDP):
            raise os_error(errno.EINVAL)
        if level != _std.IPPROTO_IP:
            continue
        if kind == IP_TTL and len(data) == _INT.size:
            ttl = _within(1, _INT.unpack(data)[0])
        elif kind == IP_TOS and len(data) in (1, _INT.size):
            tos = _within(0, data[0] if len(data) == 1 else _INT.unpack(data)[0])
        elif kind == IP_PKTINFO and len(data) == _PKTINFO.size:
            interface, local, _ = _PKTINFO.unpack(data)
            if interface not in (0, LOOPBACK_INDEX, INTERFACE_INDEX):
                raise os_error(errno.ENODEV)
            source = local if any(local) else b""
        elif kind == IP_RETOPTS:
            options = ip_options.checked(data[: ip_options.OCTETS_MAX], privileged)
        else:
            raise os_error(errno.EINVAL)
    return Steering(ttl, tos, source, segment, options)


def item(given: object) -> tuple[int, int, bytes]:
    """(level, type, octets). TypeError: something else."""
    if not isinstance(given, tuple | list) or len(given) != 3:
        raise TypeError("[sendmsg() ancillary data items] must be 3-item sequences")
    level, kind, value = given
    return as_int(level), as_int(kind), bytes(memoryview(value))


def items(given: object) -> list[tuple[int, int, bytes]]:
    """All ancillary data of sendmsg. TypeError: something else."""
    if not isinstance(given, Iterable):
        raise TypeError("sendmsg() argument 2 must be an iterable")
    return [item(each) for each in given]


def _within(lowest: int, value: int) -> int:
    if not lowest <= value <= 255:
        raise os_error(errno.EINVAL)
    return value


def told(wanted: int, record: bytes, local: bytes, raw: bool = False) -> list[Control]:
    """The ancillary data for a datagram; `local`: its own address, which is not that of a group.

    `raw`: its payload is a whole packet.
    """
    _, _, _, ttl, tos, _, interface, _, destination = DATAGRAM_HEADER.unpack_from(record)
    controls: list[Control] = []
    if wanted & WANTED[IP_PKTINFO]:
        controls.append((_std.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(interface, local, destination)))
    if wanted & WANTED[IP_RECVTTL]:
        controls.append((_std.IPPROTO_IP, IP_TTL, _INT.pack(ttl)))
    if wanted & WANTED[IP_RECVTOS]:
        controls.append((_std.IPPROTO_IP, IP_TOS, bytes((tos,))))
    if wanted & OPTIONS_WANTED:
        controls += _options_told(wanted, options_of(record, raw))
    return controls


class WithOptions(bytes):
    """A received datagram without IP options, and its options."""

    options = b""


def with_options(record: bytes) -> WithOptions | None:
    """Decode a DATAGRAM_OPTIONS record; None: malformed."""
    found = ip_options.split(record[DATAGRAM_HEADER.size :])
    if found is None:
        return None
    made = WithOptions(record[: DATAGRAM_HEADER.size] + found[1])
    made.options = found[0]
    return made


def options_of(record: bytes, raw: bool) -> bytes:
    """The IP options of a received datagram."""
    if raw:
        packet = record[DATAGRAM_HEADER.size :]
        return packet[IP_HEADER_OCTETS : (packet[0] & 15) * 4] if packet else b""
    return record.options if isinstance(record, WithOptions) else b""


def _options_told(wanted: int, options: bytes) -> list[Control]:
    """As Linux's ip_cmsg_recv_opts and ip_cmsg_recv_retopts: nothing for a datagram without options."""
    controls = []
    if options and wanted & WANTED[IP_RECVOPTS]:
        controls.append((_std.IPPROTO_IP, IP_RECVOPTS, options))
    if options and wanted & WANTED[IP_RETOPTS]:
        controls.append((_std.IPPROTO_IP, IP_RETOPTS, ip_options.echoed(options)))
    return controls


def unread_told(octets: int) -> list[Control]:
    """The ancillary data for a stream with TCP_INQ: how many octets wait after those that were received."""
    return [(_std.IPPROTO_TCP, TCP_INQ, _INT.pack(octets))]


def error_told(record: bytes) -> list[Control]:
    """The ancillary data for a SOCKET_ERROR with MSG_ERRQUEUE: struct sock_extended_err and the offender."""
    error = SocketError.of(record)
    data = _EXTENDED_ERROR.pack(error.errno, error.origin, error.icmp_type, error.code, 0, error.info, 0)
    family = _std.AF_INET if error.origin == SO_EE_ORIGIN_ICMP else _std.AF_UNSPEC
    data += _OFFENDER.pack(family, error.offender if family else bytes(4))
    return [(_std.IPPROTO_IP, IP_RECVERR, data)]


def error_as_datagram(record: bytes) -> bytes:
    """A SOCKET_ERROR in the form of a datagram: the sent payload, with its destination as the sender."""
    error = SocketError.of(record)
    return datagram_header(error.handle, error.destination, error.port, bytes(4)) + record[error.octets :]


def fit(controls: list[Control], room: int) -> tuple[list[Control], bool]:
    """(what fits into a control buffer of `room` octets, whether it was truncated), as put_cmsg in Linux."""
    fitting: list[Control] = []
    for level, kind, data in controls:
        if room < _CMSG_HEADER_OCTETS:
            return fitting, True
        fitting.append((level, kind, data[: room - _CMSG_HEADER_OCTETS]))
        if room < _CMSG_HEADER_OCTETS + len(data):
            return fitting, True
        room -= min(room, _std.CMSG_SPACE(len(data)))
    return fitting, False

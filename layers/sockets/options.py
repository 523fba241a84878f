"""Socket options, with the numbers, limits and errors of Linux (socket(7), ip(7))."""

from __future__ import annotations

import errno
from collections.abc import Callable
from sys import byteorder

from bus.messages import MTU_DISCOVER_MAX
from layers.sockets.requests import Refused
from layers.sockets.tables import ICMP_PROTOCOL, Socket
from packets.ip_options import checked

SOL_SOCKET = 1
SO_REUSEADDR = 2
SO_TYPE = 3
SO_ERROR = 4
SO_BROADCAST = 6
SO_SNDBUF = 7
SO_RCVBUF = 8
SO_REUSEPORT = 15
SO_PROTOCOL = 38
SO_DOMAIN = 39
SOL_RAW = 255
ICMP_FILTER = 1
IPPROTO_IP = 0
IP_TOS = 1
IP_TTL = 2
IP_HDRINCL = 3
IP_OPTIONS = 4
IP_RECVOPTS = 6
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_MTU = 14
IP_MULTICAST_IF = 32
IP_MULTICAST_TTL = 33
IP_MULTICAST_LOOP = 34
IP_MULTICAST_ALL = 49

AF_INET = 2
SOCK_DGRAM = 2
SOCK_RAW = 3
BUFFER_MAX = 212992  # Linux net.core.rmem_max, net.core.wmem_max: what an application may ask for, before doubling
RECEIVE_BUFFER_MIN = 2304  # Linux SOCK_MIN_RCVBUF
SEND_BUFFER_MIN = 4608  # Linux SOCK_MIN_SNDBUF
MULTICAST_TTL_DEFAULT = 1  # RFC 1112 section 6.1


def _buffer(minimum: int) -> Callable[[int], int]:
    # socket(7): the kernel doubles the value. A negative one is a huge unsigned number to it.
    return lambda value: max(2 * min(value & 0xFFFFFFFF, BUFFER_MAX), minimum)


def _between(lowest: int, highest: int, default: int | None = None) -> Callable[[int], int]:
    def convert(value: int) -> int:
        if value == -1 and default is not None:
            return default
        if not lowest <= value <= highest:
            raise Refused(errno.EINVAL)
        return value

    return convert


def _flag(value: int) -> bool:
    return bool(_between(0, 1)(value))


_SETTABLE: dict[tuple[int, int], tuple[str, Callable[[int], int]]] = {
    (SOL_SOCKET, SO_REUSEADDR): ("reuse_address", bool),
    (SOL_SOCKET, SO_REUSEPORT): ("reuse_port", bool),
    (SOL_SOCKET, SO_BROADCAST): ("broadcast", bool),
    (SOL_SOCKET, SO_RCVBUF): ("receive_buffer", _buffer(RECEIVE_BUFFER_MIN)),
    (SOL_SOCKET, SO_SNDBUF): ("send_buffer", _buffer(SEND_BUFFER_MIN)),
    (IPPROTO_IP, IP_TTL): ("ttl", _between(1, 255)),
    (IPPROTO_IP, IP_TOS): ("tos", lambda value: value & 0xFF),
    (IPPROTO_IP, IP_MULTICAST_TTL): ("multicast_ttl", _between(0, 255, MULTICAST_TTL_DEFAULT)),
    (IPPROTO_IP, IP_MULTICAST_LOOP): ("multicast_loop", bool),
    (IPPROTO_IP, IP_MULTICAST_ALL): ("multicast_all", _flag),
    (IPPROTO_IP, IP_MTU_DISCOVER): ("mtu_discover", _between(0, MTU_DISCOVER_MAX)),
    (IPPROTO_IP, IP_RECVERR): ("receive_errors", bool),
    (IPPROTO_IP, IP_RECVOPTS): ("receive_options", bool),
    (IPPROTO_IP, IP_HDRINCL): ("header_included", bool),
    (SOL_RAW, ICMP_FILTER): ("icmp_filter", int),
}
_COMPUTED: dict[tuple[int, int], Callable[[Socket], int]] = {
    (SOL_SOCKET, SO_TYPE): lambda socket: SOCK_RAW if socket.raw else SOCK_DGRAM,  # ping sockets are datagram sockets
    (SOL_SOCKET, SO_DOMAIN): lambda socket: AF_INET,
    (SOL_SOCKET, SO_PROTOCOL): lambda socket: socket.protocol,
    (IPPROTO_IP, IP_MULTICAST_IF): lambda socket: int.from_bytes(  # a struct in_addr, read as the int of a C program
        socket.multicast_interface.to_bytes(4, "big"), byteorder, signed=True),
    (SOL_SOCKET, SO_ERROR): lambda socket: 0,  # a pending error waits in the application, which was told of it
}


def change(socket: Socket, level: int, name: int, value: int | bytes, default_ttl: int) -> tuple[str, int]:
    """(field of Socket, its new value); refused with EINVAL for values and ENOPROTOOPT for options that are none."""
    try:
        field, convert = _SETTABLE[level, name]
    except KeyError:
        raise Refused(errno.ENOPROTOOPT) from None
    if (level, name) == (IPPROTO_IP, IP_HDRINCL) and not socket.raw:
        raise Refused(errno.ENOPROTOOPT)
    _check_level(socket, level)
    number = _integer(level, value)
    if (level, name) == (IPPROTO_IP, IP_TTL) and number == -1:  # ip(7): back to the default
        return field, default_ttl
    return field, convert(number)


def ip_options(socket: Socket, value: int | bytes) -> bytes:
    """The IP options that a socket is to send; who has a raw socket may send any, as with CAP_NET_RAW on Linux."""
    octets = value if isinstance(value, bytes) else (value & 0xFFFFFFFF).to_bytes(4, byteorder)
    try:
        return checked(octets, privileged=socket.raw)
    except OSError as error:
        raise Refused(error.errno or errno.EINVAL) from None


def read(socket: Socket, level: int, name: int) -> int:
    """The value of an option; refused with ENOPROTOOPT where there is none."""
    if (level, name) in _COMPUTED:
        return _COMPUTED[level, name](socket)
    try:
        field, _ = _SETTABLE[level, name]
    except KeyError:
        raise Refused(errno.ENOPROTOOPT) from None
    _check_level(socket, level)
    return int(getattr(socket, field))


def _check_level(socket: Socket, level: int) -> None:
    """Linux, raw_setsockopt: what there is at SOL_RAW is for raw sockets of ICMP."""
    if level == SOL_RAW and not (socket.raw and socket.protocol == ICMP_PROTOCOL):
        raise Refused(errno.EOPNOTSUPP if socket.raw else errno.ENOPROTOOPT)


def _integer(level: int, value: int | bytes) -> int:
    """The `int` that the octets of a C program are; IP options may also be a single octet (ip_setsockopt in Linux)."""
    if isinstance(value, bytes):
        if len(value) >= 4:
            return int.from_bytes(value[:4], byteorder, signed=True)
        if value and level == IPPROTO_IP:
            return value[0]
        raise Refused(errno.EINVAL)
    if not -(1 << 31) <= value < 1 << 31:
        raise Refused(errno.EINVAL)
    return value

"""Socket options, with the numbers, limits and errors of Linux (socket(7), ip(7))."""

from __future__ import annotations

import errno
from collections.abc import Callable
from sys import byteorder

from bus.messages import MTU_DISCOVER_MAX
from layers.sockets.entry import ICMP_PROTOCOL, Socket
from layers.sockets.requests import Refused
from packets.addresses import IPV4_OCTETS, UNSPECIFIED
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
SOCK_STREAM = 1
SOCK_DGRAM = 2
SOCK_RAW = 3
# Linux net.core.rmem_max, net.core.wmem_max: the maximum that an application can set, before doubling
BUFFER_MAX = 212992
RECEIVE_BUFFER_MIN = 2304  # Linux SOCK_MIN_RCVBUF
SEND_BUFFER_MIN = 4608  # Linux SOCK_MIN_SNDBUF
MULTICAST_TTL_DEFAULT = 1  # RFC 1112 section 6.1


def _buffer(minimum: int) -> Callable[[int], int]:
    # socket(7): the kernel doubles the value. It treats a negative one as a huge unsigned number.
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
        socket.multicast_interface or UNSPECIFIED[IPV4_OCTETS], byteorder, signed=True),
    (SOL_SOCKET, SO_ERROR): lambda socket: 0,  # a pending error is kept by the application
}


IPPROTO_TCP = 6
SO_KEEPALIVE = 9
SO_LINGER = 13
SO_ACCEPTCONN = 30
TCP_CONGESTION = 13
SOMAXCONN = 4096  # Linux net.core.somaxconn
TCP_BUFFER_MAX = 4 << 20  # Linux net.core.rmem_max, wmem_max, as of 6.x: the maximum, before doubling
TCP_SEND_BUFFER_DEFAULT, TCP_RECEIVE_BUFFER_DEFAULT = 16384, 131072  # Linux net.ipv4.tcp_wmem, tcp_rmem
INITIAL_TIMEOUT_S, TIMEOUT_MAX_S, RETRANSMISSIONS_MAX = 1, 120, 255  # Linux TCP_TIMEOUT_INIT, TCP_RTO_MAX, an octet
CONGESTION_OCTETS_MAX = 16  # Linux TCP_CA_NAME_MAX
_ALGORITHMS = {b"cubic", b"reno"}


def _stream_buffer(minimum: int) -> Callable[[int], int]:
    return lambda value: max(2 * min(value & 0xFFFFFFFF, TCP_BUFFER_MAX), minimum)


def _clamped(limit: int) -> Callable[[int], int]:
    return lambda value: min(max(value, 0), limit)


def _whole_retransmissions(seconds: int) -> int:
    """The time of so many retransmissions that last at least as long (Linux, secs_to_retrans and retrans_to_secs)."""
    timeout = period = INITIAL_TIMEOUT_S if seconds > 0 else 0
    for _ in range(RETRANSMISSIONS_MAX - 1):
        if period >= seconds:
            break
        timeout = min(2 * timeout, TIMEOUT_MAX_S)
        period += timeout
    return period


_OF_STREAMS: dict[tuple[int, int], tuple[str, Callable[[int], int]]] = {
    (SOL_SOCKET, SO_KEEPALIVE): ("keepalive", bool),
    (SOL_SOCKET, SO_LINGER): ("linger", _between(-1, (1 << 31) - 1)),
    (SOL_SOCKET, SO_SNDBUF): ("send_buffer", _stream_buffer(SEND_BUFFER_MIN)),
    (SOL_SOCKET, SO_RCVBUF): ("receive_buffer", _stream_buffer(RECEIVE_BUFFER_MIN)),
    (IPPROTO_TCP, 1): ("nodelay", bool),  # linux/tcp.h, also for those below
    (IPPROTO_TCP, 2): ("maxseg", lambda value: value and _between(88, 32767)(value)),
    (IPPROTO_TCP, 3): ("cork", bool),
    (IPPROTO_TCP, 4): ("keepidle", _between(1, 32767)),
    (IPPROTO_TCP, 5): ("keepintvl", _between(1, 32767)),
    (IPPROTO_TCP, 6): ("keepcnt", _between(1, 127)),
    (IPPROTO_TCP, 7): ("syncnt", _between(1, 127)),
    (IPPROTO_TCP, 8): ("linger2", lambda value: -1 if value < 0 else min(value, 120) or 60),
    (IPPROTO_TCP, 9): ("defer_accept", _whole_retransmissions),
    (IPPROTO_TCP, 10): ("window_clamp", lambda value: value and max(RECEIVE_BUFFER_MIN // 2, min(value, 1 << 30))),
    (IPPROTO_TCP, 12): ("quickack", bool),
    (IPPROTO_TCP, 18): ("user_timeout", _between(0, (1 << 31) - 1)),
    (IPPROTO_TCP, 23): ("fast_open", lambda value: min(_between(0, (1 << 31) - 1)(value), SOMAXCONN)),
    (IPPROTO_TCP, 25): ("notsent_lowat", _clamped(1 << 30)),
}
_UNSET = {"send_buffer": TCP_SEND_BUFFER_DEFAULT, "receive_buffer": TCP_RECEIVE_BUFFER_DEFAULT, "maxseg": 536,
          "quickack": 1}


def of_stream(level: int, name: int) -> bool:
    """True if a stream socket has this option in StreamOptions, or it is an option of TCP only."""
    return (level, name) in _OF_STREAMS or level == IPPROTO_TCP or (level, name) in (
        (SOL_SOCKET, SO_ACCEPTCONN), (SOL_SOCKET, SO_TYPE))


def change_stream(level: int, name: int, value: int | bytes) -> tuple[str, object]:
    """(field of StreamOptions, its new value)."""
    if (level, name) == (IPPROTO_TCP, TCP_CONGESTION):
        algorithm = value.split(b"\0")[0] if isinstance(value, bytes) else b""
        if algorithm not in _ALGORITHMS:
            raise Refused(errno.ENOENT)
        return "congestion", algorithm.decode()
    if (level, name) not in _OF_STREAMS:
        raise Refused(errno.ENOPROTOOPT)
    field, convert = _OF_STREAMS[level, name]
    return field, convert(_integer(level, value))


def read_stream(socket: Socket, level: int, name: int) -> int | bytes:
    """The value of such an option."""
    assert socket.stream is not None
    if (level, name) == (SOL_SOCKET, SO_ACCEPTCONN):
        return int(socket.stream.listen >= 0)
    if (level, name) == (SOL_SOCKET, SO_TYPE):
        return SOCK_STREAM
    if (level, name) == (IPPROTO_TCP, TCP_CONGESTION):
        return socket.stream.congestion.encode().ljust(CONGESTION_OCTETS_MAX, b"\0")
    if (level, name) not in _OF_STREAMS:
        raise Refused(errno.ENOPROTOOPT)
    field, _ = _OF_STREAMS[level, name]
    value = getattr(socket.stream, field)
    return int(value or _UNSET.get(field, 0)) if value is not False else 0


def change(socket: Socket, level: int, name: int, value: int | bytes, default_ttl: int) -> tuple[str, int]:
    """(field of Socket, its new value). Refused: EINVAL for the value, ENOPROTOOPT for the option."""
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
    """The IP options for a socket to send; a raw socket may send any, as with CAP_NET_RAW on Linux."""
    octets = value if isinstance(value, bytes) else (value & 0xFFFFFFFF).to_bytes(4, byteorder)
    try:
        return checked(octets, privileged=socket.raw)
    except OSError as error:
        raise Refused(error.errno or errno.EINVAL) from None


def read(socket: Socket, level: int, name: int) -> int:
    """The value of an option. Refused with ENOPROTOOPT: no such option, with EOPNOTSUPP: nor such a level."""
    if (level, name) in _COMPUTED:
        return _COMPUTED[level, name](socket)
    if level not in (SOL_SOCKET, IPPROTO_IP, SOL_RAW if socket.raw else socket.protocol):
        raise Refused(errno.EOPNOTSUPP)  # Linux ip_getsockopt; setting is ENOPROTOOPT
    try:
        field, _ = _SETTABLE[level, name]
    except KeyError:
        raise Refused(errno.ENOPROTOOPT) from None
    _check_level(socket, level)
    return int(getattr(socket, field))


def _check_level(socket: Socket, level: int) -> None:
    """Linux, raw_setsockopt: options of SOL_RAW are for raw sockets of ICMP."""
    if level == SOL_RAW and not (socket.raw and socket.protocol == ICMP_PROTOCOL):
        raise Refused(errno.EOPNOTSUPP if socket.raw else errno.ENOPROTOOPT)


def _integer(level: int, value: int | bytes) -> int:
    """The `int` in the octets of a C program; for IP options also a single octet (ip_setsockopt in Linux)."""
    if isinstance(value, bytes):
        if len(value) >= 4:
            return int.from_bytes(value[:4], byteorder, signed=True)
        if value and level == IPPROTO_IP:
            return value[0]
        raise Refused(errno.EINVAL)
    if not -(1 << 31) <= value < 1 << 31:
        raise Refused(errno.EINVAL)
    return value

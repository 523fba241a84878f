"""Socket options that only concern the application, and the formats in which all options are set and read.

Options that concern the stack are requests to the socket service (layers/sockets/options.py).
"""

from __future__ import annotations

import errno
import os
import socket as _std
from functools import lru_cache
from struct import Struct
from sys import byteorder

from usernet.client.description import Description
from usernet.client.streams import StreamDescription
from usernet.errors import os_error
from usernet.sockets import cmsg
from usernet.sockets.cmsg import IP_MSFILTER, IP_RECVERR, MCAST_MSFILTER, SOL_UDP, UDP_CORK, UDP_SEGMENT, WANTED

Key = tuple[int, int]  # level, name

VALUE_OCTETS_MAX = 2048  # more than any structure of Linux; the rest of a longer one is ignored
IP_OPTIONS = (_std.IPPROTO_IP, cmsg.IP_OPTIONS)
RECEIVED = {(_std.IPPROTO_IP, cmsg.IP_RECVOPTS), (_std.IPPROTO_IP, cmsg.IP_RETOPTS)}
# options that are read with a structure as the question
QUESTIONS = {(_std.IPPROTO_IP, IP_MSFILTER), (_std.IPPROTO_IP, MCAST_MSFILTER)}

JIFFIES_MAX = (1 << 63) - 1  # MAX_SCHEDULE_TIMEOUT in Linux: for ever
USUAL_HZ = 250  # the default CONFIG_HZ of Linux
_TIMEVAL = Struct("@ll")  # struct timeval: seconds, microseconds
_TIMEOUTS = {
    (_std.SOL_SOCKET, _std.SO_RCVTIMEO): "receive_timeout",
    (_std.SOL_SOCKET, _std.SO_SNDTIMEO): "send_timeout",
    (_std.SOL_SOCKET, 66): "receive_timeout",  # SO_RCVTIMEO_NEW, of the same form where a long has 64 bits
    (_std.SOL_SOCKET, 67): "send_timeout",  # SO_SNDTIMEO_NEW
}
_ANCILLARY = {(_std.IPPROTO_IP, name): bit for name, bit in WANTED.items()}
_SEGMENT = (SOL_UDP, UDP_SEGMENT)
CORK = (SOL_UDP, UDP_CORK)
_KEEPALIVE = (_std.SOL_SOCKET, _std.SO_KEEPALIVE)  # for datagram sockets it has no effect, as on Linux
_OOBINLINE = (_std.SOL_SOCKET, _std.SO_OOBINLINE)
RCVLOWAT = (_std.SOL_SOCKET, _std.SO_RCVLOWAT)
LOW_WATER_MAX = 1 << 20  # Linux: half of the largest buffer; here a quarter of it
FASTOPEN_CONNECT = (_std.IPPROTO_TCP, 30)  # TCP_FASTOPEN_CONNECT
NOTSENT_LOWAT = (_std.IPPROTO_TCP, 25)  # TCP_NOTSENT_LOWAT
_STREAM_FLAGS = {FASTOPEN_CONNECT: "fast_connect", (_std.IPPROTO_TCP, cmsg.TCP_INQ): "tells_unread"}
_ACCEPTCONN = (_std.SOL_SOCKET, _std.SO_ACCEPTCONN)
_DEVICE = (_std.SOL_SOCKET, _std.SO_BINDTODEVICE)


LINGER = (_std.SOL_SOCKET, _std.SO_LINGER)
AS_OCTETS = {(_std.IPPROTO_TCP, 13)}  # TCP_CONGESTION
_LINGER = Struct("@ii")  # struct linger: on, seconds
_LINGER_TOLD = Struct("@iI")
SERVICE_LINGER_MAX = (1 << 31) - 1  # seconds


def set_linger(box: Description, value: int | bytes) -> int:
    """SO_LINGER: a struct linger. A negative time is for ever. Returns what the service is told: seconds, or -1: off.

    EINVAL: fewer octets than the structure. While it is off the former time is kept, as in Linux.
    """
    if isinstance(value, int) or len(value) < _LINGER.size:
        raise os_error(errno.EINVAL)
    on, seconds = _LINGER.unpack_from(value)
    if not on:
        box.linger = None
        return -1
    box.linger = box.linger_told = seconds if seconds >= 0 else JIFFIES_MAX // jiffies_per_second()
    return min(box.linger, SERVICE_LINGER_MAX)


def linger_octets(box: Description) -> bytes:
    """The struct linger of a C program, whose int does not hold the time for ever."""
    return _LINGER_TOLD.pack(box.linger is not None, box.linger_told & 0xFFFFFFFF)


def change(box: Description, key: Key, value: int | bytes) -> bool:
    """Set an option of the application; False: it is an option of the service."""
    if key in _ANCILLARY:
        bit = _ANCILLARY[key]
        box.ancillary = box.ancillary | bit if _integer(key, value) else box.ancillary & ~bit
    elif key in _TIMEOUTS:
        setattr(box, _TIMEOUTS[key], _duration(value))
    elif key == _SEGMENT and not isinstance(box, StreamDescription):
        octets = _integer(key, value)
        if not 0 <= octets <= 0xFFFF:
            raise os_error(errno.EINVAL)  # Linux udp_lib_setsockopt
        box.segment_octets = octets
    elif key == CORK and not isinstance(box, StreamDescription):
        box.corked = bool(_integer(key, value))
    elif key == _KEEPALIVE and not isinstance(box, StreamDescription):
        box.keepalive = bool(_integer(key, value))
    elif key == _OOBINLINE:
        box.oob_inline = bool(_integer(key, value))
    elif key in _STREAM_FLAGS and isinstance(box, StreamDescription):
        number = _integer(key, value)
        if number not in (0, 1):
            raise os_error(errno.EINVAL)  # Linux do_tcp_setsockopt
        setattr(box, _STREAM_FLAGS[key], bool(number))
    elif key == RCVLOWAT:
        octets = _integer(key, value)
        box.low_water = min(octets, LOW_WATER_MAX) or 1 if octets >= 0 else LOW_WATER_MAX
    elif key == _DEVICE:
        if isinstance(value, int) or value.rstrip(b"\0"):
            raise OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: a usernet stack has only one interface, to "
                          "which a socket cannot be bound")
    else:
        return False
    return True


def read(box: Description, key: Key) -> bytes | None:
    """The octets of such an option; None: it is an option of the service."""
    if key in _ANCILLARY:
        return int(bool(box.ancillary & _ANCILLARY[key])).to_bytes(4, byteorder)
    if not isinstance(box, StreamDescription):
        if key == _KEEPALIVE:
            return int(box.keepalive).to_bytes(4, byteorder)
        if key == _ACCEPTCONN:
            return bytes(4)
        if key == _SEGMENT:
            return box.segment_octets.to_bytes(4, byteorder)
        if key == CORK:
            return int(box.corked).to_bytes(4, byteorder)
    if key == _OOBINLINE:
        return int(box.oob_inline).to_bytes(4, byteorder)
    if key in _STREAM_FLAGS and isinstance(box, StreamDescription):
        return int(getattr(box, _STREAM_FLAGS[key])).to_bytes(4, byteorder)
    if key == RCVLOWAT:
        return box.low_water.to_bytes(4, byteorder)
    if key in _TIMEOUTS:
        hz = jiffies_per_second()
        seconds, jiffies = divmod(round((getattr(box, _TIMEOUTS[key]) or 0.0) * hz), hz)
        return _TIMEVAL.pack(seconds, jiffies * 1_000_000 // hz)
    return b"" if key == _DEVICE else None


def changed(box: Description, key: Key, value: int) -> None:
    """The service has set an option to `value`."""
    box.destinations.clear()
    if key == (_std.SOL_SOCKET, _std.SO_RCVBUF):
        box.set_buffer(value)
    elif key == NOTSENT_LOWAT and isinstance(box, StreamDescription):
        box.unsent_low = value
    elif key == (_std.IPPROTO_IP, _std.IP_HDRINCL):
        box.header_included = bool(value)
    elif key == IP_OPTIONS:
        box.options_octets = value
    elif key == (_std.IPPROTO_IP, IP_RECVERR):
        box.keep_errors = bool(value)
        if not value:
            box.errors.clear()


def _integer(key: Key, value: int | bytes) -> int:
    """The int in the octets of a C program; for options of IP also a single octet (ip_setsockopt in Linux).

    EINVAL: fewer octets.
    """
    if isinstance(value, int):
        return value
    if len(value) >= 4:
        return int.from_bytes(value[:4], byteorder, signed=True)
    if key[0] != _std.IPPROTO_IP:
        raise os_error(errno.EINVAL)
    return int(any(value[:1]))


def jiffies_per_second() -> int:
    """The HZ of this host's kernel, which counts the timeouts of its sockets in jiffies."""
    try:
        return _asked_hz()
    except OSError:  # no descriptor is left: asked again next time
        return USUAL_HZ


@lru_cache(maxsize=1)
def _asked_hz() -> int:
    """From a socket of the kernel, which rounds a microsecond up to a jiffy (sock_set_timeout in Linux). OSError."""
    with _std.socket(_std.AF_UNIX, _std.SOCK_DGRAM) as kernels:
        kernels.setsockopt(_std.SOL_SOCKET, _std.SO_RCVTIMEO, _TIMEVAL.pack(0, 1))
        jiffy = kernels.getsockopt(_std.SOL_SOCKET, _std.SO_RCVTIMEO, _TIMEVAL.size)
    return 1_000_000 // max(int(_TIMEVAL.unpack(jiffy)[1]), 1)


def _duration(value: int | bytes) -> float | None:
    """Seconds, in whole jiffies, as sock_set_timeout in Linux; None for zero, which means for ever.

    EINVAL: fewer octets than a struct timeval. EDOM: the microseconds are not a part of a second.
    """
    if isinstance(value, int) or len(value) < _TIMEVAL.size:
        raise os_error(errno.EINVAL)
    seconds, microseconds = _TIMEVAL.unpack_from(value)
    if not 0 <= microseconds < 1_000_000:
        raise os_error(errno.EDOM)
    if seconds < 0:
        return 0.0
    hz = jiffies_per_second()
    if seconds >= JIFFIES_MAX // hz - 1:
        return None
    return seconds + -(-microseconds // (1_000_000 // hz)) / hz or None

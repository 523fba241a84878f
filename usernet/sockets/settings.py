"""Options and timeouts of sockets: some are kept by the application, others are requests to the service."""

from __future__ import annotations

import math
import operator
import socket as _std
from binascii import a2b_base64
from sys import byteorder

from usernet.sockets import cmsg, options
from usernet.sockets.arguments import absent_value, as_int
from usernet.sockets.datagrams import _PEER, RAW, STREAM, Datagrams, _octets

_TIMEOUT_LIMIT_S = 2**63 / 1e9  # the standard module counts nanoseconds


class Settings(Datagrams):
    """The settings of a socket."""

    __slots__ = ()

    def setsockopt(self, level: int, optname: int, value: int | bytes | None, optlen: int | None = None) -> None:
        """Set an option of docs/library.md. ENOPROTOOPT: any other."""
        level, optname = as_int(level), as_int(optname)
        if optlen is not None:
            if value is not None:
                raise TypeError("setsockopt() takes exactly 3 arguments (4 given)")
            error = absent_value(optlen)
            self._check_open()
            raise error
        try:
            value = as_int(value)  # type: ignore[arg-type]
        except Exception:
            value = _octets(value)[: options.VALUE_OCTETS_MAX]
        self._check_open()
        if (level, optname) == options.LINGER:
            value = options.set_linger(self._box, value)
            if self._kind != STREAM:
                return
        if options.change(self._box, (level, optname), value):
            if (level, optname) == options.CORK and self._box.begun is not None:
                self._send(b"", 0, _PEER)  # which completes the datagram, unless it is still corked
            if (level, optname) == options.RCVLOWAT and self._kind == STREAM:
                self._make_room(self._box.low_water)
            if (level, optname) in options.RECEIVED and self._kind != RAW:  # a raw socket gets whole packets
                wanted = int(bool(self._box.ancillary & cmsg.OPTIONS_WANTED))
                self._request("setsockopt", level=level, name=cmsg.IP_RECVOPTS, value=wanted)
        else:
            reply = self._request("setsockopt", level=level, name=optname, value=value)
            options.changed(self._box, (level, optname), reply["value"])

    def _make_room(self, octets: int) -> None:
        """Linux, tcp_set_rcvlowat: the buffer must hold more than must be there before a call returns."""
        key = _std.SOL_SOCKET, _std.SO_RCVBUF
        if 4 * octets > self._request("getsockopt", level=key[0], name=key[1])["value"]:
            self._request("setsockopt", level=key[0], name=key[1], value=2 * octets)

    def getsockopt(self, level: int, optname: int, buflen: int | bytes = 0) -> int | bytes:
        """The option's value as an integer; with `buflen`, as octets.

        IP_MSFILTER and MCAST_MSFILTER need a structure that names the group; unlike in the standard module, it is
        passed in the place of `buflen`.
        """
        level, optname = as_int(level), as_int(optname)
        if (level, optname) not in options.QUESTIONS:
            buflen = as_int(buflen)  # type: ignore[arg-type]
        self._check_open()
        if (level, optname) in options.QUESTIONS:
            asked = bytes(buflen) if isinstance(buflen, int) else _octets(buflen)[: options.VALUE_OCTETS_MAX]
            return a2b_base64(self._request("getsockopt", level=level, name=optname, value=asked)["octets"])
        assert isinstance(buflen, int)
        if not 0 <= buflen <= 1024:
            raise OSError("getsockopt buflen out of range")
        octets = options.read(self._box, (level, optname))
        if (level, optname) == options.LINGER:
            octets = options.linger_octets(self._box)
        elif (level, optname) in options.AS_OCTETS:
            octets = self._told(level, optname)
        elif (level, optname) == options.IP_OPTIONS:
            octets = a2b_base64(self._request("getsockopt", level=level, name=optname)["octets"])
        elif octets is None:
            if (level, optname) == (_std.SOL_SOCKET, _std.SO_ERROR):
                value = self._pending_error()
            else:
                value = self._request("getsockopt", level=level, name=optname)["value"]
            octets = value.to_bytes(4, byteorder, signed=True)
        if level == _std.IPPROTO_IP and 0 < buflen < len(octets) == 4 and not any(octets[1:]):
            return octets[:1]  # Linux, do_ip_getsockopt: a small number into a small buffer is one octet
        return octets[:buflen] if buflen else int.from_bytes(octets[:4], byteorder, signed=True)

    def _told(self, level: int, optname: int) -> bytes:
        return a2b_base64(self._request("getsockopt", level=level, name=optname)["octets"])

    def _pending_error(self) -> int:
        self._connection.look()
        value, self._box.error = self._box.error, 0
        self._connection.readers.taken_from(self._box)
        return value

    def settimeout(self, value: float | None) -> None:
        """Set the timeout of calls in seconds; 0: they do not wait, None: for ever."""
        if value is not None:
            value = value if isinstance(value, float) else float(operator.index(value))
            if math.isnan(value):
                raise ValueError("Invalid value NaN (not a number)")
            if abs(value) >= _TIMEOUT_LIMIT_S:
                raise OverflowError("timestamp out of range for platform time_t")
            if value < 0:
                raise ValueError("Timeout value out of range")
        self._check_open()
        self._timeout = value

    def gettimeout(self) -> float | None:
        """The value set by settimeout."""
        return self._timeout

    timeout = property(gettimeout, doc="As set by settimeout.")

    def setblocking(self, flag: bool) -> None:
        """The same as settimeout(None) or settimeout(0.0)."""
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """False if the timeout is 0."""
        return self._timeout != 0

"""Addresses and errors as the standard socket module has them."""

from __future__ import annotations

import errno
import os
import re
import socket as _std

LOCALHOST = "127.0.0.1"  # RFC 6761 section 6.3: localhost is the loopback address, and no name server is asked
_NUMERIC = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)(\.(0[xX][0-9a-fA-F]+|[0-9]+)){0,3}")


def os_error(number: int) -> OSError:
    """The OSError, or its subclass, for an errno."""
    return OSError(number, os.strerror(number))


def timed_out() -> TimeoutError:
    """What the standard module raises when a socket's timeout has passed."""
    return TimeoutError("timed out")


def would_block() -> OSError:
    """BlockingIOError."""
    return os_error(errno.EAGAIN)


def resolve(host: str | bytes | bytearray) -> bytes:
    """The 4 octets of a host: numeric as inet_aton(3) reads it, '', '<broadcast>' or 'localhost'; else gaierror."""
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii")
    if not isinstance(host, str):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if "\0" in host:
        raise TypeError("host name must not contain null character")
    if not host:
        return b"\0\0\0\0"
    if host == "<broadcast>":
        return b"\xff\xff\xff\xff"
    if host.lower() in ("localhost", "localhost."):
        return _std.inet_aton(LOCALHOST)
    if _NUMERIC.fullmatch(host):
        try:
            return _std.inet_aton(host)
        except OSError:
            pass
    raise _std.gaierror(_std.EAI_NONAME, "Name or service not known")


def parse(address: object, caller: str) -> tuple[bytes, int]:
    """(4 octets, port) of an AF_INET address, with the standard module's errors."""
    if not isinstance(address, tuple):
        raise TypeError(f"{caller}(): AF_INET address must be tuple, not {type(address).__name__}")
    if len(address) != 2:
        raise TypeError("AF_INET address must be a pair (host, port)")
    host, port = address
    if not hasattr(port, "__index__"):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    octets = resolve(host)
    if not 0 <= port.__index__() <= 65535:
        raise OverflowError(f"{caller}(): port must be 0-65535.")
    return octets, port.__index__()


def gethostbyname(hostname: str | bytes) -> str:
    """Numeric names and localhost only: this stack asks no name server."""
    return _std.inet_ntoa(resolve(hostname))


def getaddrinfo(
    host: str | bytes | None, port: str | int | None, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple]:
    """As the standard one, for what this stack has: IPv4, datagrams, numeric names and localhost, numeric ports."""
    if family not in (_std.AF_UNSPEC, _std.AF_INET):
        raise _std.gaierror(_std.EAI_FAMILY, "ai_family not supported")
    if type not in (0, _std.SOCK_DGRAM):
        raise _std.gaierror(_std.EAI_SOCKTYPE, "ai_socktype not supported")
    try:
        number = int(port or 0)
    except ValueError:
        raise _std.gaierror(_std.EAI_SERVICE, "Servname not supported for ai_socktype") from None
    if host is None:
        host = "0.0.0.0" if flags & _std.AI_PASSIVE else LOCALHOST
    address = gethostbyname(host), number
    return [(_std.AF_INET, _std.SOCK_DGRAM, proto or _std.IPPROTO_UDP, "", address)]

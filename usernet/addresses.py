"""Addresses as the standard socket module has them. What takes a name server is usernet.dns's."""

from __future__ import annotations

import re
import socket as _std
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usernet.client.stack import Stack

LOCALHOST = "127.0.0.1"  # RFC 6761 section 6.3: localhost is the loopback address, and no name server is asked
_NUMERIC = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)(\.(0[xX][0-9a-fA-F]+|[0-9]+)){0,3}")


def numeric(host: str | bytes | bytearray) -> bytes | None:
    """The 4 octets of what needs no name server: numeric as inet_aton(3) reads it, '', '<broadcast>', 'localhost'."""
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
    return exact(host)


def exact(host: str) -> bytes | None:
    """The 4 octets of a numeric address, as inet_aton(3) reads it and nothing else behind it."""
    if _NUMERIC.fullmatch(host):
        try:
            return _std.inet_aton(host)
        except OSError:
            pass
    return None


def resolve(host: str | bytes | bytearray, stack: Stack | None) -> bytes:
    """The 4 octets of a host, its name asked of the name servers of `stack` (None: the default one); else gaierror."""
    octets = numeric(host)
    if octets is None:
        from usernet.dns import addresses  # who uses numbers only does not load it

        octets = addresses(host if isinstance(host, str) else bytes(host).decode("ascii"), stack)[1][0]
    return octets


def parse(address: object, caller: str, stack: Stack | None) -> tuple[bytes, int]:
    """(4 octets, port) of an AF_INET address, with the standard module's errors."""
    if not isinstance(address, tuple):
        raise TypeError(f"{caller}(): AF_INET address must be tuple, not {type(address).__name__}")
    if len(address) != 2:
        raise TypeError("AF_INET address must be a pair (host, port)")
    host, port = address
    if not hasattr(port, "__index__"):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    octets = resolve(host, stack)
    if not 0 <= port.__index__() <= 65535:
        raise OverflowError(f"{caller}(): port must be 0-65535.")
    return octets, port.__index__()

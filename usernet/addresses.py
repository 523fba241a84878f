"""Numeric addresses and the names that need no name server."""

from __future__ import annotations

import re
import socket as _std

LOCALHOST = "127.0.0.1"  # RFC 6761 section 6.3: localhost is the loopback address, without a name server
_NUMERIC = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)(\.(0[xX][0-9a-fA-F]+|[0-9]+)){0,3}")


def numeric(host: str | bytes | bytearray) -> bytes | None:
    """The 4 octets of what needs no name server: numeric as for inet_aton(3), '', '<broadcast>', 'localhost'; else
    None."""
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
    """The 4 octets of a numeric address, as for inet_aton(3) and without anything after it."""
    if _NUMERIC.fullmatch(host):
        try:
            return _std.inet_aton(host)
        except OSError:
            pass
    return None

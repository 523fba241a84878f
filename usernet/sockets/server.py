"""Servers in one call, as the standard module has them for TCP; here for UDP, too."""

from __future__ import annotations

import socket as _std
from typing import Any

from usernet.sockets.endpoint import Address, socket


def create_server(
    address: Address, *, family: int = _std.AF_INET, backlog: int | None = None, reuse_port: bool = False,
    dualstack_ipv6: bool = False, type: int = _std.SOCK_STREAM,
) -> Any:
    """A socket bound to `address`; `type=SOCK_DGRAM` is beyond the standard module: a UDP server.

    Streams, the default, fail with ESOCKTNOSUPPORT as long as there is no TCP.
    """
    if dualstack_ipv6:
        raise ValueError("dualstack_ipv6 not supported on this platform")
    server = socket(family, type)
    try:
        if type == _std.SOCK_STREAM:
            server.setsockopt(_std.SOL_SOCKET, _std.SO_REUSEADDR, 1)
        if reuse_port:
            server.setsockopt(_std.SOL_SOCKET, _std.SO_REUSEPORT, 1)
        try:
            server.bind(address)
        except OSError as error:
            text = f"{error.strerror} (while attempting to bind on address {address!r})"
            raise OSError(error.errno, text) from None
        if type == _std.SOCK_STREAM:
            server.listen(0 if backlog is None else backlog)
        return server
    except OSError:
        server.close()
        raise

"""create_connection and create_server as in the standard module, for TCP; create_server also for UDP."""

from __future__ import annotations

import socket as _std
from typing import Any

from usernet.dns import getaddrinfo
from usernet.sockets.endpoint import Address, socket


def create_connection(
    address: tuple[str | None, int], timeout: Any = _std._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]
    source_address: Address | None = None, *, all_errors: bool = False,
) -> Any:
    """As the standard function: a stream socket connected to the first of a host's addresses that answers."""
    errors: list[OSError] = []
    for family, kind, protocol, _, found in getaddrinfo(*address, 0, _std.SOCK_STREAM):
        made = None
        try:
            made = socket(family, kind, protocol)
            if timeout is not _std._GLOBAL_DEFAULT_TIMEOUT:  # type: ignore[attr-defined]
                made.settimeout(timeout)
            if source_address:
                made.bind(source_address)
            made.connect(found)
            return made
        except OSError as error:
            errors = [*errors, error] if all_errors else [error]
            if made is not None:
                made.close()
    try:
        if not all_errors:
            raise errors[0] if errors else OSError("getaddrinfo returns an empty list")
        raise ExceptionGroup("create_connection failed", errors)
    finally:
        errors.clear()  # their tracebacks refer to this frame


def create_server(
    address: Address, *, family: int = _std.AF_INET, backlog: int | None = None, reuse_port: bool = False,
    dualstack_ipv6: bool = False, type: int = _std.SOCK_STREAM,
) -> Any:
    """A socket bound to `address`, listening. `type=SOCK_DGRAM`, which the standard module lacks: a UDP server."""
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
            server.listen(128 if backlog is None else backlog)
        return server
    except OSError:
        server.close()
        raise

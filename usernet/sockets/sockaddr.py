"""Address arguments of a socket's methods, with the standard module's errors."""

from __future__ import annotations

from usernet.addresses import numeric
from usernet.client.stack import Stack


def resolve(host: str | bytes | bytearray, stack: Stack | None) -> bytes:
    """The 4 octets of a host; names are resolved by the name servers of `stack` (None: the default one). gaierror."""
    octets = numeric(host)
    if octets is None:
        from usernet.dns import addresses  # not loaded by programs that use only numeric addresses

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

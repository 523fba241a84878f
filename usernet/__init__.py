"""usernet: the standard socket module's interface to a TCP/IP stack of its own.

    import usernet as socket
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

Everything is loaded when it is first used: the layers of the stack import `usernet.protocol`, and shall not pay for
ZeroMQ and the standard socket module with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import *  # noqa: F403

    from usernet.endpoint import socket  # type: ignore[assignment]  # noqa: F401
    from usernet.names import getaddrinfo, gethostbyname  # type: ignore[assignment]  # noqa: F401
    from usernet.stack import Stack  # noqa: F401

__version__ = "0.1.0"

has_ipv6 = False

_OWN = {
    "socket": "usernet.endpoint",
    "SocketType": "usernet.endpoint",
    "Stack": "usernet.stack",
    "gethostbyname": "usernet.names",
    "getaddrinfo": "usernet.names",
    "udp": "",
    "ping": "",
}
_STANDARD = {
    "AddressFamily", "AddressInfo", "MsgFlag", "SocketKind", "error", "gaierror", "getdefaulttimeout", "gethostname",
    "getprotobyname", "getservbyname", "getservbyport", "herror", "htonl", "htons", "inet_aton", "inet_ntoa",
    "inet_ntop", "inet_pton", "ntohl", "ntohs", "setdefaulttimeout", "timeout",
}  # fmt: skip  (and its constants: every name in capitals)


def __getattr__(name: str) -> object:
    if name in _OWN:
        module = _OWN[name]
        if not module:
            return import_module(f"usernet.{name}")
        value = getattr(import_module(module), "socket" if name == "SocketType" else name)
    elif name in _STANDARD or (name.isupper() and not name.startswith("_")):
        try:
            value = getattr(import_module("socket"), name)
        except AttributeError:
            raise AttributeError(f"module 'usernet' has no attribute {name!r}") from None
    else:
        raise AttributeError(f"module 'usernet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    constants = {name for name in dir(import_module("socket")) if name.isupper()}
    return sorted({*globals(), *_OWN, *_STANDARD, *constants})

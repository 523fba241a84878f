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
    from usernet.patching import patch  # noqa: F401
    from usernet.resolver import (  # type: ignore[assignment]  # noqa: F401
        getaddrinfo,
        gethostbyaddr,
        gethostbyname,
        gethostbyname_ex,
        getnameinfo,
    )
    from usernet.stack import Stack  # noqa: F401

__version__ = "0.1.0"

has_ipv6 = False

_OWN = {
    "socket": "usernet.endpoint",
    "SocketType": "usernet.endpoint",
    "Stack": "usernet.stack",
    "getaddrinfo": "usernet.resolver",
    "gethostbyaddr": "usernet.resolver",
    "gethostbyname": "usernet.resolver",
    "gethostbyname_ex": "usernet.resolver",
    "getnameinfo": "usernet.resolver",
    "patch": "usernet.patching",
    "udp": "",
    "ping": "",
}
_STANDARD = {
    "AddressFamily", "AddressInfo", "MsgFlag", "SocketKind", "close", "error", "fromfd", "gaierror",
    "getdefaulttimeout", "gethostname", "getprotobyname", "getservbyname", "getservbyport", "herror", "htonl", "htons",
    "inet_aton", "inet_ntoa", "inet_ntop", "inet_pton", "ntohl", "ntohs", "recv_fds", "send_fds", "setdefaulttimeout",
    "socketpair", "timeout",
}  # fmt: skip  (and its constants: every name in capitals)


# Of linux/in.h, for what the standard module of some versions of Python lacks.
IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_MTU = 8, 10, 11, 12, 13, 14


def create_connection(*_: object, **__: object) -> None:
    """ESOCKTNOSUPPORT: there is no TCP yet."""
    from usernet.endpoint import no_tcp

    raise no_tcp()


create_server = create_connection


def has_dualstack_ipv6() -> bool:
    """False: there is no IPv6."""
    return False


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

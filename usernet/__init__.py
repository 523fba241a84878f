"""usernet: the interface of the standard socket module for a TCP/IP stack of its own.

   import usernet as socket
   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

Modules are loaded when they are first used, because the layers of the stack import only `usernet.pipe`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import *  # noqa: F403

    from usernet.compat.patching import patch  # noqa: F401
    from usernet.dns import (  # type: ignore[assignment]  # noqa: F401
        getaddrinfo,
        getfqdn,
        gethostbyaddr,
        gethostbyname,
        gethostbyname_ex,
        getnameinfo,
    )
    from usernet.sockets.descriptors import close, fromfd  # type: ignore[assignment]  # noqa: F401
    from usernet.sockets.endpoint import socket  # noqa: F401
    from usernet.sockets.ioctl import ioctl as ioctl
    from usernet.stack import Stack as Stack

__version__ = "0.1.0"

has_ipv6 = False

_OWN = {  # {name: its module}; empty: the name is a module
    "socket": "usernet.sockets.endpoint",
    "SocketType": "usernet.sockets.endpoint",
    "close": "usernet.sockets.descriptors",
    "dup": "usernet.sockets.descriptors",
    **dict.fromkeys(("if_nameindex", "if_nametoindex", "if_indextoname"), "usernet.sockets.interfaces"),
    "fromfd": "usernet.sockets.descriptors",
    "ioctl": "usernet.sockets.ioctl",
    "Stack": "usernet.stack",
    "getaddrinfo": "usernet.dns",
    "gethostbyaddr": "usernet.dns",
    "gethostbyname": "usernet.dns",
    "gethostbyname_ex": "usernet.dns",
    "getfqdn": "usernet.dns",
    "getnameinfo": "usernet.dns",
    "patch": "usernet.compat.patching",
    "create_connection": "usernet.sockets.server",
    "create_server": "usernet.sockets.server",
    "has_dualstack_ipv6": "usernet.sockets.unsupported",
    # From linux/in.h and linux/udp.h; some versions of the standard module lack them.
    **dict.fromkeys(("IP_PKTINFO", "IP_MTU_DISCOVER", "IP_RECVERR", "IP_RECVTTL", "IP_MTU", "IP_UNBLOCK_SOURCE",
                     "IP_BLOCK_SOURCE", "IP_ADD_SOURCE_MEMBERSHIP", "IP_DROP_SOURCE_MEMBERSHIP", "IP_MULTICAST_ALL",
                     "IP_MSFILTER", "MCAST_JOIN_GROUP", "MCAST_LEAVE_GROUP", "MCAST_BLOCK_SOURCE",
                     "MCAST_UNBLOCK_SOURCE", "MCAST_JOIN_SOURCE_GROUP", "MCAST_LEAVE_SOURCE_GROUP", "MCAST_MSFILTER",
                     "MCAST_EXCLUDE", "MCAST_INCLUDE", "UDP_CORK", "UDP_SEGMENT"),
                    "usernet.sockets.cmsg"),
    "udp": "",
    "ping": "",
}
_STANDARD = {
    "AddressFamily", "AddressInfo", "MsgFlag", "SocketKind", "error", "gaierror",
    "getdefaulttimeout", "gethostname", "getprotobyname", "getservbyname", "getservbyport", "herror", "htonl", "htons",
    "inet_aton", "inet_ntoa", "inet_ntop", "inet_pton", "ntohl", "ntohs", "recv_fds", "send_fds", "setdefaulttimeout",
    "socketpair", "timeout",
}  # fmt: skip  (and its constants: every name in capitals)


def __getattr__(name: str) -> object:
    if name in _OWN:
        module = _OWN[name]
        if not module:
            return import_module(f"usernet.{name}")
        value = getattr(import_module(module), "socket" if name == "SocketType" else name)
        if name in ("socket", "create_connection", "create_server"):
            import_module("usernet.compat.late").watch()
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

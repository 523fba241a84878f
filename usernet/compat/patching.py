"""usernet in the place of the standard socket module, for a whole program that was not written for it.

The standard module and its class stay what they are, but an object of the class stands for a stack's socket where one
of the Internet's is asked for, and the functions for names ask through the stack. All other families stay the kernel's:
AF_UNIX, for one, which event loops and multiprocessing live on. Nothing of the Internet ever goes past the stack
unseen: what it does not have fails, and what speaks to the kernel in other ways is named (usernet.compat.strays).
"""

from __future__ import annotations

import _socket
import socket as _std

from usernet import dns
from usernet.compat import standard, strays, tls
from usernet.sockets import descriptors, interfaces

_NAMES = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")


def patch(strict: bool = False) -> None:
    """Put usernet in the place of `socket`. `strict`: what would use the kernel's network is refused, not only told."""
    standard.replace_methods()
    _std.has_ipv6 = False
    for module in (_std, _socket):
        for name in _NAMES:
            if hasattr(module, name):
                setattr(module, name, getattr(dns, name))
    _std.SocketType = _socket.SocketType = standard.Socket  # type: ignore[assignment]
    _std.fromfd = standard.fromfd  # type: ignore[assignment]
    for name in ("close", "dup"):
        setattr(_std, name, getattr(descriptors, name))
    for name in ("if_nameindex", "if_nametoindex", "if_indextoname"):
        setattr(_std, name, getattr(interfaces, name))
    tls.install()
    strays.watch(strict)

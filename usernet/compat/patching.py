"""Replace the standard socket module by usernet for a whole unmodified program.

The standard module and its class remain, but an object of the family AF_INET stands for a socket of a stack, and names
are resolved through the stack. All other families remain the kernel's; AF_UNIX, for example, is needed by event loops
and multiprocessing. Internet traffic never bypasses the stack unnoticed: unsupported calls fail, and code that uses the
kernel in other ways is reported (usernet.compat.strays).
"""

from __future__ import annotations

import _socket
import fcntl
import socket as _std

from usernet import dns
from usernet.compat import standard, strays, tls
from usernet.sockets import descriptors, interfaces, ioctl

_NAMES = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")


def patch(strict: bool = False) -> None:
    """Replace the `socket` module by usernet.

    `strict`: code that would use the kernel's network is refused, not only reported.
    """
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
    fcntl.ioctl = ioctl.ioctl
    tls.install()
    strays.watch(strict)

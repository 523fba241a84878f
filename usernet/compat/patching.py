"""usernet in the place of the standard socket module, for a whole program that was not written for it.

The standard module stays what it is, but its `socket` makes a stack's sockets where the Internet's are asked for, and
its functions for names ask through the stack. All other families stay the kernel's: AF_UNIX, for one, which event loops
and multiprocessing live on. Nothing of the Internet ever goes past the stack: what it does not have fails.
"""

from __future__ import annotations

import errno
import os
import socket as _std
from typing import Any

from usernet import dns
from usernet.sockets import descriptors, endpoint
from usernet.sockets.endpoint import _KERNEL_SOCKET, is_kernels

_EITHER = (endpoint.socket, _KERNEL_SOCKET)
_NAMES = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")


class _Choice(type):
    """Decides, when a socket is made, whose it is; and takes a stack's for what it stands in for."""

    def __call__(cls, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> Any:
        detached = None if fileno is None else descriptors.adopt(fileno)
        if detached is not None:
            return detached
        if is_kernels(family, fileno):
            return super().__call__(family, type, proto, fileno)
        if cls is not socket:
            raise OSError(errno.EAFNOSUPPORT, f"{os.strerror(errno.EAFNOSUPPORT)}: a subclass of the standard socket "
                          "class cannot be a usernet socket; derive it from usernet.socket")
        return endpoint.socket(family, type, proto)

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (cls is socket and isinstance(instance, _EITHER))


class socket(_KERNEL_SOCKET, metaclass=_Choice):  # noqa: N801  (the name that it takes)
    """The standard class, for programs: makes sockets of the stack or of the kernel."""

    __slots__ = ()


def patch() -> None:
    """Put usernet in the place of `socket`. Call it first: what `from socket import …` took before stays as it was."""
    _std.socket = socket  # type: ignore[misc]
    _std.has_ipv6 = False
    for name in _NAMES:
        setattr(_std, name, getattr(dns, name))
    _std.fromfd, _std.close = descriptors.fromfd, descriptors.close  # type: ignore[assignment]

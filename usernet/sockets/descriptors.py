"""Sockets by the number of their descriptor: for detach(), fromfd() and so on.

A descriptor only signals readiness, so its number identifies a socket only within this process.
"""

from __future__ import annotations

import socket as _std
from typing import Any

from usernet.client.readiness import identity_of
from usernet.client.stack import all_sockets

# Stored here because usernet.patch replaces them.
_KERNEL_FROMFD, _KERNEL_CLOSE, _KERNEL_DUP = _std.fromfd, _std.close, _std.dup
_detached: dict[int, Any] = {}  # {number: detached socket}


def leave(number: int, endpoint: Any) -> None:
    """`endpoint` now belongs only to its descriptor."""
    _detached[number] = endpoint


def adopt(number: int) -> Any:
    """The socket detached under this number; or another object for a socket in use; None: neither."""
    found = _detached.pop(number, None)
    if found is not None and not is_number_of(found, number):
        if found._descriptor is not None:
            found._descriptor.forget()
        found.close()
        found = None
    return found or _duplicate(number)


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> Any:
    """As the standard function: another socket object for the descriptor's socket."""
    return _duplicate(fd) or _KERNEL_FROMFD(fd, family, type, proto)


def dup(fd: int) -> int:
    """As the standard function: another descriptor for the same socket."""
    found = _duplicate(fd)
    if found is None:
        return _KERNEL_DUP(fd)
    number: int = found.fileno()
    leave(number, found)
    return number


def close(fd: int) -> None:
    """As the standard function: close a detached descriptor."""
    found = _detached.pop(fd, None)
    if found is None:
        _KERNEL_CLOSE(fd)
    else:
        found.close()


def _duplicate(number: int) -> Any:
    found = next((each for each in all_sockets() if is_number_of(each, number)), None)
    return None if found is None else found.dup()


def is_number_of(endpoint: Any, number: int) -> bool:
    """True if the number is still the socket's: not after a fork, or after it was closed and reused."""
    descriptor = endpoint._descriptor
    return descriptor is not None and descriptor.number == number and descriptor.identity == identity_of(number)

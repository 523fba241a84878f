"""Sockets by the number of their descriptor: what detach() left, and fromfd() finds.

A descriptor only tells of readiness, so the number means a socket within this process only.
"""

from __future__ import annotations

import socket as _std
from typing import Any

from usernet.client.readiness import identity_of
from usernet.client.stack import all_sockets

# Kept, as usernet.patch puts others in their place.
_KERNEL_FROMFD, _KERNEL_CLOSE, _KERNEL_DUP = _std.fromfd, _std.close, _std.dup
_detached: dict[int, Any] = {}  # sockets


def leave(number: int, endpoint: Any) -> None:
    """`endpoint` is nobody's but its descriptor's."""
    _detached[number] = endpoint


def adopt(number: int) -> Any:
    """What was left under this number; another object for a socket that somebody has; None where there is neither."""
    found = _detached.pop(number, None)
    if found is not None and not _is_there(found, number):
        if found._descriptor is not None:
            found._descriptor.forget()
        found.close()
        found = None
    return found or _duplicate(number)


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> Any:
    """As the standard one: another socket object for what the descriptor stands for."""
    return _duplicate(fd) or _KERNEL_FROMFD(fd, family, type, proto)


def dup(fd: int) -> int:
    """As the standard one: another descriptor for the same socket."""
    found = _duplicate(fd)
    if found is None:
        return _KERNEL_DUP(fd)
    number: int = found.fileno()
    leave(number, found)
    return number


def close(fd: int) -> None:
    """As the standard one: for a descriptor that was detached."""
    found = _detached.pop(fd, None)
    if found is None:
        _KERNEL_CLOSE(fd)
    else:
        found.close()


def _duplicate(number: int) -> Any:
    found = next((each for each in all_sockets() if _is_there(each, number)), None)
    return None if found is None else found.dup()


def _is_there(endpoint: Any, number: int) -> bool:
    """Whether the number is the socket's; not so after a fork, or where it was closed and the kernel gave it away."""
    descriptor = endpoint._descriptor
    return descriptor is not None and descriptor.number == number and descriptor.identity == identity_of(number)

"""The socket class, which selects the behaviour: streams, datagrams, or a socket of the kernel."""

from __future__ import annotations

import socket as _std
from functools import lru_cache
from typing import Any

from usernet.sockets.base import _FLAGS_IN_TYPE, _KERNEL_SOCKET, BaseSocket, is_kernels
from usernet.sockets.datagrams import Address
from usernet.sockets.descriptors import adopt
from usernet.sockets.streams import StreamBehaviour

__all__ = ("_KERNEL_SOCKET", "Address", "is_kernels", "socket")


class socket(BaseSocket):  # noqa: N801  (the standard module's name)
    """A TCP socket, UDP socket, ping socket (SOCK_DGRAM with IPPROTO_ICMP) or raw socket (SOCK_RAW).

    `stack`: a stack other than the default one.

    With another family than AF_INET, or a descriptor of the kernel, the result is a standard socket of the kernel.
    """

    __slots__ = ()

    def __new__(cls, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None, **_: object) -> Any:
        """A socket of the stack, or of the kernel."""
        detached = None if fileno is None else adopt(fileno)
        if detached is not None:
            return detached
        if is_kernels(family, fileno):
            return _KERNEL_SOCKET(family, type, proto, fileno)
        streams = type == -1 or type & ~_FLAGS_IN_TYPE == _std.SOCK_STREAM
        return super().__new__(_stream_class(cls) if streams else cls)  # type: ignore[arg-type]


class _StreamSocket(StreamBehaviour, socket):
    __slots__ = ()


@lru_cache
def _stream_class(cls: Any) -> Any:
    """The class for stream sockets of `cls`, which is `socket` or derived from it."""
    if issubclass(cls, StreamBehaviour):
        return cls
    return _StreamSocket if cls is socket else type(cls.__name__, (cls, _StreamSocket), {"__module__": cls.__module__})

"""The standard module's socket class, extended to sockets of a stack.

A *stand-in* is an object of the standard class (or of a derived class) without a descriptor in the kernel: every call
goes to a socket of the stack. A table here maps the object's identity to that socket, because the standard class has no
room for it.
"""

from __future__ import annotations

import os
import socket as _std
import weakref
from collections.abc import Callable
from typing import Any

from usernet.sockets import descriptors, endpoint
from usernet.sockets.base import BaseSocket, is_kernels

Socket = _std.socket  # the class itself is not replaced, only its methods

_inner: dict[int, tuple[BaseSocket, weakref.ref[Any]]] = {}
_PASSED_ON = (
    "bind", "connect", "connect_ex", "getpeername", "getsockname", "getsockopt", "setsockopt", "listen", "recv",
    "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "send", "sendall", "sendmsg", "sendto",
    "sendfile", "setblocking", "getblocking", "settimeout", "gettimeout", "shutdown", "fileno", "get_inheritable",
    "set_inheritable",
)  # fmt: skip
_BEYOND = ("sendmany", "recvmany", "disconnect", "receive_record")
_initialise = Socket.__init__


def inner_of(sock: object) -> BaseSocket | None:
    """The socket of the stack that `sock` is or stands for; None: a socket of the kernel, or no socket."""
    if isinstance(sock, BaseSocket):
        return sock
    found = _inner.get(id(sock))
    return None if found is None else found[0]


def stand_in(cls: Any, inner: BaseSocket) -> Any:
    """A new object of the standard class, or of a derived class, for a socket of the stack."""
    made = cls.__new__(cls)
    become(made, inner)
    return made


def become(sock: Any, inner: BaseSocket) -> None:
    """Make `sock`, an object of the standard class without a descriptor, stand for `inner`."""
    key = id(sock)
    _inner[key] = inner, weakref.ref(sock, lambda _: _inner.pop(key, None))
    sock._io_refs, sock._closed = 0, False


def give_up(sock: Any) -> BaseSocket | None:
    """Like detach: `sock` no longer stands for its socket, which is returned."""
    inner = inner_of(sock)
    if inner is not None and _inner.pop(id(sock), None) is None:
        inner = inner._moved()  # it was a socket of the library's own class
    sock._closed = True
    return inner


def _init(self: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
    inner = descriptors.adopt(fileno) if fileno is not None else None
    if inner is None and not is_kernels(family, fileno):
        inner = endpoint.socket(family, type, proto)
    if isinstance(inner, BaseSocket):
        become(self, inner)
    else:
        _initialise(self, family, type, proto, fileno)


def _pass_on(name: str) -> Callable[..., Any]:
    standard = getattr(Socket, name)

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        found = _inner.get(id(self))
        if found is None:
            return standard(self, *arguments, **named)
        return getattr(found[0], name)(*arguments, **named)

    call.__name__, call.__doc__ = name, standard.__doc__
    return call


def _beyond(name: str) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        found = _inner.get(id(self))
        if found is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(found[0], name)(*arguments, **named)

    call.__name__, call.__doc__ = name, getattr(endpoint.socket, name).__doc__
    return call


def _property(name: str) -> property:
    standard = getattr(Socket, name)

    def get(self: Any) -> Any:
        found = _inner.get(id(self))
        return standard.__get__(self) if found is None else getattr(found[0], name)

    return property(get, doc=standard.__doc__)


def _accept(self: Any, *, standard: Callable[..., Any] = Socket.accept) -> Any:
    inner = inner_of(self)
    if inner is None:
        return standard(self)
    accepted, peer = inner.accept()
    return stand_in(Socket, accepted), peer


def _dup(self: Any, *, standard: Callable[..., Any] = Socket.dup) -> Any:
    inner = inner_of(self)
    return standard(self) if inner is None else stand_in(type(self), inner.dup())


def _detach(self: Any, *, standard: Callable[..., Any] = Socket.detach) -> Any:
    inner = inner_of(self)
    if inner is None:
        return standard(self)
    self._closed = True
    number = inner.detach()
    _inner.pop(id(self), None)
    return number


def _real_close(self: Any, *arguments: Any, standard: Callable[..., Any] = Socket._real_close) -> None:  # type: ignore
    inner = inner_of(self)
    if inner is None:
        standard(self, *arguments)
    else:
        inner.close()


def _repr(self: Any, *, standard: Callable[..., Any] = Socket.__repr__) -> Any:
    inner = inner_of(self)
    if inner is None:
        return standard(self)
    kind = type(self)
    return f"<{kind.__module__}.{kind.__qualname__}{' [closed]' if self._closed else ''} of {inner!r}>"


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> Any:
    """As the standard function: another object, of the standard class, for the descriptor's socket."""
    made = descriptors.fromfd(fd, family, type, proto)
    return stand_in(Socket, made) if isinstance(made, BaseSocket) else made


def _use_sendfile(self: Any, file: Any, offset: int = 0, count: int | None = None,
                  standard: Callable[..., Any] = Socket._sendfile_use_sendfile) -> int:  # type: ignore[attr-defined]
    """sendfile(2) needs a descriptor of the kernel, so read and send instead."""
    if inner_of(self) is None:
        return int(standard(self, file, offset, count))
    self._check_sendfile_params(file, offset, count)
    try:
        os.fstat(file.fileno())
    except (AttributeError, OSError) as error:
        raise _std._GiveupOnSendfile(error) from None  # type: ignore[attr-defined]
    return int(self._sendfile_use_send(file, offset, count))


METHODS: dict[str, Any] = {
    **{name: _pass_on(name) for name in _PASSED_ON},
    **{name: _beyond(name) for name in _BEYOND},
    **{name: _property(name) for name in ("family", "type", "proto", "timeout")},
    "accept": _accept, "dup": _dup, "detach": _detach, "_real_close": _real_close, "__repr__": _repr,
    "_sendfile_use_sendfile": _use_sendfile,
}


def replace_methods() -> None:
    """From now on the standard class makes sockets of a stack for the family AF_INET."""
    for name, method in {**METHODS, "__init__": _init}.items():
        setattr(Socket, name, method)

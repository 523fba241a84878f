"""Code that uses the kernel's network although the program runs over a stack: reported once each, or refused.

An audit hook (PEP 578) sees Python's own calls: a socket of the Internet or of packets that was not made by the
standard class. Libraries in C that open their own sockets are known only by name.
"""

from __future__ import annotations

import errno
import os
import socket as _std
import sys
from typing import Any

IN_C = {
    "uvloop": "its event loop does networking in libuv", "gevent": "it does networking in libev or libuv",
    "eventlet": "its hub replaces the socket module", "pycares": "it asks name servers from C",
    "zmq": "tcp:// and udp:// of libzmq are the kernel's", "grpc": "its core does networking in C",
    "psycopg2": "libpq does networking in C", "pycurl": "libcurl does networking in C",
}  # fmt: skip
_FAMILIES = {int(_std.AF_INET): "AF_INET", int(_std.AF_INET6): "AF_INET6", int(_std.AF_PACKET): "AF_PACKET"}

_told: set[str] = set()
_strict = False
_watching = False


def watch(strict: bool) -> None:
    """Begin watching; an audit hook cannot be removed."""
    global _strict, _watching
    _strict = strict
    for name in [name for name in IN_C if name in sys.modules]:
        _tell_import(name)
    if not _watching:
        _watching = True
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "import":
        if arguments[0] in IN_C:
            _tell_import(arguments[0])
    elif event == "socket.__new__" and arguments[1] in _FAMILIES:
        _tell(f"a socket of {_FAMILIES[arguments[1]]}", "it was made past socket.socket")


def _tell_import(name: str) -> None:
    if name != "zmq" or "usernet.pipe.libzmq" not in sys.modules:  # unless our own pipes import it
        _tell(name, IN_C[name])


def _tell(what: str, why: str) -> None:
    text = f"usernet: {what} uses the kernel's network, not the stack: {why}"
    if _strict:
        raise PermissionError(errno.EPERM, f"{os.strerror(errno.EPERM)}: {text}")
    if what not in _told:
        _told.add(what)
        print(text, file=sys.stderr)

"""The connections of the process: one for each stack, opened when first needed.

Owns the table of connections, and handles a fork or the end of the process.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any, Self

from usernet.client.connection import Connection
from usernet.client.sharing import Fork, sockets_of
from usernet.pipe.run_dir import run_dir as default_run_dir
from usernet.pipe.run_dir import stack_name

_connections: dict[Path, Connection] = {}
_lock = threading.RLock()
_all: list[Connection] = []  # connections that may have sockets, also to stacks that are gone
_inherited: list[Connection] = []  # of the parent process: kept but never used
_forking = threading.Lock()  # held during a fork
_forks: list[Fork] = []  # the one under way


class Stack:
    """A running stack, for a program that uses several or needs to know the address.

    `name` is its name, `run_dir` its run directory; without both, the environment decides (usernet.pipe.run_dir).
    ConnectionRefusedError: it does not run. `tool`: this process is a tool of the command line, see Connection.
    """

    def __init__(self, name: str | None = None, run_dir: str | os.PathLike[str] | None = None, *,
                 tool: bool = False) -> None:
        self._tool = tool
        self.run_dir = Path(os.path.abspath(run_dir if run_dir is not None else default_run_dir(name)))
        self.name = name or (stack_name() if run_dir is None else self.run_dir.name)
        _ = self.connection

    @property
    def connection(self) -> Connection:
        """This process's connection to it; a new one after a fork, or after a restart of the stack."""
        with _lock:
            connection = _connections.get(self.run_dir)
            if connection is None or not connection.alive():
                if connection is not None:
                    connection.close(linger_s=0)
                _close_ended()
                connection = _connections[self.run_dir] = Connection(self.run_dir, self.name, self._tool)
                _all[:] = [each for each in _all if each.boxes or not each.closed]
                _all.append(connection)
                _close_at_exit()
            return connection

    @property
    def address(self) -> str:
        """The stack's IPv4 address."""
        return str(self.connection.welcome["address"])

    @property
    def mtu(self) -> int:
        """The MTU of its link, in octets."""
        return int(self.connection.welcome["mtu"])

    @property
    def name_servers(self) -> list[str]:
        """The name servers of the stack (`launcher.py up --dns`)."""
        return list(self.connection.welcome.get("dns", ()))

    def list_sockets(self) -> list[dict[str, Any]]:
        """The sockets of all applications of the stack: handle, type, pid, local, peer, queued octets, drops."""
        sockets: list[dict[str, Any]] = []
        while True:
            answer = self.connection.request("list", after=sockets[-1]["handle"] if sockets else 0)
            sockets += answer["sockets"]
            if not answer["more"]:
                return sockets

    def close(self) -> None:
        """Close this process's connection and with it all of its sockets in this stack."""
        with _lock:
            connection = _connections.pop(self.run_dir, None)
        if connection is not None:
            connection.close()
            for endpoint in _sockets_of(connection):
                endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<usernet.Stack {self.name!r} in {self.run_dir}>"


def _close_ended() -> None:
    """Close the connections to stacks that are gone, if no socket needs them: each has six descriptors."""
    for run_dir, connection in list(_connections.items()):
        if not connection.boxes and not connection.alive():
            del _connections[run_dir]
            connection.close(linger_s=0)


def all_sockets() -> list[Any]:
    """All open sockets of this process, in any stack."""
    return [endpoint for connection in list(_all) for endpoint in _sockets_of(connection)]


def _sockets_of(connection: Connection) -> list[Any]:
    return [endpoint for _, objects in sockets_of(connection) for endpoint in objects]


def _before_fork() -> None:
    _forking.acquire()
    _forks[:] = [Fork(list(_all))]


def _after_fork() -> None:
    try:
        _forks.pop().in_parent()
    finally:
        _forking.release()


def _forked() -> None:
    """In the child: connections and their threads belong to the parent. Open new ones for the inherited sockets."""
    global _lock, _forking
    _lock, _forking = threading.RLock(), threading.Lock()
    _connections.clear()
    _inherited.extend(_all)
    _all.clear()
    _forks.pop().in_child(_reopen)
    for connection in _inherited:
        connection.abandon()
        for socket in _sockets_of(connection):
            socket.disown(os.strerror(errno.EBADF))


def _reopen(former: Connection) -> Connection:
    connection = _connections[former.run_dir] = Connection(former.run_dir, former.name)
    _all.append(connection)
    _close_at_exit()
    return connection


def _close_at_exit() -> None:
    """A child of multiprocessing ends without atexit; it has its own list of finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _farewell, exitpriority=0)


def _farewell() -> None:
    for connection in _all:
        connection.close()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)
atexit.register(_farewell)

"""The run directory of a stack, which contains the sockets of its services.

A user who could write there, or replace the directory, could pose as the stack. So nothing in it is used before `check`
has examined it and its parent, and the kernel identifies the process at the other end of a connection (`peer`).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import re
import socket
import stat
import struct
import tempfile
from pathlib import Path

DEFAULT_NAME = "default"
PARENTS = ("usernet", f"usernet-{os.geteuid()}")  # names of the directory of all stacks: see `run_dir`
SERVICE_SOCKET = "sockets.sock"  # name of the inbox of the socket service in the run directory
# name of the directory in it with the applications' inboxes, the only part of the file system that the service sees
INBOXES = "sockets"
_CREDENTIALS = struct.Struct("=iII")  # unix(7), SO_PEERCRED: pid, uid, gid

_NAME = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,32}")


def check_name(name: str) -> str:
    """`name`, if it is a valid name for a stack. ValueError: it is not."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"invalid name of a stack: {name!r} "
            "(1 to 32 letters, digits, '.', '_' and '-', not starting with '.' or '-')"
        )
    return name


def stack_name(name: str | None = None) -> str:
    """The given name, else $USERNET_NAME, else the default."""
    return check_name(name or os.environ.get("USERNET_NAME") or DEFAULT_NAME)


def run_dir(name: str | None = None) -> Path:
    """The run directory of a stack.

    Without a name it is $USERNET_DIR. Otherwise, and for a given name, it is $XDG_RUNTIME_DIR/usernet/NAME, or a
    private directory in the system's temporary directory.
    """
    directory = os.environ.get("USERNET_DIR")
    if directory and name is None:
        return Path(os.path.abspath(directory))
    base = os.environ.get("XDG_RUNTIME_DIR")
    private = Path(tempfile.gettempdir()) / f"usernet-{os.getuid()}"
    return (Path(base) / "usernet" if base and not _anothers(base) else private) / stack_name(name)


def _anothers(directory: str) -> bool:
    """Whether it belongs to another user: `sudo -E` keeps the variable, but it is for its owner alone (XDG)."""
    try:
        return os.stat(directory).st_uid != os.geteuid()
    except OSError:
        return False


class Untrusted(PermissionError):
    """A directory, or the process that answers there, belongs to another user."""


def check(path: Path, make: bool = False) -> int:
    """A descriptor (O_PATH) of the run directory `path`, which only this user can access. FileNotFoundError, Untrusted.

    `make`: create it if necessary, but not its parent.
    """
    parent = _open(path.parent)
    try:
        status = os.fstat(parent)
        others_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()) or others_write:
            raise Untrusted(errno.EPERM, f"{path.parent} is not yours, so another user could replace the stack; "
                            "set USERNET_DIR to a directory of yours")
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path.name, 0o700, dir_fd=parent)
        directory = _open(path, path.name, parent)
    finally:
        os.close(parent)
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(directory)
        raise Untrusted(errno.EPERM, f"{path} is not a directory of your own with mode 0700; "
                        "set USERNET_DIR to another")
    return directory


def _open(path: Path, name: str | None = None, parent: int | None = None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name or path, flags, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Untrusted(errno.EPERM, f"{path} is a symbolic link, or no directory; "
                            "set USERNET_DIR to another") from None
        if error.errno == errno.EACCES:
            raise Untrusted(errno.EPERM, f"{path} is not open to you (uid {os.geteuid()}): it, or a directory above "
                            "it, belongs to another user; set USERNET_DIR to a directory of yours") from None
        raise


def peer(connection: _socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end of a connected Unix socket, from the kernel."""
    return _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[:2]

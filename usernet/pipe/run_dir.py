"""Where a running stack is found: its run directory, which holds the sockets of its services.

Whoever can write there, or put another directory in its place, could answer in the stack's stead. So nothing in it is
used before `check` has looked at it and at the directory that it is in; and at the other end of a connection is who the
kernel says (`peer`).
"""

from __future__ import annotations

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
SERVICE_SOCKET = "sockets.sock"  # the inbox of the socket service, inside the run directory
INBOXES = "sockets"  # the folder, in there, of the applications' inboxes: all that the service sees of the file system
_CREDENTIALS = struct.Struct("=iII")  # unix(7), SO_PEERCRED: pid, uid, gid

_NAME = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,32}")


def check_name(name: str) -> str:
    """`name` itself, where it may name a stack; ValueError where not."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"not a name for a stack: {name!r} "
            "(1 to 32 letters, digits, '.', '_' and '-', not starting with '.' or '-')"
        )
    return name


def stack_name(name: str | None = None) -> str:
    """The name given, else $USERNET_NAME, else the default."""
    return check_name(name or os.environ.get("USERNET_NAME") or DEFAULT_NAME)


def run_dir(name: str | None = None) -> Path:
    """The run directory of a stack.

    Without a name $USERNET_DIR is that directory. Otherwise, and for a name that was asked for, it is
    $XDG_RUNTIME_DIR/usernet/NAME, or a private directory in the system's temporary directory.
    """
    directory = os.environ.get("USERNET_DIR")
    if directory and name is None:
        return Path(directory)
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
    """A directory, or who answers there, is not the user's own."""


def check(path: Path, make: bool = False) -> int:
    """A descriptor (O_PATH) of the run directory `path`, which is nobody's but ours. FileNotFoundError, Untrusted.

    `make`: make it, but not the one that it is in, if need be.
    """
    parent = _open(path.parent)
    try:
        status = os.fstat(parent)
        others_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()) or others_write:
            raise Untrusted(errno.EPERM, f"{path.parent} is not yours: others could put anything in the stack's place; "
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
        raise Untrusted(errno.EPERM, f"{path} is not a directory of yours alone (mode 0700); "
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
        raise


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of who listens at the other end of a connected Unix socket, or who connected: the kernel says it."""
    return _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[:2]

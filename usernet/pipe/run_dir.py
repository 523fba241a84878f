"""Where a running stack is found: its run directory, which holds the sockets of its services."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

DEFAULT_NAME = "default"
SERVICE_SOCKET = "sockets.sock"  # the inbox of the socket service, inside the run directory

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
    root = Path(base) / "usernet" if base else Path(tempfile.gettempdir()) / f"usernet-{os.getuid()}"
    return root / stack_name(name)

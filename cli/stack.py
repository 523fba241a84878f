"""Requests to running stacks over the control socket, for the verbs."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.query import query
from supervisor.control import SOCKET_NAME, Client, NotRunning, claimed
from usernet.pipe.run_dir import DEFAULT_NAME, run_dir, stack_name

KEEPER_END_TIMEOUT_S = 10.0


def manage(name: str | None, layer: str, **request: object) -> Any:
    """Send a request to one layer's core and return its answer. Refused: the core's error message."""
    return query(run_dir(name), "manage", layer=layer, request=request)


def stop(folder: Path, force: bool = False) -> list[str]:
    """Stop a stack in order and wait for the end of its keeper, because the interface ends with the keeper's last
    descriptor.

    Returns the processes that had to be killed. With `force` the keeper is killed, which ends everything at once.
    """
    with Client(folder) as client:
        keeper = client.keeper_pidfd()
        try:
            if force:
                signal.pidfd_send_signal(keeper, signal.SIGKILL)
                forced = ["the keeper, with all layers"]
            else:
                forced = client.request("down").get("forced", [])
            select.select([keeper], [], [], KEEPER_END_TIMEOUT_S)
        finally:
            os.close(keeper)
    return forced


def all_folders() -> Iterator[Path]:
    """The run directories of this user's stacks that may be running, where this process looks for stacks."""
    root = run_dir(DEFAULT_NAME).parent
    apart = {run_dir()}  # $USERNET_DIR, if it is set
    try:
        folders = {*root.iterdir(), *apart}
    except (FileNotFoundError, NotADirectoryError):  # it goes with the last stack
        folders = apart
    there = {folder for folder in folders if (folder / SOCKET_NAME).exists()}
    # the files of a stack may be gone
    yield from sorted(there | {folder for folder in claimed() if folder.parent == root or folder in apart})


def name_of(folder: Path) -> str:
    """The name of the stack in a run directory, which need not be that of the directory: $USERNET_DIR."""
    return stack_name() if folder == run_dir() else folder.name


def say(given: object, text: str) -> None:
    """Print one line about what was done, unless --quiet is given."""
    if not getattr(given, "quiet", False):
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(text, file=sys.stderr, flush=True)


__all__ = ["Client", "NotRunning", "all_folders", "manage", "name_of", "query", "run_dir", "say", "stack_name", "stop",
           "warn"]

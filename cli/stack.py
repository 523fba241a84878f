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
    """The run directories of this user's stacks that may be running."""
    root = run_dir(DEFAULT_NAME).parent
    there = {folder for folder in root.iterdir() if (folder / SOCKET_NAME).exists()} if root.is_dir() else set()
    yield from sorted(there | {folder for folder in claimed() if folder.parent == root})  # its files may be gone


def say(given: object, text: str) -> None:
    """Print one line about what was done, unless --quiet is given."""
    if not getattr(given, "quiet", False):
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(text, file=sys.stderr, flush=True)


__all__ = ["Client", "NotRunning", "all_folders", "manage", "query", "run_dir", "say", "stack_name", "stop", "warn"]

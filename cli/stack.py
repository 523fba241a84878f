"""Running stacks, as the verbs see them: asked over the control socket."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.query import query
from supervisor.control import Client, NotRunning
from usernet.pipe.run_dir import DEFAULT_NAME, run_dir, stack_name

KEEPER_END_TIMEOUT_S = 10.0


def manage(name: str | None, layer: str, **request: object) -> Any:
    """Ask or change something in one layer's core; its answer. Refused, with the core's words, where it will not."""
    return query(run_dir(name), "manage", layer=layer, request=request)


def stop(folder: Path, force: bool = False) -> list[str]:
    """Stop in order, and wait for the keeper's own end: the interface goes with the last of its descriptors.

    What had to be killed for it. With `force` the keeper itself is killed, which ends everything that is its.
    """
    with Client(folder) as client:
        keeper = client.keeper_pidfd()
        try:
            if force:
                signal.pidfd_send_signal(keeper, signal.SIGKILL)
                forced = ["the keeper, and with it all layers"]
            else:
                forced = client.request("down").get("forced", [])
            select.select([keeper], [], [], KEEPER_END_TIMEOUT_S)
        finally:
            os.close(keeper)
    return forced


def all_folders() -> Iterator[Path]:
    """The run directories of the stacks of this user that may be running, wherever --name finds them."""
    root = run_dir(DEFAULT_NAME).parent
    if root.is_dir():
        yield from sorted(folder for folder in root.iterdir() if (folder / "control.sock").exists())


def say(given: object, text: str) -> None:
    """What was done, in one line; nothing with --quiet."""
    if not getattr(given, "quiet", False):
        print(text, flush=True)


def warn(text: str) -> None:
    """A line for people on standard error."""
    print(text, file=sys.stderr, flush=True)


__all__ = ["Client", "NotRunning", "all_folders", "manage", "query", "run_dir", "say", "stack_name", "stop", "warn"]

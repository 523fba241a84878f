"""`restart`: planned restarts of layers with the code that is on disk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from cli import stack
from cli.main import OK
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "planned restart with the code that is on disk now; code that does not load is refused"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("layers", nargs="+", metavar="LAYER", help="names of layers, or all")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def run(given: argparse.Namespace) -> int:
    """Restart the layers; returns when they serve again."""
    started = time.monotonic()
    done = restart(run_dir(given.name), given.layers)
    stack.say(given, f"{', '.join(done)} restarted in {(time.monotonic() - started) * 1000:.0f} ms")
    return OK


def restart(folder: Path, layers: Iterable[str]) -> list[str]:
    """Restart these layers, or all, and return their names.

    UsageError: unknown layer. Refused: the restart failed, with the reason.
    """
    known, wanted = list(stack.query(folder, "status")["layers"]), list(dict.fromkeys(layers))
    if "all" in wanted:
        if len(wanted) > 1:
            raise UsageError(f"restart {' '.join(wanted)}: 'all' is every layer; expected it alone, or names of layers")
        wanted = known
    unknown = [layer for layer in wanted if layer not in known]
    if unknown:
        raise UsageError(f"restart: no layer '{unknown[0]}'; the layers are {', '.join(known)}, or all")
    stack.query(folder, "restart", layers=wanted)
    return wanted

"""`log`: the levels of the event log, for each layer, while the stack runs."""

from __future__ import annotations

import argparse
import json

from cli.main import OK
from cli.query import query
from supervisor.events import KEEPER, LEVELS
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "show or change the level of the event log for a layer: error, warning, info, debug"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("source", metavar="LAYER", nargs="?", help="a layer, 'keeper' for events about the whole "
                        "stack, or 'all'")
    parser.add_argument("level", metavar="LEVEL", nargs="?", help=f"{', '.join(LEVELS)}; with debug a layer also "
                        "reports what it drops, once a second")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(given: argparse.Namespace) -> int:
    """Change the level if one is given; print the levels."""
    folder = run_dir(given.name)
    levels = query(folder, "levels")
    if given.source not in (None, "all", *levels):
        raise UsageError(f"log: no layer {given.source!r}; there are {', '.join(levels)} and all")
    if given.level is not None:
        if given.level not in LEVELS:
            raise UsageError(f"log: no level {given.level!r}; the levels are {', '.join(LEVELS)}")
        sources = list(levels) if given.source == "all" else [given.source]
        levels = query(folder, "levels", set=dict.fromkeys(sources, given.level))
    shown = {name: level for name, level in levels.items() if given.source in (None, "all", name)}
    print(json.dumps(shown) if given.json else "\n".join(f"{name:<{len(KEEPER) + 2}} {level}"
                                                         for name, level in shown.items()))
    return OK

"""`top`: the verb; the screen is drawn in `cli.screen`, which needs rich."""

from __future__ import annotations

import argparse

from supervisor.options import UsageError

TEXT = "a live screen of the stack: layers, pipes, applications, events"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its part of the command line."""
    parser.add_argument("--once", action="store_true", help="print it once, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between two looks "
                        "(default %(default)s)")
    parser.add_argument("--sort", choices=("rate", "name", "drops"), default="rate", help="pipes by rate (default) or "
                        "name, layers by drops")


def run(given: argparse.Namespace) -> int:
    """Show it until q."""
    from cli import screen

    if not 0.1 <= given.interval <= 60:
        raise UsageError(f"--interval {given.interval}: 0.1 to 60 seconds")
    return screen.show(given.name, given.once, given.interval, given.sort)

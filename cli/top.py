"""`top`: the verb. The screen is in `cli.screen`, which needs rich."""

from __future__ import annotations

import argparse

from cli.numbers import seconds

TEXT = "a live screen of the stack: layers, pipes, applications, events"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--once", action="store_true", help="print the screen once and exit")
    parser.add_argument("--interval", type=seconds(0.1, 60), default=1.0, metavar="S", help="seconds between "
                        "two updates (default %(default)s)")
    parser.add_argument("--sort", choices=("rate", "name", "drops"), default="rate", help="sort pipes by rate "
                        "(default), name or drops, and layers by drops")


def run(given: argparse.Namespace) -> int:
    """Show the screen until q is pressed."""
    from cli import screen

    return screen.show(given.name, given.once, given.interval, given.sort)

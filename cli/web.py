"""`web`: the verb. The page is served by `cli.pages`, which needs bottle."""

from __future__ import annotations

import argparse

from supervisor.options import UsageError

TEXT = "show the stack in the browser, live; on 127.0.0.1, with a token in the URL"
PORT = 9418


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--port", type=int, default=PORT, metavar="P", help="TCP port (default %(default)s; "
                        "0: any free port)")


def run(given: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from cli import pages

    if not 0 <= given.port < 1 << 16:
        raise UsageError(f"--port {given.port}: must be 0 to 65535")
    return pages.serve(given.name, given.port)

"""`web`: the verb; the page is served by `cli.pages`, which needs bottle."""

from __future__ import annotations

import argparse

from supervisor.options import UsageError

TEXT = "a page in the browser: the stack's picture, live; on 127.0.0.1, with a token"
PORT = 9418


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its part of the command line."""
    parser.add_argument("--port", type=int, default=PORT, metavar="P", help="default %(default)s; 0: any")


def run(given: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from cli import pages

    if not 0 <= given.port < 1 << 16:
        raise UsageError(f"--port {given.port}: 0 to 65535")
    return pages.serve(given.name, given.port)

"""`web`: the verb. The page is served by `cli.pages`, which needs bottle."""

from __future__ import annotations

import argparse

from cli.numbers import whole

TEXT = "show the stack in the browser, live; on 127.0.0.1, with a token in the URL"
PORT = 9418


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--port", type=whole(0, 65535), default=PORT, metavar="P", help="TCP port (default "
                        "%(default)s; 0: any free port)")


def run(given: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from cli import pages

    return pages.serve(given.name, given.port)

"""`metrics`: the verb. The exporter is in `cli.exporter`, which needs prometheus_client."""

from __future__ import annotations

import argparse

from cli.numbers import whole

TEXT = "serve counters, traffic on pipes and times to Prometheus, on 127.0.0.1"
PORT = 9417


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--port", type=whole(0, 65535), default=PORT, metavar="P", help="TCP port (default "
                        "%(default)s; 0: any free port)")


def run(given: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from cli import exporter

    exporter.serve(given.name, given.port)
    return 0

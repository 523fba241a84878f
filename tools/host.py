"""`launcher.py host`: ask a name server, through the stack."""

from __future__ import annotations

import argparse
import sys

import usernet as socket
from tools import stack_of

TEXT = "ask the stack's name servers, or SERVER, for a name or an address"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("-t", "--type", metavar="T", help="of the records: A (default; PTR for an address), MX, TXT, …")
    parser.add_argument("host", metavar="NAME")
    parser.add_argument("server", metavar="SERVER", nargs="?")


def run(given: argparse.Namespace) -> int:
    """Print the records, a line each; 1 where there are none."""
    from usernet.resolver import lookup

    try:
        records = lookup(given.host, given.type, stack_of(given), [given.server] if given.server else None)
    except socket.gaierror as error:
        print(f"host: {given.host}: {error.strerror}", file=sys.stderr)
        return 1
    for owner, kind, value in records:
        print(f"{owner} {kind} {value}")
    return 0

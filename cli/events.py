"""`events`: the events of a stack."""

from __future__ import annotations

import argparse

import msgspec

from cli.main import OK
from supervisor.control import Client, printable
from supervisor.events import Event, describe
from usernet.pipe.run_dir import run_dir

TEXT = "what happened, when, to which layer, why, and how long the gap was"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("-f", "--follow", action="store_true", help="wait for further events and print them")
    parser.add_argument("--json", action="store_true", help="one JSON object per line (docs/commands.md)")


def run(given: argparse.Namespace) -> int:
    """Print the events, one line each."""
    with Client(run_dir(given.name)) as client:
        for line in client.stream("events", follow=given.follow):
            text = msgspec.json.encode(line).decode() if given.json else describe(msgspec.convert(line, Event))
            print(printable(text), flush=True)
    return OK

"""`down`: stop a stack, or all stacks of the user."""

from __future__ import annotations

import argparse
import time

from cli import stack
from cli.main import FAILED, OK
from supervisor.control import NotRunning, Refused
from usernet.pipe.run_dir import run_dir

TEXT = "stop the stack in order and remove all of its files"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--all", action="store_true", help="all stacks of this user")
    parser.add_argument("--force", action="store_true", help="kill the keeper, which ends everything at once")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def run(given: argparse.Namespace) -> int:
    """Stop the stacks; when this returns, their processes and files are gone."""
    if not given.all:
        return _stop(given, run_dir(given.name))
    status = OK
    for folder in list(stack.all_folders()):
        try:
            status |= _stop(given, folder)
        except (NotRunning, Refused, OSError) as error:
            stack.warn(f"down: {folder.name}: {error}")
            status = FAILED
    return status


def _stop(given: argparse.Namespace, folder) -> int:
    started = time.monotonic()
    name = stack.name_of(folder)
    forced = stack.stop(folder, given.force)
    for line in forced:
        stack.warn(f"killed {line}")
    stack.say(given, f"stack '{name}' is down in {time.monotonic() - started:.2f} s")
    return OK

"""`exec`: run a command on the kernel's end of the cable."""

from __future__ import annotations

import argparse
import os

from cli import stack
from cli.main import program
from supervisor import sandbox
from supervisor.control import Client
from supervisor.errors import BootError
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "run a command on the kernel's end of the cable: exec ping 10.0.0.2"
NOT_FOUND, CANNOT_RUN = 127, 126  # what a shell says of a command that is not there, or is none


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="CMD ...", help="the command and all that is its")


def run(given: argparse.Namespace) -> int:
    """The command takes this process's place, so its status is ours."""
    command = given.cmd[1:] if given.cmd[:1] == ["--"] else given.cmd
    if not command:
        raise UsageError("exec: which command? Give it like: exec ping -c 1 10.0.0.2")
    with Client(run_dir(given.name)) as client:
        status, keeper, pidfd = client.request("status"), client.keeper, client.keeper_pidfd()
    if status["wire"]:
        raise UsageError(f"exec: stack '{status['name']}' is on wire '{status['wire']}': there is no kernel's end")
    try:
        sandbox.join(keeper, pidfd)
    except OSError as error:
        raise BootError(f"cannot enter the sandbox of stack '{status['name']}': {error.strerror}") from error
    try:
        os.execvp(command[0], command)
    except OSError as error:
        stack.warn(f"{program()}: {command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN

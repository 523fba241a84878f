"""`exec`: run a command at the kernel's end of the TAP."""

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

TEXT = "run a command at the kernel's end of the TAP: exec ping 10.0.0.2"
NOT_FOUND, CANNOT_RUN = 127, 126  # the statuses of a shell for a command that does not exist, or cannot be executed


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="CMD ...", help="the command and its arguments")


def run(given: argparse.Namespace) -> int:
    """Replace this process by the command, so the exit status is the command's. UsageError: no command, or no TAP."""
    command = given.cmd[1:] if given.cmd[:1] == ["--"] else given.cmd
    if not command or not command[0]:
        raise UsageError("exec: no command given; usage: exec COMMAND [ARGS...], for example: exec ping -c 1 10.0.0.2")
    with Client(run_dir(given.name)) as client:
        status, keeper, pidfd = client.request("status"), client.keeper, client.keeper_pidfd()
    if status["wire"]:
        raise UsageError(f"exec: stack '{status['name']}' is on wire '{status['wire']}', which has no kernel's end")
    try:
        sandbox.join(keeper, pidfd)
    except OSError as error:
        raise BootError(f"cannot enter the sandbox of stack '{status['name']}': {error.strerror}") from error
    try:
        os.execvp(command[0], command)
    except OSError as error:
        stack.warn(f"{program()}: {command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN

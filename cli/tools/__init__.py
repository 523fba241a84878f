"""Tools of the command line: ordinary applications of a stack. They import nothing of the project but usernet."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import NoReturn

import usernet

FAILED, USAGE = 1, 2


class ToolError(Exception):
    """The tool cannot do it; the text says why, and `status` is the exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def stack_of(arguments: argparse.Namespace) -> usernet.Stack:
    """The stack that --name or the environment says."""
    try:
        return usernet.Stack(arguments.name)
    except ConnectionRefusedError as error:
        raise ToolError(error.strerror or str(error), USAGE) from error


def address_of(tool: str, host: str, stack: usernet.Stack) -> str:
    """The address of a host by number or name; ToolError where it has none."""
    from usernet.sockets.sockaddr import resolve  # the library is loaded by who needs it

    with failures(f"{tool}: {host}"):
        return usernet.inet_ntoa(resolve(host, stack))


def port_of(tool: str, text: str) -> int:
    """A port by number or by the name of its service; ToolError where it is none."""
    if text.isascii() and text.isdigit():
        if int(text) <= 65535:
            return int(text)
        refuse(f"{tool}: port {text}: 0 to 65535")
    try:
        return usernet.getservbyname(text, "udp")
    except OSError:
        refuse(f"{tool}: {text} is no port: 0 to 65535, or the name of a service")


@contextlib.contextmanager
def failures(subject: str) -> Iterator[None]:
    """What the stack or the network refuses, in a line that begins with `subject`."""
    try:
        yield
    except BrokenPipeError:  # of standard output: nobody wants to know more
        raise
    except PermissionError as error:  # ip(7): what SO_BROADCAST allows
        raise ToolError(f"{subject}: {error.strerror}: a broadcast address takes -b") from error
    except OSError as error:
        raise ToolError(f"{subject}: {error.strerror or error}") from error


def refuse(text: str) -> NoReturn:
    """An error of use."""
    raise ToolError(text, USAGE)

"""Tools of the command line.

They are ordinary applications of a stack and import nothing of the project but usernet.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import NoReturn

import usernet

FAILED, USAGE = 1, 2


class ToolError(Exception):
    """The tool failed. The text gives the reason, and `status` is the exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def stack_of(arguments: argparse.Namespace) -> usernet.Stack:
    """The stack selected by --name or the environment."""
    try:
        return usernet.Stack(arguments.name)
    except ConnectionRefusedError as error:
        raise ToolError(error.strerror or str(error), USAGE) from error


def address_of(tool: str, host: str, stack: usernet.Stack) -> str:
    """The address of a host given by address or name. ToolError: the name has no address."""
    from usernet.sockets.sockaddr import resolve  # imported only where it is needed

    with failures(f"{tool}: {host}"):
        return usernet.inet_ntoa(resolve(host, stack))


def port_of(tool: str, text: str) -> int:
    """A port given by number or by the name of its service. ToolError: neither."""
    if text.isascii() and text.isdigit():
        if int(text) <= 65535:
            return int(text)
        refuse(f"{tool}: port {text}: must be 0 to 65535")
    try:
        return usernet.getservbyname(text, "udp")
    except OSError:
        refuse(f"{tool}: {text} is not a port: expected 0 to 65535, or the name of a service")


@contextlib.contextmanager
def failures(subject: str) -> Iterator[None]:
    """Turn errors of the stack and the network into a ToolError whose text begins with `subject`."""
    try:
        yield
    except BrokenPipeError:  # on standard output: its reader has closed it
        raise
    except PermissionError as error:  # ip(7): what SO_BROADCAST allows
        raise ToolError(f"{subject}: {error.strerror}: a broadcast address needs -b") from error
    except OSError as error:
        raise ToolError(f"{subject}: {error.strerror or error}") from error


def refuse(text: str) -> NoReturn:
    """Raise a ToolError for a usage error."""
    raise ToolError(text, USAGE)

"""Tools of the command line.

They are ordinary applications of a stack and import nothing of the project but usernet.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import re
from collections.abc import Iterator
from typing import NoReturn

import usernet

FAILED, USAGE = 1, 2
ONLY_IPV4 = "the stack has no IPv6"
BROADCASTS = "a broadcast address needs -b"  # of a tool that has this option


class ToolError(Exception):
    """The tool failed. The text gives the reason, and `status` is the exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def stack_of(arguments: argparse.Namespace) -> usernet.Stack:
    """The stack selected by --name or the environment."""
    try:
        return usernet.Stack(arguments.name, tool=True)
    except ConnectionRefusedError as error:
        raise ToolError(error.strerror or str(error), USAGE) from error


class _NoIPv6(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"-6: {ONLY_IPV4}")


def families(parser: argparse.ArgumentParser) -> None:
    """Add -4 and -6, so that -6 is not taken for a host; other negative numbers remain values of options."""
    values = re.compile(r"-(?![46]$)(\d+|\d*\.\d+)$")
    parser._negative_number_matcher = parser._optionals._negative_number_matcher = values
    parser.add_argument("-4", action="store_true", dest="ipv4", help="ignored: the stack has only IPv4")
    parser.add_argument("-6", nargs=0, action=_NoIPv6, help="refused: the stack has no IPv6")


def check_host(tool: str, host: str) -> None:
    """ToolError: it is empty, or an IPv6 address."""
    if not host:
        refuse(f"{tool}: {host!r}: expected an address or a name")
    with contextlib.suppress(ValueError):
        ipaddress.IPv6Address(host)
        refuse(f"{tool}: {host}: {ONLY_IPV4}")


def address_of(tool: str, host: str, stack: usernet.Stack) -> str:
    """The address of a host given by address or name. ToolError: the name has no address."""
    from usernet.sockets.sockaddr import resolve  # imported only where it is needed

    check_host(tool, host)
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
def failures(subject: str, broadcasts: str = "it is a broadcast address") -> Iterator[None]:
    """Turn errors of the stack and the network into a ToolError whose text begins with `subject`.

    `broadcasts`: what to say where SO_BROADCAST is missing.
    """
    try:
        yield
    except BrokenPipeError:  # on standard output: its reader has closed it
        raise
    except PermissionError as error:  # ip(7): what SO_BROADCAST allows
        raise ToolError(f"{subject}: {error.strerror}: {broadcasts}") from error
    except OSError as error:
        raise ToolError(f"{subject}: {error.strerror or error}") from error


def refuse(text: str) -> NoReturn:
    """Raise a ToolError for a usage error."""
    raise ToolError(text, USAGE)

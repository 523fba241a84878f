"""Tools of the command line: ordinary applications of a stack. They import nothing of the project but usernet."""

from __future__ import annotations

import argparse
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


def refuse(text: str) -> NoReturn:
    """An error of use."""
    raise ToolError(text, USAGE)

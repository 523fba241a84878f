"""A stack, and sockets of it."""

from __future__ import annotations

from usernet.client import stack
from usernet.sockets.endpoint import socket


class Stack(stack.Stack):
    """A running stack, for a program that talks to several or wants to know its address.

    `name` is what it was started as, `run_dir` where it keeps its sockets; with neither, the environment decides
    (usernet.pipe.run_dir). ConnectionRefusedError where it does not run.
    """

    def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> socket:
        """A socket of this stack; arguments as for socket.socket."""
        made: socket = socket(family, type, proto, stack=self)
        return made

"""A stack, and its sockets."""

from __future__ import annotations

from usernet.client import stack
from usernet.sockets.endpoint import socket


class Stack(stack.Stack):
    """A running stack, for a program that uses several or needs to know the address.

    `name` is its name, `run_dir` its run directory; without both, the environment decides (usernet.pipe.run_dir).
    ConnectionRefusedError: it does not run.
    """

    def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> socket:
        """A socket of this stack; the arguments are those of socket.socket."""
        made: socket = socket(family, type, proto, stack=self)
        return made

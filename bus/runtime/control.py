"""The layer's line to the keeper: a socket pair of packets, made at the fork."""

from __future__ import annotations

import errno
import socket

import msgspec

LINE_OCTETS = 1 << 16  # of the longest message


class Control:
    """The layer's end of its line to the keeper: one message a packet, JSON. The line's end means the keeper's."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def fileno(self) -> int:
        """Becomes readable when the keeper says something."""
        return self._line.fileno()

    def tell(self, event: str, **fields: object) -> None:
        """Report something to the keeper."""
        try:
            self._line.send(msgspec.json.encode({"event": event, **fields}))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise SystemExit(0) from error  # the keeper is gone, and so is the stack

    def hear(self) -> str:
        """The keeper's next word: go, stop, or a question in JSON; empty once it is gone."""
        return self._line.recv(LINE_OCTETS).decode()

"""The control channel between a layer and the keeper: a socket pair of packets, created at the fork."""

from __future__ import annotations

import errno
import socket

import msgspec

LINE_OCTETS = 1 << 16  # maximum length of a message


class Control:
    """The layer's end of the control channel: one JSON message per packet. The channel ends with the keeper."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def fileno(self) -> int:
        """Becomes readable when the keeper sends something."""
        return self._line.fileno()

    def tell(self, event: str, **fields: object) -> None:
        """Send a message to the keeper."""
        try:
            self._line.send(msgspec.json.encode({"event": event, **fields}))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise SystemExit(0) from error  # the keeper has ended, and so has the stack

    def hear(self) -> str:
        """The next message of the keeper: go, stop, or a request in JSON; empty after its end."""
        return self._line.recv(LINE_OCTETS).decode()

"""Datagrams to and from one peer, for queries to name servers without the socket class, which uses this module."""

from __future__ import annotations

import socket as _std

from usernet.client.stack import Stack
from usernet.errors import os_error
from usernet.pipe.messages import DATAGRAM_HEADER, SEND, datagram_header


class Exchange:
    """A UDP socket that is connected to `address` and `port`."""

    def __init__(self, stack: Stack, address: str, port: int) -> None:
        self._connection = stack.connection
        self._box = self._connection.open_socket("dgram")
        self._box.owners[id(self)] = lambda: None  # it belongs to no socket object
        try:
            reply = self._connection.request("connect", handle=self._box.handle, address=address, port=port)
        except BaseException:
            self.close()
            raise
        self._header = datagram_header(self._box.handle, _std.inet_aton(address), port,
                                       _std.inet_aton(reply["source"]))

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send one datagram."""
        self._connection.glance()
        self._connection.send(SEND, (self._header + data,), timeout_s)

    def receive(self, timeout_s: float) -> bytes:
        """The next datagram. TimeoutError: none in time. OSError: an ICMP error about the last one sent."""
        box = self._box
        self._connection.readers.wait(box, timeout_s)
        if box.error:
            number, box.error = box.error, 0
            raise os_error(number)
        return box.items.popleft()[DATAGRAM_HEADER.size :]

    def close(self) -> None:
        """Close the socket."""
        self._connection.release(self._box, id(self), None)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

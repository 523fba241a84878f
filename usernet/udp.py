"""UDP with the interface of Rust's UdpSocket: addresses are written as "10.0.0.2:5055"."""

from __future__ import annotations

import socket as _std

from usernet.sockets.endpoint import socket
from usernet.stack import Stack

DATAGRAM_OCTETS_MAX = 65535


class UdpSocket:
    """A bound UDP socket, created by `bind`. Errors are OSErrors, as in the standard socket module."""

    def __init__(self, inner: socket) -> None:
        self._socket = inner

    def connect(self, address: str) -> None:
        """Send to and receive from `address` only."""
        self._socket.connect(_parse(address))

    def send(self, data: bytes) -> int:
        """Send one datagram to the connected address; returns its length."""
        return self._socket.send(data)

    def send_to(self, data: bytes, address: str) -> int:
        """Send one datagram; returns its length."""
        return self._socket.sendto(data, _parse(address))

    def recv(self, size: int = DATAGRAM_OCTETS_MAX) -> bytes:
        """The next datagram, truncated to `size` octets."""
        return self._socket.recv(size)

    def recv_from(self, size: int = DATAGRAM_OCTETS_MAX) -> tuple[bytes, str]:
        """The next datagram, truncated to `size` octets, and the address of its sender."""
        data, peer = self._socket.recvfrom(size)
        return data, _text(peer) if peer else ""  # never None, because this socket cannot be shut down

    def local_addr(self) -> str:
        """The local address."""
        return _text(self._socket.getsockname())

    def peer_addr(self) -> str:
        """The connected address. ENOTCONN: there is none."""
        return _text(self._socket.getpeername())

    def set_read_timeout(self, timeout_s: float | None) -> None:
        """The maximum time of recv and recv_from in seconds (TimeoutError); None: for ever."""
        if timeout_s is not None and timeout_s <= 0:
            raise ValueError("cannot set a 0 duration timeout")
        self._socket.settimeout(timeout_s)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> UdpSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bind(address: str, stack: Stack | None = None) -> UdpSocket:
    """A UDP socket bound to `address`; port 0: an ephemeral port."""
    parsed = _parse(address)
    inner = socket(_std.AF_INET, _std.SOCK_DGRAM, stack=stack)
    try:
        inner.bind(parsed)
    except BaseException:
        inner.close()
        raise
    return UdpSocket(inner)


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"invalid socket address: {address!r} (expected ADDRESS:PORT)")
    return host, int(port)


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"

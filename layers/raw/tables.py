"""Raw sockets by handle, and by the protocol that they listen to."""

from __future__ import annotations

import errno
from typing import NamedTuple

from msgspec.structs import replace

from bus import records
from bus.core import State
from bus.records import SocketReply, SocketState
from bus.routes import RouteTable, is_multicast

MAX_SOCKETS = 1024
SEND_ONLY = 255  # IPPROTO_RAW; raw(7): such a socket receives nothing
ICMP = 1  # RFC 792

_FILTERED_TYPES = 32  # linux/icmp.h, struct icmp_filter: one bit each, and no higher type can be filtered


class Listener(NamedTuple):
    """What of a socket decides about a packet. An empty address: any."""

    handle: int
    local: bytes
    peer: bytes
    icmp_filter: int

    def hears(self, source: bytes, destination: bytes) -> bool:
        """raw_v4_match in Linux."""
        return self.local in (b"", destination) and self.peer in (b"", source)


def is_filtered(icmp_filter: int, message: bytes) -> bool:
    """raw(7), ICMP_FILTER: whether a bit says that messages of this type are not wanted."""
    return not message or (message[0] < _FILTERED_TYPES and bool(icmp_filter >> message[0] & 1))


class RawSockets:
    """All raw sockets. Each is in durable state under its handle before the answer to its declaration exists."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._sockets: dict[int, SocketState] = {}
        self.listeners: dict[int, list[Listener]] = {}  # by protocol

    def load(self) -> int:
        """Read back what a former process stored; how many records made no sense and were deleted."""
        unreadable = 0
        for key, value in list(self._state.items()):
            if not key:
                continue
            try:
                socket = records.decode_socket_state(value)
            except ValueError:
                socket = None
            if socket is None or socket.handle != key or not records.in_range(socket):
                unreadable += 1
                del self._state[key]
            else:
                self._sockets[key] = socket
        self._index()
        return unreadable

    @property
    def wanted(self) -> bytes:
        """The protocols that somebody listens to."""
        return bytes(sorted(self.listeners))

    def get(self, handle: int) -> SocketState | None:
        """The socket with this handle."""
        return self._sockets.get(handle)

    def set(self, wanted: SocketState, routes: RouteTable) -> SocketReply | None:
        """Make a socket as it is wanted, or leave it and say why; None where that cannot even be said."""
        if not records.in_range(wanted) or not wanted.protocol:
            return None
        number = self._refusal(wanted, routes)
        if number:
            return SocketReply(handle=wanted.handle, request=wanted.request, errno=number)
        self._state[wanted.handle] = records.encode(replace(wanted, request=0))
        self._sockets[wanted.handle] = wanted
        self._index()
        return SocketReply(handle=wanted.handle, request=wanted.request, local=wanted.local, port=wanted.protocol)

    def _refusal(self, wanted: SocketState, routes: RouteTable) -> int:
        former, local = self._sockets.get(wanted.handle), wanted.local
        if former is None and len(self._sockets) >= MAX_SOCKETS:
            return errno.ENOBUFS
        if local and (former is None or former.local != local) and not (
                routes.is_local(local) or routes.is_broadcast(local) or is_multicast(local)):
            return errno.EADDRNOTAVAIL
        return 0

    def close(self, handle: int) -> bool:
        """Forget a socket; False where there is none."""
        if self._sockets.pop(handle, None) is None:
            return False
        del self._state[handle]
        self._index()
        return True

    def _index(self) -> None:
        self.listeners.clear()
        for socket in self._sockets.values():
            if socket.protocol != SEND_ONLY:
                listener = Listener(socket.handle, _octets(socket.local), _octets(socket.peer), socket.icmp_filter)
                self.listeners.setdefault(socket.protocol, []).append(listener)


def _octets(address: int) -> bytes:
    return address.to_bytes(4, "big") if address else b""

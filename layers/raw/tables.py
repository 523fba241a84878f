"""Raw sockets by handle and by protocol."""

from __future__ import annotations

import errno
from typing import NamedTuple

from msgspec.structs import replace

from bus.layer import State
from bus.messages import SocketState
from layers.common.raw_transport import DirectSockets
from layers.common.routes import RouteTable
from packets.addresses import ANY, is_multicast

MAX_SOCKETS = 1024
SEND_ONLY = 255  # IPPROTO_RAW; raw(7): such a socket receives nothing

_FILTERED_TYPES = 32  # linux/icmp.h, struct icmp_filter: one bit each, and no higher type can be filtered


class Listener(NamedTuple):
    """The fields of a socket that decide about a packet. An address ANY matches all."""

    socket: SocketState
    local: bytes
    peer: bytes
    icmp_filter: int

    def matches(self, source: bytes, destination: bytes) -> bool:
        """As raw_v4_match in Linux."""
        return self.local in (ANY, destination) and self.peer in (ANY, source)

    def hears(self, source: bytes, destination: bytes) -> bool:
        """As raw_v4_input in Linux, except for the filter of ICMP types."""
        if not self.matches(source, destination):
            return False
        return not is_multicast(destination) or self.socket.listens(destination, source)


def is_filtered(icmp_filter: int, message: bytes) -> bool:
    """raw(7), ICMP_FILTER: True if the socket's filter excludes messages of this type."""
    return not message or (message[0] < _FILTERED_TYPES and bool(icmp_filter >> message[0] & 1))


class RawSockets(DirectSockets):
    """All raw sockets; as on Linux, the port of a socket is its protocol."""

    def __init__(self, state: State) -> None:
        super().__init__(state, MAX_SOCKETS)
        self.listeners: dict[int, dict[int, Listener]] = {}  # {protocol: {handle: listener}}

    @property
    def wanted(self) -> bytes:
        """The protocols of all raw sockets that receive."""
        return bytes(sorted(self.listeners))

    def _settled(self, wanted: SocketState, former: SocketState | None, routes: RouteTable) -> SocketState:
        local = wanted.local
        if not wanted.protocol:
            raise ValueError("a raw socket needs a protocol")
        if local and (former is None or former.local != local) and not (
                routes.is_local(local) or routes.is_broadcast(local) or is_multicast(local)):
            raise OSError(errno.EADDRNOTAVAIL, "not an address of this stack")
        return replace(wanted, port=wanted.protocol)

    def _fits(self, stored: SocketState) -> bool:
        return bool(stored.protocol)

    def _put(self, socket: SocketState) -> None:
        former = self.get(socket.handle)
        if former is not None and former.protocol != socket.protocol:
            self._forget(former)
        super()._put(socket)
        if socket.protocol != SEND_ONLY:
            listener = Listener(socket, socket.local, socket.peer, socket.icmp_filter)
            self.listeners.setdefault(socket.protocol, {})[socket.handle] = listener

    def _remove(self, socket: SocketState) -> None:
        super()._remove(socket)
        self._forget(socket)

    def _forget(self, socket: SocketState) -> None:
        if socket.protocol == SEND_ONLY:
            return
        listeners = self.listeners[socket.protocol]
        del listeners[socket.handle]
        if not listeners:
            del self.listeners[socket.protocol]

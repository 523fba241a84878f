"""The common part of raw and ping sockets, which use IP without a transport protocol: for raw and icmp.

Hardly more than the declared state of such a socket is stored, and each message is processed without a cache.
"""

from __future__ import annotations

import errno
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from bus import messages, topology
from bus.config import StackConfig
from bus.counters import Drop
from bus.layer import CounterWords, Send, State
from bus.messages import (
    DATAGRAM_HEADER,
    FAMILY_4,
    INTERFACE_INDEX,
    LOOPBACK_INDEX,
    SEND_OPTIONS,
    SEND_TOS_GIVEN,
    TRANSMIT_HEAD,
    SocketReply,
    SocketState,
)
from layers.common import source_address
from layers.common.routes import RouteTable
from layers.common.transport import NOWHERE, ROUTES_KEY, Transport, TransportCounters, misplaced, refused
from packets.addresses import is_multicast, is_unspecified
from packets.ip_options import checked, split


class Header(NamedTuple):
    """The fields of a message's IP header that the socket and its application determine.

    `source` zero: that of the route.
    """

    source: bytes
    destination: bytes
    ttl: int
    tos: int
    flags: int  # TRANSMIT_BROADCAST, TRANSMIT_LOOP, TRANSMIT_RECORD
    options: bytes

    def pack(self, protocol: int, flags: int) -> bytes:
        """The TRANSMIT_HEAD with these additional flags, and the options."""
        head = TRANSMIT_HEAD.pack(0, 0, FAMILY_4, self.flags | flags, protocol, self.ttl, self.tos,
                                  len(self.options), self.source, self.destination)
        return head + self.options


class DirectCounters(TransportCounters):
    """The counters of `DirectTransport`."""

    send_malformed = Drop("Messages to send that are shorter than their header.")
    send_no_socket = Drop("Messages to send from an unknown handle.")
    send_misplaced = Drop("Messages to send of a family or on an interface that the stack does not have.")
    send_refused = Drop("Messages to send that were refused with an error to the socket.")


class DirectSockets:
    """Sockets by handle. Each is stored before its declaration is answered.

    A subclass for a kind of socket defines in `_settled` and `_fits` which sockets are permitted, and in `_put` and
    `_remove` additional indexes.
    """

    def __init__(self, state: State, sockets_max: int) -> None:
        self._state = state
        self._sockets_max = sockets_max
        self._sockets: dict[int, SocketState] = {}

    def load(self) -> int:
        """Restore the sockets of a former process; returns the number of deleted invalid records."""
        unreadable = 0
        for key, value in list(self._state.items()):
            if key == ROUTES_KEY:
                continue
            try:
                socket = messages.decode_socket_state(value)
            except ValueError:
                socket = None
            if socket is None or socket.handle != key or not messages.in_range(socket) or not self._fits(socket):
                unreadable += 1
                del self._state[key]
            else:
                self._put(socket)
        return unreadable

    def get(self, handle: int) -> SocketState | None:
        """The socket with this handle."""
        return self._sockets.get(handle)

    def set(self, wanted: SocketState, routes: RouteTable) -> SocketReply | None:
        """Create or change a socket as declared, or refuse and return the reason; None: the declaration is unusable."""
        if not messages.in_range(wanted):
            return None
        handle, request = wanted.handle, wanted.request
        former = self._sockets.get(handle)
        try:
            if wanted.family != FAMILY_4:
                raise OSError(errno.EAFNOSUPPORT, "IPv4 only")
            if former is None and len(self._sockets) >= self._sockets_max:
                raise OSError(errno.ENOBUFS, "too many sockets")
            socket = self._settled(replace(wanted, request=0), former, routes)
        except OSError as error:
            return SocketReply(handle=handle, request=request, errno=error.errno or errno.EINVAL)
        if socket != former:
            self._state[handle] = messages.encode(socket)
            self._put(socket)
        return SocketReply(handle=handle, request=request, local=socket.local, port=socket.port)

    def close(self, handle: int) -> bool:
        """Remove a socket; False: there is none."""
        socket = self._sockets.get(handle)
        if socket is None:
            return False
        del self._state[handle]
        self._remove(socket)
        return True

    def _settled(self, wanted: SocketState, former: SocketState | None, routes: RouteTable) -> SocketState:
        """The socket with its address and port chosen. OSError with Linux's errno: it cannot be had."""
        raise NotImplementedError

    def _fits(self, stored: SocketState) -> bool:
        """True if a stored socket is compatible with those restored before it."""
        raise NotImplementedError

    def _put(self, socket: SocketState) -> None:
        """Add a socket, replacing the one with its handle."""
        self._sockets[socket.handle] = socket

    def _remove(self, socket: SocketState) -> None:
        del self._sockets[socket.handle]


SocketsT = TypeVar("SocketsT", bound=DirectSockets)


class DirectTransport(Transport[SocketsT]):
    """A `Transport` for such sockets.

    A subclass defines in `_refusal` what may be sent, and in `_transmit` the record for it.
    """

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, sockets: SocketsT) -> None:
        super().__init__(config, state, counters, sockets)
        self._handlers[messages.SEND] = self._send

    def _refusal(self, socket: SocketState, destination: bytes, data: bytes) -> int:
        """The errno that Linux gives for the message, or 0."""
        raise NotImplementedError

    def _transmit(self, socket: SocketState, header: Header, data: bytes) -> bytes:
        """The TRANSMIT record."""
        raise NotImplementedError

    def _send(self, requests: list[bytes]) -> list[Send]:
        counters = self.counters
        sends: list[Send] = []
        for record in requests:
            if len(record) < DATAGRAM_HEADER.size:
                counters[DirectCounters.send_malformed] += 1
                continue
            handle, family, flags, ttl, tos, _, interface, destination, source = DATAGRAM_HEADER.unpack_from(record)
            socket = self._sockets.get(handle)
            if socket is None:
                counters[DirectCounters.send_no_socket] += 1
                continue
            if family != FAMILY_4 or interface not in (0, LOOPBACK_INDEX, INTERFACE_INDEX):
                counters[DirectCounters.send_misplaced] += 1
                sends.append(misplaced(record))
                continue
            if is_unspecified(destination):
                destination = socket.peer or destination
            options, data = socket.ip_options, record[DATAGRAM_HEADER.size :]
            malformed = 0
            if flags & SEND_OPTIONS:
                options, data, malformed = self._given_options(socket, data)
            multicast = is_multicast(destination)
            source = source_address.named(self._routes, destination, source, socket.local, socket.multicast_interface)
            refusal = malformed or self._refusal(socket, destination, data)
            if not refusal and source and not self._routes.is_local(source):
                refusal = errno.ENETUNREACH  # Linux, ip_route_output_key_hash; the address may have been removed
            elif not refusal and source and self._routes.leaks(source, destination):
                refusal = errno.EINVAL
            if refusal:
                counters[DirectCounters.send_refused] += 1
                sends.append(refused(handle, refusal, destination, 0, data))
                continue
            ttl = ttl or (socket.multicast_ttl if multicast else socket.ttl)  # RFC 1112 section 6.1
            tos = tos if flags & SEND_TOS_GIVEN else socket.tos
            transmit_flags = messages.TRANSMIT_RECORD if options else 0
            transmit_flags |= messages.TRANSMIT_BROADCAST if socket.broadcast else 0
            transmit_flags |= messages.TRANSMIT_LOOP if multicast and socket.multicast_loop else 0
            header = Header(source or NOWHERE, destination, ttl, tos, transmit_flags, options)
            sends.append((topology.IP, messages.TRANSMIT, self._transmit(socket, header, data)))
        return sends

    @staticmethod
    def _given_options(socket: SocketState, data: bytes) -> tuple[bytes, bytes, int]:
        """(options, message, errno or 0) if options precede the message (SEND_OPTIONS)."""
        found = split(data)
        if found is None or socket.header_included:  # Linux, raw_sendmsg: a whole packet contains its options
            return b"", data, errno.EINVAL
        options, message = found
        try:
            return checked(options, privileged=bool(socket.protocol)), message, 0
        except OSError as error:
            return b"", message, error.errno or errno.EINVAL

"""Raw and ping sockets: what icmp and raw do alike on behalf of sockets that speak to IP without a transport between.

What such a socket is declared to be is nearly all that is kept of it, and each message that it sends is looked at anew.
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
    """What a socket and its application say of a message's IP header. `source` zero: the route's."""

    source: bytes
    destination: bytes
    ttl: int
    tos: int
    flags: int  # TRANSMIT_BROADCAST, TRANSMIT_LOOP, TRANSMIT_RECORD
    options: bytes

    def pack(self, protocol: int, flags: int) -> bytes:
        """The TRANSMIT_HEAD, with these flags besides, and the options."""
        head = TRANSMIT_HEAD.pack(0, 0, FAMILY_4, self.flags | flags, protocol, self.ttl, self.tos,
                                  len(self.options), self.source, self.destination)
        return head + self.options


class DirectCounters(TransportCounters):
    """What `DirectTransport` counts."""

    send_malformed = Drop("Something to send that is shorter than its header.")
    send_no_socket = Drop("Something to send from a handle that is not declared.")
    send_misplaced = Drop("Something to send of a family or over an interface that the stack does not have.")
    send_refused = Drop("Something that may not be sent like this; the socket was told the error.")


class DirectSockets:
    """Sockets by handle. Each is in durable state before the answer to its declaration exists.

    A table of a kind of socket says in `_settled` and `_fits` what such a socket may be, and in `_put` and `_remove`
    by what else it is found.
    """

    def __init__(self, state: State, sockets_max: int) -> None:
        self._state = state
        self._sockets_max = sockets_max
        self._sockets: dict[int, SocketState] = {}

    def load(self) -> int:
        """Read back what a former process stored; how many records made no sense and were deleted."""
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
        """Make a socket as it is wanted, or leave it and say why; None where that cannot even be said."""
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
        """Forget a socket; False where there is none."""
        socket = self._sockets.get(handle)
        if socket is None:
            return False
        del self._state[handle]
        self._remove(socket)
        return True

    def _settled(self, wanted: SocketState, former: SocketState | None, routes: RouteTable) -> SocketState:
        """What becomes of it; OSError with Linux's errno where it cannot be had."""
        raise NotImplementedError

    def _fits(self, stored: SocketState) -> bool:
        """Whether a stored socket can stand beside those that were read before it."""
        raise NotImplementedError

    def _put(self, socket: SocketState) -> None:
        """Take it in, in the place of the one with its handle."""
        self._sockets[socket.handle] = socket

    def _remove(self, socket: SocketState) -> None:
        del self._sockets[socket.handle]


SocketsT = TypeVar("SocketsT", bound=DirectSockets)


class DirectTransport(Transport[SocketsT]):
    """A `Transport` of such sockets: one says in `_refusal` what may be sent, and in `_transmit` what becomes of it."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, sockets: SocketsT) -> None:
        super().__init__(config, state, counters, sockets)
        self._handlers[messages.SEND] = self._send

    def _refusal(self, socket: SocketState, destination: bytes, data: bytes) -> int:
        """The errno that Linux gives for it, or 0."""
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
            if family != FAMILY_4 or interface not in (0, INTERFACE_INDEX):
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
                refusal = errno.ENETUNREACH  # Linux, ip_route_output_key_hash; the address may have been ours
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
        """(options, message, errno or 0) where options stand before the message (SEND_OPTIONS)."""
        found = split(data)
        if found is None or socket.header_included:  # Linux, raw_sendmsg: a whole packet has its options in its header
            return b"", data, errno.EINVAL
        options, message = found
        try:
            return checked(options, privileged=bool(socket.protocol)), message, 0
        except OSError as error:
            return b"", message, error.errno or errno.EINVAL

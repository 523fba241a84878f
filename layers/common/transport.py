"""The base class of the layers below the socket service (udp, icmp, raw): routes, sockets, ICMP errors.

ip announces the routes. The socket service declares sockets (SOCKET_SET, SOCKET_CLOSE), which are stored before they
are answered. The layer's own table decides about conflicts, and which socket gets a packet.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import Generic, NamedTuple, Protocol, TypeVar

from bus import messages, topology
from bus.config import StackConfig
from bus.counters import CounterSet, Drop, Event
from bus.layer import CounterWords, Send, State
from bus.messages import (
    DATAGRAM_HEADER,
    DATAGRAM_HEADER_6,
    ERROR_HEAD,
    FAMILY_4,
    FAMILY_6,
    ORIGIN_ICMP,
    ORIGIN_LOCAL,
    PATH_MTU_HEAD,
    SocketError,
    SocketReply,
    SocketState,
)
from layers.common.icmp_errors import errno_of
from layers.common.routes import RouteTable, configured
from packets.icmp import DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED

ROUTES_KEY = 0  # in state; every other key is a socket's handle
NOWHERE = bytes(4)  # an unspecified address in a record of family 4

_HANDLE = Struct("<I")
_BELIEVES_NO_ROUTER = (4, 5)  # ip(7), IP_PMTUDISC_INTERFACE and _OMIT; Linux, ip_sk_accept_pmtu


class TransportCounters(CounterSet):
    """The counters of `Transport`."""

    sets = Event("Socket declarations processed, including refused ones.")
    set_refused = Event("Socket declarations answered with an error.")
    closes = Event("Sockets closed.")
    control_malformed = Drop("Control records that cannot be decoded or are invalid.")
    state_unreadable = Drop("Stored records that could not be read at a start.")


class Sockets(Protocol):
    """The sockets of a layer by handle, in memory and in durable state."""

    def load(self) -> int:
        """Restore the sockets of a former process; returns the number of deleted invalid records."""

    def set(self, wanted: SocketState, routes: RouteTable) -> SocketReply | None:
        """Create or change a socket as declared and store it, or refuse and return the reason.

        None: the declaration is unusable.
        """

    def close(self, handle: int) -> bool:
        """Remove a socket; False: there is none."""


SocketsT = TypeVar("SocketsT", bound=Sockets)


class Transport(Generic[SocketsT]):
    """Most of a `bus.layer.Core`: a subclass adds its own kinds of record to `_handlers`. It has no timers."""

    next_wake: float | None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, sockets: SocketsT) -> None:
        self.next_wake = None
        self.counters = counters
        self._state = state
        self._routes = RouteTable(configured(config))  # until ip announces them
        self._sockets = sockets
        self._handlers: dict[int, Callable[[list[bytes]], list[Send]]] = {
            messages.ROUTES: self._set_routes,
            messages.SOCKET_SET: self._set_sockets,
            messages.SOCKET_CLOSE: self._close_sockets,
        }

    def start(self, now: float) -> list[Send]:
        """Restore routes and sockets."""
        stored = self._state.get(ROUTES_KEY)
        if stored is not None and not self._adopt_routes(stored):
            self.counters[TransportCounters.state_unreadable] += 1
            del self._state[ROUTES_KEY]
        self.counters[TransportCounters.state_unreadable] += self._sockets.load()
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process records of one kind; see the table of pipes."""
        handler = self._handlers.get(kind)
        return handler(records) if handler is not None else []

    def wake(self, now: float) -> list[Send]:
        """Never called, because `next_wake` is None."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Nothing to send: ip announces its routes, and sockets repeats unanswered declarations."""
        return []

    def _changed(self) -> list[Send]:
        """Routes or sockets may have changed: clear caches, and notify other layers if necessary."""
        return []

    def _set_routes(self, announcements: list[bytes]) -> list[Send]:
        for record in announcements:
            if self._adopt_routes(record):
                self._state[ROUTES_KEY] = record
            else:
                self.counters[TransportCounters.control_malformed] += 1
        return self._changed()

    def _adopt_routes(self, record: bytes) -> bool:
        try:
            self._routes = RouteTable(messages.decode_routes(record))
        except ValueError:
            return False
        return True

    def _set_sockets(self, declarations: list[bytes]) -> list[Send]:
        counters = self.counters
        replies: list[Send] = []
        for record in declarations:
            try:
                reply = self._sockets.set(messages.decode_socket_state(record), self._routes)
            except ValueError:
                reply = None
            if reply is None:
                counters[TransportCounters.control_malformed] += 1
                continue
            counters[TransportCounters.sets] += 1
            counters[TransportCounters.set_refused] += reply.errno != 0
            replies.append((topology.SOCKETS, messages.SOCKET_REPLY, messages.encode(reply)))
        return [*self._changed(), *replies]  # the socket service wants to know about every answered declaration

    def _close_sockets(self, closings: list[bytes]) -> list[Send]:
        for record in closings:
            if len(record) == _HANDLE.size:
                self.counters[TransportCounters.closes] += self._sockets.close(_HANDLE.unpack(record)[0])
            else:
                self.counters[TransportCounters.control_malformed] += 1
        return self._changed()


class IcmpError(NamedTuple):
    """The fields of an ERROR_HEAD: of the error, and of the quoted packet of the stack."""

    icmp_type: int
    code: int
    origin: int  # SO_EE_ORIGIN_*
    family: int
    info: int
    total: int  # octets of the whole quoted packet
    protocol: int
    header_octets: int
    offender: bytes
    source: bytes
    destination: bytes

    @classmethod
    def of(cls, record: bytes) -> IcmpError:
        """Decode an ICMP_ERROR record of at least ERROR_HEAD.size octets."""
        return cls._make(ERROR_HEAD.unpack_from(record))

    def head(self) -> bytes:
        """Encode the ERROR_HEAD."""
        return ERROR_HEAD.pack(*self)

    def errno_for(self, socket: SocketState, connected: bool) -> int:
        """The errno for a socket; 0: none. Linux's __udp4_lib_err, ping_err and raw_err.

        With IP_RECVERR all errors; otherwise, if the socket is connected, fatal errors. Unlike on Linux, a connected
        socket also gets ip's own error that a neighbour does not answer (EHOSTUNREACH), which Linux reports only with
        IP_RECVERR.
        """
        number, fatal = errno_of(self.icmp_type, self.code)
        if (self.icmp_type, self.code) == (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED) and not socket.mtu_discover:
            if not socket.protocol:
                return 0  # a socket whose packets may be fragmented need not know their size limit
            fatal = False  # raw_err reports it to sockets with IP_RECVERR anyway
        told = socket.receive_errors or (connected and (fatal or self.origin == ORIGIN_LOCAL))
        return number if told else 0

    def told(self, handle: int, number: int, port: int, sent: bytes) -> Send:
        """SOCKET_ERROR records for the socket service: errno `number` for socket `sent`, about a packet to `port`."""
        error = SocketError(handle, number, self.origin, self.icmp_type, self.code, self.info, self.offender,
                            self.destination, port)
        return topology.SOCKETS, messages.SOCKET_ERROR, error.pack() + sent

    def mtu_told(self, socket: SocketState) -> list[Send]:
        """PATH_MTU records for ip with the MTU of the next hop, if this error contains it.

        RFC 1191 section 4: by a fragmentation needed. RFC 8201 section 4, RFC 9293 section 3.9.2.2: an attacker can
        quote a packet that was never sent, so the socket that would have sent it must exist. ip decides whether to
        accept the MTU.
        """
        kind = self.icmp_type, self.code, self.origin
        if kind != (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, ORIGIN_ICMP):
            return []
        if socket.mtu_discover in _BELIEVES_NO_ROUTER:
            return []
        head = PATH_MTU_HEAD.pack(min(self.info, 0xFFFF), self.total)
        return [(topology.IP, messages.PATH_MTU, head + self.destination)]


def refused(handle: int, number: int, destination: bytes, port: int, data: bytes) -> Send:
    """A SOCKET_ERROR record for the socket service: `data` could not be sent, errno `number`."""
    error = SocketError(handle, number, ORIGIN_LOCAL, 0, 0, 0, bytes(len(destination)), destination, port)
    return topology.SOCKETS, messages.SOCKET_ERROR, error.pack() + data


def misplaced(record: bytes) -> Send:
    """For the socket service: the SEND `record`, as long as a head, is not for this stack: EAFNOSUPPORT or ENODEV.

    Its family is not FAMILY_4, or its interface does not exist; as on Linux (socket(2), ip(7)).
    """
    handle, family, _, _, _, port, _, destination, _ = DATAGRAM_HEADER.unpack_from(record)
    if family == FAMILY_4:
        return refused(handle, errno.ENODEV, destination, port, record[DATAGRAM_HEADER.size :])
    if family == FAMILY_6 and len(record) >= DATAGRAM_HEADER_6.size:
        destination = DATAGRAM_HEADER_6.unpack_from(record)[7]
        return refused(handle, errno.EAFNOSUPPORT, destination, port, record[DATAGRAM_HEADER_6.size :])
    return refused(handle, errno.EAFNOSUPPORT, NOWHERE, 0, b"")

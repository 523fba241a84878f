"""What the layers below the socket service do alike (udp, icmp, raw): keep routes and sockets, and tell errors.

Routes are ip's announcement; sockets are declared by the socket service (SOCKET_SET, SOCKET_CLOSE) and answered for
once they are stored. What a socket may have, and whose a packet is, is for the layer's own table to say.
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
NOWHERE = bytes(4)  # an address in a record of family 4 that says nothing

_HANDLE = Struct("<I")
_BELIEVES_NO_ROUTER = (4, 5)  # ip(7), IP_PMTUDISC_INTERFACE and _OMIT; Linux, ip_sk_accept_pmtu


class TransportCounters(CounterSet):
    """What `Transport` counts."""

    sets = Event("Socket declarations worked off, refused ones included.")
    set_refused = Event("Socket declarations answered with an error.")
    closes = Event("Sockets closed.")
    control_malformed = Drop("A control record that does not parse or makes no sense.")
    state_unreadable = Drop("A stored record that a start could not read.")


class Sockets(Protocol):
    """A layer's sockets by handle, in memory and in durable state."""

    def load(self) -> int:
        """Read back what a former process stored; how many records made no sense and were deleted."""

    def set(self, wanted: SocketState, routes: RouteTable) -> SocketReply | None:
        """Make a socket as it is wanted, and store it; or leave it and say why. None where that cannot even be said."""

    def close(self, handle: int) -> bool:
        """Forget a socket; False where there is none."""


SocketsT = TypeVar("SocketsT", bound=Sockets)


class Transport(Generic[SocketsT]):
    """Most of a `bus.layer.Core`: a layer adds to `_handlers` what is its own. It never wants to be woken."""

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
        """Read back routes and sockets."""
        stored = self._state.get(ROUTES_KEY)
        if stored is not None and not self._adopt_routes(stored):
            self.counters[TransportCounters.state_unreadable] += 1
            del self._state[ROUTES_KEY]
        self.counters[TransportCounters.state_unreadable] += self._sockets.load()
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records of one kind, see the table of pipes."""
        handler = self._handlers.get(kind)
        return handler(records) if handler is not None else []

    def wake(self, now: float) -> list[Send]:
        """Never due."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Nobody needs to be told anything: ip announces its routes, sockets repeats what was unanswered."""
        return []

    def _changed(self) -> list[Send]:
        """Routes or sockets may be others than before: forget what followed from them, tell whom it concerns."""
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
        return [*self._changed(), *replies]  # what is answered has been asked for

    def _close_sockets(self, closings: list[bytes]) -> list[Send]:
        for record in closings:
            if len(record) == _HANDLE.size:
                self.counters[TransportCounters.closes] += self._sockets.close(_HANDLE.unpack(record)[0])
            else:
                self.counters[TransportCounters.control_malformed] += 1
        return self._changed()


class IcmpError(NamedTuple):
    """What an ERROR_HEAD says: of the error, and of the packet of ours that it quotes."""

    icmp_type: int
    code: int
    origin: int  # SO_EE_ORIGIN_*
    family: int
    info: int
    total: int  # octets of the packet
    protocol: int
    header_octets: int
    offender: bytes
    source: bytes
    destination: bytes

    @classmethod
    def of(cls, record: bytes) -> IcmpError:
        """From an ICMP_ERROR record of at least ERROR_HEAD.size octets."""
        return cls._make(ERROR_HEAD.unpack_from(record))

    def head(self) -> bytes:
        """The ERROR_HEAD."""
        return ERROR_HEAD.pack(*self)

    def errno_for(self, socket: SocketState, connected: bool) -> int:
        """The errno that a socket is told; 0: none. Linux's __udp4_lib_err, ping_err and raw_err.

        With IP_RECVERR of all errors; else, if it is connected, of those that will not mend by themselves. Beyond Linux
        a connected socket hears of ip's own errors too: that nobody answers at a neighbour's address (EHOSTUNREACH),
        which Linux tells with IP_RECVERR only.
        """
        number, fatal = errno_of(self.icmp_type, self.code)
        if (self.icmp_type, self.code) == (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED) and not socket.mtu_discover:
            if not socket.protocol:
                return 0  # one that lets its packets be fragmented need not know that they were too big
            fatal = False  # raw_err tells who asked for all errors nevertheless
        told = socket.receive_errors or (connected and (fatal or self.origin == ORIGIN_LOCAL))
        return number if told else 0

    def told(self, handle: int, number: int, port: int, sent: bytes) -> Send:
        """For the socket service: `number` to the socket that sent `sent`, to `port` of the packet's destination."""
        error = SocketError(handle, number, self.origin, self.icmp_type, self.code, self.info, self.offender,
                            self.destination, port)
        return topology.SOCKETS, messages.SOCKET_ERROR, error.pack() + sent

    def mtu_told(self, socket: SocketState) -> list[Send]:
        """For ip: what the next hop of a packet of this socket's can take, where this error says it.

        RFC 1191 section 4: by a fragmentation needed.
        RFC 8201 section 4, RFC 9293 section 3.9.2.2: anybody can quote a packet that was never sent; whose socket it
        would be has to exist. Whether to believe the number is for ip to say.
        """
        kind = self.icmp_type, self.code, self.origin
        if kind != (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, ORIGIN_ICMP):
            return []
        if socket.mtu_discover in _BELIEVES_NO_ROUTER:
            return []
        head = PATH_MTU_HEAD.pack(min(self.info, 0xFFFF), self.total)
        return [(topology.IP, messages.PATH_MTU, head + self.destination)]


def refused(handle: int, number: int, destination: bytes, port: int, data: bytes) -> Send:
    """For the socket service: `data` could not be sent, for the reason `number`."""
    error = SocketError(handle, number, ORIGIN_LOCAL, 0, 0, 0, bytes(len(destination)), destination, port)
    return topology.SOCKETS, messages.SOCKET_ERROR, error.pack() + data


def misplaced(record: bytes) -> Send:
    """For the socket service: the SEND `record`, as long as a head, is not for this stack: EAFNOSUPPORT or ENODEV.

    It names another family than FAMILY_4, or an interface that is not there; as Linux has it (socket(2), ip(7)).
    """
    handle, family, _, _, _, port, _, destination, _ = DATAGRAM_HEADER.unpack_from(record)
    if family == FAMILY_4:
        return refused(handle, errno.ENODEV, destination, port, record[DATAGRAM_HEADER.size :])
    if family == FAMILY_6 and len(record) >= DATAGRAM_HEADER_6.size:
        destination = DATAGRAM_HEADER_6.unpack_from(record)[7]
        return refused(handle, errno.EAFNOSUPPORT, destination, port, record[DATAGRAM_HEADER_6.size :])
    return refused(handle, errno.EAFNOSUPPORT, NOWHERE, 0, b"")

"""Raw sockets (raw(7)): copies of whole packets up, payloads and packets that an application made down.

Owns the raw sockets. ip sends a copy of each packet of the protocols that somebody listens to, which raw tells it
(RAW_WANTED); icmp and ip tell the errors; sockets declares raw sockets and sends through them. Booted only where the
owner allows it: who may read and forge packets can do as every other application here.

A crash forgets nothing: sockets and routes are stored before they are answered.
"""

from __future__ import annotations

import errno
import random
from struct import Struct

from bus import records, table
from bus.config import StackConfig
from bus.core import CounterWords, Send, State
from bus.icmp_errors import DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, errno_of
from bus.records import (
    DATAGRAM_HEADER,
    ERROR_RECORD,
    ICMP_ERROR_HEADER,
    SEND_HEADER,
    SEND_TOS_GIVEN,
    TRANSMIT_HEADER,
    SocketState,
)
from bus.routes import RouteTable, configured, is_multicast
from bus.table import IP, SOCKETS
from layers.raw.counters import Counters
from layers.raw.tables import ICMP, RawSockets, is_filtered

ROUTES_KEY = 0  # in state; every other key is the handle of a raw socket
IP_HEADER_OCTETS = 20  # RFC 791 section 3.1, without options
PACKET_OCTETS_MAX = 65535

_ANY = bytes(4)
_HANDLE = Struct("<I")
_number = int.from_bytes


class Core:
    """See bus.core.Core. It never wants to be woken."""

    next_wake: float | None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self.next_wake = None
        self.counters = counters
        self._state = state
        self._routes = RouteTable(configured(config))  # until ip announces them
        self._sockets = RawSockets(state)
        self._told = b""  # what ip knows to be wanted
        self._handlers = {
            table.PACKET: self._packets,
            table.PACKET_GROUP: self._packets,
            table.ICMP_ERROR: self._errors,
            table.ROUTES: self._set_routes,
            table.SEND: self._send,
            table.SOCKET_SET: self._set_sockets,
            table.SOCKET_CLOSE: self._close_sockets,
        }

    def start(self, now: float) -> list[Send]:
        """Read back routes and sockets; ip may have heard of another set than what came of it."""
        try:
            if ROUTES_KEY in self._state:
                self._routes = RouteTable(records.decode_routes(self._state[ROUTES_KEY]))
        except ValueError:
            self.counters[Counters.state_unreadable] += 1
            del self._state[ROUTES_KEY]
        self.counters[Counters.state_unreadable] += self._sockets.load()
        return self._tell_wanted()

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records of one kind, see the table of pipes."""
        handler = self._handlers.get(kind)
        return handler(records) if handler is not None else []

    def wake(self, now: float) -> list[Send]:
        """Never due."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """ip may have started afresh."""
        return self._tell_wanted() if sender == IP else []

    def _tell_wanted(self) -> list[Send]:
        self._told = self._sockets.wanted
        return [(IP, table.RAW_WANTED, self._told)]

    # -- from the network ------------------------------------------------------------------------------------------

    def _packets(self, packets: list[bytes]) -> list[Send]:
        counters, listeners = self.counters, self._sockets.listeners
        sends: list[Send] = []
        delivered = 0
        for packet in packets:
            if len(packet) < IP_HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            source, destination, protocol = packet[12:16], packet[16:20], packet[9]
            before = delivered
            for listener in listeners.get(protocol, ()):
                if not listener.hears(source, destination):
                    continue
                if listener.icmp_filter and protocol == ICMP and is_filtered(
                        listener.icmp_filter, packet[_header_octets(packet) :]):
                    continue
                header = DATAGRAM_HEADER.pack(listener.handle, source, 0, destination, packet[8], packet[1])
                sends.append((SOCKETS, table.DATAGRAM, header + packet))
                delivered += 1
            counters[Counters.unwanted] += delivered == before
        counters[Counters.received] += len(packets)
        counters[Counters.delivered] += delivered
        return sends

    def _errors(self, errors: list[bytes]) -> list[Send]:
        """ICMP errors, and ip's own, about packets of ours: whoever might have sent them is told (raw_err in Linux)."""
        counters = self.counters
        counters[Counters.errors_in] += len(errors)
        sends: list[Send] = []
        for record in errors:
            quoted = record[ICMP_ERROR_HEADER.size :]
            if len(quoted) < IP_HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            icmp_type, code, origin, _, info, offender = ICMP_ERROR_HEADER.unpack_from(record)
            before = len(sends)
            for listener in self._sockets.listeners.get(quoted[9], ()):
                socket = self._sockets.get(listener.handle)
                if socket is None or not listener.hears(quoted[16:20], quoted[12:16]):
                    continue
                number = _error_for(socket, icmp_type, code, origin)
                if number:
                    header = ERROR_RECORD.pack(listener.handle, number, origin, icmp_type, code, 0, info, offender,
                                               quoted[16:20], 0)
                    sent = quoted if socket.header_included else quoted[_header_octets(quoted) :]
                    sends.append((SOCKETS, table.SOCKET_ERROR, header + sent))
            counters[Counters.error_no_socket] += len(sends) == before
        counters[Counters.errors_told] += len(sends)
        return sends

    def _set_routes(self, announcements: list[bytes]) -> list[Send]:
        for record in announcements:
            try:
                self._routes = RouteTable(records.decode_routes(record))
            except ValueError:
                self.counters[Counters.control_malformed] += 1
            else:
                self._state[ROUTES_KEY] = record
        return []

    # -- from the socket service -----------------------------------------------------------------------------------

    def _send(self, requests: list[bytes]) -> list[Send]:
        counters = self.counters
        sends: list[Send] = []
        for record in requests:
            if len(record) < SEND_HEADER.size:
                counters[Counters.send_malformed] += 1
                continue
            handle, destination, _, source, ttl, tos, flags = SEND_HEADER.unpack_from(record)
            socket = self._sockets.get(handle)
            if socket is None:
                counters[Counters.send_no_socket] += 1
                continue
            data = record[SEND_HEADER.size :]
            if destination == _ANY:
                destination = socket.peer.to_bytes(4, "big")
            refusal = self._refusal(socket, destination, source, data)
            if refusal:
                counters[Counters.send_refused] += 1
                header = ERROR_RECORD.pack(handle, refusal, records.ORIGIN_LOCAL, 0, 0, 0, 0, _ANY, destination, 0)
                sends.append((SOCKETS, table.SOCKET_ERROR, header + data))
                continue
            counters[Counters.sent] += 1
            if source == _ANY:
                source = socket.local.to_bytes(4, "big")
            tos = tos if flags & SEND_TOS_GIVEN else socket.tos
            sends.append((IP, table.TRANSMIT, self._header(socket, source, destination, ttl, tos, data) + data))
        return sends

    def _header(self, socket: SocketState, source: bytes, destination: bytes, ttl: int, tos: int, data: bytes) -> bytes:
        leave = records.TRANSMIT_BROADCAST if socket.broadcast else 0
        if socket.header_included:
            # ip(7): the header says all of it; the packet is never fragmented.
            flags = records.TRANSMIT_WHOLE | records.TRANSMIT_IGNORE_PATH_MTU | leave
            return TRANSMIT_HEADER.pack(self._source(source), destination, data[9], socket.ttl, 0, flags)
        if not ttl:
            ttl = socket.multicast_ttl if is_multicast(_number(destination, "big")) else socket.ttl
        flags = records.TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover] | leave
        return TRANSMIT_HEADER.pack(self._source(source), destination, socket.protocol, ttl, tos, flags)

    def _source(self, source: bytes) -> bytes:
        """A socket may be bound to a group's address, which no packet comes from."""
        return source if self._routes.is_local(_number(source, "big")) else _ANY

    def _refusal(self, socket: SocketState, destination: bytes, source: bytes, data: bytes) -> int:
        """The errno of Linux's raw_sendmsg, or 0."""
        if len(data) > PACKET_OCTETS_MAX - (0 if socket.header_included else IP_HEADER_OCTETS):
            return errno.EMSGSIZE
        if destination == _ANY:
            return errno.EDESTADDRREQ
        if socket.header_included and not IP_HEADER_OCTETS <= _header_octets(data) <= len(data):
            return errno.EINVAL
        if source != _ANY and not self._routes.is_local(_number(source, "big")):
            return errno.EINVAL
        return 0

    def _set_sockets(self, declarations: list[bytes]) -> list[Send]:
        counters = self.counters
        replies: list[Send] = []
        for record in declarations:
            try:
                reply = self._sockets.set(records.decode_socket_state(record), self._routes)
            except ValueError:
                reply = None
            if reply is None:
                counters[Counters.control_malformed] += 1
                continue
            counters[Counters.sets] += 1
            counters[Counters.set_refused] += reply.errno != 0
            replies.append((SOCKETS, table.SOCKET_REPLY, records.encode(reply)))
        return self._changed() + replies  # what is answered has been asked for

    def _close_sockets(self, closings: list[bytes]) -> list[Send]:
        for record in closings:
            if len(record) == _HANDLE.size:
                self.counters[Counters.closes] += self._sockets.close(_HANDLE.unpack(record)[0])
            else:
                self.counters[Counters.control_malformed] += 1
        return self._changed()

    def _changed(self) -> list[Send]:
        return self._tell_wanted() if self._sockets.wanted != self._told else []


def _header_octets(packet: bytes) -> int:
    return (packet[0] & 15) * 4 if packet else 0


def _error_for(socket: SocketState, icmp_type: int, code: int, origin: int) -> int:
    """The errno that a socket is told of an error; 0: none.

    Linux, raw_err: with IP_RECVERR of all; else of what is fatal, if it is connected; of fragmentation needed only
    where it does path MTU discovery. Beyond Linux, as for udp, a connected socket hears of ip's own errors too.
    """
    number, fatal = errno_of(icmp_type, code)
    if (icmp_type, code) == (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED) and not socket.mtu_discover:
        fatal = False
    told = socket.receive_errors or (socket.peer and (fatal or origin == records.ORIGIN_LOCAL))
    return number if told else 0

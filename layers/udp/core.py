"""The UDP layer: RFC 768, with RFC 1122 section 4.1 and, where they leave room, the behaviour of Linux.

Owns the bindings of UDP sockets: which handle of the socket service has which address, port and peer, and so who gets
a datagram. Talks to ip (packets in, segments out, routes), to icmp (closed ports, errors about our datagrams) and to
sockets (everything else). Receive queues, blocking and options that only an application sees are the socket service's.

Everything that it knows of sockets and routes is stored before it is answered, so a crash forgets nothing but caches:
which socket a flow belongs to, and what a datagram's headers were the last time.
"""

from __future__ import annotations

import errno
import random

import msgspec

from bus.checksum import checksum, verifies
from bus.config import SEGMENTATION, StackConfig
from bus.core import CounterWords, Send, State
from bus.icmp_errors import DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, errno_of
from bus.offload import packets, settled
from bus.records import (
    DATAGRAM_HEADER,
    ERROR_RECORD,
    ICMP_ERROR_HEADER,
    ORIGIN_LOCAL,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    SEND_HEADER,
    SEND_TOS_GIVEN,
    SUPER_HEADER,
    TRANSMIT_BROADCAST,
    TRANSMIT_HEADER,
    TRANSMIT_LOOP,
    TRANSMIT_OF_MTU_DISCOVER,
    TRANSMIT_PARTIAL,
    SocketReply,
    SocketState,
    decode_routes,
    decode_socket_state,
    decoder,
    encode,
)
from bus.routes import LOOPBACK, RouteTable, configured, is_multicast
from bus.table import (
    DATAGRAM,
    DATAGRAM_SEGMENTS,
    ICMP,
    ICMP_ERROR,
    IP,
    PACKET,
    PACKET_CHECKED,
    PACKET_GROUP,
    PACKET_SEGMENTS,
    REPORT_ERROR,
    ROUTES,
    SEND,
    SEND_SEGMENTS,
    SOCKET_CLOSE,
    SOCKET_ERROR,
    SOCKET_REPLY,
    SOCKET_SET,
    SOCKETS,
    TRANSMIT,
    TRANSMIT_SEGMENTS,
)
from layers.udp.counters import Counters
from layers.udp.joining import joined
from layers.udp.packet import (
    ADDRESSED_HEADER,
    ADDRESSED_HEADER_OCTETS,
    ADDRESSES_OCTETS,
    FLOW,
    FLOW_OCTETS,
    HEADER_OCTETS,
    IP_HEADER_OCTETS,
    IP_NO_OPTIONS,
    LENGTH_CHECKSUM,
    PAYLOAD_OCTETS_MAX,
    PORTS,
    PROTOCOL,
    addressed_segment,
    flow_sum,
    quoted,
)
from layers.udp.ports import Ports
from layers.udp.tables import Socket, SocketTable

ROUTES_KEY = 0  # in the state; every other key is a socket's handle
HANDLE_MAX = 0xFFFFFFFF  # 32 bits in SEND_HEADER and DATAGRAM_HEADER
REQUEST_MAX = (1 << 64) - 1  # what JSON integers may be here
PATHS_MAX = 1 << 15  # SEND headers whose outcome is remembered; then the cache starts afresh

PORT_UNREACHABLE = 3  # RFC 792: a code of destination unreachable
SOURCE_QUENCH, REDIRECT = 4, 5  # RFC 792: types
REPORTED_OCTETS_MAX = 576  # RFC 1812 section 4.3.2.3: no ICMP error is longer, so no more can be quoted
ERROR_PAYLOAD_OCTETS_MAX = REPORTED_OCTETS_MAX - IP_HEADER_OCTETS - HEADER_OCTETS

_decode_socket = decoder(Socket)


class Core:
    """See `bus.core.Core`. UDP has no timers."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self.next_wake: float | None = None
        self._state = state
        self._counters = counters
        self._routes = RouteTable(configured(config))  # until ip announces them
        self._table = SocketTable(Ports(rng))
        self._offload = bool(config.offload)
        self._joins = SEGMENTATION in config.offload  # else it would all be cut again, in ip
        # SEND header -> (headers to send, what they add to the checksum, whether that is to be partial)
        self._paths: dict[bytes, tuple[bytes, int, bool]] = {}
        self._handlers = {
            PACKET: self._packets,
            PACKET_CHECKED: self._checked_packets,
            PACKET_SEGMENTS: self._super_packets,
            PACKET_GROUP: self._group_packets,
            SEND: self._send_together,
            SEND_SEGMENTS: self._send_segments,
            ICMP_ERROR: self._icmp_errors,
            ROUTES: self._routes_changed,
            SOCKET_SET: self._socket_set,
            SOCKET_CLOSE: self._socket_close,
        }

    def start(self, now: float) -> list[Send]:
        """Read back routes and sockets."""
        sockets = []
        for key in list(self._state):
            try:
                if key == ROUTES_KEY:
                    self._routes = RouteTable(decode_routes(self._state[key]))
                else:
                    sockets.append(_decode_socket(self._state[key]))
            except ValueError:
                self._counters[Counters.state_unreadable] += 1
                del self._state[key]
        for socket in sorted(sockets, key=lambda socket: socket.order):
            self._table.put(socket)
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records of one kind; the kinds are those that bus.table allows on the pipes to udp."""
        return self._handlers[kind](records)

    def wake(self, now: float) -> list[Send]:
        """Nothing ever asks for it."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Neighbours that start again say themselves what they need."""
        return []

    # ------------------------------------------------------------------ from the network

    def _packets(self, records: list[bytes], group: bool = False, checked: bool = False) -> list[Send]:
        # The hot path in: 1.3 us for a small datagram. Locals, and no call that a known flow can do without.
        counters = self._counters
        flow_of, find = self._table.flows.get, self._table.find
        read, pack = ADDRESSED_HEADER.unpack_from, DATAGRAM_HEADER.pack
        sends: list[Send] = []
        delivered = 0
        for packet in records:
            if len(packet) < IP_HEADER_OCTETS + HEADER_OCTETS:
                counters[Counters.packet_truncated] += 1
                continue
            segment = packet[12:] if packet[0] == IP_NO_OPTIONS else addressed_segment(packet)
            if len(segment) < ADDRESSED_HEADER_OCTETS:
                counters[Counters.packet_truncated] += 1
                continue
            source, destination, source_port, length, given = read(segment)
            if length != len(segment) - ADDRESSES_OCTETS:
                if not HEADER_OCTETS <= length < len(segment) - ADDRESSES_OCTETS:
                    counters[Counters.bad_length] += 1
                    continue
                segment = segment[: ADDRESSES_OCTETS + length]
            # RFC 1122 section 4.1.3.4: a checksum that is there is verified; RFC 768: zero, the sender made none.
            if given and not checked and not verifies(segment, PROTOCOL + length):
                counters[Counters.bad_checksum] += 1
                continue
            flow = segment[:FLOW_OCTETS]
            if group:
                handles = self._receivers(flow)
                if not handles:
                    counters[Counters.no_port_group] += 1
            else:
                handle = flow_of(flow) or find(flow)
                if not handle:
                    sends.append(self._closed_port(settled(packet) if checked else packet))
                    continue
                handles = [handle]
            for handle in handles:
                head = pack(handle, source, source_port, destination, packet[8], packet[1])  # octets 8 and 1: TTL, TOS
                sends.append((SOCKETS, DATAGRAM, head + segment[ADDRESSED_HEADER_OCTETS:]))
                delivered += 1
        counters[Counters.packets_in] += len(records)
        counters[Counters.delivered] += delivered
        return sends

    def _group_packets(self, records: list[bytes]) -> list[Send]:
        return self._packets(records, group=True)

    def _checked_packets(self, records: list[bytes]) -> list[Send]:
        return self._packets(records, checked=True)

    def _super_packets(self, records: list[bytes]) -> list[Send]:
        """Many datagrams of one flow: one record to the socket service, too, and what it costs is that of one."""
        sends: list[Send] = []
        at = SUPER_HEADER.size
        start = at + IP_HEADER_OCTETS - ADDRESSES_OCTETS  # of the addressed segment
        for record in records:
            size = SUPER_HEADER.unpack_from(record)[0] if len(record) > start + ADDRESSED_HEADER_OCTETS else 0
            if not size:
                self._counters[Counters.packet_truncated] += 1
                continue
            count = -(-(len(record) - start - ADDRESSED_HEADER_OCTETS) // size)
            self._counters[Counters.packets_in] += count
            source, destination, source_port, length, _ = ADDRESSED_HEADER.unpack_from(record, start)
            if length != len(record) - start - ADDRESSES_OCTETS:
                self._counters[Counters.bad_length] += 1
                continue
            flow = record[start : start + FLOW_OCTETS]
            handle = self._table.flows.get(flow) or self._table.find(flow)
            if not handle:
                sends.append(self._closed_port(packets(record[at:], size)[0]))  # one error speaks for them all
                continue
            head = DATAGRAM_HEADER.pack(handle, source, source_port, destination, record[at + 8], record[at + 1])
            content = record[start + ADDRESSED_HEADER_OCTETS :]
            sends.append((SOCKETS, DATAGRAM_SEGMENTS, b"".join((head, SEGMENT_SIZE.pack(size), content))))
            self._counters[Counters.delivered] += count
        return sends

    def _receivers(self, flow: bytes) -> list[int]:
        """Who gets a datagram that came by broadcast or multicast: all who hear it, unless it is ours alone by IP."""
        _, destination, _, _ = FLOW.unpack(flow)
        if not self._routes.is_local(destination):
            return self._table.find_all(flow)
        handle = self._table.find(flow)
        return [handle] if handle else []

    def _closed_port(self, packet: bytes) -> Send:
        # RFC 1122 section 4.1.3.1: a datagram to a port where nobody listens is answered with Port Unreachable.
        self._counters[Counters.no_port] += 1
        self._counters[Counters.report_port_unreachable] += 1
        head = ICMP_ERROR_HEADER.pack(
            DESTINATION_UNREACHABLE, PORT_UNREACHABLE, ORIGIN_LOCAL, 0, 0, packet[16:20]  # our address that was asked
        )
        return ICMP, REPORT_ERROR, head + packet[:REPORTED_OCTETS_MAX]

    def _icmp_errors(self, records: list[bytes]) -> list[Send]:
        counters = self._counters
        counters[Counters.errors_in] += len(records)
        sends: list[Send] = []
        for record in records:
            quotation = quoted(record[ICMP_ERROR_HEADER.size :])
            if quotation is None:
                counters[Counters.error_malformed] += 1
                continue
            flow, payload = quotation
            # The socket is the one that would get an answer to the datagram.
            socket = self._table.sockets.get(self._table.find(flow[4:8] + flow[:4] + flow[10:12] + flow[8:10]))
            if socket is None:
                counters[Counters.error_no_socket] += 1
                continue
            icmp_type, code, origin, _, info, offender = ICMP_ERROR_HEADER.unpack_from(record)
            number = _error_for(socket, icmp_type, code, origin)
            if not number:
                counters[Counters.error_ignored] += 1
                continue
            counters[Counters.errors_told] += 1
            port = int.from_bytes(flow[10:12], "big")
            head = ERROR_RECORD.pack(
                socket.declared.handle, number, origin, icmp_type, code, 0, info, offender, flow[4:8], port
            )
            sends.append((SOCKETS, SOCKET_ERROR, head + payload[:ERROR_PAYLOAD_OCTETS_MAX]))
        return sends

    def _routes_changed(self, records: list[bytes]) -> list[Send]:
        for record in records:
            try:
                table = RouteTable(decode_routes(record))
            except ValueError:
                self._counters[Counters.control_malformed] += 1
                continue
            if table.announced != self._routes.announced or ROUTES_KEY not in self._state:
                self._state[ROUTES_KEY] = encode(table.announced)
                self._routes = table
                self._paths.clear()
        return []

    # ------------------------------------------------------------------ from the socket service

    def _send_together(self, records: list[bytes]) -> list[Send]:
        if not self._joins or len(records) == 1:
            return self._send(records)
        sends: list[Send] = []
        for kind, some in joined(records):
            sends += self._send(some) if kind == SEND else self._send_segments(some)
        return sends

    def _send(self, records: list[bytes]) -> list[Send]:
        # The hot path out: 1 us for a small datagram. All of its headers but length and checksum depend on nothing but
        # the SEND header, so that is what their cache goes by.
        path_of, pack = self._paths.get, LENGTH_CHECKSUM.pack
        sends: list[Send] = []
        for record in records:
            header = record[: SEND_HEADER.size]
            path = path_of(header) or self._path(header)
            if path is None:
                continue
            headers, initial, partial = path
            payload = record[SEND_HEADER.size :]
            length = len(payload) + HEADER_OCTETS
            if length > PAYLOAD_OCTETS_MAX + HEADER_OCTETS:
                self._counters[Counters.send_too_long] += 1
                continue
            # RFC 768: the length counts twice, once in the pseudo header; a sum of zero is sent as all ones. A partial
            # one is the pseudo header's alone, whatever the payload.
            total = (initial + length) % 65535 if partial else checksum(payload, initial + 2 * length)
            total = total or 0xFFFF
            sends.append((IP, TRANSMIT, headers + pack(length, total) + payload))
        self._counters[Counters.sends] += len(records)
        self._counters[Counters.packets_out] += len(sends)
        return sends

    def _send_segments(self, records: list[bytes]) -> list[Send]:
        """SEND_SEGMENTS records: one segment each that the way out cuts, or as many SENDs where that does no sums."""
        sends: list[Send] = []
        start = SEND_HEADER.size + SEGMENT_SIZE.size
        for record in records:
            header, payload = record[: SEND_HEADER.size], record[start:]
            size = SEGMENT_SIZE.unpack_from(record, SEND_HEADER.size)[0] if payload else 0
            length = len(payload) + HEADER_OCTETS
            if not size or len(payload) > size * SEGMENTS_MAX or length > PAYLOAD_OCTETS_MAX + HEADER_OCTETS:
                self._refuse_send(Counters.send_too_long if size else Counters.send_malformed)
                continue
            path = self._paths.get(header) or self._path(header)
            if path is None:
                continue
            headers, initial, partial = path
            if size >= len(payload) or not partial:
                cut = [header + payload[at : at + size] for at in range(0, len(payload), size)]
                sends += self._send(cut)
                continue
            total = (initial + length) % 65535 or 65535
            segment = b"".join((SEGMENT_SIZE.pack(size), headers, LENGTH_CHECKSUM.pack(length, total), payload))
            sends.append((IP, TRANSMIT_SEGMENTS, segment))
            count = -(-len(payload) // size)
            self._counters[Counters.sends] += count
            self._counters[Counters.packets_out] += count
        return sends

    def _path(self, header: bytes) -> tuple[bytes, int, bool] | None:
        """What `_paths` remembers, for a SEND header; None: dropped and counted."""
        if len(header) < SEND_HEADER.size:
            return self._refuse_send(Counters.send_malformed)
        handle, to, port, source, ttl, tos, flags = SEND_HEADER.unpack(header)
        socket = self._table.sockets.get(handle)
        if socket is None:
            return self._refuse_send(Counters.send_no_socket)
        if not socket.port:
            return self._refuse_send(Counters.send_no_port)
        destination = int.from_bytes(to, "big")
        if not port:
            if not socket.peer:
                return self._refuse_send(Counters.send_no_destination)
            destination, port = socket.peer, socket.declared.peer_port
        destination = destination or socket.address or LOOPBACK  # Linux: 0.0.0.0 is this host
        origin = self._source(socket, int.from_bytes(source, "big"), destination)
        if origin is None:
            return self._refuse_send(Counters.send_no_route)
        declared = socket.declared
        multicast = is_multicast(destination)
        # RFC 1112 section 6.1: multicasts have a TTL of their own.
        ttl = ttl or (declared.multicast_ttl if multicast else declared.ttl)
        tos = tos if flags & SEND_TOS_GIVEN else declared.tos
        transmit_flags = TRANSMIT_OF_MTU_DISCOVER[declared.mtu_discover]
        transmit_flags |= TRANSMIT_BROADCAST if declared.broadcast else 0
        transmit_flags |= TRANSMIT_LOOP if multicast and declared.multicast_loop else 0
        # What stays in the host, or goes out where the TAP's other end does the sums, needs the pseudo header's only.
        partial = self._offload or self._routes.is_local(destination)
        transmit_flags |= TRANSMIT_PARTIAL if partial else 0
        source, to = origin.to_bytes(4, "big"), destination.to_bytes(4, "big")
        headers = TRANSMIT_HEADER.pack(source, to, PROTOCOL, ttl, tos, transmit_flags) + PORTS.pack(socket.port, port)
        if len(self._paths) >= PATHS_MAX:
            self._paths.clear()
        added = flow_sum(origin, destination, 0, 0) if partial else flow_sum(origin, destination, socket.port, port)
        path = self._paths[header] = headers, added, partial
        return path

    def _refuse_send(self, counter: int) -> None:
        self._counters[counter] += 1

    def _source(self, socket: Socket, wanted: int, destination: int) -> int | None:
        # RFC 1122 section 4.1.3.5: the application may choose the source; what is not ours is not sent.
        if wanted and self._routes.is_local(wanted):
            return wanted
        if socket.address and self._routes.is_local(socket.address):
            return socket.address
        chosen = socket.declared.multicast_interface
        if chosen and is_multicast(destination) and self._routes.is_local(chosen):  # RFC 1112 section 6.1
            return chosen
        return self._routes.source_for(destination)

    def _socket_set(self, records: list[bytes]) -> list[Send]:
        sends: list[Send] = []
        for record in records:
            try:
                declared = decode_socket_state(record)
            except ValueError:
                self._counters[Counters.control_malformed] += 1
                continue
            if not (0 < declared.handle <= HANDLE_MAX and 0 <= declared.request <= REQUEST_MAX):
                self._counters[Counters.control_malformed] += 1
                continue
            sends.append((SOCKETS, SOCKET_REPLY, encode(self._declare(declared))))
        return sends

    def _declare(self, declared: SocketState) -> SocketReply:
        self._counters[Counters.sets] += 1
        handle, request = declared.handle, declared.request
        try:
            socket = self._table.settle(msgspec.structs.replace(declared, request=0), self._routes)
        except OSError as error:
            self._counters[Counters.set_refused] += 1
            return SocketReply(handle=handle, request=request, errno=error.errno or errno.EINVAL)
        if socket != self._table.sockets.get(handle):
            self._state[handle] = encode(socket)
            self._table.put(socket)
            self._paths.clear()
        return SocketReply(handle=handle, request=request, local=socket.address, port=socket.port)

    def _socket_close(self, records: list[bytes]) -> list[Send]:
        for record in records:
            if len(record) != 4:
                self._counters[Counters.control_malformed] += 1
                continue
            handle = int.from_bytes(record, "little")
            if self._table.remove(handle):
                self._counters[Counters.closes] += 1
                del self._state[handle]
                self._paths.clear()
        return []


def _error_for(socket: Socket, icmp_type: int, code: int, origin: int) -> int:
    """The errno that a socket is told of an ICMP error; 0: none (Linux's __udp4_lib_err).

    RFC 1122 section 4.1.3.3: errors are passed up. As on Linux that is to connected sockets, of what will not mend by
    itself, or to whoever asks for all (IP_RECVERR). Beyond Linux, a connected socket is told of ip's own errors too:
    that nobody answers at a neighbour's address (EHOSTUNREACH), which Linux tells with IP_RECVERR only.
    """
    if icmp_type in (SOURCE_QUENCH, REDIRECT):
        return 0
    too_big = (icmp_type, code) == (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED)
    if too_big and not socket.declared.mtu_discover:
        return 0
    number, fatal = errno_of(icmp_type, code)
    told = socket.declared.receive_errors or (socket.peer and (fatal or origin == ORIGIN_LOCAL))
    return number if told else 0

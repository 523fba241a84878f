"""Output: adds the UDP header to a payload.

Owns the cache of headers; a change of routes or sockets clears it. If a datagram cannot be sent, and the application
could not have known this, its socket gets an error with Linux's errno (SOCKET_ERROR).
"""

from __future__ import annotations

import errno
from struct import Struct

from bus.config import UDP_SEGMENTATION
from bus.durable.held import REFERENCE_OCTETS, held_octets, is_in_buffer
from bus.layer import CounterWords, Octets, Send
from bus.messages import (
    DATAGRAM_HEADER,
    FAMILY_4,
    INTERFACE_INDEX,
    LOOPBACK_INDEX,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    SEND,
    SEND_OPTIONS,
    SEND_SEGMENTS_HELD,
    SEND_TOS_GIVEN,
    TRANSMIT,
    TRANSMIT_BROADCAST,
    TRANSMIT_HEAD,
    TRANSMIT_HELD,
    TRANSMIT_LOOP,
    TRANSMIT_OF_MTU_DISCOVER,
    TRANSMIT_PARTIAL,
    TRANSMIT_RECORD,
)
from bus.topology import IP
from layers.common import source_address
from layers.common.routes import RouteTable
from layers.common.transport import misplaced, refused
from layers.udp.coalescing import joined
from layers.udp.counters import Counters
from layers.udp.tables import Socket
from packets.addresses import ANY, LOOPBACK, is_multicast, is_unspecified
from packets.checksum import checksum
from packets.ip_options import checked, split
from packets.udp import HEADER_OCTETS, LENGTH_CHECKSUM, PAYLOAD_OCTETS_MAX, PORTS, PROTOCOL, flow_sum

FAMILY_AT, FLAGS_AT = 4, 5  # offsets in a head
PATHS_MAX = 1 << 15  # heads of SENDs whose result is cached; then the cache is cleared

_SIZE = Struct("!H")  # at the beginning of a TRANSMIT_HEAD

Path = tuple[bytes, int, bool]  # headers to send, their part of the checksum, whether the checksum is to be partial


class Output:
    """The output path: SEND and SEND_SEGMENTS records become TRANSMIT records."""

    def __init__(self, sockets: dict[int, Socket], counters: CounterWords, offload: tuple[str, ...]) -> None:
        self._sockets = sockets
        self._counters = counters
        self._offload = bool(offload)
        self._joins = UDP_SEGMENTATION in offload  # otherwise ip would split it again
        self._paths: dict[bytes, Path] = {}  # by the head of a SEND
        self._routes: RouteTable

    def changed(self, routes: RouteTable) -> None:
        """Routes or sockets have changed: clear the cache."""
        self._routes = routes
        self._paths.clear()

    def send(self, records: list[bytes]) -> list[Send]:
        """Process SEND records."""
        if not self._joins or len(records) == 1:
            return self._send(records)
        sends: list[Send] = []
        for kind, some in joined(records):
            sends += self._send(some) if kind == SEND else self.send_segments(some)
        return sends

    def _send(self, records: list[bytes]) -> list[Send]:
        # The hot path of output: 1 us for a small datagram. All of its headers except length and checksum depend only
        # on the head of the SEND, which is the key of their cache.
        path_of, pack = self._paths.get, LENGTH_CHECKSUM.pack
        sends: list[Send] = []
        refusals: list[Send] = []
        for record in records:
            header = record[: DATAGRAM_HEADER.size]
            path = path_of(header) or self._path(header, record, refusals)
            if path is None:
                continue
            headers, initial, partial = path
            payload = record[DATAGRAM_HEADER.size :]
            length = len(payload) + HEADER_OCTETS
            if length > PAYLOAD_OCTETS_MAX + HEADER_OCTETS:
                self._counters[Counters.send_too_long] += 1
                continue
            # RFC 768: the length counts twice, once in the pseudo header; a checksum of zero is sent as all ones. A
            # partial checksum is that of the pseudo header, whatever the payload.
            total = (initial + length) % 65535 if partial else checksum(payload, initial + 2 * length)
            total = total or 0xFFFF
            sends.append((IP, TRANSMIT, headers + pack(length, total) + payload))
        self._counters[Counters.sends] += len(records)
        self._counters[Counters.packets_out] += len(sends)
        return sends + refusals if refusals else sends

    def send_segments(self, records: list[bytes]) -> list[Send]:
        """Process SEND_SEGMENTS records: one segment each that ip or the device splits, or as many SENDs if the device
        has no offload."""
        sends: list[Send] = []
        start = DATAGRAM_HEADER.size + SEGMENT_SIZE.size
        for record in records:
            header, payload = record[: DATAGRAM_HEADER.size], record[start:]
            size = SEGMENT_SIZE.unpack_from(record, DATAGRAM_HEADER.size)[0] if payload else 0
            length = len(payload) + HEADER_OCTETS
            if len(header) == DATAGRAM_HEADER.size and header[FAMILY_AT] != FAMILY_4:
                sends.append(misplaced(header))
                self._refuse_send(Counters.send_misplaced)
                continue
            if size and header[FLAGS_AT] & SEND_OPTIONS:
                sends += self._send([header + payload[at : at + size] for at in range(0, len(payload), size)])
                continue
            if not size or len(payload) > size * SEGMENTS_MAX or length > PAYLOAD_OCTETS_MAX + HEADER_OCTETS:
                self._refuse_send(Counters.send_too_long if size else Counters.send_malformed)
                continue
            path = self._paths.get(header) or self._path(header, header + payload[:size], sends)
            if path is None:
                continue
            headers, initial, partial = path
            if size >= len(payload) or not partial:
                cut = [header + payload[at : at + size] for at in range(0, len(payload), size)]
                sends += self._send(cut)
                continue
            total = (initial + length) % 65535 or 65535
            segment = b"".join((_SIZE.pack(size), headers[_SIZE.size :], LENGTH_CHECKSUM.pack(length, total), payload))
            sends.append((IP, TRANSMIT, segment))
            count = -(-len(payload) // size)
            self._counters[Counters.sends] += count
            self._counters[Counters.packets_out] += count
        return sends

    def send_segments_held(self, records: list[bytes], held: Octets) -> list[Send]:
        """Process SEND_SEGMENTS_HELD records: ip gets the reference, unless something here must see the payload."""
        sends: list[Send] = []
        for record in records:
            if not self._pass_held(record, sends):
                inline = held.inline(SEND_SEGMENTS_HELD, record)
                if inline is not None:
                    sends += self.send_segments([inline[1]])
        return sends

    def _pass_held(self, record: bytes, sends: list[Send]) -> bool:
        """Pass a reference to ip; False: the payload is needed here, or the record is refused. As `send_segments` on a
        known path, for a device that splits it."""
        header, start = record[: DATAGRAM_HEADER.size], DATAGRAM_HEADER.size + SEGMENT_SIZE.size
        path = self._paths.get(header) if self._joins else None
        if path is None or len(record) != start + REFERENCE_OCTETS or not is_in_buffer(record):
            return False
        headers, initial, partial = path
        octets, size = held_octets(record), SEGMENT_SIZE.unpack_from(record, DATAGRAM_HEADER.size)[0]
        if not partial or not 0 < size < octets <= min(size * SEGMENTS_MAX, PAYLOAD_OCTETS_MAX):
            return False
        length = octets + HEADER_OCTETS
        total = (initial + length) % 65535 or 65535
        sends.append((IP, TRANSMIT_HELD, b"".join((_SIZE.pack(size), headers[_SIZE.size :],
                                                   LENGTH_CHECKSUM.pack(length, total), record[start:]))))
        count = -(-octets // size)
        self._counters[Counters.sends] += count
        self._counters[Counters.packets_out] += count
        return True

    def _path(self, header: bytes, record: bytes, sends: list[Send]) -> Path | None:
        """The cached path for the head of `record`; None: dropped and counted, or sent already."""
        if len(header) < DATAGRAM_HEADER.size:
            return self._refuse_send(Counters.send_malformed)
        _, family, _, _, _, _, interface, _, _ = DATAGRAM_HEADER.unpack(header)
        if family != FAMILY_4 or interface not in (0, LOOPBACK_INDEX, INTERFACE_INDEX):
            sends.append(misplaced(record))
            return self._refuse_send(Counters.send_misplaced)
        data = record[DATAGRAM_HEADER.size :]
        if header[FLAGS_AT] & SEND_OPTIONS:
            self._send_with_options(header, data, sends)
            return None
        path = self._new_path(header, None, data, sends)
        if path is not None:
            if len(self._paths) >= PATHS_MAX:
                self._paths.clear()
            self._paths[header] = path
        return path

    def _send_with_options(self, header: bytes, data: bytes, sends: list[Send]) -> None:
        """Send a datagram with its own options (RFC 1122 section 4.1.4), which precede its payload."""
        options, payload = split(data) or (b"", None)
        if payload is None:
            self._refuse_send(Counters.send_malformed)
            return
        try:
            options = checked(options, privileged=False)
        except OSError as error:
            handle, _, _, _, _, port, _, to, _ = DATAGRAM_HEADER.unpack(header)
            sends.append(refused(handle, error.errno or errno.EINVAL, to, port, payload))
            self._refuse_send(Counters.send_bad_options)
            return
        path = self._new_path(header, options, payload, sends)
        if path is None:
            return
        headers, initial, partial = path
        length = len(payload) + HEADER_OCTETS
        if length > PAYLOAD_OCTETS_MAX + HEADER_OCTETS - len(options):
            self._refuse_send(Counters.send_too_long)
            return
        total = (initial + length) % 65535 if partial else checksum(payload, initial + 2 * length)
        sends.append((IP, TRANSMIT, headers + LENGTH_CHECKSUM.pack(length, total or 0xFFFF) + payload))
        self._counters[Counters.packets_out] += 1

    def _new_path(self, header: bytes, options: bytes | None, data: bytes, refusals: list[Send]) -> Path | None:
        """`options`: those to send instead of the socket's; `data`: the payload to quote in an error."""
        handle, _, flags, ttl, tos, port, _, destination, source = DATAGRAM_HEADER.unpack(header)
        socket = self._sockets.get(handle)
        if socket is None:
            return self._refuse_send(Counters.send_no_socket)
        if not socket.port:
            return self._refuse_send(Counters.send_no_port)
        declared = socket.declared
        if not port:
            if not socket.peer:
                return self._refuse_send(Counters.send_no_destination)
            destination, port = socket.peer, declared.peer_port
        if is_unspecified(destination):  # Linux: 0.0.0.0 is this host
            destination = socket.address or LOOPBACK[len(destination)]
        if any(source) and not self._routes.is_local(source):  # no longer: the application does not know it yet
            source = ANY
        source = source_address.of_packet(self._routes, destination, source, socket.address,
                                          declared.multicast_interface)
        if source is None:
            # Linux, ip_route_output_key_hash: no route, or the source is no longer an own address
            refusals.append(refused(handle, errno.ENETUNREACH, destination, port, data))
            return self._refuse_send(Counters.send_no_route)
        if self._routes.leaks(source, destination):
            refusals.append(refused(handle, errno.EINVAL, destination, port, data))
            return self._refuse_send(Counters.send_no_route)
        multicast = is_multicast(destination)
        # RFC 1112 section 6.1: multicasts have a TTL of their own.
        ttl = ttl or (declared.multicast_ttl if multicast else declared.ttl)
        tos = tos if flags & SEND_TOS_GIVEN else declared.tos
        transmit_flags = TRANSMIT_OF_MTU_DISCOVER[declared.mtu_discover]
        transmit_flags |= TRANSMIT_BROADCAST if declared.broadcast else 0
        transmit_flags |= TRANSMIT_LOOP if multicast and declared.multicast_loop else 0
        # A partial checksum suffices for packets that stay in the host, and for a device with offload.
        options = declared.ip_options if options is None else options
        partial = (self._offload or self._routes.is_local(destination)) and not options
        transmit_flags |= TRANSMIT_PARTIAL if partial else 0
        transmit_flags |= TRANSMIT_RECORD if options else 0
        head = TRANSMIT_HEAD.pack(0, 0, FAMILY_4, transmit_flags, PROTOCOL, ttl, tos, len(options), source, destination)
        headers = head + options + PORTS.pack(socket.port, port)
        added = flow_sum(source, destination, 0, 0) if partial else flow_sum(source, destination, socket.port, port)
        return headers, added, partial

    def _refuse_send(self, counter: int) -> Path | None:
        """Count a SEND that is dropped. Returns None, as what there is instead of a path."""
        self._counters[counter] += 1
        return None

"""The UDP layer: RFC 768, with RFC 1122 section 4.1 and, where they leave room, the behaviour of Linux.

Owns the bindings of UDP sockets: which handle of the socket service has which address, port and peer, and so which
socket gets a datagram. Talks to ip (packets in, segments out, routes), to icmp (closed ports, errors about sent
datagrams) and to sockets (everything else). The socket service and the library have the receive queues, blocking calls,
and options that only concern the application.

Sockets and routes are stored before they are answered, so a crash only loses caches: the socket of a flow, and the
headers of datagrams.
"""

from __future__ import annotations

import random
from struct import Struct

from bus.config import StackConfig
from bus.durable.held import NO_HOLDINGS
from bus.layer import CounterWords, Octets, Send, State
from bus.messages import (
    DATAGRAM,
    DATAGRAM_OPTIONS,
    DATAGRAM_SEGMENTS,
    ERROR_HEAD,
    FAMILY_4,
    FLAG_CHECKED,
    FLAG_CHECKSUM_PARTIAL,
    FLAG_GROUP,
    FLAG_LOOPED,
    ICMP_ERROR,
    INTERFACE_INDEX,
    LOOPBACK_INDEX,
    PACKET,
    PACKET_HEAD,
    QUOTE_OCTETS,
    REPORT_ERROR,
    REPORT_HEAD,
    SEGMENT_SIZE,
    SEND,
    SEND_SEGMENTS,
    SEND_SEGMENTS_HELD,
)
from bus.topology import ICMP, SOCKETS
from layers.common.ports import Ports
from layers.common.transport import IcmpError, Transport
from layers.udp.counters import Counters
from layers.udp.output import Output
from layers.udp.tables import SocketTable
from packets import ipv4
from packets.checksum import verifies
from packets.icmp import DESTINATION_UNREACHABLE
from packets.ip_options import before
from packets.offload import completed, packets
from packets.udp import HEADER, HEADER_OCTETS, PORTS, PROTOCOL

PORT_UNREACHABLE = 3  # RFC 792: code of a destination unreachable
SOURCE_QUENCH, REDIRECT = 4, 5  # RFC 792: types
ERROR_PAYLOAD_OCTETS_MAX = QUOTE_OCTETS - ipv4.HEADER_OCTETS - HEADER_OCTETS

# Fields of a PACKET_HEAD (flags, octets of IP header, segment size, TTL, TOS, addresses) and the UDP header after an IP
# header without options, for one unpack.
_PLAIN = Struct(f"!xxBBHxBBx8s{ipv4.HEADER_OCTETS}x" + HEADER.format[1:])
_HEAD = PACKET_HEAD.size
_DATAGRAM = Struct("<IBBBBHH8s")  # the end of a DATAGRAM_HEADER; both have source and destination next to each other


class Core(Transport[SocketTable]):
    """The core of udp; see `bus.layer.Core`."""

    held: Octets = NO_HOLDINGS

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        sockets = SocketTable(Ports(rng), state)
        super().__init__(config, state, counters, sockets)
        self._output = Output(sockets.sockets, counters, config.offload)
        self._handlers |= {
            PACKET: self._packets,
            SEND: self._output.send,
            SEND_SEGMENTS: self._output.send_segments,
            SEND_SEGMENTS_HELD: self._send_segments_held,
            ICMP_ERROR: self._icmp_errors,
        }

    def start(self, now: float) -> list[Send]:
        """Restore routes and sockets."""
        return [*super().start(now), *self._changed()]

    def _changed(self) -> list[Send]:
        self._output.changed(self._routes)
        return []

    def _send_segments_held(self, records: list[bytes]) -> list[Send]:
        return self._output.send_segments_held(records, self.held)

    # ------------------------------------------------------------------ from the network

    def _packets(self, records: list[bytes]) -> list[Send]:
        # The hot path of input. It uses locals, and no call that a known flow does not need.
        counters = self.counters
        flow_of, find = self._sockets.flows.get, self._sockets.find
        read, pack = _PLAIN.unpack_from, _DATAGRAM.pack
        shortest = _PLAIN.size
        sends: list[Send] = []
        delivered = 0
        for record in records:
            if len(record) < shortest:
                counters[Counters.packet_truncated] += 1
                continue
            flags, header_octets, size, ttl, tos, addresses, ports, length, given = read(record)
            if header_octets != 20:
                start = _HEAD + header_octets + HEADER_OCTETS
                if len(record) < start:
                    counters[Counters.packet_truncated] += 1
                    continue
                ports, length, given = HEADER.unpack_from(record, start - HEADER_OCTETS)
            else:
                start = shortest
            octets = len(record) - start + HEADER_OCTETS
            end = None
            if size:
                counters[Counters.packets_in] += max(0, octets - HEADER_OCTETS - 1) // size
            if length != octets:
                if not HEADER_OCTETS <= length < octets or size:
                    counters[Counters.bad_length] += 1
                    continue
                end = start - HEADER_OCTETS + length
            # RFC 1122 section 4.1.3.4: verify a checksum if there is one; RFC 768: zero means that there is none.
            if given and not flags & FLAG_CHECKED and not verifies(
                    addresses + record[start - HEADER_OCTETS : end], PROTOCOL + length):
                counters[Counters.bad_checksum] += 1
                continue
            flow = addresses + ports
            interface = INTERFACE_INDEX
            if flags & FLAG_GROUP:
                handles = self._receivers(addresses, ports)
                if not handles:
                    counters[Counters.no_port_group] += 1
            else:
                handle = flow_of(flow) or find(flow)
                if not handle:
                    sends.append(self._closed_port(record, flags, size))
                    continue
                handles = [handle]
                if flags & FLAG_LOOPED:
                    interface = LOOPBACK_INDEX
            for handle in handles:
                head = pack(handle, FAMILY_4, 0, ttl, tos, ports[0] << 8 | ports[1], interface, addresses)
                delivered += 1
                if size:
                    segments = b"".join((head, SEGMENT_SIZE.pack(size), record[start:]))
                    sends.append((SOCKETS, DATAGRAM_SEGMENTS, segments))
                    delivered += (octets - HEADER_OCTETS - 1) // size
                    continue
                if header_octets != 20 and self._sockets.sockets[handle].declared.receive_options:
                    # RFC 1122 section 4.1.3.2: all options are passed up
                    options = record[_HEAD + ipv4.HEADER_OCTETS : start - HEADER_OCTETS]
                    sends.append((SOCKETS, DATAGRAM_OPTIONS, head + before(options, record[start:end])))
                    continue
                sends.append((SOCKETS, DATAGRAM, head + record[start:end]))
        counters[Counters.packets_in] += len(records)
        counters[Counters.delivered] += delivered
        return sends

    def _receivers(self, addresses: bytes, ports: bytes) -> list[int]:
        """The sockets for a broadcast or multicast datagram: all matching ones, unless its IP destination is an own
        unicast address."""
        width = len(addresses) >> 1
        source, destination = addresses[:width], addresses[width:]
        if not self._routes.is_local(destination) or self._routes.is_group(destination):
            return self._sockets.find_all(source, destination, ports)
        handle = self._sockets.find(addresses + ports)
        return [handle] if handle else []

    def _closed_port(self, record: bytes, flags: int, size: int) -> Send:
        # RFC 1122 section 4.1.3.1: a datagram to a port without a socket is answered with Port Unreachable.
        self.counters[Counters.no_port] += 1
        self.counters[Counters.report_port_unreachable] += 1
        head, packet = record[:_HEAD], record[_HEAD:]
        if size:
            packet = next(iter(packets(packet, PROTOCOL, size)), packet)  # one error for all of them
        elif flags & FLAG_CHECKSUM_PARTIAL:
            packet = completed(packet, PROTOCOL)
        report = REPORT_HEAD.pack(DESTINATION_UNREACHABLE, PORT_UNREACHABLE, 0)
        return ICMP, REPORT_ERROR, report + head + packet[:QUOTE_OCTETS]

    def _icmp_errors(self, records: list[bytes]) -> list[Send]:
        counters = self.counters
        counters[Counters.errors_in] += len(records)
        sends: list[Send] = []
        for record in records:
            error = IcmpError.of(record) if len(record) >= ERROR_HEAD.size else None
            start = ERROR_HEAD.size + error.header_octets if error is not None else 0
            if error is None or len(record) < start + HEADER_OCTETS:
                counters[Counters.error_malformed] += 1
                continue
            own_port, port = PORTS.unpack_from(record, start)
            # The socket is the one that would get an answer to the datagram.
            answer = error.destination + error.source + PORTS.pack(port, own_port)
            socket = self._sockets.sockets.get(self._sockets.find(answer))
            if socket is None:
                counters[Counters.error_no_socket] += 1
                continue
            sends += error.mtu_told(socket.declared)
            # Linux, __udp4_lib_err; RFC 1122 section 4.1.3.3: errors are passed up
            heeded = error.icmp_type not in (SOURCE_QUENCH, REDIRECT)
            number = error.errno_for(socket.declared, bool(socket.peer)) if heeded else 0
            if not number:
                counters[Counters.error_ignored] += 1
                continue
            counters[Counters.errors_told] += 1
            sent = record[start + HEADER_OCTETS :][:ERROR_PAYLOAD_OCTETS_MAX]
            sends.append(error.told(socket.declared.handle, number, port, sent))
        return sends

"""The UDP layer: RFC 768, with RFC 1122 section 4.1 and, where they leave room, the behaviour of Linux.

Owns the bindings of UDP sockets: which handle of the socket service has which address, port and peer, and so who gets
a datagram. Talks to ip (packets in, segments out, routes), to icmp (closed ports, errors about our datagrams) and to
sockets (everything else). Receive queues, blocking and options that only an application sees are the socket service's.

Everything that it knows of sockets and routes is stored before it is answered, so a crash forgets nothing but caches:
which socket a flow belongs to, and what a datagram's headers were the last time.
"""

from __future__ import annotations

import random

from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import (
    DATAGRAM,
    DATAGRAM_HEADER,
    DATAGRAM_OPTIONS,
    DATAGRAM_SEGMENTS,
    ICMP_ERROR,
    ICMP_ERROR_HEADER,
    ORIGIN_LOCAL,
    PACKET,
    PACKET_CHECKED,
    PACKET_GROUP,
    PACKET_SEGMENTS,
    REPORT_ERROR,
    SEGMENT_SIZE,
    SEND,
    SEND_SEGMENTS,
    SUPER_HEADER,
)
from bus.topology import ICMP, SOCKETS
from layers.common.ports import Ports
from layers.common.transport import IcmpError, Transport, mtu_told
from layers.udp.counters import Counters
from layers.udp.output import Output
from layers.udp.tables import SocketTable
from packets.checksum import verifies
from packets.icmp import DESTINATION_UNREACHABLE
from packets.ip_options import before
from packets.offload import packets, settled
from packets.udp import (
    ADDRESSED_HEADER,
    ADDRESSED_HEADER_OCTETS,
    ADDRESSES_OCTETS,
    FLOW,
    FLOW_OCTETS,
    HEADER_OCTETS,
    IP_HEADER_OCTETS,
    IP_NO_OPTIONS,
    PROTOCOL,
    quoted,
)

PORT_UNREACHABLE = 3  # RFC 792: a code of destination unreachable
SOURCE_QUENCH, REDIRECT = 4, 5  # RFC 792: types
REPORTED_OCTETS_MAX = 576  # RFC 1812 section 4.3.2.3: no ICMP error is longer, so no more can be quoted
ERROR_PAYLOAD_OCTETS_MAX = REPORTED_OCTETS_MAX - IP_HEADER_OCTETS - HEADER_OCTETS


class Core(Transport[SocketTable]):
    """See `bus.layer.Core`."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        sockets = SocketTable(Ports(rng), state)
        super().__init__(config, state, counters, sockets)
        self._output = Output(sockets.sockets, counters, config.offload)
        self._handlers |= {
            PACKET: self._packets,
            PACKET_CHECKED: self._checked_packets,
            PACKET_SEGMENTS: self._super_packets,
            PACKET_GROUP: self._group_packets,
            SEND: self._output.send,
            SEND_SEGMENTS: self._output.send_segments,
            ICMP_ERROR: self._icmp_errors,
        }

    def start(self, now: float) -> list[Send]:
        """Read back routes and sockets."""
        return [*super().start(now), *self._changed()]

    def _changed(self) -> list[Send]:
        self._output.changed(self._routes)
        return []

    # ------------------------------------------------------------------ from the network

    def _packets(self, records: list[bytes], group: bool = False, checked: bool = False) -> list[Send]:
        # The hot path in: 1.3 us for a small datagram. Locals, and no call that a known flow can do without.
        counters = self.counters
        flow_of, find = self._sockets.flows.get, self._sockets.find
        read, pack = ADDRESSED_HEADER.unpack_from, DATAGRAM_HEADER.pack
        sends: list[Send] = []
        delivered = 0
        for packet in records:
            if len(packet) < IP_HEADER_OCTETS + HEADER_OCTETS:
                counters[Counters.packet_truncated] += 1
                continue
            if packet[0] != IP_NO_OPTIONS:
                sends += self._with_options(packet, group, checked)
                continue
            segment = packet[12:]
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

    def _with_options(self, packet: bytes, group: bool, checked: bool) -> list[Send]:
        """A packet with IP options: as without, but that sockets are told of them, and errors quote it as it came."""
        octets = (packet[0] & 15) * 4
        if not IP_HEADER_OCTETS < octets <= len(packet):
            self.counters[Counters.packet_truncated] += 1
            return []
        options = packet[IP_HEADER_OCTETS:octets]
        sends: list[Send] = []
        plain = bytes((IP_NO_OPTIONS,)) + packet[1:IP_HEADER_OCTETS] + packet[octets:]
        for consumer, kind, record in self._packets([plain], group, checked):
            if kind == REPORT_ERROR:
                record = record[: ICMP_ERROR_HEADER.size] + packet[:REPORTED_OCTETS_MAX]
            elif self._sockets.sockets[int.from_bytes(record[:4], "little")].declared.receive_options:
                # RFC 1122 section 4.1.3.2: all options are passed up
                kind = DATAGRAM_OPTIONS
                record = record[: DATAGRAM_HEADER.size] + before(options, record[DATAGRAM_HEADER.size :])
            sends.append((consumer, kind, record))
        self.counters[Counters.packets_in] -= 1  # it is counted by the caller, too
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
                self.counters[Counters.packet_truncated] += 1
                continue
            count = -(-(len(record) - start - ADDRESSED_HEADER_OCTETS) // size)
            self.counters[Counters.packets_in] += count
            source, destination, source_port, length, _ = ADDRESSED_HEADER.unpack_from(record, start)
            if length != len(record) - start - ADDRESSES_OCTETS:
                self.counters[Counters.bad_length] += 1
                continue
            flow = record[start : start + FLOW_OCTETS]
            handle = self._sockets.flows.get(flow) or self._sockets.find(flow)
            if not handle:
                sends.append(self._closed_port(packets(record[at:], size)[0]))  # one error speaks for them all
                continue
            head = DATAGRAM_HEADER.pack(handle, source, source_port, destination, record[at + 8], record[at + 1])
            content = record[start + ADDRESSED_HEADER_OCTETS :]
            sends.append((SOCKETS, DATAGRAM_SEGMENTS, b"".join((head, SEGMENT_SIZE.pack(size), content))))
            self.counters[Counters.delivered] += count
        return sends

    def _receivers(self, flow: bytes) -> list[int]:
        """Who gets a datagram that came by broadcast or multicast: all who hear it, unless it is ours alone by IP."""
        _, destination, _, _ = FLOW.unpack(flow)
        if not self._routes.is_local(destination):
            return self._sockets.find_all(flow)
        handle = self._sockets.find(flow)
        return [handle] if handle else []

    def _closed_port(self, packet: bytes) -> Send:
        # RFC 1122 section 4.1.3.1: a datagram to a port where nobody listens is answered with Port Unreachable.
        self.counters[Counters.no_port] += 1
        self.counters[Counters.report_port_unreachable] += 1
        head = ICMP_ERROR_HEADER.pack(
            DESTINATION_UNREACHABLE, PORT_UNREACHABLE, ORIGIN_LOCAL, 0, 0, packet[16:20]  # our address that was asked
        )
        return ICMP, REPORT_ERROR, head + packet[:REPORTED_OCTETS_MAX]

    def _icmp_errors(self, records: list[bytes]) -> list[Send]:
        counters = self.counters
        counters[Counters.errors_in] += len(records)
        sends: list[Send] = []
        for record in records:
            packet = record[ICMP_ERROR_HEADER.size :]
            quotation = quoted(packet)
            if quotation is None:
                counters[Counters.error_malformed] += 1
                continue
            flow, payload = quotation
            # The socket is the one that would get an answer to the datagram.
            socket = self._sockets.sockets.get(self._sockets.find(flow[4:8] + flow[:4] + flow[10:12] + flow[8:10]))
            if socket is None:
                counters[Counters.error_no_socket] += 1
                continue
            error = IcmpError.of(record)
            sends += mtu_told(error, socket.declared, packet)
            # Linux, __udp4_lib_err; RFC 1122 section 4.1.3.3: errors are passed up
            heeded = error.icmp_type not in (SOURCE_QUENCH, REDIRECT)
            number = error.errno_for(socket.declared, bool(socket.peer)) if heeded else 0
            if not number:
                counters[Counters.error_ignored] += 1
                continue
            counters[Counters.errors_told] += 1
            port = int.from_bytes(flow[10:12], "big")
            sent = payload[:ERROR_PAYLOAD_OCTETS_MAX]
            sends.append(error.told(socket.declared.handle, number, flow[4:8], port, sent))
        return sends

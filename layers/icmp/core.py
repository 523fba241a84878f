"""ICMP (RFC 792, RFC 1122 section 3.2.2): answers echo requests, sends and understands errors, serves ping sockets.

Owns the ping sockets and their identifiers. ip hands it packets, routes and packets to complain of; udp has it complain
of closed ports and is told the errors about its own packets; sockets declares ping sockets and sends through them.

A crash loses the memory of whom errors were sent to, so a host may get up to a burst of them anew. Ping sockets and
routes are kept.
"""

from __future__ import annotations

import errno
import random
from struct import Struct

from bus import records, table
from bus.checksum import verifies
from bus.config import StackConfig
from bus.core import CounterWords, Send, State
from bus.icmp_errors import DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, PARAMETER_PROBLEM, errno_of
from bus.records import (
    DATAGRAM_HEADER,
    ERROR_RECORD,
    ICMP_ERROR_HEADER,
    PATH_MTU_RECORD,
    SEND_HEADER,
    SEND_TOS_GIVEN,
    TRANSMIT_HEADER,
    SocketState,
)
from bus.routes import RouteTable, configured, is_multicast
from bus.table import ICMP_ERROR, IP, RAW, SOCKETS, UDP
from layers.icmp import packet as wire
from layers.icmp.counters import Counters
from layers.icmp.tables import ErrorLimits, PingSockets

TTL = 64  # RFC 1700; Linux: net.ipv4.ip_default_ttl
# RFC 1122 section 3.2.2: no bit of TOS; RFC 1812 section 4.3.2.5: precedence internetwork control. Linux has the TOS of
# the offending packet there, and so makes of its DSCP another one.
ERROR_TOS = 0xC0
MAY_FRAGMENT = records.TRANSMIT_MAY_FRAGMENT
UDP_PROTOCOL = 17  # RFC 768
ROUTES_KEY = 0  # in state; every other key is the handle of a ping socket

_IGNORED = {
    wire.SOURCE_QUENCH: Counters.source_quench,  # RFC 6633 section 3
    wire.REDIRECT: Counters.redirect,
    wire.ROUTER_ADVERTISEMENT: Counters.router_discovery,
    wire.ROUTER_SOLICITATION: Counters.router_discovery,
    wire.TIMESTAMP_REPLY: Counters.timestamp_reply,
    wire.INFORMATION_REQUEST: Counters.information,  # RFC 1122 section 3.2.2.7: SHOULD NOT be implemented
    wire.INFORMATION_REPLY: Counters.information,
    wire.ADDRESS_MASK_REQUEST: Counters.address_mask,  # RFC 1122 section 3.2.2.9: only an authoritative agent answers
    wire.ADDRESS_MASK_REPLY: Counters.address_mask,
}
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
        self._routes = RouteTable(configured(config))
        self._sockets = PingSockets(state, rng)
        self._limits = ErrorLimits()
        self._epoch = config.epoch
        self._raw_booted = "raw" in config.layers
        self._quote_octets_max = min(wire.QUOTE_OCTETS_MAX, config.mtu - wire.IP_HEADER_OCTETS - wire.HEADER_OCTETS)
        self._handlers = {
            table.PACKET: self._packets,
            table.PACKET_CHECKED: self._packets,  # whatever it says: no medium does the sums of ICMP
            table.PACKET_GROUP: self._group_packets,
            table.ICMP_ERROR: self._local_errors,
            table.REPORT_ERROR: self._reports,
            table.ROUTES: self._set_routes,
            table.SEND: self._send,
            table.SOCKET_SET: self._set_sockets,
            table.SOCKET_CLOSE: self._close_sockets,
        }

    def start(self, now: float) -> list[Send]:
        """Reads back routes and ping sockets."""
        stored = self._state.get(ROUTES_KEY)
        if stored is not None and not self._adopt_routes(stored):
            self.counters[Counters.state_unreadable] += 1
            del self._state[ROUTES_KEY]
        self.counters[Counters.state_unreadable] += self._sockets.load()
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records of one kind, see the table of pipes."""
        sends: list[Send] = []
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(records, now, sends)
        return sends

    def wake(self, now: float) -> list[Send]:
        """Never due."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Nobody needs to be told anything: ip announces its routes, sockets repeats what was unanswered."""
        return []

    # Packets

    def _packets(self, packets: list[bytes], now: float, sends: list[Send]) -> None:
        counters = self.counters
        counters[Counters.received] += len(packets)
        for packet in packets:
            offset = (packet[0] & 15) << 2 if packet else 0
            message = packet[offset:]
            if offset < wire.IP_HEADER_OCTETS or len(message) < wire.HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            if not verifies(message):  # RFC 1122 section 3.2.2: a bad checksum is discarded silently
                counters[Counters.bad_checksum] += 1
                continue
            icmp_type = message[0]
            if icmp_type == wire.ECHO_REQUEST:
                # RFC 1122 section 3.2.2.6: with all the data
                sends.append((IP, table.TRANSMIT, _reply_header(packet, offset) + wire.echo_reply(message)))
                counters[Counters.echo_replies_sent] += 1
            elif icmp_type == wire.ECHO_REPLY:
                self._echo_reply(packet, message, sends)
            elif icmp_type in wire.REPORTED_TYPES:
                self._error(packet[12:16], message, sends)
            elif icmp_type == wire.TIMESTAMP_REQUEST:
                self._timestamp(packet, message, offset, now, sends)
            else:  # RFC 1122 section 3.2.2: an unknown type is discarded silently
                counters[_IGNORED.get(icmp_type, Counters.unknown_type)] += 1

    def _timestamp(self, packet: bytes, message: bytes, offset: int, now: float, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2.8: answered as an echo request is."""
        if len(message) < wire.HEADER_OCTETS + 4:  # as Linux: the originate timestamp is all that is needed of it
            self.counters[Counters.malformed] += 1
            return
        self.counters[Counters.timestamp_replies_sent] += 1
        reply = wire.timestamp_reply(message, now + self._epoch)
        sends.append((IP, table.TRANSMIT, _reply_header(packet, offset) + reply))

    def _group_packets(self, packets: list[bytes], now: float, sends: list[Send]) -> None:
        # RFC 1122 sections 3.2.2.6, 3.2.2.8: an echo or timestamp request to a group may be discarded. Replies and
        # errors must not come so.
        self.counters[Counters.received] += len(packets)
        self.counters[Counters.to_group] += len(packets)

    def _echo_reply(self, packet: bytes, message: bytes, sends: list[Send]) -> None:
        socket = self._sockets.of_identifier(message[4] << 8 | message[5], _number(packet[16:20], "big"))
        if socket is None:
            self.counters[Counters.reply_no_socket] += 1
            return
        self.counters[Counters.replies_delivered] += 1
        header = DATAGRAM_HEADER.pack(socket.handle, packet[12:16], 0, packet[16:20], packet[8], packet[1])
        sends.append((SOCKETS, table.DATAGRAM, header + message))

    # Errors about packets of ours

    def _error(self, offender: bytes, message: bytes, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2: an error goes to the transport that the packet it quotes came from."""
        counters = self.counters
        icmp_type, code = message[0], message[1]
        quoted = wire.quote_of(message)
        offset = wire.payload_offset(quoted)
        if not wire.is_error_code(icmp_type, code):
            counters[Counters.error_unknown_code] += 1
        elif not offset:
            counters[Counters.error_bad_quote] += 1
        elif not self._routes.is_local(_number(quoted[12:16], "big")):
            counters[Counters.error_not_ours] += 1
        elif self._is_group(quoted[16:20]):
            counters[Counters.error_about_group] += 1
        else:
            if (icmp_type, code) == (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED):
                # RFC 1191 section 4: the next hop's MTU; whether to believe it is ip's to say
                told = PATH_MTU_RECORD.pack(quoted[16:20], wire.info_of(message), quoted[2] << 8 | quoted[3])
                sends.append((IP, table.PATH_MTU, told))
            self._error_to_transport(offender, message, quoted, offset, sends)

    def _error_to_transport(self, offender: bytes, message: bytes, quoted: bytes, offset: int,
                            sends: list[Send]) -> None:
        counters = self.counters
        icmp_type, code = message[0], message[1]
        header = ICMP_ERROR_HEADER.pack(icmp_type, code, records.ORIGIN_ICMP, 0, wire.info_of(message), offender)
        if self._raw_booted:
            counters[Counters.errors_to_raw] += 1
            sends.append((RAW, ICMP_ERROR, header + quoted))
        if quoted[9] == wire.PROTOCOL:
            error = (icmp_type, code, records.ORIGIN_ICMP, wire.info_of(message), offender)
            self._tell_socket(error, quoted, offset, sends)
        elif quoted[9] == UDP_PROTOCOL:
            counters[Counters.errors_to_udp] += 1
            sends.append((UDP, ICMP_ERROR, header + quoted))
        elif not self._raw_booted:
            counters[Counters.error_no_transport] += 1

    def _local_errors(self, errors: list[bytes], now: float, sends: list[Send]) -> None:
        """What ip could not send: it is our packet, so nothing but its shape is checked."""
        for record in errors:
            packet = record[ICMP_ERROR_HEADER.size :]
            offset = wire.payload_offset(packet)
            if not offset:
                self.counters[Counters.error_bad_quote] += 1
                continue
            icmp_type, code, origin, _, info, offender = ICMP_ERROR_HEADER.unpack_from(record)
            self._tell_socket((icmp_type, code, origin, info, offender), packet, offset, sends)

    def _tell_socket(self, error: tuple[int, int, int, int, bytes], quoted: bytes, offset: int,
                     sends: list[Send]) -> None:
        """Tells a ping socket of an error (type, code, origin, info, offender) about an echo request of its own."""
        counters = self.counters
        socket = None
        if quoted[offset] == wire.ECHO_REQUEST:
            identifier = quoted[offset + 4] << 8 | quoted[offset + 5]
            socket = self._sockets.of_identifier(identifier, _number(quoted[12:16], "big"))
        if socket is None:
            counters[Counters.error_no_socket] += 1
            return
        icmp_type, code, origin, info, offender = error
        number, fatal = errno_of(icmp_type, code)
        too_big = icmp_type == DESTINATION_UNREACHABLE and code == FRAGMENTATION_NEEDED
        # Linux, ping_err: a socket without IP_RECVERR hears of what is fatal, if it is connected; one that lets its
        # packets be fragmented need not know that they were too big. Beyond Linux, as udp does, a connected socket
        # hears of ip's own errors too.
        told = socket.receive_errors or (socket.peer and (fatal or origin == records.ORIGIN_LOCAL))
        if not told or (too_big and not socket.mtu_discover):
            counters[Counters.error_ignored] += 1
            return
        counters[Counters.errors_to_sockets] += 1
        header = ERROR_RECORD.pack(socket.handle, number, origin, icmp_type, code, 0, info, offender, quoted[16:20], 0)
        sends.append((SOCKETS, table.SOCKET_ERROR, header + quoted[offset : offset + wire.QUOTE_OCTETS_MAX]))

    # Errors about packets of others

    def _reports(self, reports: list[bytes], now: float, sends: list[Send]) -> None:
        """Sends the errors that ip and udp ask for, as far as RFC 1122 section 3.2.2 permits."""
        counters = self.counters
        for report in reports:
            packet = report[ICMP_ERROR_HEADER.size :]
            if len(packet) < wire.IP_HEADER_OCTETS:
                counters[Counters.report_malformed] += 1
                continue
            icmp_type, code, _, _, info, _ = ICMP_ERROR_HEADER.unpack_from(report)
            refusal = self._refuse_report(icmp_type, packet)
            if refusal is None and not self._limits.allow(packet[12:16], now):
                refusal = Counters.report_limited
            if refusal is not None:
                counters[refusal] += 1
                continue
            counters[Counters.errors_sent] += 1
            # RFC 1122 section 3.2.2: header and data unchanged. ip fills in nothing where it tells of a problem in the
            # options, nor in what we send to ourselves.
            if packet[0] & 15 > 5 and icmp_type != PARAMETER_PROBLEM and not self._is_own(packet[12:16]):
                packet = wire.as_received(packet)
            header = TRANSMIT_HEADER.pack(packet[16:20], packet[12:16], wire.PROTOCOL, TTL, ERROR_TOS, MAY_FRAGMENT)
            message = wire.error(icmp_type, code, info, packet[: self._quote_octets_max])
            sends.append((IP, table.TRANSMIT, header + message))

    def _refuse_report(self, icmp_type: int, packet: bytes) -> int | None:
        """RFC 1122 section 3.2.2: the counter of the reason why there is no error about `packet`, if there is one."""
        if icmp_type not in wire.REPORTED_TYPES:
            return Counters.report_malformed
        if (packet[6] << 8 | packet[7]) & wire.FRAGMENT_OFFSET:
            return Counters.report_fragment
        if packet[9] == wire.PROTOCOL:
            offset = (packet[0] & 15) << 2
            if offset >= len(packet) or packet[offset] not in wire.QUERY_TYPES:
                return Counters.report_about_icmp
        if not self._routes.is_local(_number(packet[16:20], "big")):
            return Counters.report_to_group
        first = packet[12]
        # 0/8, loopback, multicast and class E; a broadcast address of ours.
        if first in (0, 127) or first >= 224 or self._is_group(packet[12:16]):
            return Counters.report_from_group
        return None

    # Ping sockets

    def _send(self, requests: list[bytes], now: float, sends: list[Send]) -> None:
        counters = self.counters
        counters[Counters.sends] += len(requests)
        for record in requests:
            if len(record) < SEND_HEADER.size:
                counters[Counters.send_malformed] += 1
                continue
            handle, destination, _, source, ttl, tos, flags = SEND_HEADER.unpack_from(record)
            socket = self._sockets.get(handle)
            if socket is None:
                counters[Counters.send_no_socket] += 1
                continue
            if destination == _ANY:
                destination = socket.peer.to_bytes(4, "big")
            message = record[SEND_HEADER.size :]
            refusal = self._refuse_send(socket, destination, source, message)
            if refusal:
                counters[Counters.send_refused] += 1
                header = ERROR_RECORD.pack(handle, refusal, records.ORIGIN_LOCAL, 0, 0, 0, 0, _ANY, destination, 0)
                sends.append((SOCKETS, table.SOCKET_ERROR, header + message))
                continue
            counters[Counters.requests_sent] += 1
            if source == _ANY:
                source = socket.local.to_bytes(4, "big")
            if not ttl:
                ttl = socket.multicast_ttl if is_multicast(_number(destination, "big")) else socket.ttl
            if not flags & SEND_TOS_GIVEN:
                tos = socket.tos
            flags = records.TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover] | (
                socket.broadcast and records.TRANSMIT_BROADCAST)
            header = TRANSMIT_HEADER.pack(source, destination, wire.PROTOCOL, ttl, tos, flags)
            sends.append((IP, table.TRANSMIT, header + wire.echo_request(socket.port, message[6:])))

    def _refuse_send(self, socket: SocketState, destination: bytes, source: bytes, message: bytes) -> int:
        """The errno of Linux's ping_v4_sendmsg, or 0."""
        if len(message) > wire.IP_PAYLOAD_OCTETS_MAX:
            return errno.EMSGSIZE
        if destination == _ANY:
            return errno.EDESTADDRREQ
        if len(message) < wire.HEADER_OCTETS or message[0] != wire.ECHO_REQUEST or message[1] or not socket.port:
            return errno.EINVAL
        if source != _ANY and not self._routes.is_local(_number(source, "big")):
            return errno.EINVAL
        return 0

    def _set_sockets(self, declarations: list[bytes], now: float, sends: list[Send]) -> None:
        counters = self.counters
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
            sends.append((SOCKETS, table.SOCKET_REPLY, records.encode(reply)))

    def _close_sockets(self, closings: list[bytes], now: float, sends: list[Send]) -> None:
        for record in closings:
            if len(record) == _HANDLE.size:
                self.counters[Counters.closes] += self._sockets.close(_HANDLE.unpack(record)[0])
            else:
                self.counters[Counters.control_malformed] += 1

    # Routes

    def _set_routes(self, announcements: list[bytes], now: float, sends: list[Send]) -> None:
        for record in announcements:
            if self._adopt_routes(record):
                self._state[ROUTES_KEY] = record
            else:
                self.counters[Counters.control_malformed] += 1

    def _adopt_routes(self, record: bytes) -> bool:
        try:
            self._routes = RouteTable(records.decode_routes(record))
        except ValueError:
            return False
        return True

    def _is_own(self, address: bytes) -> bool:
        return self._routes.is_local(_number(address, "big"))

    def _is_group(self, address: bytes) -> bool:
        number = _number(address, "big")
        return is_multicast(number) or self._routes.is_broadcast(number)


def _reply_header(packet: bytes, offset: int) -> bytes:
    """What stands before the reply to a query for ip: TRANSMIT_HEADER and options.

    RFC 1122 sections 3.2.2.6, 3.2.2.8: from the address that was asked, with the options that ip completed. RFC 1349
    section 5.1: with the same TOS. Without DF, as Linux does: any size must get back.
    """
    options = b"" if offset == wire.IP_HEADER_OCTETS else wire.echoed_options(packet[wire.IP_HEADER_OCTETS : offset])
    flags = MAY_FRAGMENT | records.TRANSMIT_OPTIONS if options else MAY_FRAGMENT
    return TRANSMIT_HEADER.pack(packet[16:20], packet[12:16], wire.PROTOCOL, TTL, packet[1], flags) + options

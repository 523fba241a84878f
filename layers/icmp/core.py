"""ICMP (RFC 792, RFC 1122 section 3.2.2): answers echo requests, sends and understands errors, serves ping sockets.

Owns the ping sockets and their identifiers. ip hands it packets, routes and packets to complain of; udp has it complain
of closed ports and is told the errors about its own packets; sockets declares ping sockets and sends through them.

A crash loses the memory of whom errors were sent to, so a host may get up to a burst of them anew. Ping sockets and
routes are kept.
"""

from __future__ import annotations

import errno
import random

from bus import messages
from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import DATAGRAM_HEADER, ICMP_ERROR, ICMP_ERROR_HEADER, REDIRECT_RECORD, TRANSMIT_HEADER, SocketState
from bus.topology import IP, RAW, SOCKETS, transports
from layers.common.raw_transport import DirectTransport, Header
from layers.common.transport import ANY, IcmpError, mtu_told
from layers.icmp.counters import Counters
from layers.icmp.tables import ErrorLimits, PingSockets
from packets import icmp as wire
from packets.checksum import verifies
from packets.icmp import PARAMETER_PROBLEM
from packets.ip_options import before

# RFC 1122 section 3.2.2: no bit of TOS; RFC 1812 section 4.3.2.5: precedence internetwork control. Linux has the TOS of
# the offending packet there, and so makes of its DSCP another one.
ERROR_TOS = 0xC0
MAY_FRAGMENT = messages.TRANSMIT_MAY_FRAGMENT

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
_number = int.from_bytes


class Core(DirectTransport[PingSockets]):
    """See bus.layer.Core."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        super().__init__(config, state, counters, PingSockets(state, rng))
        self._limits = ErrorLimits()
        self._epoch = config.epoch
        self._now = 0.0  # of the call in hand
        self._ttl = config.ttl
        self._accept_redirects = config.accept_redirects
        self._raw_booted = "raw" in config.layers
        self._transports = transports(config.layers)
        self._quote_octets_max = min(wire.QUOTE_OCTETS_MAX, config.mtu - wire.IP_HEADER_OCTETS - wire.HEADER_OCTETS)
        self._handlers |= {
            messages.PACKET: self._packets,
            messages.PACKET_CHECKED: self._packets,  # whatever it says: no device does the sums of ICMP
            messages.PACKET_GROUP: self._group_packets,
            messages.ICMP_ERROR: self._local_errors,
            messages.REPORT_ERROR: self._reports,
        }

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records of one kind, see the table of pipes."""
        self._now = now
        return super().receive(sender, kind, records, now)

    # Packets

    def _packets(self, packets: list[bytes]) -> list[Send]:
        counters = self.counters
        sends: list[Send] = []
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
                sends.append(
                    (IP, messages.TRANSMIT, _reply_header(packet, offset, self._ttl) + wire.echo_reply(message))
                )
                counters[Counters.echo_replies_sent] += 1
            elif icmp_type == wire.ECHO_REPLY:
                self._echo_reply(packet, message, sends)
            elif icmp_type in wire.REPORTED_TYPES:
                self._error(packet[12:16], message, sends)
            elif icmp_type == wire.REDIRECT and self._accept_redirects:
                self._redirect(packet[12:16], message, sends)
            elif icmp_type == wire.TIMESTAMP_REQUEST:
                self._timestamp(packet, message, offset, sends)
            else:  # RFC 1122 section 3.2.2: an unknown type is discarded silently
                counters[_IGNORED.get(icmp_type, Counters.unknown_type)] += 1
        return sends

    def _timestamp(self, packet: bytes, message: bytes, offset: int, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2.8: answered as an echo request is."""
        if len(message) < wire.HEADER_OCTETS + 4:  # as Linux: the originate timestamp is all that is needed of it
            self.counters[Counters.malformed] += 1
            return
        self.counters[Counters.timestamp_replies_sent] += 1
        reply = wire.timestamp_reply(message, self._now + self._epoch)
        sends.append((IP, messages.TRANSMIT, _reply_header(packet, offset, self._ttl) + reply))

    def _group_packets(self, packets: list[bytes]) -> list[Send]:
        # RFC 1122 sections 3.2.2.6, 3.2.2.8: an echo or timestamp request to a group may be discarded. Replies and
        # errors must not come so.
        self.counters[Counters.received] += len(packets)
        self.counters[Counters.to_group] += len(packets)
        return []

    def _echo_reply(self, packet: bytes, message: bytes, sends: list[Send]) -> None:
        socket = self._sockets.of_identifier(message[4] << 8 | message[5], _number(packet[16:20], "big"))
        if socket is None:
            self.counters[Counters.reply_no_socket] += 1
            return
        self.counters[Counters.replies_delivered] += 1
        header = DATAGRAM_HEADER.pack(socket.handle, packet[12:16], 0, packet[16:20], packet[8], packet[1])
        options = packet[wire.IP_HEADER_OCTETS : (packet[0] & 15) << 2] if socket.receive_options else b""
        if options:
            sends.append((SOCKETS, messages.DATAGRAM_OPTIONS, header + before(options, message)))
            return
        sends.append((SOCKETS, messages.DATAGRAM, header + message))

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
        elif self._routes.is_group(_number(quoted[16:20], "big")):
            counters[Counters.error_about_group] += 1
        else:
            self._error_to_transport(offender, message, quoted, offset, sends)

    def _redirect(self, teller: bytes, message: bytes, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2.2: of any code, about the host. Whether to believe it is ip's to say."""
        quoted = wire.quote_of(message)
        if message[1] > wire.REDIRECT_CODE_MAX:
            self.counters[Counters.error_unknown_code] += 1
        elif not wire.payload_offset(quoted):
            self.counters[Counters.error_bad_quote] += 1
        elif not self._routes.is_local(_number(quoted[12:16], "big")):
            self.counters[Counters.error_not_ours] += 1
        elif self._routes.is_group(_number(quoted[16:20], "big")):
            self.counters[Counters.error_about_group] += 1
        else:
            self.counters[Counters.redirects_to_ip] += 1
            sends.append((IP, messages.REDIRECT, REDIRECT_RECORD.pack(quoted[16:20], message[4:8], teller)))

    def _error_to_transport(self, offender: bytes, message: bytes, quoted: bytes, offset: int,
                            sends: list[Send]) -> None:
        counters = self.counters
        error = IcmpError(message[0], message[1], messages.ORIGIN_ICMP, wire.info_of(message), offender)
        header = ICMP_ERROR_HEADER.pack(error.icmp_type, error.code, error.origin, 0, error.info, offender)
        if self._raw_booted:
            counters[Counters.errors_to_raw] += 1
            sends.append((RAW, ICMP_ERROR, header + quoted))
        if quoted[9] == wire.PROTOCOL:
            self._tell_socket(error, quoted, offset, sends)
        elif quoted[9] in self._transports:
            counters[Counters.errors_to_transports] += 1
            sends.append((self._transports[quoted[9]], ICMP_ERROR, header + quoted))
        elif not self._raw_booted:
            counters[Counters.error_no_transport] += 1

    def _local_errors(self, errors: list[bytes]) -> list[Send]:
        """What ip could not send: it is our packet, so nothing but its shape is checked."""
        sends: list[Send] = []
        for record in errors:
            packet = record[ICMP_ERROR_HEADER.size :]
            offset = wire.payload_offset(packet)
            if offset:
                self._tell_socket(IcmpError.of(record), packet, offset, sends)
            else:
                self.counters[Counters.error_bad_quote] += 1
        return sends

    def _tell_socket(self, error: IcmpError, quoted: bytes, offset: int, sends: list[Send]) -> None:
        """Tells a ping socket of an error about an echo request of its own."""
        counters = self.counters
        socket = None
        if quoted[offset] == wire.ECHO_REQUEST:
            identifier = quoted[offset + 4] << 8 | quoted[offset + 5]
            socket = self._sockets.of_identifier(identifier, _number(quoted[12:16], "big"))
        if socket is None:
            counters[Counters.error_no_socket] += 1
            return
        sends += mtu_told(error, socket, quoted)
        number = error.errno_for(socket, bool(socket.peer))
        if not number:
            counters[Counters.error_ignored] += 1
            return
        counters[Counters.errors_to_sockets] += 1
        sent = quoted[offset : offset + wire.QUOTE_OCTETS_MAX]
        sends.append(error.told(socket.handle, number, quoted[16:20], 0, sent))

    # Errors about packets of others

    def _reports(self, reports: list[bytes]) -> list[Send]:
        """Sends the errors that ip and udp ask for, as far as RFC 1122 section 3.2.2 permits."""
        counters = self.counters
        sends: list[Send] = []
        for report in reports:
            packet = report[ICMP_ERROR_HEADER.size :]
            if len(packet) < wire.IP_HEADER_OCTETS:
                counters[Counters.report_malformed] += 1
                continue
            icmp_type, code, _, _, info, _ = ICMP_ERROR_HEADER.unpack_from(report)
            refusal = self._refuse_report(icmp_type, packet)
            if refusal is None and not self._limits.allow(packet[12:16], self._now):
                refusal = Counters.report_limited
            if refusal is not None:
                counters[refusal] += 1
                continue
            counters[Counters.errors_sent] += 1
            # RFC 1122 section 3.2.2: header and data unchanged. ip fills in nothing where it tells of a problem in the
            # options, nor in what we send to ourselves.
            ours = self._routes.is_local(_number(packet[12:16], "big"))
            if packet[0] & 15 > 5 and icmp_type != PARAMETER_PROBLEM and not ours:
                packet = wire.as_received(packet)
            header = TRANSMIT_HEADER.pack(packet[16:20], packet[12:16], wire.PROTOCOL, self._ttl, ERROR_TOS,
                                          MAY_FRAGMENT)
            message = wire.error(icmp_type, code, info, packet[: self._quote_octets_max])
            sends.append((IP, messages.TRANSMIT, header + message))
        return sends

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
        if first in (0, 127) or first >= 224 or self._routes.is_group(_number(packet[12:16], "big")):
            return Counters.report_from_group
        return None

    # Ping sockets

    def _send(self, requests: list[bytes]) -> list[Send]:
        self.counters[Counters.sends] += len(requests)
        return super()._send(requests)

    def _transmit(self, socket: SocketState, header: Header, data: bytes) -> bytes:
        source, destination, ttl, tos, leave, options = header
        self.counters[Counters.requests_sent] += 1
        flags = messages.TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover] | leave
        head = TRANSMIT_HEADER.pack(source, destination, wire.PROTOCOL, ttl, tos, flags)
        return head + options + wire.echo_request(socket.port, data[6:])

    def _refusal(self, socket: SocketState, destination: bytes, data: bytes) -> int:
        """The errno of Linux's ping_v4_sendmsg, or 0."""
        if len(data) > wire.IP_PAYLOAD_OCTETS_MAX:
            return errno.EMSGSIZE
        if destination == ANY:
            return errno.EDESTADDRREQ
        if len(data) < wire.HEADER_OCTETS or data[0] != wire.ECHO_REQUEST or data[1] or not socket.port:
            return errno.EINVAL
        return 0


def _reply_header(packet: bytes, offset: int, ttl: int) -> bytes:
    """What stands before the reply to a query for ip: TRANSMIT_HEADER and options.

    RFC 1122 sections 3.2.2.6, 3.2.2.8: from the address that was asked, with the options that ip completed. RFC 1349
    section 5.1: with the same TOS. Without DF, as Linux does: any size must get back.
    """
    options = b"" if offset == wire.IP_HEADER_OCTETS else wire.echoed_options(packet[wire.IP_HEADER_OCTETS : offset])
    flags = MAY_FRAGMENT | messages.TRANSMIT_OPTIONS if options else MAY_FRAGMENT
    return TRANSMIT_HEADER.pack(packet[16:20], packet[12:16], wire.PROTOCOL, ttl, packet[1], flags) + options

"""ICMP (RFC 792, RFC 1122 section 3.2.2): answers echo requests, sends and processes errors, serves ping sockets.

Owns the ping sockets and their identifiers. ip sends it packets, routes, and packets to send errors about. udp sends it
packets to closed ports and gets the errors about its own packets. sockets declares ping sockets and sends by them.

A crash loses the state of the rate limits, so a host may get another burst of errors. Ping sockets and routes are
stored.
"""

from __future__ import annotations

import errno
import random
from typing import NamedTuple

from bus import messages
from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import (
    ERROR_HEAD,
    FAMILY_4,
    FLAG_GROUP,
    FLAG_LOOPED,
    ICMP_ERROR,
    PACKET_HEAD,
    REPORT_HEAD,
    TRANSMIT_HEAD,
    SocketState,
    arrived_on,
    datagram_header,
)
from bus.topology import IP, RAW, SOCKETS, transports
from layers.common.raw_transport import DirectTransport, Header
from layers.common.transport import IcmpError
from layers.icmp.counters import Counters
from layers.icmp.tables import ErrorLimits, PingSockets
from packets import icmp as wire
from packets import ipv4
from packets.addresses import is_unicast, is_unspecified
from packets.checksum import verifies
from packets.icmp import PARAMETER_PROBLEM
from packets.ip_options import before, echoed

# RFC 1122 section 3.2.2: TOS 0; RFC 1812 section 4.3.2.5: precedence internetwork control. Linux uses the TOS of the
# offending packet, which changes its DSCP.
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


class Packet(NamedTuple):
    """The fields of a PACKET_HEAD."""

    interface: int
    family: int
    flags: int
    header_octets: int
    size: int
    protocol: int
    ttl: int
    tos: int
    source: bytes
    destination: bytes


class Core(DirectTransport[PingSockets]):
    """See bus.layer.Core."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        super().__init__(config, state, counters, PingSockets(state, rng))
        self._limits = ErrorLimits()
        self._epoch = config.epoch
        self._now = 0.0  # the time of the present call
        self._ttl = config.ttl
        self._accept_redirects = config.accept_redirects
        self._raw_booted = "raw" in config.layers
        self._transports = transports(config.layers)
        self._quote_octets_max = min(wire.QUOTE_OCTETS_MAX, config.mtu - ipv4.HEADER_OCTETS - wire.HEADER_OCTETS)
        self._handlers |= {
            messages.PACKET: self._packets,
            messages.ICMP_ERROR: self._local_errors,
            messages.REPORT_ERROR: self._reports,
        }

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process records of one kind; see the table of pipes."""
        self._now = now
        return super().receive(sender, kind, records, now)

    # Packets

    def _packets(self, records: list[bytes]) -> list[Send]:
        counters = self.counters
        sends: list[Send] = []
        counters[Counters.received] += len(records)
        for record in records:
            if len(record) < PACKET_HEAD.size:
                counters[Counters.malformed] += 1
                continue
            packet = Packet._make(PACKET_HEAD.unpack_from(record))
            start = PACKET_HEAD.size + packet.header_octets
            message = record[start:]
            if packet.flags & FLAG_GROUP:
                # RFC 1122 sections 3.2.2.6, 3.2.2.8: an echo or timestamp request to a group may be discarded. Replies
                # and errors must not be sent to a group.
                counters[Counters.to_group] += 1
                continue
            if len(message) < wire.HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            # RFC 1122 section 3.2.2: a wrong checksum is discarded silently; no device offloads the checksum of ICMP
            if not verifies(message):
                counters[Counters.bad_checksum] += 1
                continue
            icmp_type = message[0]
            options = record[PACKET_HEAD.size + ipv4.HEADER_OCTETS : start]
            if icmp_type == wire.ECHO_REQUEST:
                # RFC 1122 section 3.2.2.6: with all of the data
                reply = self._reply_head(packet, options) + wire.echo_reply(message)
                sends.append((IP, messages.TRANSMIT, reply))
                counters[Counters.echo_replies_sent] += 1
            elif icmp_type == wire.ECHO_REPLY:
                self._echo_reply(packet, options, message, sends)
            elif icmp_type in wire.REPORTED_TYPES:
                self._error(packet.source, message, sends)
            elif icmp_type == wire.REDIRECT and self._accept_redirects:
                self._redirect(packet.source, message, sends)
            elif icmp_type == wire.TIMESTAMP_REQUEST:
                self._timestamp(packet, options, message, sends)
            else:  # RFC 1122 section 3.2.2: an unknown type is discarded silently
                counters[_IGNORED.get(icmp_type, Counters.unknown_type)] += 1
        return sends

    def _reply_head(self, packet: Packet, options: bytes) -> bytes:
        """The TRANSMIT_HEAD and the options of the reply to a query.

        RFC 1122 sections 3.2.2.6, 3.2.2.8: from the address of the request's destination, with the options that ip
        completed. RFC 1349 section 5.1: with the same TOS. Without DF, as on Linux, so that any size can be returned.
        """
        options = echoed(options) if options else b""
        return TRANSMIT_HEAD.pack(0, packet.interface, packet.family, MAY_FRAGMENT, wire.PROTOCOL, self._ttl,
                                  packet.tos, len(options), packet.destination, packet.source) + options

    def _timestamp(self, packet: Packet, options: bytes, message: bytes, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2.8: answered like an echo request."""
        if len(message) < wire.HEADER_OCTETS + 4:  # as on Linux: only the originate timestamp is required
            self.counters[Counters.malformed] += 1
            return
        self.counters[Counters.timestamp_replies_sent] += 1
        reply = wire.timestamp_reply(message, self._now + self._epoch)
        sends.append((IP, messages.TRANSMIT, self._reply_head(packet, options) + reply))

    def _echo_reply(self, packet: Packet, options: bytes, message: bytes, sends: list[Send]) -> None:
        identifier = wire.identifier_of(message)
        socket = self._sockets.of_identifier(identifier, packet.destination)
        if socket is None:
            self.counters[Counters.reply_no_socket] += 1
            return
        self.counters[Counters.replies_delivered] += 1
        header = datagram_header(socket.handle, packet.source, 0, packet.destination, packet.ttl, packet.tos, 0,
                                 arrived_on(packet.flags))
        if options and socket.receive_options:
            sends.append((SOCKETS, messages.DATAGRAM_OPTIONS, header + before(options, message)))
            return
        sends.append((SOCKETS, messages.DATAGRAM, header + message))

    # Errors about packets of the stack

    def _quoted(self, message: bytes, sensible: bool) -> tuple[ipv4.Quoted, bytes] | None:
        """The packet of the stack that an error quotes; None (and counted): another packet, or an implausible error."""
        quote = wire.quote_of(message)
        quoted = ipv4.quoted(quote)
        if not sensible:
            self.counters[Counters.error_unknown_code] += 1
        elif quoted is None:
            self.counters[Counters.error_bad_quote] += 1
        elif not self._routes.is_local(quoted.source):
            self.counters[Counters.error_not_ours] += 1
        elif self._routes.is_group(quoted.destination):
            self.counters[Counters.error_about_group] += 1
        else:
            return quoted, quote
        return None

    def _redirect(self, teller: bytes, message: bytes, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2.2: of any code, for the host. ip decides whether to accept it."""
        found = self._quoted(message, message[1] <= wire.REDIRECT_CODE_MAX)
        if found is not None:
            self.counters[Counters.redirects_to_ip] += 1
            sends.append((IP, messages.REDIRECT, found[0].destination + wire.gateway_of(message) + teller))

    def _error(self, offender: bytes, message: bytes, sends: list[Send]) -> None:
        """RFC 1122 section 3.2.2: pass an error to the transport that sent the quoted packet."""
        counters = self.counters
        icmp_type, code = message[0], message[1]
        found = self._quoted(message, wire.is_error_code(icmp_type, code))
        if found is None:
            return
        quoted, quote = found
        error = IcmpError(icmp_type, code, messages.ORIGIN_ICMP, FAMILY_4, wire.info_of(message), quoted.total,
                          quoted.protocol, quoted.header_octets, offender, quoted.source, quoted.destination)
        record = error.head() + quote
        if self._raw_booted:
            counters[Counters.errors_to_raw] += 1
            sends.append((RAW, ICMP_ERROR, record))
        if quoted.protocol == wire.PROTOCOL:
            self._tell_socket(error, quote[quoted.header_octets :], sends)
        elif quoted.protocol in self._transports:
            counters[Counters.errors_to_transports] += 1
            sends.append((self._transports[quoted.protocol], ICMP_ERROR, record))
        elif not self._raw_booted:
            counters[Counters.error_no_transport] += 1

    def _local_errors(self, errors: list[bytes]) -> list[Send]:
        """Errors from ip about packets that it could not send: only their format is checked."""
        sends: list[Send] = []
        for record in errors:
            error = IcmpError.of(record) if len(record) >= ERROR_HEAD.size else None
            sent = record[ERROR_HEAD.size + error.header_octets :] if error is not None else b""
            if error is not None and len(sent) >= wire.HEADER_OCTETS:
                self._tell_socket(error, sent, sends)
            else:
                self.counters[Counters.error_bad_quote] += 1
        return sends

    def _tell_socket(self, error: IcmpError, sent: bytes, sends: list[Send]) -> None:
        """Report an error about a message of a ping socket to that socket."""
        counters = self.counters
        socket = None
        if sent[0] == wire.ECHO_REQUEST:
            socket = self._sockets.of_identifier(wire.identifier_of(sent), error.source)
        if socket is None:
            counters[Counters.error_no_socket] += 1
            return
        sends += error.mtu_told(socket)
        number = error.errno_for(socket, bool(socket.peer))
        if not number:
            counters[Counters.error_ignored] += 1
            return
        counters[Counters.errors_to_sockets] += 1
        sends.append(error.told(socket.handle, number, 0, sent[: wire.QUOTE_OCTETS_MAX]))

    # Errors about received packets

    def _reports(self, reports: list[bytes]) -> list[Send]:
        """Send the errors that ip and udp ask for, as far as RFC 1122 section 3.2.2 permits."""
        counters = self.counters
        sends: list[Send] = []
        start = REPORT_HEAD.size + PACKET_HEAD.size
        for report in reports:
            if len(report) < start + ipv4.HEADER_OCTETS:
                counters[Counters.report_malformed] += 1
                continue
            icmp_type, code, info = REPORT_HEAD.unpack_from(report)
            packet = Packet._make(PACKET_HEAD.unpack_from(report, REPORT_HEAD.size))
            quote = report[start:]
            refusal = self._refuse_report(icmp_type, packet, quote)
            # Linux, icmpv4_xrlim_allow and icmpv4_mask_allow: packets that stay in the host are not limited
            looped = packet.flags & FLAG_LOOPED
            if refusal is None and not looped and not self._limits.allow(packet.source, self._now):
                refusal = Counters.report_limited
            if refusal is not None:
                counters[refusal] += 1
                continue
            counters[Counters.errors_sent] += 1
            # RFC 1122 section 3.2.2: header and data unchanged. ip has recorded nothing if the error is about the
            # options, or if the packet came from this host.
            filled_in = packet.header_octets > ipv4.HEADER_OCTETS and icmp_type != PARAMETER_PROBLEM
            if filled_in and not self._routes.is_local(packet.source):
                quote = wire.as_received(quote)
            head = TRANSMIT_HEAD.pack(0, packet.interface, packet.family, MAY_FRAGMENT, wire.PROTOCOL, self._ttl,
                                      ERROR_TOS, 0, packet.destination, packet.source)
            message = wire.error(icmp_type, code, info, quote[: self._quote_octets_max])
            sends.append((IP, messages.TRANSMIT, head + message))
        return sends

    def _refuse_report(self, icmp_type: int, packet: Packet, quote: bytes) -> int | None:
        """RFC 1122 section 3.2.2: the counter for the reason why no error is sent about `packet`; None: one may be
        sent."""
        if icmp_type not in wire.REPORTED_TYPES:
            return Counters.report_malformed
        if ipv4.is_later_fragment(quote):
            return Counters.report_fragment
        if packet.protocol == wire.PROTOCOL:
            message = quote[packet.header_octets :]
            if not message or message[0] not in wire.QUERY_TYPES:
                return Counters.report_about_icmp
        destination = packet.destination
        if packet.flags & FLAG_GROUP or not self._routes.is_local(destination) or self._routes.is_group(destination):
            return Counters.report_to_group
        if packet.flags & FLAG_LOOPED:  # within the host 127/8 is a valid source
            return None
        # 0/8, loopback, multicast and class E, or a broadcast address.
        if not is_unicast(packet.source) or self._routes.is_group(packet.source):
            return Counters.report_from_group
        return None

    # Ping sockets

    def _send(self, requests: list[bytes]) -> list[Send]:
        self.counters[Counters.sends] += len(requests)
        return super()._send(requests)

    def _transmit(self, socket: SocketState, header: Header, data: bytes) -> bytes:
        self.counters[Counters.requests_sent] += 1
        head = header.pack(wire.PROTOCOL, messages.TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover])
        return head + wire.echo_request(socket.port, data[6:])

    def _refusal(self, socket: SocketState, destination: bytes, data: bytes) -> int:
        """The errno of Linux's ping_v4_sendmsg, or 0."""
        if len(data) > wire.IP_PAYLOAD_OCTETS_MAX:
            return errno.EMSGSIZE
        if is_unspecified(destination):
            return errno.EDESTADDRREQ
        if len(data) < wire.HEADER_OCTETS or data[0] != wire.ECHO_REQUEST or data[1] or not socket.port:
            return errno.EINVAL
        return 0

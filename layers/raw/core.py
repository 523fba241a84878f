"""Raw sockets (raw(7)): copies of whole packets up; payloads and whole packets of applications down.

Owns the raw sockets. raw tells ip the protocols of its sockets (RAW_WANTED), and ip sends a copy of each packet of
these protocols. icmp and ip send errors; sockets declares raw sockets and sends by them. The layer is booted only if
the owner allows it, because an application with a raw socket can read and forge packets of all others.

A crash forgets nothing: sockets and routes are stored before they are answered.
"""

from __future__ import annotations

import errno
import random

from bus import messages
from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import ERROR_HEAD, PACKET_HEAD, SocketState, arrived_on, datagram_header
from bus.topology import IP, SOCKETS
from layers.common.raw_transport import DirectTransport, Header
from layers.common.transport import IcmpError
from layers.raw.counters import Counters
from layers.raw.tables import Listener, RawSockets, is_filtered
from packets import ipv4
from packets.addresses import is_multicast, is_unspecified

_NOBODY: dict[int, Listener] = {}


class Core(DirectTransport[RawSockets]):
    """See bus.layer.Core."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        super().__init__(config, state, counters, RawSockets(state))
        self._told = b""  # the protocols that were sent to ip
        self._handlers |= {
            messages.PACKET: self._packets,
            messages.ICMP_ERROR: self._errors,
        }

    def start(self, now: float) -> list[Send]:
        """Also send ip the protocols, because it may not have received the last change."""
        super().start(now)
        return self._tell_wanted()

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """ip may need the protocols again."""
        return self._tell_wanted() if sender == IP else []

    def _tell_wanted(self) -> list[Send]:
        self._told = self._sockets.wanted
        return [(IP, messages.RAW_WANTED, self._told)]

    def _changed(self) -> list[Send]:
        return self._tell_wanted() if self._sockets.wanted != self._told else []

    # -- from the network ------------------------------------------------------------------------------------------

    def _packets(self, packets: list[bytes]) -> list[Send]:
        counters, listeners = self.counters, self._sockets.listeners
        sends: list[Send] = []
        delivered = 0
        for record in packets:
            if len(record) < PACKET_HEAD.size + ipv4.HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            _, _, flags, header_octets, _, protocol, ttl, tos, source, destination = PACKET_HEAD.unpack_from(record)
            packet = record[PACKET_HEAD.size :]
            before = delivered
            for listener in listeners.get(protocol, _NOBODY).values():
                if not listener.hears(source, destination):
                    continue
                if listener.icmp_filter and protocol == ipv4.ICMP and is_filtered(
                        listener.icmp_filter, packet[header_octets:]):
                    continue
                header = datagram_header(listener.socket.handle, source, 0, destination, ttl, tos, 0,
                                         arrived_on(flags))
                sends.append((SOCKETS, messages.DATAGRAM, header + packet))
                delivered += 1
            counters[Counters.unwanted] += delivered == before
        counters[Counters.received] += len(packets)
        counters[Counters.delivered] += delivered
        return sends

    def _errors(self, errors: list[bytes]) -> list[Send]:
        """ICMP errors, and ip's own, about packets of the stack: reported to all sockets that may have sent them
        (raw_err in Linux)."""
        counters = self.counters
        counters[Counters.errors_in] += len(errors)
        sends: list[Send] = []
        for record in errors:
            quoted = record[ERROR_HEAD.size :]
            if len(quoted) < ipv4.HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            error = IcmpError.of(record)
            before = len(sends)
            mtus: list[Send] = []
            for listener in self._sockets.listeners.get(error.protocol, _NOBODY).values():
                if not listener.matches(error.destination, error.source):
                    continue
                socket = listener.socket
                mtus = mtus or error.mtu_told(socket)
                number = error.errno_for(socket, bool(socket.peer))
                if number:
                    sent = quoted if socket.header_included else quoted[error.header_octets :]
                    sends.append(error.told(socket.handle, number, 0, sent))
            counters[Counters.errors_told] += len(sends) - before
            counters[Counters.error_no_socket] += len(sends) == before
            sends += mtus
        return sends

    # -- from the socket service -----------------------------------------------------------------------------------

    def _transmit(self, socket: SocketState, header: Header, data: bytes) -> bytes:
        self.counters[Counters.sent] += 1
        if not socket.header_included:
            return header.pack(socket.protocol, messages.TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover]) + data
        # ip(7): the header is complete; the packet is never fragmented. Linux, ip_mc_output: a TTL of zero keeps a
        # multicast in the host, but nothing else.
        given = ipv4.HEADER.unpack_from(data)
        ttl = given[ipv4.TTL] if is_multicast(header.destination) else socket.ttl
        flags = messages.TRANSMIT_WHOLE | messages.TRANSMIT_IGNORE_PATH_MTU
        return header._replace(ttl=ttl, tos=0).pack(given[ipv4.PROTOCOL], flags) + data

    def _refusal(self, socket: SocketState, destination: bytes, data: bytes) -> int:
        """The errno of Linux's raw_sendmsg, or 0."""
        headers_octets = 0 if socket.header_included else ipv4.HEADER_OCTETS + len(socket.ip_options)
        if len(data) > ipv4.LENGTH_MAX - headers_octets:
            return errno.EMSGSIZE
        if is_unspecified(destination):
            return errno.EDESTADDRREQ
        if socket.header_included and (socket.ip_options or ipv4.header_octets(data) > len(data)):
            return errno.EINVAL
        return 0

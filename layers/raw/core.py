"""Raw sockets (raw(7)): copies of whole packets up, payloads and packets that an application made down.

Owns the raw sockets. ip sends a copy of each packet of the protocols that somebody listens to, which raw tells it
(RAW_WANTED); icmp and ip tell the errors; sockets declares raw sockets and sends through them. Booted only where the
owner allows it: who may read and forge packets can do as every other application here.

A crash forgets nothing: sockets and routes are stored before they are answered.
"""

from __future__ import annotations

import errno
import random

from bus import messages
from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import DATAGRAM_HEADER, ICMP_ERROR_HEADER, TRANSMIT_HEADER, SocketState
from bus.topology import IP, SOCKETS
from layers.common.raw_transport import DirectTransport, Header
from layers.common.routes import is_multicast
from layers.common.transport import ANY, IcmpError, mtu_told
from layers.raw.counters import Counters
from layers.raw.tables import ICMP, Listener, RawSockets, is_filtered

IP_HEADER_OCTETS = 20  # RFC 791 section 3.1, without options
PACKET_OCTETS_MAX = 65535

_NOBODY: dict[int, Listener] = {}


class Core(DirectTransport[RawSockets]):
    """See bus.layer.Core."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        super().__init__(config, state, counters, RawSockets(state))
        self._told = b""  # what ip knows to be wanted
        self._handlers |= {
            messages.PACKET: self._packets,
            messages.PACKET_GROUP: self._packets,
            messages.ICMP_ERROR: self._errors,
        }

    def start(self, now: float) -> list[Send]:
        """Also, ip may have heard of another set than what came of it."""
        super().start(now)
        return self._tell_wanted()

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """ip may have started afresh."""
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
        for packet in packets:
            if len(packet) < IP_HEADER_OCTETS:
                counters[Counters.malformed] += 1
                continue
            source, destination, protocol = packet[12:16], packet[16:20], packet[9]
            before = delivered
            for listener in listeners.get(protocol, _NOBODY).values():
                if not listener.hears(source, destination):
                    continue
                if listener.icmp_filter and protocol == ICMP and is_filtered(
                        listener.icmp_filter, packet[_header_octets(packet) :]):
                    continue
                header = DATAGRAM_HEADER.pack(listener.socket.handle, source, 0, destination, packet[8], packet[1])
                sends.append((SOCKETS, messages.DATAGRAM, header + packet))
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
            error = IcmpError.of(record)
            source, destination = quoted[12:16], quoted[16:20]
            before = len(sends)
            mtus: list[Send] = []
            for listener in self._sockets.listeners.get(quoted[9], _NOBODY).values():
                if not listener.matches(destination, source):
                    continue
                socket = listener.socket
                mtus = mtus or mtu_told(error, socket, quoted)
                number = error.errno_for(socket, bool(socket.peer))
                if number:
                    sent = quoted if socket.header_included else quoted[_header_octets(quoted) :]
                    sends.append(error.told(socket.handle, number, destination, 0, sent))
            counters[Counters.errors_told] += len(sends) - before
            counters[Counters.error_no_socket] += len(sends) == before
            sends += mtus
        return sends

    # -- from the socket service -----------------------------------------------------------------------------------

    def _transmit(self, socket: SocketState, header: Header, data: bytes) -> bytes:
        source, destination, ttl, tos, leave, options = header
        self.counters[Counters.sent] += 1
        if not socket.header_included:
            flags = messages.TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover] | leave
            return TRANSMIT_HEADER.pack(source, destination, socket.protocol, ttl, tos, flags) + options + data
        # ip(7): the header says all of it; the packet is never fragmented. Linux, ip_mc_output: a TTL of zero keeps a
        # multicast in the host, but nothing else.
        ttl = data[8] if is_multicast(int.from_bytes(destination, "big")) else socket.ttl
        flags = messages.TRANSMIT_WHOLE | messages.TRANSMIT_IGNORE_PATH_MTU | leave
        return TRANSMIT_HEADER.pack(source, destination, data[9], ttl, 0, flags) + data

    def _refusal(self, socket: SocketState, destination: bytes, data: bytes) -> int:
        """The errno of Linux's raw_sendmsg, or 0."""
        headers_octets = 0 if socket.header_included else IP_HEADER_OCTETS + len(socket.ip_options)
        if len(data) > PACKET_OCTETS_MAX - headers_octets:
            return errno.EMSGSIZE
        if destination == ANY:
            return errno.EDESTADDRREQ
        if socket.header_included and (socket.ip_options or not IP_HEADER_OCTETS <= _header_octets(data) <= len(data)):
            return errno.EINVAL
        return 0


def _header_octets(packet: bytes) -> int:
    return (packet[0] & 15) * 4 if packet else 0

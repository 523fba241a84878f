"""Translation between the engine and the pipes: packets of ip to arrivals, segments to TRANSMIT records, stream
records.

This module, and for their short paths `layers.tcp.crowd` and `prediction`, know the format of records;
`layers.tcp.interfaces` defines `Arrival`, `Below` and `Above`.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.held import Held
from bus.layer import CounterWords, Send
from bus.messages import (
    FAMILY_4,
    FAMILY_6,
    FLAG_CHECKED,
    FLAG_GROUP,
    INTERFACE_INDEX,
    PACKET_HEAD,
    TRANSMIT_HEAD,
    TRANSMIT_OF_MTU_DISCOVER,
    TRANSMIT_PARTIAL,
)
from bus.streams import StreamState
from layers.common import source_address
from layers.common.routes import RouteTable, configured
from layers.tcp.connection import Ends
from layers.tcp.counters import Counters as C
from layers.tcp.ecn import ECT_0
from layers.tcp.interfaces import Arrival
from packets.checksum import verifies
from packets.tcp import HEADER, HEADER_OCTETS, HEADER_OCTETS_MAX, PROTOCOL, Segment, of_type, parse, pseudo_sum
from usernet.pipe.messages import family_of
from usernet.pipe.rings import REFERENCE_MASK, Ring
from usernet.pipe.streams import (
    ACCEPTED_HEADER,
    HELD_RECORD,
    RESET_RECORD,
    ROOM_OF_RING,
    ROOM_RECORD,
    STREAM_HEADER,
)

VIEW_OCTETS = 4096  # longer records are read in place; of shorter ones a copy is cheaper
LOOPBACK_MTU = 65535
SUPER_OCTETS = 65535 - 60 - HEADER_OCTETS_MAX  # of text: the maximum in an IP packet with all options
PLAIN_FLAGS = TRANSMIT_OF_MTU_DISCOVER[1] | TRANSMIT_PARTIAL  # ip(7), IP_MTU_DISCOVER: WANT; for segments of no socket
ECN_MASK = 3  # RFC 3168 section 5: the lowest bits of TOS
_HEADS = Struct(TRANSMIT_HEAD.format + HEADER.format[1:])
_sum_of_ends = lru_cache(256)(pseudo_sum)


class Paths:
    """The interface to the routes."""

    def __init__(self, config: StackConfig) -> None:
        self.table = RouteTable(configured(config))  # until ip announces them
        self._learnt: dict[bytes, int] = {}

    def is_local(self, address: bytes) -> bool:
        """True for an own or a loopback address."""
        return self.table.is_local(address)

    def source_for(self, destination: bytes) -> bytes | None:
        """The source address for a destination; None: no route."""
        return source_address.of_destination(self.table, destination)

    def is_group(self, address: bytes) -> bool:
        """True for a broadcast or multicast address."""
        return self.table.is_group(address)

    def leaks(self, source: bytes, destination: bytes) -> bool:
        """True if a segment would carry a loopback address out of the host."""
        return self.table.leaks(source, destination)

    def mtu(self, destination: bytes) -> int:
        """The MTU of the interface on the route."""
        if self.table.is_local(destination):
            return LOOPBACK_MTU
        route = self.table.lookup(destination)
        return route.mtu if route is not None else 576


class Records:
    """`Below` and `Above` of the engine: `sends` collects the output of a turn, but for ACCEPTED records."""

    def __init__(self, config: StackConfig, paths: Paths) -> None:
        self.sends: list[Send] = []
        self._accepted: list[Send] = []
        self._paths = paths
        self.ttl = config.ttl  # of segments of no socket

    def taken(self) -> list[Send]:
        """The output of the turn. ACCEPTED records come first: no other of their handles may precede them, and records
        of one kind that follow each other share a frame."""
        sends, self.sends = self.sends, []
        if self._accepted:
            sends, self._accepted = self._accepted + sends, []
        return sends

    # -- below

    def mtu(self, destination: bytes) -> int:
        """See `Below`."""
        return self._paths.mtu(destination)

    def super_octets(self, mss: int) -> int:
        """See `Below`. ip splits it if the device does not."""
        return max(SUPER_OCTETS, mss)  # on the loopback a segment may be longer than a device's maximum

    def transmit(self, source: bytes, destination: bytes, segment: Segment, size: int, options: StreamState | None,
                 capable: bool, held: Held | None = None) -> None:
        """See `Below`. The checksum is partial: ip or the device completes it."""
        if options is not None:
            ttl, tos, ip_options = options.ttl, options.tos, options.ip_options
            flags = TRANSMIT_OF_MTU_DISCOVER[options.mtu_discover] | TRANSMIT_PARTIAL
        else:
            ttl, tos, ip_options, flags = self.ttl, 0, b"", PLAIN_FLAGS
        if capable:
            tos = tos & ~ECN_MASK | ECT_0
        family = FAMILY_4 if len(destination) == 4 else FAMILY_6
        port, peer_port, sequence, acknowledgment, bits, window, urgent, unpacked, text, tcp_options = segment
        if tcp_options is None:
            tcp_options = unpacked.pack()
        octets, kind = HEADER_OCTETS + len(tcp_options), messages.TRANSMIT
        total = _sum_of_ends(source, destination, 0) + octets
        if held is None:
            total += len(text)
        else:
            total, text, kind = total + held.length, held.pack(), messages.TRANSMIT_HELD
        heads = _HEADS.pack(size, 0, family, flags, PROTOCOL, ttl, tos, len(ip_options), source, destination, port,
                            peer_port, sequence, acknowledgment, octets << 2 | bits >> 8, bits & 255, window,
                            total % 65535 or 65535, urgent)
        if ip_options:
            heads = b"".join((heads[: TRANSMIT_HEAD.size], ip_options, heads[TRANSMIT_HEAD.size :]))
        self.sends.append((topology.IP, kind, b"".join((heads, tcp_options, text))))

    def advise(self, destination: bytes) -> None:
        """See `Below`."""
        if not self._paths.is_local(destination):
            self.sends.append((topology.IP, messages.NEGATIVE_ADVICE, destination))

    # -- above

    def stream(self, handle: int, flags: int, offset: int, octets: bytes | memoryview) -> None:
        """See `Above`."""
        head = STREAM_HEADER.pack(handle, flags, offset)
        self.sends.append((topology.SOCKETS, messages.STREAM, b"".join((head, octets)) if octets else head))

    def stream_held(self, handle: int, flags: int, offset: int, length: int, ring: Ring) -> None:
        """See `Above`."""
        record = HELD_RECORD.pack(handle, flags, offset, length, ring.reference & REFERENCE_MASK)
        self.sends.append((topology.SOCKETS, messages.STREAM_HELD, record))

    def room(self, handle: int, flags: int, taken: int, acked: int, limit: int, ring: Ring | None = None) -> None:
        """See `Above`."""
        if ring is not None:
            record = ROOM_OF_RING.pack(handle, flags, taken, acked, limit, ring.reference & REFERENCE_MASK)
            self.sends.append((topology.SOCKETS, messages.ROOM, record))
            return
        self.sends.append((topology.SOCKETS, messages.ROOM, ROOM_RECORD.pack(handle, flags, taken, acked, limit)))

    def accepted(self, listener: int, handle: int, number: int, ends: Ends) -> None:
        """See `Above`."""
        head = ACCEPTED_HEADER.pack(listener, handle, number, ends.port, ends.peer_port, family_of(ends.local),
                                    INTERFACE_INDEX)
        self._accepted.append((topology.SOCKETS, messages.ACCEPTED, b"".join((head, ends.local, ends.peer))))

    def reset(self, handle: int, number: int) -> None:
        """See `Above`."""
        self.sends.append((topology.SOCKETS, messages.STREAM_RESET, RESET_RECORD.pack(handle, number)))


def arrival_of(record: bytes, counters: CounterWords, text: memoryview | None = None) -> Arrival | None:
    """The segment in a PACKET record, or with its `text` elsewhere; None (counted): malformed, or to a group."""
    _, _, flags, header_octets, _, _, _, tos, source, destination = PACKET_HEAD.unpack_from(record)
    if flags & FLAG_GROUP:  # RFC 9293 section 3.9.2.3 (MUST-57): silently discarded
        counters[C.to_group] += 1
        return None
    start = PACKET_HEAD.size + header_octets
    octets = record[start:] if len(record) < VIEW_OCTETS else memoryview(record)[start:]
    segment = parse(octets)
    if segment is None or (text is not None and (segment.payload or not flags & FLAG_CHECKED)):
        counters[C.packet_truncated] += 1
        return None
    if text is not None:
        segment = segment._replace(payload=text)
    # RFC 9293 section 3.1 (MUST-2, MUST-3): the checksum is mandatory and always verified
    if not flags & FLAG_CHECKED and not verifies(octets, pseudo_sum(source, destination, len(octets))):
        counters[C.bad_checksum] += 1
        return None
    return of_type(Arrival, (source, destination, segment, tos & ECN_MASK))

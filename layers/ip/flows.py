"""Flows: the common part of all packets with the same TRANSMIT_HEAD, and their way out.

A flow is created once; then each packet costs a look-up and a header. Flows are forgotten in a crash, and at every
change of routes, groups or path MTUs.
"""

from __future__ import annotations

from typing import NamedTuple

from bus import messages
from bus.config import CHECKSUM
from bus.layer import CounterWords, Send
from bus.messages import (
    FAMILY_4,
    FLAG_CHECKSUM_PARTIAL,
    FLAG_GROUP,
    FLAG_LOOPED,
    INTERFACE,
    PACKET_HEAD,
    PACKET_OUT_HEAD,
    TRANSMIT_HEAD,
)
from layers.common import source_address
from layers.common.routes import RouteTable
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers
from layers.ip.groups import Groups
from layers.ip.identification import Identifications, Series
from layers.ip.local_errors import NET_UNREACHABLE, UPPER, local_error
from layers.ip.neighbors import Neighbor, Neighbors
from layers.ip.routing import Routing
from packets import ipv4
from packets.addresses import is_loopback, is_multicast, is_unspecified
from packets.ip_options import OCTETS_MAX as OPTIONS_OCTETS_MAX
from packets.offload import CHECKSUM_AT

FLOWS_MAX = 4096
LOOPED_ONLY = Neighbor(b"")  # the next hop of packets that are only looped back
BROADCAST_MAC = b"\xff" * 6
HEAD_OCTETS = TRANSMIT_HEAD.size
GROWTH_OCTETS = ipv4.HEADER_OCTETS - HEAD_OCTETS  # octets that a packet is longer than its TRANSMIT record


class Way(NamedTuple):
    """How packets to a destination leave."""

    neighbor: Neighbor | None  # the next hop; None: the packet stays in the host
    mtu_octets: int
    loops: bool  # this host gets a copy
    group: int = FLAG_GROUP  # flag of the copy: FLAG_GROUP or 0
    capped: bool = False  # the path MTU is below the minimum


class Ways:
    """The ways to destinations, by routes, groups and neighbours."""

    def __init__(self, routing: Routing, groups: Groups, neighbors: Neighbors) -> None:
        self._routing = routing
        self._groups = groups
        self._neighbors = neighbors

    @property
    def routes(self) -> RouteTable:
        """The present addresses and routes."""
        return self._routing.table

    def to(self, to: bytes, source: bytes, flags: int) -> Way | None:
        """The way to a destination outside the host; its `neighbor` None: not permitted. None: no route."""
        routing = self._routing
        route = routing.table.lookup(to)
        mtu_octets = route.mtu if route is not None else routing.mtu_octets
        if routing.table.is_broadcast(to):
            permitted = flags & messages.TRANSMIT_BROADCAST
            return Way(_group_neighbor(BROADCAST_MAC) if permitted else None, mtu_octets, True)
        if is_multicast(to):
            loops = bool(flags & messages.TRANSMIT_LOOP) and self._groups.accepts(to, source)
            return Way(_group_neighbor(ipv4.group_mac(to)), mtu_octets, loops)
        if route is None:
            return None
        capped = False
        if flags & messages.TRANSMIT_IGNORE_PATH_MTU:
            mtu_octets = routing.mtu_octets
        else:
            mtu_octets, capped = routing.mtu_to(to, route)
        return Way(self._neighbors.get(route.gateway or to), mtu_octets, False, capped=capped)


class Flow:
    """`neighbor` None: the packet stays in the host. Packets of up to `plain_octets` only need a header."""

    __slots__ = ("crafted", "dont_fragment", "end", "flags", "loops", "mac", "may_fragment", "middle", "mtu_octets",
                 "neighbor", "option_octets", "partial", "plain_octets", "protocol", "series", "size", "start",
                 "template", "template_sum", "up_flags", "upper", "whole_octets")

    def __init__(self, head: bytes, template: bytes, series: Series, dont_fragment: bool, upper: int | None,
                 way: Way) -> None:
        neighbor, mtu_octets, loops, group, _ = way
        self.size, _, _, flags, self.protocol, _, _, self.option_octets, *_ = TRANSMIT_HEAD.unpack(head)
        self.template = template
        self.series = series  # for identification numbers
        self.template_sum = ipv4.header_sum(template)
        _, self.middle, self.end = ipv4.parts(template)
        self.dont_fragment = dont_fragment
        self.flags = flags
        self.may_fragment = bool(flags & messages.TRANSMIT_MAY_FRAGMENT)
        self.crafted = bool(flags & messages.TRANSMIT_WHOLE)
        self.partial = bool(flags & messages.TRANSMIT_PARTIAL)
        self.upper = upper
        self.neighbor = neighbor
        self.mac = b""  # the MAC in `start`
        self.loops = loops
        self.up_flags = FLAG_LOOPED | group  # flags of looped-back packets
        self.mtu_octets = mtu_octets
        plain = not self.option_octets and not self.crafted and (not loops or (neighbor is None and upper is not None))
        # maximum length of the packets of a super-packet that may leave as a whole
        self.whole_octets = mtu_octets if plain else 0
        self.plain_octets = 0 if self.size else self.whole_octets
        self.start = self.head_up() + template[:2]  # the octets before length and identification

    def head_up(self) -> bytes:
        """The PACKET_HEAD of packets to this host."""
        flags = self.up_flags | (FLAG_CHECKSUM_PARTIAL if self.partial else 0)
        _, tos, _, _, _, ttl, protocol, _, source, destination = ipv4.HEADER.unpack(self.template)
        return PACKET_HEAD.pack(INTERFACE, FAMILY_4, flags, ipv4.HEADER_OCTETS, self.size, protocol, ttl, tos, source,
                                destination)

    def set_mac(self, mac: bytes) -> None:
        """Send packets to this MAC from now on."""
        self.mac = mac
        self.start = out_head(mac, self.protocol, self.partial, self.size) + self.template[:2]


def out_head(mac: bytes, protocol: int, partial: bool = False, size: int = 0) -> bytes:
    """A PACKET_OUT_HEAD."""
    return PACKET_OUT_HEAD.pack(INTERFACE, FAMILY_4, FLAG_CHECKSUM_PARTIAL if partial else 0, protocol, size, mac)


def out_record(mac: bytes, packet: bytes) -> bytes:
    """A PACKET_OUT record for a packet in the form that it has on a wire."""
    return out_head(mac, packet[ipv4.PROTOCOL_AT]) + packet


class Flows:
    """The flows, by their head."""

    def __init__(self, ways: Ways, uppers: Uppers, identifications: Identifications, counters: CounterWords,
                 offload: tuple[str, ...] = ()) -> None:
        self.by_head: dict[bytes, Flow] = {}
        self.offload = offload
        self._ways = ways
        self._uppers = uppers
        self._identifications = identifications
        self._counters = counters
        self._destinations: set[bytes] = set()  # destinations of all flows since both caches were cleared

    def start(self) -> None:
        """Restore the identification numbers."""
        self._identifications.start()

    def sends_to(self, destination: bytes) -> bool:
        """True if a packet was sent to this destination recently."""
        return destination in self._destinations

    def clear(self) -> None:
        """Routes, groups or the protocols for raw have changed: clear the flows."""
        self.by_head.clear()

    def new(self, head: bytes, record: bytes, sends: list[Send]) -> Flow | None:
        """The flow of a new TRANSMIT_HEAD; None (counted and reported to the sender): it cannot be sent."""
        if len(head) < HEAD_OCTETS:
            self._counters[C.bad_transmit] += 1
            return None
        _, _, family, flags, protocol, ttl, tos, option_octets, source, destination = TRANSMIT_HEAD.unpack(head)
        routes = self._ways.routes
        partial = flags & messages.TRANSMIT_PARTIAL
        ours = is_unspecified(source) or routes.is_local(source)
        if (family != FAMILY_4 or not ours or option_octets > OPTIONS_OCTETS_MAX or option_octets % 4
                or (partial and protocol not in CHECKSUM_AT)):
            self._counters[C.bad_transmit] += 1
            return None
        if is_unspecified(source):
            source = source_address.of_destination(routes, destination) or source
        upper, series = UPPER.get(protocol), self._identifications.series(source, destination, protocol)
        dont_fragment = bool(flags & messages.TRANSMIT_DONT_FRAGMENT)
        if routes.is_local(destination):
            broadcast = routes.is_broadcast(destination)  # 127.255.255.255
            if broadcast and not flags & messages.TRANSMIT_BROADCAST:
                self._counters[C.broadcast_denied] += 1
                return None
            way = Way(None, ipv4.LENGTH_MAX, True, FLAG_GROUP if broadcast else 0)
        else:
            found = self._ways.to(destination, source, flags)
            # RFC 1122 section 3.2.1.3 (g): a packet from 127/8 never appears outside the host
            if found is None or is_loopback(source) or is_unspecified(source):
                self._counters[C.no_route] += 1
                template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
                sends += self._no_route(template, flags, record)
                return None
            way = found
            if way.neighbor is None:
                self._counters[C.broadcast_denied] += 1
                return None
            if not ttl:  # RFC 1122 section 3.2.1.7: never sent; ip(7): such a multicast stays in the host
                if not way.loops:
                    self._counters[C.no_lifetime] += 1
                    return None
                way = way._replace(neighbor=LOOPED_ONLY)
            # Packets on a path whose MTU is below the minimum do not have DF set: see path_mtu.Path.
            dont_fragment = dont_fragment and not (way.capped and flags & messages.TRANSMIT_MAY_FRAGMENT)
        template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
        flow = Flow(head, template, series, dont_fragment, upper, way)
        if len(self.by_head) >= FLOWS_MAX or len(self._destinations) >= FLOWS_MAX:
            self.by_head.clear()
            self._destinations.clear()
        no_sums = flow.partial and not flow.loops and CHECKSUM not in self.offload
        if no_sums or (flow.loops and protocol in self._uppers.wanted):  # or raw wants a copy
            flow.plain_octets = flow.whole_octets = 0
        self.by_head[head] = flow
        self._destinations.add(destination)
        return flow

    def _no_route(self, template: bytes, flags: int, record: bytes) -> list[Send]:
        length = len(record) + GROWTH_OCTETS
        option_octets = TRANSMIT_HEAD.unpack_from(record)[7]
        if length > ipv4.LENGTH_MAX or option_octets or flags & messages.TRANSMIT_WHOLE:
            return []
        header = ipv4.finish_header(template, ipv4.header_sum(template), length, 0)
        return local_error(NET_UNREACHABLE, header + record[HEAD_OCTETS:], self._uppers.wanted)


def _group_neighbor(mac: bytes) -> Neighbor:
    neighbor = Neighbor(b"")
    neighbor.mac = mac
    neighbor.ask_again_at = float("inf")
    return neighbor

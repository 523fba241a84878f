"""Output: from a transport's segment to packets whose next hop is resolved.

Owns flows (the common part of all packets with the same TRANSMIT_HEAD) and the packets that wait for the address of a
neighbour. Forgets both in a crash.
"""

from __future__ import annotations

import random
from struct import Struct

from bus import messages, topology
from bus.config import CHECKSUM, SEGMENTATION_OF
from bus.layer import CounterWords, Send, State
from bus.messages import (
    FAMILY_4,
    FLAG_CHECKSUM_PARTIAL,
    FLAG_GROUP,
    FLAG_LOOPED,
    INTERFACE,
    PACKET,
    PACKET_HEAD,
    PACKET_OUT,
    PACKET_OUT_HEAD,
    TRANSMIT_HEAD,
)
from layers.common import source_address
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers, copy_of
from layers.ip.groups import Groups
from layers.ip.identification import Identifications, Series
from layers.ip.local_errors import (
    FRAGMENTATION_NEEDED,
    HOST_UNREACHABLE,
    NET_UNREACHABLE,
    PROTOCOL_UNREACHABLE,
    UNREACHABLE,
    UPPER,
    complaint,
    local_error,
)
from layers.ip.neighbors import ASK_AGAIN_AFTER_S, MAC_OCTETS, WAITING_MAX, Neighbor, Neighbors
from layers.ip.options import examine
from layers.ip.records import record_of
from layers.ip.routing import Routing
from packets import ipv4
from packets.addresses import WIDTHS, is_loopback, is_multicast, is_unspecified
from packets.fragments import split
from packets.ip_options import OCTETS_MAX as OPTIONS_OCTETS_MAX
from packets.offload import CHECKSUM_AT, complete, completed, segment_header_octets, segments

FLOWS_MAX = 4096
NOBODY = Neighbor(b"")  # the next hop of packets that are only looped back
BROADCAST_MAC = b"\xff" * 6
HEAD_OCTETS = TRANSMIT_HEAD.size
GROWTH_OCTETS = ipv4.HEADER_OCTETS - HEAD_OCTETS  # octets that a packet is longer than its TRANSMIT record
_ONE_PACKET = bytes(2)  # segment size at the beginning of the head

# The head of a record, and ipv4.PARTS, for one pack.
_UP = Struct(f"!{PACKET_HEAD.size + 2}s" + ipv4.PARTS.format[3:])
_OUT = Struct(f"!{PACKET_OUT_HEAD.size + 2}s" + ipv4.PARTS.format[3:])


class Flow:
    """`neighbor` None: the packet stays in the host. Packets of up to `plain_octets` only need a header."""

    __slots__ = ("crafted", "dont_fragment", "end", "flags", "loops", "mac", "may_fragment", "middle", "mtu_octets",
                 "neighbor", "option_octets", "partial", "plain_octets", "protocol", "series", "size", "start",
                 "template", "template_sum", "up_flags", "upper", "whole_octets")

    def __init__(self, head: bytes, template: bytes, series: Series, dont_fragment: bool, upper: int | None,
                 neighbor: Neighbor | None, loops: bool, mtu_octets: int, group: int = 0) -> None:
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


class Output:
    """The output path: segments, waiting packets, and answers of arp."""

    def __init__(self, routing: Routing, groups: Groups, uppers: Uppers, state: State,
                 counters: CounterWords, rng: random.Random, epoch: float, offload: tuple[str, ...] = ()) -> None:
        self._routing = routing
        self._groups = groups
        self._uppers = uppers
        self._offload = offload
        self._epoch = epoch
        self._counters = counters
        self._neighbors = Neighbors(state, counters)
        self._flows: dict[bytes, Flow] = {}
        self._destinations: set[bytes] = set()  # destinations of all flows since both caches were cleared
        self._identifications = Identifications(state, rng)

    def start(self) -> None:
        """Restore the identification numbers and the neighbours."""
        self._neighbors.start()
        self._identifications.start()

    def sends_to(self, destination: bytes) -> bool:
        """True if a packet was sent to this destination recently."""
        return destination in self._destinations

    def rerouted(self) -> None:
        """Routes, groups or the protocols for raw have changed: clear the caches."""
        self._flows.clear()

    def transmit(self, records: list[bytes], now: float) -> list[Send]:
        """Process TRANSMIT records."""
        # The hot path: does what finish_header does without a call. It uses locals, and no call that a known flow does
        # not need.
        flows, pack_up, pack_out = self._flows, _UP.pack, _OUT.pack
        sends: list[Send] = []
        sent = looped = 0
        for record in records:
            head = record[:HEAD_OCTETS]
            flow = flows.get(head) or self._new_flow(head, record, sends)
            if flow is None:
                continue
            length = len(record) + GROWTH_OCTETS
            if length > flow.plain_octets:
                sent += self._transmit_otherwise(flow, record, now, sends)
                continue
            identification = 0 if flow.dont_fragment else flow.series.next(now)  # RFC 6864 section 4.1
            total = 65535 - ((flow.template_sum + length + identification) % 65535 or 65535)
            neighbor = flow.neighbor
            if neighbor is None:
                built = pack_up(flow.start, length, identification, flow.middle, total, flow.end)
                sends.append((flow.upper, PACKET, built + record[HEAD_OCTETS:]))  # type: ignore[arg-type]  # None is not plain
                looped += 1
                continue
            mac = neighbor.mac
            if mac is None or now > neighbor.ask_again_at:
                packet = ipv4.finish_header(flow.template, flow.template_sum, length, identification)
                packet += record[HEAD_OCTETS:]
                mac = self._ask(flow, completed(packet, flow.protocol) if flow.partial else packet, now, sends)
                if mac is None:
                    continue
            if mac is not flow.mac:
                flow.set_mac(mac)
            built = pack_out(flow.start, length, identification, flow.middle, total, flow.end)
            sends.append((topology.LINK, PACKET_OUT, built + record[HEAD_OCTETS:]))
            sent += 1
        self._counters[C.packets_out] += sent
        self._counters[C.looped] += looped
        return sends

    def _transmit_super(self, flow: Flow, record: bytes, now: float, sends: list[Send]) -> int:
        """Send a super-packet: as a whole if its packets only need headers, otherwise as single packets."""
        segment = record[HEAD_OCTETS + flow.option_octets :]
        if self._transmit_whole(flow, segment, now, sends):
            return 0
        cut = segments(segment, flow.protocol, flow.size) if flow.partial and not flow.crafted else []
        if not cut:
            self._counters[C.bad_transmit] += 1
        head = _ONE_PACKET + record[len(_ONE_PACKET) : HEAD_OCTETS + flow.option_octets]
        sends += self.transmit([head + piece for piece in cut], now)
        return 0

    def _transmit_whole(self, flow: Flow, segment: bytes, now: float, sends: list[Send]) -> bool:
        """Send a super-packet as a whole; False: it must be split here."""
        length = ipv4.HEADER_OCTETS + len(segment)
        header_octets = segment_header_octets(segment, flow.protocol)
        headers_octets = ipv4.HEADER_OCTETS + header_octets
        if not (flow.partial and header_octets) or length > ipv4.LENGTH_MAX:
            return False
        if headers_octets + flow.size > flow.whole_octets:
            return False
        neighbor = flow.neighbor
        if neighbor is not None and (neighbor.mac is None or SEGMENTATION_OF.get(flow.protocol) not in self._offload):
            return False
        count = -(-(length - headers_octets) // flow.size)
        identification = 0 if flow.dont_fragment else flow.series.run(count, now)  # each packet gets the next number
        header = ipv4.finish_header(flow.template, flow.template_sum, length, identification)
        if neighbor is None:
            sends.append((flow.upper, PACKET, b"".join((flow.start[:-2], header, segment))))  # type: ignore[arg-type]
            self._counters[C.looped] += count
            return True
        if now > neighbor.ask_again_at:
            self._ask(flow, b"", now, sends)  # its address is known, so no packet waits
        if neighbor.mac is not flow.mac:
            flow.set_mac(neighbor.mac)  # type: ignore[arg-type]  # looked at above
        sends.append((topology.LINK, PACKET_OUT, b"".join((flow.start[:-2], header, segment))))
        self._counters[C.packets_out] += count
        return True

    def _transmit_otherwise(self, flow: Flow, record: bytes, now: float, sends: list[Send]) -> int:
        """Send a packet that is looped back, has options, is too long or a super-packet; returns how many were passed
        to link here."""
        end = HEAD_OCTETS + flow.option_octets
        options, segment = record[HEAD_OCTETS:end], record[end:]
        if len(options) != flow.option_octets:
            self._counters[C.bad_transmit] += 1
            return 0
        if flow.size:
            return self._transmit_super(flow, record, now, sends)
        if flow.crafted:
            return self._transmit_crafted(flow, segment, now, sends)
        if flow.partial:
            segment = complete(segment, CHECKSUM_AT[flow.protocol])
        length = ipv4.HEADER_OCTETS + len(options) + len(segment)
        if length > ipv4.LENGTH_MAX:
            self._counters[C.over_length] += 1
            return 0
        too_long = length > flow.mtu_octets
        identification = 0 if flow.dont_fragment and not too_long else flow.series.next(now)
        header = ipv4.header_with_options(flow.template, options, length, identification)
        if options and flow.flags & messages.TRANSMIT_RECORD:
            header = examine(header, header[ipv4.SOURCE], now + self._epoch, ours_to_send=True).header
        built = header + segment
        if too_long and not flow.may_fragment:
            self._counters[C.over_mtu] += 1
            sends += local_error(FRAGMENTATION_NEEDED, built, self._uppers.wanted, flow.mtu_octets)
            return 0
        if flow.loops:
            self._loop(flow, built, sends)
        if flow.neighbor is None or flow.neighbor is NOBODY:
            return 0
        if not too_long:
            return self._hand_over(flow, built, now, sends)
        self._counters[C.fragmented] += 1
        return sum(self._hand_over(flow, fragment, now, sends) for fragment in split(built, flow.mtu_octets))

    def _transmit_crafted(self, flow: Flow, given: bytes, now: float, sends: list[Send]) -> int:
        """Send a packet with its own IP header (ip(7), IP_HDRINCL), which is never fragmented."""
        counters = self._counters
        if ipv4.header_octets(given) > len(given) or len(given) < ipv4.HEADER_OCTETS:
            counters[C.bad_crafted] += 1
            return 0
        if len(given) > ipv4.LENGTH_MAX:
            counters[C.over_length] += 1
            return 0
        built = ipv4.completed(given, flow.template[ipv4.SOURCE], flow.series.next(now))
        if len(given) > flow.mtu_octets:
            counters[C.over_mtu] += 1
            sends += local_error(FRAGMENTATION_NEEDED, built, self._uppers.wanted, flow.mtu_octets)
            return 0
        if flow.loops:
            elsewhere = built[ipv4.DESTINATION] != flow.template[ipv4.DESTINATION]
            if ipv4.is_fragment(built) or (flow.neighbor is None and elsewhere):
                counters[C.bad_crafted] += 1
                return 0
            self._loop(flow, built, sends)
        if flow.neighbor is None or flow.neighbor is NOBODY:
            return 0
        return self._hand_over(flow, built, now, sends)

    def _loop(self, flow: Flow, built: bytes, sends: list[Send]) -> None:
        self._counters[C.looped] += 1
        flags = flow.up_flags
        protocol = built[ipv4.PROTOCOL_AT]
        record = record_of(built, flags)
        copied = protocol in self._uppers.wanted
        if copied:
            self._counters[C.copied] += 1
            sends.append(copy_of(record, flags, protocol))
        if flow.upper is not None:
            sends.append((flow.upper, PACKET, record))
        elif flow.neighbor is None and not copied:
            sends.append(complaint(UNREACHABLE, PROTOCOL_UNREACHABLE, record))

    def _hand_over(self, flow: Flow, built: bytes, now: float, sends: list[Send]) -> int:
        """Pass one packet to link or to the waiting ones; returns the number passed to link."""
        neighbor = flow.neighbor
        assert neighbor is not None
        mac = neighbor.mac
        if mac is None or now > neighbor.ask_again_at:
            mac = self._ask(flow, built, now, sends)
            if mac is None:
                return 0
        sends.append((topology.LINK, PACKET_OUT, out_record(mac, built)))
        return 1

    # -- flows -----------------------------------------------------------------------------------------------------

    def _new_flow(self, head: bytes, record: bytes, sends: list[Send]) -> Flow | None:
        """The flow of a new TRANSMIT_HEAD; None (counted and reported to the sender): it cannot be sent."""
        if len(head) < HEAD_OCTETS:
            self._counters[C.bad_transmit] += 1
            return None
        _, _, family, flags, protocol, ttl, tos, option_octets, source, destination = TRANSMIT_HEAD.unpack(head)
        routes = self._routing.table
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
        group = 0
        if routes.is_local(destination):
            template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
            if routes.is_broadcast(destination):  # 127.255.255.255
                if not flags & messages.TRANSMIT_BROADCAST:
                    self._counters[C.broadcast_denied] += 1
                    return None
                group = FLAG_GROUP
            flow = Flow(head, template, series, dont_fragment, upper, None, True, ipv4.LENGTH_MAX, group)
        else:
            way = self._way(destination, source, flags)
            # RFC 1122 section 3.2.1.3 (g): a packet from 127/8 never appears outside the host
            if way is None or is_loopback(source) or is_unspecified(source):
                self._counters[C.no_route] += 1
                template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
                sends += self._no_route(template, flags, record)
                return None
            neighbor, mtu_octets, loops, capped = way
            if neighbor is None:
                self._counters[C.broadcast_denied] += 1
                return None
            if not ttl:  # RFC 1122 section 3.2.1.7: never sent; ip(7): such a multicast stays in the host
                if not loops:
                    self._counters[C.no_lifetime] += 1
                    return None
                neighbor = NOBODY
            # Packets on a path whose MTU is below the minimum do not have DF set: see path_mtu.Path.
            dont_fragment = dont_fragment and not (capped and flags & messages.TRANSMIT_MAY_FRAGMENT)
            template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
            flow = Flow(head, template, series, dont_fragment, upper, neighbor, loops, mtu_octets, FLAG_GROUP)
        if len(self._flows) >= FLOWS_MAX or len(self._destinations) >= FLOWS_MAX:
            self._flows.clear()
            self._destinations.clear()
        no_sums = flow.partial and not flow.loops and CHECKSUM not in self._offload
        if no_sums or (flow.loops and protocol in self._uppers.wanted):  # or raw wants a copy
            flow.plain_octets = flow.whole_octets = 0
        self._flows[head] = flow
        self._destinations.add(destination)
        return flow

    def _no_route(self, template: bytes, flags: int, record: bytes) -> list[Send]:
        length = len(record) + GROWTH_OCTETS
        option_octets = TRANSMIT_HEAD.unpack_from(record)[7]
        if length > ipv4.LENGTH_MAX or option_octets or flags & messages.TRANSMIT_WHOLE:
            return []
        header = ipv4.finish_header(template, ipv4.header_sum(template), length, 0)
        return local_error(NET_UNREACHABLE, header + record[HEAD_OCTETS:], self._uppers.wanted)

    def _way(self, to: bytes, source: bytes, flags: int) -> tuple[Neighbor | None, int, bool, bool] | None:
        """(next hop, MTU, whether this host gets a copy, whether the path is capped); next hop None: not permitted."""
        routing = self._routing
        route = routing.table.lookup(to)
        mtu_octets = route.mtu if route is not None else routing.mtu_octets
        if routing.table.is_broadcast(to):
            permitted = flags & messages.TRANSMIT_BROADCAST
            return _group_neighbor(BROADCAST_MAC) if permitted else None, mtu_octets, True, False
        if is_multicast(to):
            loops = bool(flags & messages.TRANSMIT_LOOP) and self._groups.accepts(to, source)
            return _group_neighbor(ipv4.group_mac(to)), mtu_octets, loops, False
        if route is None:
            return None
        capped = False
        if flags & messages.TRANSMIT_IGNORE_PATH_MTU:
            mtu_octets = routing.mtu_octets
        else:
            mtu_octets, capped = routing.mtu_to(to, route)
        return self._neighbors.get(route.gateway or to), mtu_octets, False, capped

    # -- neighbours ------------------------------------------------------------------------------------------------

    def _ask(self, flow: Flow, built: bytes, now: float, sends: list[Send]) -> bytes | None:
        """Ask arp for a neighbour if that is due. Returns the MAC if it is known; None: the packet waits for it.

        `built` has the form that it has on a wire.
        """
        address = flow.neighbor.address  # type: ignore[union-attr]
        neighbor = flow.neighbor = self._neighbors.get(address)  # another object, if the flow's was deleted
        if now > neighbor.ask_again_at:
            self._resolve(neighbor, now, sends)
        if neighbor.mac is None:
            self._keep(neighbor, built)
        return neighbor.mac

    def _resolve(self, neighbor: Neighbor, now: float, sends: list[Send]) -> None:
        neighbor.ask_again_at = now + ASK_AGAIN_AFTER_S
        sends.append((topology.ARP, messages.RESOLVE, neighbor.address))
        # RFC 1122 section 3.3.1.4: dead gateways are tried only while packets are sent
        due = self._routing.gateways.due(now)
        sends += [(topology.ARP, messages.RESOLVE, gateway) for gateway in due]

    def _keep(self, neighbor: Neighbor, built: bytes) -> None:
        """Let a packet wait; the latest are kept."""
        waiting = neighbor.waiting
        if len(waiting) >= WAITING_MAX:
            waiting.popleft()
            self._counters[C.neighbor_queue_full] += 1
        waiting.append(built)

    def unresolved(self) -> list[Send]:
        """Ask again for the addresses that packets wait for."""
        return [(topology.ARP, messages.RESOLVE, neighbor.address) for neighbor in self._neighbors.unresolved()]

    def resolved(self, records: list[bytes], now: float) -> list[Send]:
        """NEIGHBOR records: send the waiting packets."""
        sends: list[Send] = []
        for record in records:
            address, mac = record[:-MAC_OCTETS], record[-MAC_OCTETS:]
            if len(address) not in WIDTHS:
                self._counters[C.bad_announcement] += 1
                continue
            if self._routing.gateway_lives(address):
                self.rerouted()
            neighbor = self._neighbors.learn(address, mac, now)
            sends += [(topology.LINK, PACKET_OUT, out_record(mac, built)) for built in neighbor.waiting]
            self._counters[C.packets_out] += len(neighbor.waiting)
            neighbor.waiting.clear()
        return sends

    def unreachable(self, records: list[bytes], now: float) -> list[Send]:
        """UNREACHABLE records: waiting packets use another gateway, or their senders get an error."""
        sends: list[Send] = []
        for record in records:
            neighbor = self._neighbors.find(record)
            if neighbor is None:
                self._counters[C.bad_announcement] += len(record) not in WIDTHS
                continue
            self._neighbors.forget(neighbor)
            if self._routing.gateway_failed(record, now):
                self.rerouted()
            waiting = list(neighbor.waiting)
            neighbor.waiting.clear()
            for built in waiting:
                if not self._send_otherwise(built, now, sends):
                    self._counters[C.neighbor_unreachable] += 1
                    sends += local_error(HOST_UNREACHABLE, built, self._uppers.wanted)
        return sends

    def _send_otherwise(self, built: bytes, now: float, sends: list[Send]) -> bool:
        """RFC 1122 section 3.3.1.5: send a packet through another gateway; False: there is none that may be alive."""
        route = self._routing.table.lookup(built[ipv4.DESTINATION])
        if route is None or not route.gateway or route.gateway in self._routing.gateways:
            return False
        neighbor = self._neighbors.get(route.gateway)
        self._counters[C.rerouted] += 1
        if now > neighbor.ask_again_at:
            self._resolve(neighbor, now, sends)
        if neighbor.mac is None:
            self._keep(neighbor, built)
        else:
            sends.append((topology.LINK, PACKET_OUT, out_record(neighbor.mac, built)))
            self._counters[C.packets_out] += 1
        return True

    def forget(self, records: list[bytes]) -> None:
        """FORGET records: the next packet asks arp and waits; packets that wait already keep waiting."""
        for record in records:
            neighbor = self._neighbors.find(record)
            if neighbor is not None:
                self._neighbors.forget(neighbor)


def _group_neighbor(mac: bytes) -> Neighbor:
    neighbor = Neighbor(b"")
    neighbor.mac = mac
    neighbor.ask_again_at = float("inf")
    return neighbor

"""The way out: from a transport's segment to packets whose next hop is resolved.

Owns flows (what is the same for all packets with one TRANSMIT_HEADER) and the packets that wait for a neighbour's
address. Forgets both in a crash.
"""

from __future__ import annotations

import random

from bus import messages, topology
from bus.config import SEGMENTATION
from bus.layer import CounterWords, Send, State
from layers.common.routes import is_multicast
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers, copy_of
from layers.ip.fragments import split
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
from layers.ip.neighbors import ASK_AGAIN_AFTER_S, WAITING_MAX, Neighbor, Neighbors
from layers.ip.options import examine
from layers.ip.routing import Routing
from packets import ipv4
from packets.ip_options import OCTETS_MAX as OPTIONS_OCTETS_MAX
from packets.ip_options import TRANSMIT_RECORD, TRANSMIT_WORDS
from packets.offload import UDP_HEADER_OCTETS, complete, segments, settled

FLOWS_MAX = 4096
NOBODY = Neighbor(b"")  # the next hop of what loops and goes no further
BROADCAST_MAC = b"\xff" * 6
TRANSMIT_OCTETS = messages.TRANSMIT_HEADER.size
SEGMENTS_OCTETS_MIN = messages.SEGMENT_SIZE.size + TRANSMIT_OCTETS + UDP_HEADER_OCTETS
GROWTH_OCTETS = ipv4.HEADER_OCTETS - TRANSMIT_OCTETS  # from a TRANSMIT record to its packet


class Flow:
    """`neighbor` None: stays in the host. Up to `plain_octets` (of packet) need nothing but their header."""

    __slots__ = ("crafted", "dont_fragment", "end", "kind_out", "kind_up", "loops", "may_fragment", "middle",
                 "mtu_octets", "neighbor", "options", "partial", "plain_octets", "series", "start", "template",
                 "template_sum", "upper")

    def __init__(self, template: bytes, series: Series, flags: int, dont_fragment: bool, upper: int | None,
                 neighbor: Neighbor | None, loops: bool, mtu_octets: int) -> None:
        self.template = template
        self.series = series  # of identification numbers
        self.template_sum = ipv4.header_sum(template)
        self.start, self.middle, self.end = ipv4.parts(template)
        self.dont_fragment = dont_fragment
        self.may_fragment = bool(flags & messages.TRANSMIT_MAY_FRAGMENT)
        self.options = bool(flags & messages.TRANSMIT_OPTIONS)
        self.crafted = bool(flags & messages.TRANSMIT_WHOLE)
        self.partial = bool(flags & messages.TRANSMIT_PARTIAL)
        self.kind_up = messages.PACKET_CHECKED if self.partial else messages.PACKET  # needs but its header
        self.kind_out = messages.PACKET_OUT_PARTIAL if self.partial else messages.PACKET_OUT
        self.upper = upper
        self.neighbor = neighbor
        self.loops = loops
        self.mtu_octets = mtu_octets
        plain = not self.options and not self.crafted and (not loops or (neighbor is None and upper is not None))
        self.plain_octets = mtu_octets if plain else 0


class Output:
    """Segments down, packets that wait, answers from arp."""

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
        self._destinations: set[bytes] = set()  # those of all flows since both started afresh
        self._identifications = Identifications(state, rng)

    def start(self) -> None:
        """Go on behind the numbers that were used, and with the neighbours that were known."""
        self._neighbors.start()
        self._identifications.start()

    def sends_to(self, destination: bytes) -> bool:
        """Whether anything was sent there of late."""
        return destination in self._destinations

    def rerouted(self) -> None:
        """Routes, groups or what raw wants have changed: nothing that followed from them holds."""
        self._flows.clear()

    def transmit(self, records: list[bytes], now: float) -> list[Send]:
        """TRANSMIT records."""
        # The hot path: as finish_header does, without the call. Locals, and no call that a known flow can do without.
        flows, pack = self._flows, ipv4.PARTS.pack
        sends: list[Send] = []
        sent = looped = 0
        for record in records:
            flow = flows.get(record[:12]) or self._new_flow(record[:12], record, sends)
            if flow is None:
                continue
            length = len(record) + GROWTH_OCTETS
            if length > flow.plain_octets:
                sent += self._transmit_otherwise(flow, record, now, sends)
                continue
            identification = 0 if flow.dont_fragment else flow.series.next(now)  # RFC 6864 section 4.1
            total = (flow.template_sum + length + identification) % 65535 or 65535
            built = pack(flow.start, length, identification, flow.middle, 65535 - total, flow.end) + record[12:]
            neighbor = flow.neighbor
            if neighbor is None:
                sends.append((flow.upper, flow.kind_up, built))  # type: ignore[arg-type]  # None is not plain
                looped += 1
                continue
            mac = neighbor.mac
            if mac is None or now > neighbor.ask_again_at:
                mac = self._ask(flow, built, now, sends)
                if mac is None:
                    continue
            sends.append((topology.LINK, flow.kind_out, mac + built))
            sent += 1
        self._counters[C.packets_out] += sent
        self._counters[C.looped] += looped
        return sends

    def transmit_segments(self, records: list[bytes], now: float) -> list[Send]:
        """TRANSMIT_SEGMENTS records: each goes on in one piece where all of its datagrams need but their headers."""
        sends: list[Send] = []
        for record in records:
            (size,) = messages.SEGMENT_SIZE.unpack_from(record) if len(record) > SEGMENTS_OCTETS_MIN else (0,)
            if not size:
                self._counters[C.bad_transmit] += 1
                continue
            request = record[messages.SEGMENT_SIZE.size :]
            flow = self._flows.get(request[:12]) or self._new_flow(request[:12], request, sends)
            if flow is None:
                continue
            if not self._transmit_whole(flow, size, request, now, sends):
                header = request[:TRANSMIT_OCTETS]
                cut = segments(request[TRANSMIT_OCTETS:], size)
                sends += self.transmit([header + segment for segment in cut], now)
        return sends

    def _transmit_whole(self, flow: Flow, size: int, request: bytes, now: float, sends: list[Send]) -> bool:
        """Send a super-packet; False where it has to be cut here."""
        length = len(request) + GROWTH_OCTETS
        headers_octets = ipv4.HEADER_OCTETS + UDP_HEADER_OCTETS
        if not flow.partial or headers_octets + size > flow.plain_octets or length > ipv4.LENGTH_MAX:
            return False
        neighbor = flow.neighbor
        if neighbor is not None and (neighbor.mac is None or SEGMENTATION not in self._offload):
            return False
        count = -(-(length - headers_octets) // size)
        identification = 0 if flow.dont_fragment else flow.series.run(count, now)  # each datagram gets the next
        header = ipv4.finish_header(flow.template, flow.template_sum, length, identification)
        segment = request[TRANSMIT_OCTETS:]
        if neighbor is None:
            head = messages.SUPER_HEADER.pack(size, 0)
            sends.append((flow.upper, messages.PACKET_SEGMENTS, b"".join((head, header, segment))))  # type: ignore[arg-type]
            self._counters[C.looped] += count
            return True
        if now > neighbor.ask_again_at:
            self._ask(flow, b"", now, sends)  # its address is known, so nothing waits
        head = messages.SEGMENT_SIZE.pack(size)
        built = b"".join((head, neighbor.mac, header, segment))  # type: ignore[arg-type]  # looked at above
        sends.append((topology.LINK, messages.PACKET_OUT_SEGMENTS, built))
        self._counters[C.packets_out] += count
        return True

    def _transmit_otherwise(self, flow: Flow, record: bytes, now: float, sends: list[Send]) -> int:
        """A packet that loops, has options or is too long; returns how many packets went to link."""
        options, segment, records = b"", record[TRANSMIT_OCTETS:], False
        if flow.crafted:
            return self._transmit_crafted(flow, segment, now, sends)
        if flow.options:
            octets = (record[TRANSMIT_OCTETS] & TRANSMIT_WORDS) * 4 if segment else OPTIONS_OCTETS_MAX + 1
            options, segment = segment[1 : 1 + octets], segment[1 + octets :]
            if octets > OPTIONS_OCTETS_MAX or len(options) != octets:
                self._counters[C.bad_transmit] += 1
                return 0
            records = bool(record[TRANSMIT_OCTETS] & TRANSMIT_RECORD)
        if flow.partial:
            segment = complete(segment)
        length = ipv4.HEADER_OCTETS + len(options) + len(segment)
        if length > ipv4.LENGTH_MAX:
            self._counters[C.over_length] += 1
            return 0
        too_long = length > flow.mtu_octets
        identification = 0 if flow.dont_fragment and not too_long else flow.series.next(now)
        header = ipv4.header_with_options(flow.template, options, length, identification)
        if records:
            header = examine(header, header[12:16], now + self._epoch, ours_to_send=True).header
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
        """A packet that an application made, header and all (ip(7), IP_HDRINCL): never fragmented."""
        counters = self._counters
        if ipv4.header_octets(given) > len(given) or len(given) < ipv4.HEADER_OCTETS:
            counters[C.bad_crafted] += 1
            return 0
        if len(given) > ipv4.LENGTH_MAX:
            counters[C.over_length] += 1
            return 0
        built = ipv4.completed(given, flow.template[12:16], flow.series.next(now))
        if len(given) > flow.mtu_octets:
            counters[C.over_mtu] += 1
            sends += local_error(FRAGMENTATION_NEEDED, built, self._uppers.wanted, flow.mtu_octets)
            return 0
        if flow.loops:
            if ipv4.is_fragment(built) or (flow.neighbor is None and built[16:20] != flow.template[16:20]):
                counters[C.bad_crafted] += 1
                return 0
            self._loop(flow, built, sends)
        if flow.neighbor is None or flow.neighbor is NOBODY:
            return 0
        return self._hand_over(flow, built, now, sends)

    def _loop(self, flow: Flow, built: bytes, sends: list[Send]) -> None:
        self._counters[C.looped] += 1
        kind = messages.PACKET if flow.neighbor is None else messages.PACKET_GROUP
        copied = built[9] in self._uppers.wanted
        if copied:
            self._counters[C.copied] += 1
            sends.append(copy_of(kind, built))
        if flow.upper is not None:
            sends.append((flow.upper, kind, built))
        elif flow.neighbor is None and not copied:
            sends.append(complaint(UNREACHABLE, PROTOCOL_UNREACHABLE, built))

    def _hand_over(self, flow: Flow, built: bytes, now: float, sends: list[Send]) -> int:
        """One packet to link, or to those that wait; how many went."""
        neighbor = flow.neighbor
        assert neighbor is not None
        mac = neighbor.mac
        if mac is None or now > neighbor.ask_again_at:
            mac = self._ask(flow, built, now, sends)
            if mac is None:
                return 0
        sends.append((topology.LINK, messages.PACKET_OUT, mac + built))
        return 1

    # -- flows -----------------------------------------------------------------------------------------------------

    def _new_flow(self, key: bytes, record: bytes, sends: list[Send]) -> Flow | None:
        """The flow of a TRANSMIT_HEADER that is new; None, counted and told to the sender, where it cannot be sent."""
        if len(record) < TRANSMIT_OCTETS:
            self._counters[C.bad_transmit] += 1
            return None
        source, destination, protocol, ttl, tos, flags = messages.TRANSMIT_HEADER.unpack_from(record)
        routes = self._routing.table
        to = int.from_bytes(destination, "big")
        if source == bytes(4):
            source = (routes.source_for(to) or 0).to_bytes(4, "big")
        elif source not in self._routing.own and source[0] != 127:
            self._counters[C.bad_transmit] += 1
            return None
        upper, series = UPPER.get(protocol), self._identifications.series(source, destination, protocol)
        dont_fragment = bool(flags & messages.TRANSMIT_DONT_FRAGMENT)
        if routes.is_local(to):
            template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
            flow = Flow(template, series, flags, dont_fragment, upper, None, True, ipv4.LENGTH_MAX)
        else:
            way = self._way(to, source, flags)
            # RFC 1122 section 3.2.1.3 (g): a packet from 127/8 never appears outside the host
            if way is None or source[0] == 127 or source == bytes(4):
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
            # What is left of DF on a path that carries less than we are willing to send: see paths.Path.
            dont_fragment = dont_fragment and not (capped and flags & messages.TRANSMIT_MAY_FRAGMENT)
            template = ipv4.header_template(source, destination, protocol, ttl, tos, dont_fragment)
            flow = Flow(template, series, flags, dont_fragment, upper, neighbor, loops, mtu_octets)
        if len(self._flows) >= FLOWS_MAX or len(self._destinations) >= FLOWS_MAX:
            self._flows.clear()
            self._destinations.clear()
        if (flow.partial and not flow.loops and not self._offload) or (flow.loops and protocol in self._uppers.wanted):
            flow.plain_octets = 0  # the device does no sums; or raw wants a copy
        self._flows[key] = flow
        self._destinations.add(destination)
        return flow

    def _no_route(self, template: bytes, flags: int, record: bytes) -> list[Send]:
        length = len(record) + GROWTH_OCTETS
        if length > ipv4.LENGTH_MAX or flags & (messages.TRANSMIT_OPTIONS | messages.TRANSMIT_WHOLE):
            return []
        header = ipv4.finish_header(template, ipv4.header_sum(template), length, 0)
        return local_error(NET_UNREACHABLE, header + record[TRANSMIT_OCTETS:], self._uppers.wanted)

    def _way(self, to: int, source: bytes, flags: int) -> tuple[Neighbor | None, int, bool, bool] | None:
        """(next hop, MTU, whether a copy comes back to us, whether the path is capped); next hop None: no leave."""
        routing = self._routing
        route = routing.table.lookup(to)
        mtu_octets = route.mtu if route is not None else routing.mtu_octets
        if routing.table.is_broadcast(to):
            permitted = flags & messages.TRANSMIT_BROADCAST
            return _group_neighbor(BROADCAST_MAC) if permitted else None, mtu_octets, True, False
        if is_multicast(to):
            group = to.to_bytes(4, "big")
            loops = bool(flags & messages.TRANSMIT_LOOP) and self._groups.accepts(group, source)
            return _group_neighbor(ipv4.group_mac(group)), mtu_octets, loops, False
        if route is None:
            return None
        capped = False
        if flags & messages.TRANSMIT_IGNORE_PATH_MTU:
            mtu_octets = routing.mtu_octets
        else:
            mtu_octets, capped = routing.mtu_to(to, route)
        return self._neighbors.get((route.gateway or to).to_bytes(4, "big")), mtu_octets, False, capped

    # -- neighbours ------------------------------------------------------------------------------------------------

    def _ask(self, flow: Flow, built: bytes, now: float, sends: list[Send]) -> bytes | None:
        """Ask arp for a neighbour, if that is due. The MAC where it is known, None where the packet waits for it."""
        address = flow.neighbor.address  # type: ignore[union-attr]
        neighbor = flow.neighbor = self._neighbors.get(address)  # another, if the flow's had to give way
        if now > neighbor.ask_again_at:
            self._resolve(neighbor, now, sends)
        if neighbor.mac is None:
            self._keep(neighbor, settled(built) if flow.partial else built)
        return neighbor.mac

    def _resolve(self, neighbor: Neighbor, now: float, sends: list[Send]) -> None:
        neighbor.ask_again_at = now + ASK_AGAIN_AFTER_S
        sends.append((topology.ARP, messages.RESOLVE, neighbor.address))
        # RFC 1122 section 3.3.1.4: whether a dead gateway is back is asked only while something is sent
        due = self._routing.gateways.due(now)
        sends += [(topology.ARP, messages.RESOLVE, gateway.to_bytes(4, "big")) for gateway in due]

    def _keep(self, neighbor: Neighbor, built: bytes) -> None:
        """Let a packet wait; the latest are kept."""
        waiting = neighbor.waiting
        if len(waiting) >= WAITING_MAX:
            waiting.popleft()
            self._counters[C.neighbor_queue_full] += 1
        waiting.append(built)

    def unresolved(self) -> list[Send]:
        """Ask again for what somebody waits for."""
        return [(topology.ARP, messages.RESOLVE, neighbor.address) for neighbor in self._neighbors.unresolved()]

    def resolved(self, records: list[bytes], now: float) -> list[Send]:
        """NEIGHBOR records: what waited goes."""
        sends: list[Send] = []
        for record in records:
            if len(record) != 10:
                self._counters[C.bad_announcement] += 1
                continue
            if self._routing.gateway_lives(int.from_bytes(record[:4], "big")):
                self.rerouted()
            mac = record[4:]
            neighbor = self._neighbors.learn(record[:4], mac, now)
            sends += [(topology.LINK, messages.PACKET_OUT, mac + built) for built in neighbor.waiting]
            self._counters[C.packets_out] += len(neighbor.waiting)
            neighbor.waiting.clear()
        return sends

    def unreachable(self, records: list[bytes], now: float) -> list[Send]:
        """UNREACHABLE records: packets that waited take another way, or their senders are told."""
        sends: list[Send] = []
        for record in records:
            neighbor = self._neighbors.find(record)
            if neighbor is None:
                self._counters[C.bad_announcement] += len(record) != 4
                continue
            self._neighbors.forget(neighbor)
            if self._routing.gateway_failed(int.from_bytes(record, "big"), now):
                self.rerouted()
            waiting = list(neighbor.waiting)
            neighbor.waiting.clear()
            for built in waiting:
                if not self._send_otherwise(built, now, sends):
                    self._counters[C.neighbor_unreachable] += 1
                    sends += local_error(HOST_UNREACHABLE, built, self._uppers.wanted)
        return sends

    def _send_otherwise(self, built: bytes, now: float, sends: list[Send]) -> bool:
        """RFC 1122 section 3.3.1.5: send a packet through another gateway; False where there is none that may live."""
        route = self._routing.table.lookup(int.from_bytes(built[16:20], "big"))
        if route is None or not route.gateway or route.gateway in self._routing.gateways:
            return False
        neighbor = self._neighbors.get(route.gateway.to_bytes(4, "big"))
        self._counters[C.rerouted] += 1
        if now > neighbor.ask_again_at:
            self._resolve(neighbor, now, sends)
        if neighbor.mac is None:
            self._keep(neighbor, built)
        else:
            sends.append((topology.LINK, messages.PACKET_OUT, neighbor.mac + built))
            self._counters[C.packets_out] += 1
        return True

    def forget(self, records: list[bytes]) -> None:
        """arp vouches for these no longer: the next packet asks, and waits; what waits already goes on waiting."""
        for record in records:
            neighbor = self._neighbors.find(record)
            if neighbor is not None:
                self._neighbors.forget(neighbor)


def _group_neighbor(mac: bytes) -> Neighbor:
    neighbor = Neighbor(b"")
    neighbor.mac = mac
    neighbor.ask_again_at = float("inf")
    return neighbor

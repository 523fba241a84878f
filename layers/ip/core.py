"""ip's core: IPv4 for a host (RFC 791, RFC 1122 section 3).

Owns: addresses, routes, identification numbers. Talks to: link and arp below; icmp, udp and sockets above, which get
a copy of the addresses and routes. Forgets in a crash: packets that wait for a neighbour's address.
"""

from __future__ import annotations

import random

from bus import records as formats
from bus import table
from bus.checksum import verifies
from bus.config import StackConfig
from bus.core import CounterWords, Send, State
from bus.routes import RouteTable, configured, is_multicast
from layers.ip import packet
from layers.ip.counters import Counters as C
from layers.ip.neighbors import ASK_AGAIN_AFTER_S, WAITING_MAX, Neighbor, Neighbors

ROUTES_KEY = 0
IDENTIFICATION_KEY = 1
IDENTIFICATION_BLOCK = 4096  # numbers reserved by one write to durable state
UPPER = {packet.ICMP: table.ICMP, packet.UDP: table.UDP}
ROUTES_GO_TO = (table.ICMP, table.UDP, table.SOCKETS)
FLOWS_MAX = 4096
BROADCAST_MAC = b"\xff" * 6
UNREACHABLE = 3  # RFC 792
NET_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, FRAGMENTATION_NEEDED = 0, 1, 2, 4
ERROR_QUOTE_OCTETS = 576  # more of a packet never goes into an ICMP error


class Flow:
    """Everything that is the same for all packets with one TRANSMIT_HEADER. `neighbor` None: stays in the host."""

    __slots__ = ("dont_fragment", "loops", "mtu_octets", "neighbor", "template", "template_sum", "upper")

    def __init__(self, template: bytes, dont_fragment: bool, upper: int | None, neighbor: Neighbor | None, loops: bool,
                 mtu_octets: int) -> None:
        self.template = template
        self.template_sum = packet.header_sum(template)
        self.dont_fragment = dont_fragment
        self.upper = upper
        self.neighbor = neighbor
        self.loops = loops
        self.mtu_octets = mtu_octets


class Core:
    """Packets up, segments down, neighbours beside."""

    next_wake: float | None = None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self._config = config
        self._state = state
        self._counters = counters
        self._neighbors = Neighbors(counters)
        self._flows: dict[bytes, Flow] = {}
        self._identification = rng.randrange(65536)
        self._identifications_left = 0  # of the block that is reserved

    def start(self, now: float) -> list[Send]:
        """Read addresses and routes back, and tell them upwards."""
        stored = self._state.get(ROUTES_KEY)
        self._set_routes(formats.decode_routes(stored) if stored else configured(self._config))
        number = self._state.get(IDENTIFICATION_KEY)
        if number:
            self._identification = int.from_bytes(number, "little")
        return [send for upper in ROUTES_GO_TO for send in self._tell_routes(upper)]

    def wake(self, now: float) -> list[Send]:
        """Never due."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Tell routes to those above; ask arp again what it may have forgotten."""
        if sender in ROUTES_GO_TO:
            return self._tell_routes(sender)
        if sender == table.ARP:
            return [(table.ARP, table.RESOLVE, neighbor.address) for neighbor in self._neighbors.unresolved()]
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Packets from link, segments from the transports, answers from arp."""
        if kind == table.TRANSMIT:
            return self._transmit(records, now)
        if kind == table.PACKET or kind == table.PACKET_GROUP:
            return self._deliver(kind, records)
        if kind == table.NEIGHBOR:
            return self._resolved(records, now)
        if kind == table.UNREACHABLE:
            return self._unreachable(records)
        if kind == table.FORGET:
            self._forget(records)
        return []

    # -- addresses and routes ------------------------------------------------------------------------------------

    def _set_routes(self, routes: formats.Routes) -> None:
        self._routes = RouteTable(routes)
        self._state[ROUTES_KEY] = formats.encode(routes)
        self._flows.clear()
        self._own = frozenset(address.to_bytes(4, "big") for address, _ in routes.addresses)

    def _tell_routes(self, upper: int) -> list[Send]:
        return [(upper, table.ROUTES, self._state[ROUTES_KEY])]

    # -- in ------------------------------------------------------------------------------------------------------

    def _deliver(self, kind: int, records: list[bytes]) -> list[Send]:
        counters, own = self._counters, self._own
        sends: list[Send] = []
        counters[C.packets_in] += len(records)
        for record in records:
            octets = len(record)
            if octets < packet.HEADER_OCTETS:
                counters[C.truncated] += 1
                continue
            header_octets = 20
            if record[0] != packet.VERSION_4_NO_OPTIONS:
                if record[0] >> 4 != 4:
                    counters[C.bad_version] += 1
                    continue
                header_octets = (record[0] & 15) * 4
                if header_octets < packet.HEADER_OCTETS or header_octets > octets:
                    counters[C.bad_header_length] += 1
                    continue
            total = record[2] << 8 | record[3]
            if total > octets or total < header_octets:
                counters[C.truncated] += 1
                continue
            if not verifies(record[:header_octets]):  # RFC 1122 section 3.2.1.2: silently discarded
                counters[C.bad_header_checksum] += 1
                continue
            destination = record[16:20]
            reach = kind
            if destination not in own:
                reach = self._group_kind(destination)
                if not reach:
                    continue
            elif kind == table.PACKET_GROUP:
                counters[C.unicast_in_group_frame] += 1
                continue
            source = record[12:16]
            if source in own or packet.source_is_martian(source) or self._is_group(source):
                counters[C.bad_source] += 1
                continue
            if (record[6] << 8 | record[7]) & packet.FRAGMENT_MASK:
                counters[C.fragment] += 1
                continue
            if octets != total:
                record = record[:total]  # RFC 894: what is beyond is padding
            upper = UPPER.get(record[9])
            if upper is None:
                counters[C.unknown_protocol] += 1
                if reach == table.PACKET:  # RFC 1122 section 3.2.2.1: SHOULD be answered by protocol unreachable
                    sends.append(self._complaint(PROTOCOL_UNREACHABLE, record))
                continue
            sends.append((upper, reach, record))
        return sends

    def _is_group(self, address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return is_multicast(number) or self._routes.is_broadcast(number)

    def _group_kind(self, destination: bytes) -> int:
        """PACKET_GROUP for a broadcast that concerns us, 0 (and counted) for an address that is not ours."""
        if self._routes.is_broadcast(int.from_bytes(destination, "big")):
            return table.PACKET_GROUP
        self._counters[C.other_destination] += 1
        return 0

    def _complaint(self, code: int, record: bytes) -> Send:
        header = formats.ICMP_ERROR_HEADER.pack(UNREACHABLE, code, 0, 0, 0, bytes(4))
        return (table.ICMP, table.REPORT_ERROR, header + record[:ERROR_QUOTE_OCTETS])

    # -- out -----------------------------------------------------------------------------------------------------

    def _transmit(self, records: list[bytes], now: float) -> list[Send]:
        counters, flows, finish = self._counters, self._flows, packet.finish_header
        sends: list[Send] = []
        sent = 0
        for record in records:
            flow = flows.get(record[:12]) or self._new_flow(record[:12], record, sends)
            if flow is None:
                continue
            length = len(record) - 12 + packet.HEADER_OCTETS
            identification = 0 if flow.dont_fragment else self._next_identification()  # RFC 6864 section 4.1
            if length > flow.mtu_octets:
                counters[C.over_mtu] += 1
                if length <= packet.LENGTH_MAX:
                    header = finish(flow.template, flow.template_sum, length, identification)
                    sends += self._local_error(FRAGMENTATION_NEEDED, header + record[12:], flow.mtu_octets)
                continue
            built = finish(flow.template, flow.template_sum, length, identification) + record[12:]
            if flow.loops:
                counters[C.looped] += 1
                if flow.upper is not None:
                    group = table.PACKET if flow.neighbor is None else table.PACKET_GROUP
                    sends.append((flow.upper, group, built))
                elif flow.neighbor is None:
                    sends.append(self._complaint(PROTOCOL_UNREACHABLE, built))
            neighbor = flow.neighbor
            if neighbor is None:
                continue
            mac = neighbor.mac
            if mac is None or now > neighbor.ask_again_at:
                mac = self._ask(flow, neighbor.address, built, now, sends)
                if mac is None:
                    continue
            sends.append((table.LINK, table.PACKET_OUT, mac + built))
            sent += 1
        counters[C.packets_out] += sent
        return sends

    def _next_identification(self) -> int:
        # RFC 791 section 3.2: numbers must not repeat while a packet may live. A block is reserved before it is used; a
        # restart goes on behind it.
        if not self._identifications_left:
            self._identifications_left = IDENTIFICATION_BLOCK
            end = (self._identification + IDENTIFICATION_BLOCK) & 0xFFFF
            self._state[IDENTIFICATION_KEY] = end.to_bytes(2, "little")
        self._identifications_left -= 1
        self._identification = (self._identification + 1) & 0xFFFF
        return self._identification

    def _new_flow(self, key: bytes, record: bytes, sends: list[Send]) -> Flow | None:
        """The flow of a TRANSMIT_HEADER that is new; None, counted and told to the sender, where it cannot be sent."""
        if len(record) < formats.TRANSMIT_HEADER.size:
            self._counters[C.bad_transmit] += 1
            return None
        source, destination, protocol, ttl, tos, flags = formats.TRANSMIT_HEADER.unpack_from(record)
        to = int.from_bytes(destination, "big")
        if source == bytes(4):
            source = (self._routes.source_for(to) or 0).to_bytes(4, "big")
        elif source not in self._own and source[0] != 127:
            self._counters[C.bad_transmit] += 1
            return None
        dont_fragment = bool(flags & formats.TRANSMIT_DONT_FRAGMENT)
        template = packet.header_template(source, destination, protocol, ttl, tos, dont_fragment)
        upper = UPPER.get(protocol)
        if self._routes.is_local(to):
            flow = Flow(template, dont_fragment, upper, None, True, packet.LENGTH_MAX)
        else:
            way = self._way(to, flags)
            # RFC 1122 section 3.2.1.3 (g): a packet from 127/8 never appears outside the host
            if way is None or source[0] == 127 or source == bytes(4):
                self._counters[C.no_route] += 1
                length = packet.HEADER_OCTETS + len(record) - formats.TRANSMIT_HEADER.size
                if length <= packet.LENGTH_MAX:
                    header = packet.finish_header(template, packet.header_sum(template), length, 0)
                    sends += self._local_error(NET_UNREACHABLE, header + record[formats.TRANSMIT_HEADER.size :])
                return None
            neighbor, mtu_octets, loops = way
            if neighbor is None:
                self._counters[C.broadcast_denied] += 1
                return None
            flow = Flow(template, dont_fragment, upper, neighbor, loops, mtu_octets)
        if len(self._flows) >= FLOWS_MAX:
            self._flows.clear()
        self._flows[key] = flow
        return flow

    def _way(self, to: int, flags: int) -> tuple[Neighbor | None, int, bool] | None:
        """(next hop, MTU, whether a copy comes back to us); next hop None: a broadcast without leave."""
        route = self._routes.lookup(to)
        if self._routes.is_broadcast(to):
            mtu_octets = route.mtu if route else self._config.mtu
            if not flags & formats.TRANSMIT_BROADCAST:
                return None, mtu_octets, False
            return self._group_neighbor(BROADCAST_MAC), mtu_octets, True
        if is_multicast(to):
            # RFC 1112 section 6.4: 01-00-5E and the address's lower 23 bits
            mac = b"\x01\x00\x5e" + (to & 0x7FFFFF).to_bytes(3, "big")
            return self._group_neighbor(mac), route.mtu if route else self._config.mtu, False
        if route is None:
            return None
        return self._neighbors.get((route.gateway or to).to_bytes(4, "big")), route.mtu, False

    @staticmethod
    def _group_neighbor(mac: bytes) -> Neighbor:
        neighbor = Neighbor(b"")
        neighbor.mac = mac
        neighbor.ask_again_at = float("inf")
        return neighbor

    def _local_error(self, code: int, built: bytes, info: int = 0) -> list[Send]:
        """Tell the transport that sent `built` what the network would have told it by ICMP."""
        upper = UPPER.get(built[9])
        if upper is None:
            return []
        header = formats.ICMP_ERROR_HEADER.pack(UNREACHABLE, code, formats.ORIGIN_LOCAL, 0, info, built[12:16])
        return [(upper, table.ICMP_ERROR, header + built[:ERROR_QUOTE_OCTETS])]

    # -- neighbours ----------------------------------------------------------------------------------------------

    def _ask(self, flow: Flow, address: bytes, built: bytes, now: float, sends: list[Send]) -> bytes | None:
        """Ask arp for a neighbour, if that is due. The MAC where it is known, None where the packet waits for it."""
        neighbor = flow.neighbor = self._neighbors.get(address)  # another, if the flow's had to give way
        if now > neighbor.ask_again_at:
            neighbor.ask_again_at = now + ASK_AGAIN_AFTER_S
            sends.append((table.ARP, table.RESOLVE, address))
        if neighbor.mac is None:
            waiting = neighbor.waiting
            if len(waiting) >= WAITING_MAX:
                waiting.popleft()
                self._counters[C.neighbor_queue_full] += 1
            waiting.append(built)
        return neighbor.mac

    def _resolved(self, records: list[bytes], now: float) -> list[Send]:
        sends: list[Send] = []
        for record in records:
            if len(record) != 10:
                self._counters[C.bad_announcement] += 1
                continue
            neighbor = self._neighbors.get(record[:4])
            neighbor.mac = mac = record[4:]
            neighbor.ask_again_at = now + ASK_AGAIN_AFTER_S
            sends += [(table.LINK, table.PACKET_OUT, mac + built) for built in neighbor.waiting]
            self._counters[C.packets_out] += len(neighbor.waiting)
            neighbor.waiting.clear()
        return sends

    def _unreachable(self, records: list[bytes]) -> list[Send]:
        sends: list[Send] = []
        for record in records:
            neighbor = self._neighbors.find(record)
            if neighbor is None:
                self._counters[C.bad_announcement] += len(record) != 4
                continue
            neighbor.mac = None
            neighbor.ask_again_at = float("-inf")
            self._counters[C.neighbor_unreachable] += len(neighbor.waiting)
            for built in neighbor.waiting:
                sends += self._local_error(HOST_UNREACHABLE, built)
            neighbor.waiting.clear()
        return sends

    def _forget(self, records: list[bytes]) -> None:
        """arp vouches for these no longer: the next packet asks, and waits; what waits already goes on waiting."""
        for record in records:
            neighbor = self._neighbors.find(record)
            if neighbor is not None:
                neighbor.mac = None
                neighbor.ask_again_at = float("-inf")

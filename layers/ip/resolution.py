"""Resolution: asking arp for the addresses of next hops, and the packets that wait for its answers.

Owns nothing but the waiting packets, which a crash loses; `layers.ip.neighbors` has the answers.
"""

from __future__ import annotations

from bus import messages, topology
from bus.layer import CounterWords, Send
from bus.messages import PACKET_OUT
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers
from layers.ip.flows import Flow, Flows, out_record
from layers.ip.local_errors import HOST_UNREACHABLE, local_error
from layers.ip.neighbors import ASK_AGAIN_AFTER_S, MAC_OCTETS, WAITING_MAX, Neighbor, Neighbors
from layers.ip.routing import Routing
from packets import ipv4
from packets.addresses import WIDTHS


class Resolution:
    """The packets that wait, and the answers of arp."""

    def __init__(self, routing: Routing, neighbors: Neighbors, flows: Flows, uppers: Uppers,
                 counters: CounterWords) -> None:
        self._routing = routing
        self._neighbors = neighbors
        self._flows = flows
        self._uppers = uppers
        self._counters = counters

    def ask(self, flow: Flow, built: bytes, now: float, sends: list[Send]) -> bytes | None:
        """Ask arp for a neighbour if that is due. Returns the MAC if it is known; None: the packet waits for it.

        `built` has the form that it has on a wire.
        """
        assert flow.neighbor is not None  # a packet that stays in the host needs no address
        neighbor = flow.neighbor = self._neighbors.get(flow.neighbor.address)  # another, if the flow's was deleted
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

    def doubted(self, destination: bytes, now: float, sends: list[Send]) -> None:
        """RFC 1122 section 3.3.1.4: negative advice of a transport: have arp verify the next hop, which may be dead."""
        route = self._routing.table.lookup(destination)
        neighbor = self._neighbors.find(route.gateway or destination) if route is not None else None
        if neighbor is not None:
            self._resolve(neighbor, now, sends)

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
                self._flows.clear()
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
                self._flows.clear()
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

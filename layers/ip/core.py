"""ip's core: IPv4 for a host (RFC 791, RFC 1122 section 3).

Joins `input`, `output` and `routing`, which both use. Talks to: link and arp below; the transports and sockets above.
All but link get a copy of the addresses and routes. Forgets in a crash: packets that wait for the address of a
neighbour, and fragments of incomplete packets.
"""

from __future__ import annotations

import random

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.held import NO_HOLDINGS
from bus.layer import CounterWords, Octets, Send, State
from layers.ip import admin
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers
from layers.ip.flows import Flows, Ways
from layers.ip.groups import Groups
from layers.ip.identification import Identifications
from layers.ip.input import Input
from layers.ip.neighbors import Neighbors
from layers.ip.output import Output
from layers.ip.resolution import Resolution
from layers.ip.routing import Routing
from packets.addresses import WIDTHS


class Core:
    """The core of ip; see bus.layer.ManagedCore."""

    next_wake: float | None = None
    held: Octets = NO_HOLDINGS

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self._counters = counters
        self._routing = Routing(config, state, counters)
        self._groups = Groups(self._routing, state, counters, rng)
        self._uppers = Uppers(state)
        self._input = Input(self._routing, self._groups, self._uppers, counters, config.epoch)
        self._neighbors = Neighbors(state, counters)
        self._flows = Flows(Ways(self._routing, self._groups, self._neighbors), self._uppers,
                            Identifications(state, rng), counters, config.offload)
        self._resolution = Resolution(self._routing, self._neighbors, self._flows, self._uppers, counters)
        self._output = Output(self._flows, self._resolution, self._uppers, counters, config.epoch)
        self._paths_go_to = topology.routed(config.layers)
        self._routes_go_to = (*self._paths_go_to, topology.ARP)  # arp answers for the own addresses
        self._due: tuple[float | None, ...] = (None, None)  # the times from which `next_wake` was computed

    def start(self, now: float) -> list[Send]:
        """Restore the stored state; announce addresses and routes, and report the groups to routers."""
        self._routing.start()
        self._uppers.start()
        self._neighbors.start()
        self._flows.start()
        reports = self._groups.start(now)
        self._set_wake()
        return self._tell_routes(*self._routes_go_to) + reports

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process packets from link, segments from the transports, and answers from arp."""
        if kind == messages.TRANSMIT:
            return self._output.transmit(records, now)
        if kind == messages.TRANSMIT_HELD:
            return self._output.transmit_held(records, self.held, now)
        if kind == messages.PACKET_HELD:
            return self._input.deliver_held(records, self.held, now)
        if kind == messages.PACKET:
            sends = self._input.deliver(records, now)
            if self._input.next_expiry != self._due[0] or self._groups.next_due != self._due[1]:
                self._set_wake()
            return sends
        if kind in (messages.NEIGHBOR, messages.UNREACHABLE):
            return self._arp_told(kind, records, now)
        if kind == messages.FORGET:
            self._resolution.forget(records)
        elif kind == messages.PATH_MTU:
            return self._router_told(records, now)
        elif kind == messages.REDIRECT:
            return self._redirected(records, now)
        elif kind == messages.NEGATIVE_ADVICE:
            return self._advised(records, now)
        elif kind == messages.RAW_WANTED:
            for record in records:
                self._uppers.want(record)
            self._flows.clear()
        elif kind == messages.MEMBERSHIP:
            reports = self._groups.listen(records, now)
            self._flows.clear()
            self._set_wake()
            return reports
        return []

    def wake(self, now: float) -> list[Send]:
        """Expire fragments and path MTUs, and send due group reports."""
        sends = self._input.expire(now) + self._groups.expire(now)
        if self._routing.expire(now):
            self._flows.clear()
            sends += self._tell_routes(*self._paths_go_to)
        self._set_wake()
        return sends

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Send the neighbour the routes; ask arp again for pending addresses."""
        sends = self._tell_routes(sender) if sender in self._routes_go_to else []
        return sends + self._resolution.unresolved() if sender == topology.ARP else sends

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """Execute a request about routes or addresses: see `admin`."""
        chosen = self._routing.chosen
        answer = admin.execute(request, self._routing, now)
        if self._routing.chosen is chosen:
            return answer, []
        self._input.rerouted()
        self._flows.clear()
        return answer, self._tell_routes(*self._routes_go_to)

    def _arp_told(self, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records from arp about neighbours; some may be gateways that fail or are back."""
        announced = self._routing.announcement
        if kind == messages.NEIGHBOR:
            sends = self._resolution.resolved(records, now)
        else:
            sends = self._resolution.unreachable(records, now)
        return sends if self._routing.announcement is announced else self._tell_routes(*self._paths_go_to) + sends

    def _router_told(self, records: list[bytes], now: float) -> list[Send]:
        news = False
        for record in records:
            destination = record[messages.PATH_MTU_HEAD.size :]
            if len(destination) not in WIDTHS:
                self._counters[C.bad_announcement] += 1
                continue
            told, quoted_octets = messages.PATH_MTU_HEAD.unpack_from(record)
            if not self._flows.sends_to(destination):  # the quoted packet may be forged
                self._counters[C.path_mtu_refused] += 1
            elif self._routing.router_told(destination, told, quoted_octets, now):
                news = True
        if not news:
            return []
        self._flows.clear()
        self._set_wake()
        return self._tell_routes(*self._paths_go_to)

    def _redirected(self, records: list[bytes], now: float) -> list[Send]:
        announced = self._routing.announcement
        for record in records:
            width = len(record) // 3
            destination, gateway, teller = record[:width], record[width : 2 * width], record[2 * width :]
            if width not in WIDTHS or len(teller) != width:
                self._counters[C.bad_announcement] += 1
            elif not self._flows.sends_to(destination):
                self._counters[C.redirect_refused] += 1
            else:
                self._routing.redirect(destination, gateway, teller, now)
        if self._routing.announcement is announced:
            return []
        self._flows.clear()
        self._set_wake()
        return self._tell_routes(*self._paths_go_to)

    def _advised(self, records: list[bytes], now: float) -> list[Send]:
        sends: list[Send] = []
        for destination in dict.fromkeys(records):
            if len(destination) not in WIDTHS:
                self._counters[C.bad_announcement] += 1
            else:
                self._counters[C.advised] += 1
                self._resolution.doubted(destination, now, sends)
        return list(dict.fromkeys(sends))

    def _tell_routes(self, *neighbors: int) -> list[Send]:
        return [(neighbor, messages.ROUTES, self._routing.announcement) for neighbor in neighbors]

    def _set_wake(self) -> None:
        self._due = (self._input.next_expiry, self._groups.next_due, self._routing.next_expiry)
        self.next_wake = min((at for at in self._due if at is not None), default=None)

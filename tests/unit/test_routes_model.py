"""Addresses and routes by order, against a model that searches through plain lists, with crashes in between."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import decode_routes
from layers.common.routes import RouteTable
from layers.ip.core import Core
from layers.ip.counters import Counters

MTU = 1500
CONFIGURED, GATEWAY = IPv4Interface("10.0.0.2/24"), IPv4Address("10.0.0.1")
INTERFACES = [CONFIGURED, *map(IPv4Interface, ("10.0.0.5/24", "10.1.0.2/16", "192.168.7.1/31", "172.16.0.9/32"))]
NETWORKS = list(map(IPv4Network, ("10.9.0.0/16", "0.0.0.0/0", "10.9.8.0/24", "10.9.8.7/32", "10.0.0.0/24")))
GATEWAYS = [*map(IPv4Address, ("10.0.0.1", "10.0.0.9", "10.1.0.1", "192.168.7.0", "198.51.100.1")), None]
SOURCES = [None] * 5 + [interface.ip for interface in INTERFACES]  # usually not given
DESTINATIONS = list(map(IPv4Address, (
    "10.0.0.1", "10.0.0.77", "10.1.2.3", "10.9.8.7", "10.9.8.9", "10.9.1.1", "192.168.7.0", "8.8.8.8", "0.0.0.1")))


class Way(NamedTuple):
    """A configured route."""

    network: IPv4Network
    gateway: IPv4Address | None
    source: IPv4Address | None
    metric: int
    mtu: int


class Routed(NamedTuple):
    """What a transport has to know about a destination."""

    gateway: bytes
    source: bytes
    mtu: int


class RoutesAgainstAModel(RuleBasedStateMachine):
    """Whatever is ordered, what ip announces is what a search through the model's lists finds."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[int, bytes] = {}
        self.addresses = [CONFIGURED]
        self.ways = [Way(IPv4Network("0.0.0.0/0"), GATEWAY, None, 0, 0)]
        self.crash()

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule()
    def crash(self):
        config = StackConfig(name="t", run_dir="", address=CONFIGURED.ip.packed, prefix=24, mac=b"\x02" * 6, mtu=MTU,
                             gateway=GATEWAY.packed)
        self.core = Core(config, self.state, Counters.new(), random.Random(1))
        self.core.start(0.0)

    @rule(interface=st.sampled_from(INTERFACES))
    def add_address(self, interface):
        self.order(True, "address_add", address=str(interface))
        if interface not in self.addresses:
            self.addresses.append(interface)

    @rule(interface=st.sampled_from(INTERFACES))
    def delete_address(self, interface):
        there = interface in self.addresses
        self.order(there, "address_del", address=str(interface))
        if there:
            self.addresses.remove(interface)

    @rule(way=st.builds(Way, st.sampled_from(NETWORKS), st.sampled_from(GATEWAYS),
                        st.sampled_from(SOURCES), st.integers(0, 2), st.sampled_from([0, 1400])))
    def add_route(self, way):
        known = way in self.ways
        taken = [(other.network, other.metric) for other in self.ways] + [(link.network, 0) for link in self.links()]
        possible = self.source_of(way) is not None and way.source in (None, *(own.ip for own in self.addresses))
        gateway_is_another = way.gateway not in {own.ip for own in self.addresses}
        fine = possible and gateway_is_another and (known or (way.network, way.metric) not in taken)
        fields = {"gateway": str(way.gateway or ""), "source": str(way.source or ""), "metric": way.metric}
        self.order(fine, "route_add", destination=str(way.network), mtu=way.mtu, **fields)
        if fine and not known:
            self.ways.append(way)

    @rule(number=st.integers(0, 7), gateway=st.just(None) | st.sampled_from(GATEWAYS),
          metric=st.none() | st.integers(0, 2))
    def delete_route(self, number, gateway, metric):
        network = self.ways[number].network if number < len(self.ways) else NETWORKS[0]
        found = [way for way in self.ways if way.network == network and gateway in (None, way.gateway)
                 and metric in (None, way.metric)]
        self.order(bool(found), "route_del", destination=str(network), gateway=str(gateway or ""), metric=metric)
        if found:
            self.ways.remove(min(found, key=lambda way: way.metric))

    def order(self, accepted, op, **fields):
        answer, _ = self.core.manage({"op": op, **fields}, 0.0)
        assert (answer == {}) is accepted, (answer, op, fields, self.addresses, self.ways)

    # -- the model -------------------------------------------------------------------------------------------------

    def links(self) -> list[IPv4Interface]:
        """The addresses that come with a network, of several in one network the first."""
        first: dict[IPv4Network, IPv4Interface] = {}
        for interface in self.addresses:
            if interface.network.prefixlen < 32:
                first.setdefault(interface.network, interface)
        return list(first.values())

    def source_of(self, way: Way) -> IPv4Address | None:
        """RFC 1122 section 3.3.4.3; None: the route cannot be used."""
        target = way.gateway or way.network.network_address
        link = next((link for link in self.links() if target in link.network), None)
        if (way.gateway and link is None) or not self.addresses:
            return None
        if way.source:
            return way.source if way.source in {own.ip for own in self.addresses} else None
        return link.ip if link else self.addresses[0].ip

    def best(self, destination: IPv4Address) -> Routed | None:
        """The longest prefix, then the lowest metric, then the first, networks of our own before all others."""
        candidates = [(link.network.prefixlen, 0, Routed(b"", link.ip.packed, MTU)) for link in self.links()
                      if destination in link.network]
        for way in self.ways:
            source = self.source_of(way)
            if destination in way.network and source is not None:
                routed = Routed(way.gateway.packed if way.gateway else b"", source.packed, way.mtu or MTU)
                candidates.append((way.network.prefixlen, way.metric, routed))
        if int(destination) >> 24 == 0 or not candidates:  # RFC 1122 section 3.2.1.3 (a), (b)
            return None
        return min(candidates, key=lambda candidate: (-candidate[0], candidate[1]))[2]

    # -- both ------------------------------------------------------------------------------------------------------

    @invariant()
    def both_know_the_same_ways(self):
        ((_, _, announced),) = [
            send for send in self.core.neighbor_started(topology.UDP, 0.0) if send[1] == messages.ROUTES
        ]
        routes = RouteTable(decode_routes(announced))
        assert routes.announced.addresses == [(own.ip.packed, own.network.prefixlen) for own in self.addresses]
        for destination in DESTINATIONS:
            route = routes.lookup(destination.packed)
            assert (route and Routed(route.gateway, route.source, route.mtu)) == self.best(destination), destination

    @invariant()
    def all_are_listed(self):
        listed = self.core.manage({"op": "route_list"}, 0.0)[0]["routes"]
        chosen = [(line["destination"], line["gateway"], line["metric"]) for line in listed
                  if line["kind"] in ("chosen", "unusable")]
        assert chosen == [(str(way.network), str(way.gateway or ""), way.metric) for way in self.ways]
        assert [line["kind"] == "unusable" for line in listed if line["kind"] != "connected"] == [
            self.source_of(way) is None for way in self.ways]


TestRoutesAgainstAModel = RoutesAgainstAModel.TestCase
TestRoutesAgainstAModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

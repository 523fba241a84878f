"""Addresses, routes and path MTUs: as ordered, as learnt, as announced, and what packets then do."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import lengths
import pytest
from durable import dies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from records import GROUP, LOOPED, OUT, UP, address, from_link, report, transmit, up
from scapy.layers.inet import ICMP, IP, UDP

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import (
    ERROR_HEAD,
    PATH_MTU_HEAD,
    TRANSMIT_BROADCAST,
    TRANSMIT_OF_MTU_DISCOVER,
    Route,
    Routes,
    decode_routes,
)
from layers.common.routes import RouteTable
from layers.ip import admin, routing
from layers.ip.admin import ADDRESSES_MAX, ROUTES_MAX
from layers.ip.core import Core
from layers.ip.counters import Counters
from layers.ip.path_mtu import AGE_LIMIT_S, MTU_MIN, PATHS_MAX, Paths
from layers.ip.routing import PATHS_KEY, ROUTES_KEY
from usernet.pipe.frame import MAX_FRAME_OCTETS

ME, GATEWAY, FAR, SECOND = "10.0.0.2", "10.0.0.1", "198.51.100.7", "192.168.7.5"
MAC = b"\x02" * 6
DONT, WANT, DO, PROBE, INTERFACE, OMIT = range(6)


def octets(address: str) -> bytes:
    return IPv4Address(address).packed


class Layer:
    def __init__(self, gateway: str = GATEWAY, mtu: int = 1500) -> None:
        self.config = StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=MAC, mtu=mtu,
                                  gateway=IPv4Address(gateway).packed if gateway else b"")
        self.state: dict[int, bytes] = {}
        self.counters = Counters.new()
        self.now = 1000.0
        self.told: dict[int, Routes] = {}
        self.crash()

    def crash(self) -> None:
        self.core = Core(self.config, self.state, self.counters, random.Random(1))
        self.hear(self.core.start(self.now))

    def hear(self, sends: list) -> list:
        """Keep announcements apart."""
        for consumer, kind, record in sends:
            if kind == messages.ROUTES:
                self.told[consumer] = decode_routes(record)
        return [send for send in sends if send[1] != messages.ROUTES]

    def order(self, op: str, **fields) -> dict:
        self.told.clear()
        answer, sends = self.core.manage({"op": op, **fields}, self.now)
        assert self.hear(sends) == []
        return answer

    def accepts(self, op: str, **fields) -> None:
        assert self.order(op, **fields) == {}

    def refuses(self, op: str, **fields) -> str:
        state = dict(self.state)
        answer = self.order(op, **fields)
        assert list(answer) == ["error"]
        assert (self.told, self.state) == ({}, state)
        return answer["error"]

    def lines(self) -> list[dict]:
        """All routes, a page at a time."""
        found: list[dict] = []
        more = True
        while more:
            page = self.order("route_list", after=len(found))
            assert len(messages.encode(page)) < 1 << 16  # what the line to the keeper takes
            found += page["routes"]
            more = page["more"]
        return found

    def routes(self) -> list[tuple]:
        return [(line["destination"], line["gateway"], line["source"], line["metric"], line["mtu"], line["kind"])
                for line in self.lines()]

    def addresses(self) -> list[str]:
        return self.order("address_list")["addresses"]

    def sends(self, to: str = FAR, size: int = 8, mode: int = WANT, source: str = "0.0.0.0", flags: int = 0) -> list:
        """The packets that go to link, or the local error."""
        flags |= TRANSMIT_OF_MTU_DISCOVER[mode]
        head = transmit(source, to, flags=flags)
        sends = self.core.receive(topology.UDP, messages.TRANSMIT, [head + bytes(size)], self.now)
        asked = [record for _, kind, record in sends if kind == messages.RESOLVE]
        for neighbor in asked:
            sends += self.core.receive(topology.ARP, messages.NEIGHBOR, [neighbor + MAC], self.now)
        return [send for send in sends if send[1] != messages.RESOLVE]

    def sent(self, **arguments) -> list[tuple[int, bool]]:
        """(length, DF) of the packets that go to link."""
        sends = self.sends(**arguments)
        assert {kind for _, kind, _ in sends} <= {messages.PACKET_OUT}
        return [(len(record) - OUT, bool(record[OUT + 6] & 0x40)) for _, _, record in sends]

    def source(self, to: str) -> str:
        ((_, _, record),) = self.sends(to)
        return str(IPv4Address(record[OUT + 12 : OUT + 16]))

    def router_says(self, mtu: int, to: str = FAR, quoted: int = 1500) -> None:
        self.told.clear()
        assert self.hear(self.core.receive(
            topology.ICMP, messages.PATH_MTU, [PATH_MTU_HEAD.pack(mtu, quoted) + octets(to)], self.now)) == []

    def passes(self, seconds: float) -> None:
        """The moved clock wakes the core whenever it asked for it."""
        self.told.clear()
        end = self.now + seconds
        while self.core.next_wake is not None and self.core.next_wake <= end:
            self.now = self.core.next_wake
            self.hear(self.core.wake(self.now))
        self.now = end

    def count(self, name: str) -> int:
        return self.counters[getattr(Counters, name)]


@pytest.fixture
def layer() -> Layer:
    return Layer()


# -- addresses and routes by order -------------------------------------------------------------------------------------

CONNECTED = ("10.0.0.0/24", "", ME, 0, 1500, "connected")
DEFAULT = ("0.0.0.0/0", GATEWAY, ME, 0, 1500, "chosen")


def test_a_stack_starts_with_the_configured_routes(layer):
    assert layer.routes() == [CONNECTED, DEFAULT]
    assert layer.addresses() == [f"{ME}/24"]
    assert ROUTES_KEY not in layer.state  # nothing was chosen: another configuration may come


def test_a_change_is_announced_to_all_and_outlives_a_crash(layer):
    layer.accepts("route_add", destination="10.9.0.0/16", gateway="10.0.0.9", metric=5, mtu=1400)
    added = ("10.9.0.0/16", "10.0.0.9", ME, 5, 1400, "chosen")
    assert set(layer.told) == {*topology.routed(layer.config.layers), topology.ARP}
    assert RouteTable(layer.told[topology.ARP]).lookup(address("10.9.1.1")).gateway == address("10.0.0.9")
    layer.crash()
    assert RouteTable(layer.told[topology.UDP]).lookup(address("10.9.1.1")).mtu == 1400
    assert layer.routes() == [CONNECTED, DEFAULT, added]
    layer.accepts("route_del", destination="10.9.0.0/16")
    layer.crash()
    assert layer.routes() == [CONNECTED, DEFAULT]


def test_a_route_that_is_there_already_is_no_error_and_no_news(layer):
    for _ in range(2):  # a request may come twice
        layer.accepts("route_add", destination="10.9.0.0/16", gateway="10.0.0.9")
    assert layer.told == {}
    assert len(layer.routes()) == 3


def test_packets_take_a_new_way_at_once(layer):
    def next_hops() -> set[bytes]:
        sends = layer.core.receive(topology.UDP, messages.TRANSMIT, [transmit(bytes(4), FAR)], layer.now)
        return {record for _, kind, record in sends if kind == messages.RESOLVE}

    assert next_hops() == {octets(GATEWAY)}
    layer.accepts("route_add", destination=f"{FAR}/32", gateway="10.0.0.9")
    assert next_hops() == {octets("10.0.0.9")}


def test_the_route_with_the_lowest_metric_is_taken_and_deleted_first(layer):
    for metric, gateway in ((20, "10.0.0.20"), (10, "10.0.0.10")):
        layer.accepts("route_add", destination="10.9.0.0/16", gateway=gateway, metric=metric)
    layer.accepts("route_del", destination="10.9.0.0/16")
    assert [line[3] for line in layer.routes()] == [0, 0, 20]
    layer.accepts("route_add", destination="10.9.0.0/16", gateway="10.0.0.10", metric=10)
    layer.accepts("route_del", destination="10.9.0.0/16", metric=20)
    layer.accepts("route_del", destination="10.9.0.0/16", gateway="10.0.0.10")
    assert len(layer.routes()) == 2


def test_rfc1122_3_3_1_2_there_may_be_several_default_gateways_with_a_preference_each():
    """RFC 1122 section 3.3.1.6 (3)."""
    layer = Layer(gateway="")
    for metric, gateway in ((30, "10.0.0.30"), (10, "10.0.0.10"), (20, "10.0.0.20")):
        layer.accepts("route_add", destination="0.0.0.0/0", gateway=gateway, metric=metric)
    for serving in ("10.0.0.10", "10.0.0.20", "10.0.0.30"):
        assert RouteTable(layer.told[topology.UDP]).lookup(address(FAR)).gateway == address(serving)
        layer.crash()
        sends = layer.core.receive(topology.UDP, messages.TRANSMIT, [transmit(bytes(4), FAR)], layer.now)
        assert sends == [(topology.ARP, messages.RESOLVE, octets(serving))]
        layer.accepts("route_del", destination="0.0.0.0/0")
    assert layer.refuses("route_del", destination="0.0.0.0/0")


@pytest.mark.parametrize(("order", "left"), [
    ({"op": "route_del", "destination": "10.9.0.0/16"}, [0, 0, 20, 30]),
    ({"op": "address_del", "address": f"{SECOND}/24"}, [0, 0, 10, 20, 30]),
    ({"op": "route_add", "destination": "10.9.0.0/16", "gateway": GATEWAY, "metric": 5}, [0, 0, 10, 20, 30, 5]),
])  # fmt: skip
def test_an_order_that_comes_again_because_ip_died_over_it_is_done_once_and_no_error(order, left):
    for line in range(2000):
        layer = Layer()
        layer.accepts("address_add", address=f"{SECOND}/24", order=1)
        for metric in (10, 20, 30):
            layer.accepts("route_add", destination="10.9.0.0/16", gateway=GATEWAY, metric=metric, order=metric)
        died = dies(line, (admin, routing), lambda layer=layer: layer.core.manage(order | {"order": 99}, 0.0))
        layer.crash()
        layer.accepts(**order, order=99)
        assert [route[3] for route in layer.routes() if route[0] != "192.168.7.0/24"] == left
        assert layer.addresses() == ["10.0.0.2/24"] + [f"{SECOND}/24"] * (order["op"] != "address_del")
        if not died:
            break
    assert line > 10


@pytest.mark.parametrize(("order", "why"), [
    ({"op": "route_add", "destination": "10.9.0.1/16"}, "host bits"),
    ({"op": "route_add", "destination": "somewhere"}, "somewhere"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "gateway": "10.1.0.1"}, "is not in a network of this stack"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "gateway": ME}, "is an address of this stack"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "gateway": "10.0.0.255"}, "not the address of a single host"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "gateway": "10.0.0.0"}, "not the address of a single host"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "source": "10.0.0.3"}, "not an address of this stack"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "mtu": 67}, "68"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "mtu": 1501}, "1500"),
    ({"op": "route_add", "destination": "10.9.0.0/16", "metric": -1}, "metric"),
    ({"op": "route_add", "destination": "0.0.0.0/0", "gateway": "10.0.0.9"}, "already"),
    ({"op": "route_add", "destination": "10.0.0.0/24", "gateway": "10.0.0.9"}, "already"),
    ({"op": "route_add"}, "destination"), ({"op": "route_add", "destination": "10.9.0.0/16", "colour": 1}, "colour"),
    ({"op": "route_del", "destination": "10.9.0.0/16"}, "there is no route to"),
    ({"op": "route_del", "destination": "0.0.0.0/0", "metric": 7}, "there is no route to"),
    ({"op": "route_del", "destination": "10.0.0.0/24"}, "address del 10.0.0.2/24"),
    ({"op": "address_add", "address": "10.0.0.2/16"}, "already"), ({"op": "address_add", "address": "x"}, "x"),
    ({"op": "address_add", "address": "10.5.0.0/24"}, "the network itself"),
    ({"op": "address_add", "address": "10.5.0.255/24"}, "broadcast"),
    ({"op": "address_add", "address": "127.0.0.1/8"}, "cannot have"),
    ({"op": "address_add", "address": "224.0.0.1/32"}, "cannot have"),
    ({"op": "address_del", "address": "10.0.0.3/24"}, "not an address"),
    ({"op": "address_del", "address": "10.0.0.2/16"}, "not an address"),
    ({"op": "reboot"}, "reboot"), ({}, "op"),
])  # fmt: skip
def test_invalid_requests_are_refused_in_a_sentence_and_change_nothing(layer, order, why):
    error = layer.refuses(order.pop("op", None), **order)
    assert why in error
    assert "\n" not in error


def test_several_addresses_and_the_source_of_packets(layer):
    """RFC 1122 section 3.3.4.3."""
    layer.accepts("address_add", address=f"{SECOND}/24")
    assert layer.told[topology.ARP].addresses == [(address(ME), 24), (address(SECOND), 24)]
    layer.accepts("route_add", destination="10.9.0.0/16", gateway="192.168.7.1")
    layer.accepts("route_add", destination="10.8.0.0/16", gateway="192.168.7.1", source=ME)
    sources = {to: layer.source(to) for to in ("192.168.7.9", "10.9.0.1", "10.8.0.1", FAR, "10.0.0.9")}
    assert sources == {"192.168.7.9": SECOND, "10.9.0.1": SECOND, "10.8.0.1": ME, FAR: ME, "10.0.0.9": ME}
    packet = bytes(IP(src="192.168.7.9", dst=SECOND) / UDP())
    assert layer.core.receive(topology.LINK, messages.PACKET, [from_link(packet)], 0.0) == [
        (topology.UDP, messages.PACKET, up(packet))
    ]
    broadcast = bytes(IP(src="192.168.7.9", dst="192.168.7.255") / UDP())
    assert layer.core.receive(topology.LINK, messages.PACKET, [from_link(broadcast)], 0.0) == [
        (topology.UDP, messages.PACKET, up(broadcast, GROUP))]
    (looped, out) = layer.sends("192.168.7.255", flags=TRANSMIT_BROADCAST)
    assert looped == (topology.UDP, messages.PACKET, up(out[2][OUT:], GROUP | LOOPED))
    assert (out[2][6:OUT], out[2][OUT + 12 : OUT + 16]) == (b"\xff" * 6, octets(SECOND))


def test_a_second_address_in_a_network_changes_no_source(layer):
    layer.accepts("address_add", address="10.0.0.3/24")
    assert layer.routes() == [CONNECTED, DEFAULT]
    layer.accepts("address_del", address=f"{ME}/24")
    assert layer.source(FAR) == layer.source("10.0.0.9") == "10.0.0.3"


def test_a_single_address_has_no_network(layer):
    layer.accepts("address_add", address="203.0.113.9/32")
    assert layer.routes() == [CONNECTED, DEFAULT]
    packet = bytes(IP(src="10.0.0.9", dst="203.0.113.9") / ICMP())
    assert len(layer.core.receive(topology.LINK, messages.PACKET, [from_link(packet)], 0.0)) == 1


def test_without_its_address_a_route_waits_until_it_is_back(layer):
    layer.accepts("address_add", address=f"{SECOND}/24")
    layer.accepts("route_add", destination="10.9.0.0/16", gateway="192.168.7.1")
    layer.accepts("route_add", destination="10.8.0.0/16", gateway="10.0.0.9", source=SECOND)
    layer.accepts("address_del", address=f"{SECOND}/24")
    assert [line[5] for line in layer.routes()] == ["connected", "chosen", "unusable", "unusable"]
    assert layer.source("10.9.0.1") == layer.source("10.8.0.1") == ME  # by the default route
    packet = bytes(IP(src="10.0.0.9", dst=SECOND) / UDP())
    assert layer.core.receive(topology.LINK, messages.PACKET, [from_link(packet)], 0.0) == []
    layer.accepts("address_add", address=f"{SECOND}/24")
    assert layer.source("10.9.0.1") == layer.source("10.8.0.1") == SECOND


def test_without_any_address_nothing_can_be_sent(layer):
    layer.accepts("address_del", address=f"{ME}/24")
    ((consumer, kind, record),) = layer.sends()
    assert (consumer, kind, record[:2]) == (topology.UDP, messages.ICMP_ERROR, b"\x03\0")
    assert "address" in layer.refuses("route_add", destination="10.9.0.0/16")


def test_the_number_of_routes_and_addresses_is_bounded(layer):
    for last in range(ADDRESSES_MAX - 1):
        layer.accepts("address_add", address=f"10.5.0.{last + 1}/24")
    assert str(ADDRESSES_MAX) in layer.refuses("address_add", address="10.6.0.1/24")
    far = int(IPv4Address("198.18.0.0"))
    many = [Route((far + (n << 8)).to_bytes(4, "big"), 24, address("10.0.0.99"), b"", 1499, 0xFFFFFFFF - n)
            for n in range(ROUTES_MAX - 1)]
    layer.core._routing.choose(Routes(layer.core._routing.chosen.addresses, many))
    layer.accepts("route_add", destination="10.9.0.0/16", gateway="10.0.0.9")
    assert str(ROUTES_MAX) in layer.refuses("route_add", destination="10.8.0.0/16")
    for last in range(PATHS_MAX):
        layer.core._routing.paths.lower((far + last).to_bytes(4, "big"), 1400, 1500, 1500, 0.0)
    layer.crash()
    redirects_octets = PATHS_MAX * max(len(messages.encode(route)) + 1 for route in many)  # as many as path MTUs
    assert (
        len(messages.encode(layer.told[topology.UDP])) + redirects_octets < MAX_FRAME_OCTETS - 100
    )  # the frame's header
    listed = [route[0] for route in layer.routes()]
    assert len(set(listed)) == len(listed) == 2 + ROUTES_MAX + PATHS_MAX


VALUES = ["route_add", "route_del", "address_add", "address_del", "10.0.0.0/8", "10.0.0.9", "10.0.0.2/24", "0/0",
          "10.0.0.0/33", "", "\0", -1, 7, 1 << 40, None, [], {}]


SENSIBLE = {
    "destination": ["10.9.0.0/16", "192.0.2.0/24", "0.0.0.0/0"], "gateway": ["10.0.0.1", "10.0.0.9", ""],
    "source": ["", "", ME], "metric": [0, 1, 1 << 31], "mtu": [0, 1000], "address": ["10.0.0.9/24", "10.1.0.1/16"],
    "after": [0, 1, 1 << 40]}
FIELDS = {
    "route_add": ("destination", "gateway", "source", "metric", "mtu"),
    "route_del": ("destination", "gateway", "metric"), "route_list": ("after",), "address_add": ("address",),
    "address_del": ("address",), "address_list": ()}
ORDERS = st.sampled_from([*FIELDS]).flatmap(lambda op: st.fixed_dictionaries({"op": st.just(op)}, optional={
    name: st.sampled_from(SENSIBLE[name]) | st.sampled_from(SENSIBLE[name] * 9 + VALUES) for name in FIELDS[op]}))
SCRAPS = st.dictionaries(st.sampled_from(["op", *SENSIBLE]), st.sampled_from(VALUES))


@given(lengths.lists(ORDERS | ORDERS | SCRAPS, 8))
@example([{"op": "address_add", "address": "10.1.0.1/16"}, {"op": "route_add", "destination": "10.9.0.0/16",
                                                            "gateway": "10.1.0.9"}])
def test_no_order_does_any_harm_and_what_it_changed_outlives_a_crash(orders):
    layer = Layer()
    for order in orders:
        answer, _ = layer.core.manage(order, 0.0)
        assert messages.encode(answer)
    before = layer.addresses(), layer.lines()
    layer.crash()
    assert (layer.addresses(), layer.lines()) == before


@pytest.mark.parametrize("key", [ROUTES_KEY, PATHS_KEY])
@pytest.mark.parametrize("stored", [b"", b"[]x", b"{}", b'{"addresses":[[0,99]],"routes":[]}', b"[[1]]"])
def test_stored_nonsense_is_counted_and_forgotten(layer, key, stored):
    layer.state[key] = stored
    layer.crash()
    assert layer.count("state_unreadable") == 1
    assert layer.routes() == [CONNECTED, DEFAULT]


# -- IP_MTU_DISCOVER and fragments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "short", "long"), [
    (DONT, [(1500, False)], [(1500, False), (21, False)]), (WANT, [(1500, True)], [(1500, False), (21, False)]),
    (DO, [(1500, True)], None), (PROBE, [(1500, True)], None), (INTERFACE, [(1500, False)], None),
    (OMIT, [(1500, False)], [(1500, False), (21, False)]),
])  # fmt: skip
def test_the_modes_of_path_mtu_discovery_as_in_ip_7(layer, mode, short, long):
    assert layer.sent(size=1480, mode=mode) == short
    if long is not None:
        assert layer.sent(size=1481, mode=mode) == long
        return
    ((consumer, kind, record),) = layer.sends(size=1481, mode=mode)
    assert (consumer, kind) == (topology.UDP, messages.ICMP_ERROR)
    assert ERROR_HEAD.unpack_from(record)[:5] == (3, 4, messages.ORIGIN_LOCAL, 4, 1500)


@pytest.mark.parametrize(("mode", "lengths"), [
    (DONT, [1396, 124]), (WANT, [1396, 124]), (DO, None), (PROBE, [1500]), (INTERFACE, [1500]), (OMIT, [1500])])
def test_each_mode_heeds_or_ignores_a_path_mtu(layer, mode, lengths):
    layer.sends()
    layer.router_says(1400)
    if lengths is not None:
        assert [length for length, _ in layer.sent(size=1480, mode=mode)] == lengths
        return
    ((_, kind, record),) = layer.sends(size=1480, mode=mode)
    assert (kind, ERROR_HEAD.unpack_from(record)[4]) == (messages.ICMP_ERROR, 1400)


def test_the_largest_datagram_goes_out_whole_and_comes_in_whole(layer):
    sends = layer.sends(size=65515)
    assert len(sends) == 45
    packets = []
    for _, _, record in sends:
        packet = IP(record[OUT:])
        packet.src, packet.dst = FAR, ME
        del packet.chksum
        packets.append(from_link(packet))
    ((consumer, kind, record),) = layer.core.receive(topology.LINK, messages.PACKET, packets, layer.now)
    assert (consumer, kind, len(record) - UP) == (topology.UDP, messages.PACKET, 65535)
    assert record == up(record[UP : UP + 20] + bytes(65515))
    assert layer.core.next_wake is None


def test_fragments_that_wait_for_a_neighbour_all_leave(layer):
    assert len(layer.sends("10.0.0.50", size=65507)) == 45


def test_rfc1122_3_3_2_fragments_that_came_in_vain_are_told(layer):
    first = bytes(IP(src="10.0.0.9", dst=ME, proto=17, flags="MF") / bytes(16))
    assert layer.core.receive(topology.LINK, messages.PACKET, [from_link(first)], layer.now) == []
    assert layer.core.next_wake == layer.now + 30
    ((consumer, kind, record),) = layer.core.wake(layer.now + 30)
    assert (consumer, kind) == (topology.ICMP, messages.REPORT_ERROR)
    assert record == report(11, 1, first)
    assert layer.core.next_wake is None


def test_fragments_of_a_broadcast_are_put_together(layer):
    pieces = [from_link(IP(src="10.0.0.9", dst="10.0.0.255", proto=17, flags="MF") / bytes(16), GROUP),
              from_link(IP(src="10.0.0.9", dst="10.0.0.255", proto=17, frag=2) / bytes(5), GROUP)]
    ((consumer, kind, record),) = layer.core.receive(topology.LINK, messages.PACKET, pieces, layer.now)
    assert (consumer, kind, len(record)) == (topology.UDP, messages.PACKET, UP + 41)
    assert record == up(record[UP:], GROUP)


# -- path MTUs ---------------------------------------------------------------------------------------------------------


def test_rfc1191_6_1_a_smaller_mtu_is_learnt_announced_and_kept_over_a_crash(layer):
    layer.sends()
    layer.router_says(1400)
    assert set(layer.told) == set(topology.routed(layer.config.layers))  # not arp
    for _ in range(2):
        route = RouteTable(layer.told[topology.SOCKETS]).lookup(address(FAR))
        assert route == Route(address(FAR), 32, address(GATEWAY), address(ME), 1400)
        assert RouteTable(layer.told[topology.UDP]).lookup(address("198.51.100.8")).mtu == 1500
        assert layer.sent(size=1380) == [(1400, True)]
        assert layer.sent(size=1381) == [(1396, False), (25, False)]
        layer.crash()
    assert layer.routes()[-1] == (f"{FAR}/32", GATEWAY, ME, 0, 1400, "path")


def test_rfc1191_3_an_mtu_is_never_raised_by_a_router(layer):
    layer.sends()
    layer.router_says(1400)
    for told in (1400, 1401, 1500, 65535):
        layer.router_says(told)
        assert layer.told == {}
    layer.router_says(1300)
    assert RouteTable(layer.told[topology.UDP]).lookup(address(FAR)).mtu == 1300
    assert layer.count("path_mtu_lowered") == 2


def test_only_about_a_destination_that_we_send_to(layer):
    layer.router_says(1400)
    layer.router_says(1400, to="255.255.255.255")
    layer.router_says(1400, to=ME)
    assert layer.told == {}
    layer.core.receive(topology.ICMP, messages.PATH_MTU, [b"", bytes(9)], 0.0)
    assert (layer.count("path_mtu_refused"), layer.count("bad_announcement")) == (3, 2)


@pytest.mark.parametrize("told", [1, 68, MTU_MIN - 1])
def test_a_forged_mtu_slows_us_down_to_552_and_a_true_one_does_not_stop_us(layer, told):
    """Linux: net.ipv4.route.min_pmtu, and a "locked" MTU: what is below it, routers have to fragment."""
    layer.sends()
    layer.router_says(told)
    assert layer.sent(size=400) == [(420, False)]
    assert [length for length, _ in layer.sent(size=1000)] == [548, 492]
    assert layer.sent(size=400, mode=DO) == [(420, True)]  # DO sends the packet whole in any case
    layer.told.clear()
    layer.router_says(told)
    assert layer.told == {}


def test_at_552_a_router_may_still_say_that_this_is_too_much(layer):
    layer.sends()
    layer.router_says(MTU_MIN)
    assert layer.sent(size=400) == [(420, True)]
    layer.sends()
    layer.router_says(300)
    assert layer.sent(size=400) == [(420, False)]


@pytest.mark.parametrize(("quoted", "learnt"), [
    (1500, 1492), (1492, 1006), (1006, 552), (1007, 1006), (65535, 1492), (0, 552)])
def test_rfc1191_5_an_old_router_that_says_nothing_makes_us_try_the_next_plateau(layer, quoted, learnt):
    layer.sends()
    layer.router_says(0, quoted=quoted)
    assert RouteTable(layer.told[topology.UDP]).lookup(address(FAR)).mtu == learnt


@pytest.mark.parametrize(("refused", "plateau"), [
    (65535, 32000), (32000, 17914), (17914, 8166), (8166, 4352), (4352, 2002), (2002, 1492), (1492, 1006), (1006, 552)])
def test_rfc1191_7_the_plateaus(refused, plateau):
    """Below 552 we do not go; see above."""
    paths = Paths({}, PATHS_KEY)
    assert paths.lower(1, 0, refused, refused, 0.0)
    assert paths.get(1).mtu == plateau


def test_rfc1191_6_3_after_ten_minutes_the_path_may_have_changed(layer):
    layer.sends()
    layer.router_says(1400)
    layer.passes(599.0)
    assert layer.told == {}
    assert layer.sent(size=1480) != [(1500, True)]
    layer.passes(2)
    assert RouteTable(layer.told[topology.SOCKETS]).lookup(address(FAR)).mtu == 1500
    assert layer.sent(size=1480) == [(1500, True)]
    assert layer.core.next_wake is None
    layer.crash()
    assert layer.routes() == [CONNECTED, DEFAULT]


def test_a_route_that_a_router_confirms_does_not_age(layer):
    layer.sends()
    layer.router_says(1400)
    layer.passes(AGE_LIMIT_S - 10)
    layer.router_says(1400)
    layer.passes(AGE_LIMIT_S - 10)
    assert layer.count("path_mtu_expired") == 0


def test_a_flood_of_mtus_is_limited_and_the_table_bounded(layer):
    for last in range(400):
        to = f"198.51.{last >> 8}.{last & 255}"
        layer.sends(to)
        layer.router_says(1400, to=to)
        layer.now += 1e-4
    assert layer.count("path_mtu_lowered") == 32
    assert layer.count("path_mtu_limited") == 400 - 32
    for last in range(400):
        layer.now += 1.0
        to = f"203.0.{last >> 8}.{last & 255}"
        layer.sends(to)
        layer.router_says(1400, to=to)
    assert len(layer.told[topology.UDP].routes) == 2 + 256


def test_a_path_mtu_above_that_of_a_new_route_does_not_matter(layer):
    layer.sends()
    layer.router_says(1400)
    layer.accepts("route_add", destination=f"{FAR}/32", gateway="10.0.0.9", mtu=1000)
    assert RouteTable(layer.told[topology.UDP]).lookup(address(FAR)).mtu == 1000
    assert [length for length, _ in layer.sent(size=1480)] == [996, 524]


class PathsAgainstAModel(RuleBasedStateMachine):
    """The model is a dict; a crash may come at any time. What is confirmed may be stored anew, or may not yet be."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[int, bytes] = {}
        self.paths = Paths(self.state, PATHS_KEY)
        self.now = 0.0
        self.model: dict[bytes, tuple[int, bool, float]] = {}  # MTU, capped, last lowered or confirmed
        self.expires: dict[bytes, float] = {}  # as seen last

    @rule(destination=st.sampled_from([b"\x0a\0\0\1", b"\x0a\0\0\2", bytes(15) + b"\2"]),
          told=st.integers(0, 2000) | st.sampled_from([0, 0, 0, 0, 551, 552, 553, 1006, 1400, 1499, 1500, 1501]))
    def router_says(self, destination, told):
        present, capped, _ = self.model.get(destination, (1500, False, 0.0))
        news = self.paths.lower(destination, told, 1500, present, self.now)
        told = told or next(plateau for plateau in (1492, 1006, 508) if plateau < present)  # RFC 1191 section 7
        if told > present or (told == present and destination not in self.model):
            assert not news
            return
        learnt = max(told, MTU_MIN), capped or told < MTU_MIN, self.now
        assert news == (destination not in self.model or learnt[:2] != self.model[destination][:2])
        self.model[destination] = learnt

    @rule(seconds=st.sampled_from([1.0, 200.0, AGE_LIMIT_S / 2, AGE_LIMIT_S]))
    def time_passes(self, seconds):
        self.now += seconds
        gone = [destination for destination, expires in self.expires.items() if expires <= self.now]
        assert self.paths.expire(self.now) == len(gone)
        for destination in gone:
            del self.model[destination]

    @rule()
    def crash(self):
        self.paths = Paths(self.state, PATHS_KEY)
        self.paths.load()

    @invariant()
    def both_agree(self):
        assert {path.destination: (path.mtu, path.capped) for path in self.paths.all()} == {
            destination: path[:2] for destination, path in self.model.items()}
        self.expires = {path.destination: path.expires for path in self.paths.all()}
        for destination, expires in self.expires.items():
            assert AGE_LIMIT_S / 2 <= expires - self.model[destination][2] <= AGE_LIMIT_S
        expiries = [path.expires for path in self.paths.all()]
        assert expiries == sorted(expiries)
        assert self.paths.next_expiry == (expiries[0] if expiries else None)
        assert all(expiry > self.now for expiry in expiries)


TestPathsAgainstAModel = PathsAgainstAModel.TestCase
TestPathsAgainstAModel.settings = settings(max_examples=100, deadline=None)

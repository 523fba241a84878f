"""The route table, by example and against a search through the list."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.config import StackConfig
from bus.messages import Route, Routes, decode_routes, encode
from layers.common.routes import BROADCAST, CACHE_ENTRIES_MAX, LOOPBACK, RouteTable, configured, is_multicast, mask


def ip(text: str) -> int:
    return int(IPv4Address(text))


def route(network: str, gateway: str = "0.0.0.0", source: str = "10.0.0.2", metric: int = 0) -> Route:
    net = ip_network(network)
    return Route(int(net.network_address), net.prefixlen, ip(gateway), ip(source), 1500, metric)


ADDRESSES = [(ip("10.0.0.2"), 24), (ip("192.168.7.1"), 31)]
TABLE = RouteTable(Routes(ADDRESSES, [
    route("0.0.0.0/0", "10.0.0.1"),
    route("10.0.0.0/24"),
    route("10.9.0.0/16", "10.0.0.7", metric=10),
    route("10.9.0.0/16", "10.0.0.8", metric=5),
    route("192.168.7.0/31", source="192.168.7.1"),
]))  # fmt: skip


@pytest.mark.parametrize(("destination", "gateway"), [
    ("10.0.0.77", "0.0.0.0"), ("10.9.1.1", "10.0.0.8"), ("8.8.8.8", "10.0.0.1"), ("10.1.0.0", "10.0.0.1"),
])  # fmt: skip
def test_the_longest_prefix_wins_then_the_lowest_metric(destination, gateway):
    assert TABLE.lookup(ip(destination)).gateway == ip(gateway)


@pytest.mark.parametrize("destination", ["0.0.0.0", "0.0.0.1", "0.255.255.255"])
def test_rfc1122_3_2_1_3_this_network_is_no_destination(destination):
    assert TABLE.lookup(ip(destination)) is None
    assert TABLE.source_for(ip(destination)) is None
    assert TABLE.lookup(ip("1.0.0.0")).gateway == ip("10.0.0.1")


def test_no_route():
    table = RouteTable(Routes(ADDRESSES, [route("10.0.0.0/24")]))
    assert table.lookup(ip("10.0.1.1")) is None
    assert table.source_for(ip("10.0.1.1")) is None
    assert table.lookup(ip("10.0.1.1")) is None  # the second time out of the cache


@pytest.mark.parametrize(("address", "local"), [
    ("10.0.0.2", True), ("192.168.7.1", True), ("127.0.0.1", True), ("127.255.0.9", True),
    ("10.0.0.3", False), ("126.255.255.255", False), ("128.0.0.0", False), ("0.0.0.0", False),
])  # fmt: skip
def test_rfc1122_3_2_1_3_g_own_addresses_and_127_8_are_local(address, local):
    assert TABLE.is_local(ip(address)) is local


@pytest.mark.parametrize(("address", "broadcast"), [
    ("255.255.255.255", True), ("10.0.0.255", True), ("10.0.0.0", False), ("10.0.1.255", False),
    ("192.168.7.1", False),  # RFC 3021: no broadcast in a /31
])  # fmt: skip
def test_rfc1122_3_2_1_3_broadcast_addresses(address, broadcast):
    assert TABLE.is_broadcast(ip(address)) is broadcast


@pytest.mark.parametrize(("address", "multicast"), [
    ("223.255.255.255", False), ("224.0.0.0", True), ("239.255.255.255", True), ("240.0.0.0", False),
])  # fmt: skip
def test_rfc1112_4_class_d(address, multicast):
    assert is_multicast(ip(address)) is multicast


@pytest.mark.parametrize(("destination", "source"), [
    ("10.0.0.9", "10.0.0.2"), ("8.8.8.8", "10.0.0.2"), ("192.168.7.0", "192.168.7.1"),
    ("10.0.0.2", "10.0.0.2"), ("192.168.7.1", "192.168.7.1"), ("127.0.0.1", "127.0.0.1"), ("127.3.0.1", "127.0.0.1"),
])  # fmt: skip
def test_rfc1122_3_3_4_3_source_selection(destination, source):
    assert TABLE.source_for(ip(destination)) == ip(source)


def test_broadcasts_and_multicasts_need_no_route():
    table = RouteTable(Routes(ADDRESSES, []))
    assert table.source_for(BROADCAST) == table.source_for(ip("224.0.0.251")) == ip("10.0.0.2")
    assert RouteTable(Routes([], [])).source_for(BROADCAST) is None


@pytest.mark.parametrize("announced", [
    Routes([(ip("10.0.0.2"), 33)], []), Routes([(-1, 24)], []), Routes([(1 << 32, 24)], []), Routes([(0, 24)], []),
    Routes([], [Route(0, 33, 0, 0, 1500)]), Routes([], [Route(ip("10.0.0.1"), 24, 0, 0, 1500)]),
    Routes([], [Route(1 << 32, 0, 0, 0, 1500)]), Routes([], [Route(0, 0, 1 << 32, 0, 1500)]),
    Routes([], [Route(0, 0, 0, -1, 1500)]), Routes([], [Route(0, -1, 0, 0, 1500)]),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(announced):
    with pytest.raises(ValueError):
        RouteTable(announced)


def test_the_table_that_a_stack_starts_with():
    config = StackConfig(name="t", run_dir="", address=ip("10.0.0.2"), prefix=24, mac=bytes(6), gateway=ip("10.0.0.1"))
    announced = configured(config)
    assert decode_routes(encode(announced)) == announced
    table = RouteTable(announced)
    assert table.lookup(ip("10.0.0.9")).gateway == 0
    assert table.lookup(ip("8.8.8.8")).gateway == ip("10.0.0.1")
    assert table.is_broadcast(ip("10.0.0.255"))
    assert table.source_for(LOOPBACK) == LOOPBACK


def test_the_cache_is_bounded():
    for destination in range(CACHE_ENTRIES_MAX + 10):
        TABLE.lookup(destination)
    assert len(TABLE._cache) <= CACHE_ENTRIES_MAX


# Addresses that share long prefixes, so that routes overlap and are hit.
NEAR = st.integers(0, 255).map(lambda low: ip("10.0.0.0") | low) | st.integers(0, 0xFFFFFFFF)
ROUTES = st.lists(st.builds(
    lambda address, prefix, gateway, metric: Route(address & mask(prefix), prefix, gateway, 1, 1500, metric),
    NEAR, st.integers(0, 32), st.integers(0, 9), st.integers(0, 2),
), max_size=12)  # fmt: skip


@given(ROUTES, st.lists(NEAR, min_size=1, max_size=12))
def test_lookup_is_a_search_through_the_list(routes, destinations):
    table = RouteTable(Routes([], routes))
    for destination in destinations * 2:
        address = IPv4Address(destination)
        matching = [entry for entry in routes
                    if address in ip_network((entry.network, entry.prefix)) and destination >> 24]
        # `min` takes the first of equals, as the table promises.
        best = min(matching, key=lambda entry: (-entry.prefix, entry.metric), default=None)
        assert table.lookup(destination) == best

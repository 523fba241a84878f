"""The route table, by example and against a search through the list."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import address, octets

from bus.config import StackConfig
from bus.messages import Route, Routes, decode_routes, encode
from layers.common import source_address
from layers.common.routes import CACHE_ENTRIES_MAX, RouteTable, configured, connected
from packets.addresses import LIMITED_BROADCAST, LOOPBACK, is_multicast, network


def route(network: str, gateway: str = "0.0.0.0", source: str = "10.0.0.2", metric: int = 0) -> Route:
    net = ip_network(network)
    return Route(net.network_address.packed, net.prefixlen, address(gateway), address(source), 1500, metric)


ADDRESSES = [(address("10.0.0.2"), 24), (address("192.168.7.1"), 31)]
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
    assert TABLE.lookup(octets(destination)).gateway == address(gateway)


@pytest.mark.parametrize("destination", ["0.0.0.0", "0.0.0.1", "0.255.255.255"])
def test_rfc1122_3_2_1_3_this_network_is_no_destination(destination):
    assert TABLE.lookup(octets(destination)) is None
    assert source_address.of_destination(TABLE, octets(destination)) is None
    assert TABLE.lookup(address("1.0.0.0")).gateway == address("10.0.0.1")


def test_no_route():
    table = RouteTable(Routes(ADDRESSES, [route("10.0.0.0/24")]))
    assert table.lookup(address("10.0.1.1")) is None
    assert source_address.of_destination(table, address("10.0.1.1")) is None
    assert table.lookup(address("10.0.1.1")) is None  # the second time out of the cache


@pytest.mark.parametrize(("text", "local"), [
    ("10.0.0.2", True), ("192.168.7.1", True), ("127.0.0.1", True), ("127.255.0.9", True),
    ("10.0.0.3", False), ("126.255.255.255", False), ("128.0.0.0", False), ("0.0.0.0", False),
])  # fmt: skip
def test_rfc1122_3_2_1_3_g_own_addresses_and_127_8_are_local(text, local):
    assert TABLE.is_local(octets(text)) is local


@pytest.mark.parametrize(("text", "broadcast"), [
    ("255.255.255.255", True), ("10.0.0.255", True), ("10.0.0.0", False), ("10.0.1.255", False),
    ("192.168.7.1", False),  # RFC 3021: no broadcast in a /31
])  # fmt: skip
def test_rfc1122_3_2_1_3_broadcast_addresses(text, broadcast):
    assert TABLE.is_broadcast(octets(text)) is broadcast


@pytest.mark.parametrize(("text", "multicast"), [
    ("223.255.255.255", False), ("224.0.0.0", True), ("239.255.255.255", True), ("240.0.0.0", False),
])  # fmt: skip
def test_rfc1112_4_class_d(text, multicast):
    assert is_multicast(octets(text)) is multicast


@pytest.mark.parametrize(("destination", "source"), [
    ("10.0.0.9", "10.0.0.2"), ("8.8.8.8", "10.0.0.2"), ("192.168.7.0", "192.168.7.1"),
    ("10.0.0.2", "10.0.0.2"), ("192.168.7.1", "192.168.7.1"), ("127.0.0.1", "127.0.0.1"), ("127.3.0.1", "127.0.0.1"),
])  # fmt: skip
def test_rfc1122_3_3_4_3_source_selection(destination, source):
    assert source_address.of_destination(TABLE, octets(destination)) == address(source)


def test_broadcasts_and_multicasts_need_no_route():
    table = RouteTable(Routes(ADDRESSES, []))
    for group in (LIMITED_BROADCAST, address("224.0.0.251")):
        assert source_address.of_destination(table, group) == address("10.0.0.2")
    assert source_address.of_destination(RouteTable(Routes([], [])), LIMITED_BROADCAST) is None


@pytest.mark.parametrize("announced", [
    Routes([(address("10.0.0.2"), 33)], []), Routes([(b"", 24)], []), Routes([(bytes(5), 24)], []),
    Routes([(bytes(4), 24)], []), Routes([(b"\xff" * 4, 24)], []), Routes([(bytes(15) + b"\1", 129)], []),
    Routes([], [Route(bytes(4), 33, b"", b"", 1500)]), Routes([], [Route(address("10.0.0.1"), 24, b"", b"", 1500)]),
    Routes([], [Route(b"", 0, b"", b"", 1500)]), Routes([], [Route(bytes(4), 0, bytes(16), b"", 1500)]),
    Routes([], [Route(bytes(4), 0, b"", bytes(5), 1500)]), Routes([], [Route(bytes(4), -1, b"", b"", 1500)]),
    Routes([], [Route(bytes(16), 129, b"", b"", 1500)]), Routes([], [Route(bytes(15) + b"\1", 127, b"", b"", 1500)]),
])  # fmt: skip
def test_invalid_announcements_are_refused(announced):
    with pytest.raises(ValueError):
        RouteTable(announced)


def test_the_table_that_a_stack_starts_with():
    config = StackConfig(name="t", run_dir="", address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6),
                         gateway=bytes((10, 0, 0, 1)))
    announced = configured(config)
    assert decode_routes(encode(announced)) == announced
    table = RouteTable(announced)
    assert table.lookup(address("10.0.0.9")).gateway == b""
    assert table.lookup(address("8.8.8.8")).gateway == address("10.0.0.1")
    assert table.is_broadcast(address("10.0.0.255"))
    assert source_address.of_destination(table, LOOPBACK[4]) == LOOPBACK[4]


def test_the_cache_is_bounded():
    for destination in range(CACHE_ENTRIES_MAX + 10):
        TABLE.lookup(destination.to_bytes(4, "big"))
    assert len(TABLE._cache) <= CACHE_ENTRIES_MAX


# Addresses that share long prefixes, so that routes overlap and are hit; of either family.
NEAR = (st.integers(0, 255).map(lambda low: address("10.0.0.0")[:3] + bytes((low,))) | st.binary(min_size=4, max_size=4)
        | st.integers(0, 255).map(lambda low: IPv6Address("2001:db8::").packed[:15] + bytes((low,)))
        | st.binary(min_size=16, max_size=16))
ROUTES = st.lists(st.builds(
    lambda near, part, gateway, metric: Route(
        network(near, len(near) * part // 4), len(near) * part // 4, b"", bytes((1, gateway)) * (len(near) // 2), 1500,
        metric),
    NEAR, st.integers(0, 32), st.integers(0, 9), st.integers(0, 2),
), max_size=12)  # fmt: skip


@given(ROUTES, st.lists(NEAR, min_size=1, max_size=12))
def test_lookup_is_a_search_through_the_list(routes, destinations):
    table = RouteTable(Routes([], routes))
    for destination in destinations * 2:
        sought = ip_address(destination)
        usable = destination[0] if sought.version == 4 else any(destination)
        matching = [entry for entry in routes if usable and sought in ip_network((entry.network, entry.prefix))]
        # `min` takes the first of equals, as the table promises.
        best = min(matching, key=lambda entry: (-entry.prefix, entry.metric), default=None)
        assert table.lookup(destination) == best


def test_one_table_has_the_routes_of_both_families():
    one, two, far = (IPv6Address(text).packed for text in ("2001:db8::1", "2001:db8::2", "2001:db8:9::1"))
    table = RouteTable(Routes([*ADDRESSES, (two, 64)], [
        *TABLE.announced.routes, *connected([(two, 64)], 1500), Route(bytes(16), 0, one, two, 1400)]))
    assert table.lookup(one) == Route(network(two, 64), 64, b"", two, 1500)
    assert (table.lookup(far).gateway, source_address.of_destination(table, far)) == (one, two)
    assert source_address.of_destination(table, address("8.8.8.8")) == address("10.0.0.2")
    assert (table.is_local(two), table.is_local(LOOPBACK[16]), table.is_local(one)) == (True, True, False)
    assert not table.is_broadcast(b"\xff" * 16)
    assert table.is_group(b"\xff\x02" + bytes(13) + b"\1")
    assert source_address.of_destination(TABLE, b"\xff\x02" + bytes(13) + b"\1") is None  # we have no such address
    assert decode_routes(encode(table.announced)) == table.announced

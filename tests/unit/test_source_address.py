"""Source address selection: what an application says, what its socket says, what the route says."""

from __future__ import annotations

import pytest
from records import address

from bus.messages import Route, Routes
from layers.common import source_address
from layers.common.routes import RouteTable, connected, links_of

ME, SECOND, GATEWAY, FAR, GROUP = map(address, ("10.0.0.2", "10.1.0.9", "10.0.0.1", "8.8.8.8", "239.1.2.3"))
NOTHING, ZERO, LOOPBACK, BROADCAST = b"", bytes(4), address("127.0.0.1"), address("10.0.0.255")
OWN = [(ME, 24), (SECOND, 16)]
ROUTES = RouteTable(Routes(OWN, [*connected(OWN, 1500), Route(ZERO, 0, GATEWAY, ME, 1500)]))
NOT_OURS = address("10.0.0.77")


@pytest.mark.parametrize(("destination", "chosen", "bound", "interface", "source"), [
    (FAR, NOTHING, NOTHING, NOTHING, ME),
    (address("10.1.2.3"), NOTHING, NOTHING, NOTHING, SECOND),  # RFC 1122 section 3.3.4.3: on the next hop's network
    (FAR, ZERO, NOTHING, NOTHING, ME),
    (FAR, SECOND, ME, NOTHING, SECOND),  # RFC 1122 section 4.1.3.5
    (FAR, NOTHING, SECOND, NOTHING, SECOND),
    (FAR, NOTHING, BROADCAST, NOTHING, ME),  # RFC 1122 section 3.2.1.3: no group is a source
    (FAR, NOTHING, GROUP, NOTHING, ME),
    (GROUP, NOTHING, GROUP, SECOND, SECOND),  # RFC 1112 section 6.1
    (GROUP, NOTHING, ME, SECOND, ME),
    (FAR, NOTHING, NOTHING, SECOND, ME),  # the interface is for multicasts
    (ME, NOTHING, NOTHING, NOTHING, ME),
    (address("127.3.0.1"), NOTHING, NOTHING, NOTHING, LOOPBACK),
    (FAR, NOT_OURS, NOTHING, NOTHING, None),
    (FAR, NOTHING, NOT_OURS, NOTHING, None),
    (GROUP, NOTHING, NOTHING, NOT_OURS, None),
    (address("0.0.0.9"), NOTHING, NOTHING, NOTHING, None),
])  # fmt: skip
def test_rfc1122_3_3_4_3_the_source_of_a_packet(destination, chosen, bound, interface, source):
    assert source_address.of_packet(ROUTES, destination, chosen, bound, interface) == source


def test_without_an_address_there_is_no_source():
    none = RouteTable(Routes([], []))
    for destination in (FAR, GROUP, address("255.255.255.255")):
        assert source_address.of_packet(none, destination, NOTHING, NOTHING, NOTHING) is None


@pytest.mark.parametrize(("gateway", "chosen", "source"), [
    (GATEWAY, NOTHING, ME), (address("10.1.0.1"), NOTHING, SECOND), (address("10.9.0.1"), NOTHING, NOTHING),
    (NOTHING, NOTHING, ME), (GATEWAY, SECOND, SECOND), (GATEWAY, NOT_OURS, NOTHING),
])  # fmt: skip
def test_rfc1122_3_3_4_3_the_source_of_a_route(gateway, chosen, source):
    links = links_of(OWN)
    assert source_address.of_route(Route(address("192.0.2.0"), 24, gateway, chosen, 1500), links) == source


def test_each_family_has_its_own():
    six, other, far = (bytes((0x20, 1)) + bytes(13) + bytes((last,)) for last in (2, 9, 8))
    own = [*OWN, (six, 64)]
    routes = RouteTable(Routes(own, connected(own, 1500)))
    assert source_address.of_packet(routes, other, NOTHING, NOTHING, NOTHING) == six
    assert source_address.of_packet(routes, other, bytes(16), NOTHING, NOTHING) == six
    assert source_address.of_destination(routes, bytes(15) + b"\1") == bytes(15) + b"\1"
    link = source_address.of_link(bytes((0x20, 2)) + far[2:], links_of(OWN))
    assert link == NOTHING  # no address of IPv4 goes into a packet of IPv6

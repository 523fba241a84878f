"""What addresses of either family stand for, with Python's ipaddress as the second opinion."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packets import addresses

V4, V6 = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
EITHER = V4 | V6


@pytest.mark.parametrize(("address", "unicast"), [
    ("0.0.0.0", False), ("0.255.1.1", False), ("1.0.0.0", True), ("126.255.255.255", True), ("127.0.0.1", False),
    ("128.0.0.1", True), ("223.255.255.255", True), ("224.0.0.1", False), ("240.0.0.1", False),
    ("255.255.255.255", False), ("::", False), ("::1", False), ("::2", True), ("fe80::1", True), ("ff02::1", False),
])  # fmt: skip
def test_rfc1122_3_2_1_3_rfc4291_2_5_what_a_single_host_on_a_link_can_have(address, unicast):
    assert addresses.is_unicast(ip_address(address).packed) is unicast


@given(EITHER)
def test_loopback_multicast_and_unspecified_are_as_in_ipaddress(octets):
    theirs = ip_address(octets)
    assert addresses.is_multicast(octets) is theirs.is_multicast
    assert addresses.is_loopback(octets) is theirs.is_loopback
    assert addresses.is_unspecified(octets) is theirs.is_unspecified


def test_nothing_is_sent_to_0_8_nor_to_the_unspecified_address():
    for address, can in (("0.0.0.1", False), ("1.0.0.0", True), ("::", False), ("::1", True), ("10::", True)):
        assert addresses.is_destination(ip_address(address).packed) is can


@given(EITHER, st.integers(0, 128))
def test_a_network_is_as_in_ipaddress(octets, prefix):
    prefix = min(prefix, len(octets) * 8)
    theirs = ip_network((octets, prefix), strict=False)
    assert addresses.network(octets, prefix) == theirs.network_address.packed
    assert addresses.mask(len(octets), prefix) == int(theirs.netmask)
    broadcasts = isinstance(theirs, IPv4Network) and prefix <= 30
    assert addresses.broadcast(octets, prefix) == (theirs.broadcast_address.packed if broadcasts else addresses.ANY)
    assert addresses.is_host(octets, prefix) is (
        not broadcasts or octets not in (theirs.network_address.packed, theirs.broadcast_address.packed))

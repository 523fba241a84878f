"""What a person asks of arp: list, add, delete, flush."""

from __future__ import annotations

import ipaddress
import random

import lengths
import pytest
from arp_host import (
    BROADCAST,
    OTHER,
    OTHER_MAC,
    OUR,
    PEER,
    PEER_MAC,
    Host,
    arp_packet,
    asks,
    ip4,
    reply,
    request,
    told,
)
from durable import dies
from hypothesis import example, given
from hypothesis import strategies as st
from records import transmit

from bus.layer import Send
from bus.messages import ARP_OUT, FORGET, NEIGHBOR, PACKET_OUT, RESOLVE, TRANSMIT, encode
from bus.topology import ARP as ARP_LAYER
from bus.topology import IP, UDP
from layers.arp import core as arp
from layers.arp import tables
from layers.ip import core as ip
from layers.ip.counters import Counters as IpCounters

MAC = "02:00:00:00:00:77"
OCTETS = bytes.fromhex(MAC.replace(":", ""))


@pytest.fixture
def host() -> Host:
    return Host()


def forgotten(address: str = PEER) -> Send:
    return IP, FORGET, ip4(address)


def test_the_states_of_neighbours(host):
    host.learn()
    host.now += arp.FRESH_S
    host.learn(OTHER, OTHER_MAC)
    host.manage("add", address="10.0.0.70", mac=MAC)
    host.resolves("10.0.0.80")
    assert host.listed() == {PEER: "stale", OTHER: "reachable", "10.0.0.70": "permanent", "10.0.0.80": "incomplete"}
    host.resolves(PEER)
    assert host.listed()[PEER] == "probing"
    host.passes(arp.RETRY_S * (arp.UNICAST_TRIES + arp.BROADCAST_TRIES))
    assert PEER not in host.listed()


def test_a_neighbour_with_its_mac_and_age(host):
    host.learn()
    host.now += 3
    assert host.manage("list") == ({"neighbors": [
        {"address": PEER, "mac": PEER_MAC.hex(":"), "state": "reachable", "age_s": 3.0}], "more": False}, [])


def test_a_neighbour_that_is_out_of_date_is_not_listed(host):
    host.learn()
    host.now += tables.ARP_TIMEOUT_S
    assert host.listed() == {}


def test_a_long_list_comes_in_pages(host):
    addresses = [str(ipaddress.IPv4Address(0x0A000100 + number)) for number in range(arp.LIST_PAGE + 2)]
    for address in addresses:
        host.manage("add", address=address, mac=MAC)
    first, _ = host.manage("list")
    rest, _ = host.manage("list", after=first["neighbors"][-1]["address"])
    assert (len(first["neighbors"]), first["more"], rest["more"]) == (arp.LIST_PAGE, True, False)
    assert [each["address"] for each in first["neighbors"] + rest["neighbors"]] == addresses


# Permanent neighbours


def test_a_permanent_neighbour_is_announced_and_answered_at_once_for_ever(host):
    assert host.manage("add", address=PEER, mac=MAC) == ({}, [told(PEER, OCTETS)])
    host.now += 1e6
    assert host.resolves(PEER) == [told(PEER, OCTETS)]
    assert host.core.next_wake is None


def test_a_permanent_neighbour_ends_the_search_for_it(host):
    host.resolves(PEER)
    host.manage("add", address=PEER, mac=MAC)
    assert host.passes(30) == []


@pytest.mark.parametrize("packet", [
    request(OTHER_MAC, PEER, OUR), reply(OTHER_MAC, PEER), request(OTHER_MAC, PEER, PEER),
    arp_packet(2, OTHER_MAC, PEER, PEER, BROADCAST),
])
def test_no_packet_changes_a_permanent_neighbour(host, packet):
    host.manage("add", address=PEER, mac=MAC)
    assert told(PEER, OTHER_MAC) not in host.hears(packet)
    assert host.resolves(PEER) == [told(PEER, OCTETS)]
    assert host.counted("permanent_kept") == 1


def test_a_permanent_neighbour_is_answered_like_any_other(host):
    host.manage("add", address=PEER, mac=MAC)
    assert [kind for _, kind, _ in host.hears(request(OCTETS, PEER, OUR))] == [ARP_OUT]
    assert host.counted("permanent_kept") == 0


def test_a_restart_keeps_permanent_neighbours(host):
    host.manage("add", address=PEER, mac=MAC)
    host.now += 1e6
    host.boots()
    assert host.announced == [told(PEER, OCTETS)]
    assert host.listed() == {PEER: "permanent"}


def test_a_learnt_neighbour_becomes_permanent_and_another_mac_replaces_the_first(host):
    host.learn()
    host.manage("add", address=PEER, mac="02:00:00:00:00:01")
    assert host.manage("add", address=PEER, mac=MAC)[1] == [told(PEER, OCTETS)]
    assert host.listed() == {PEER: "permanent"}
    assert len(host.stored) == 1


def test_permanent_neighbours_are_bounded(host):
    for number in range(tables.MAX_PERMANENT):
        assert host.manage("add", address=str(ipaddress.IPv4Address(0x0A010000 + number)), mac=MAC)[0] == {}
    answer, sends = host.manage("add", address=OTHER, mac=MAC)
    assert "1024 permanent" in answer["error"]
    assert sends == []
    assert host.manage("add", address="10.1.0.0", mac="02:00:00:00:00:01")[0] == {}


def test_a_flood_does_not_evict_permanent_neighbours(host):
    host.manage("add", address=PEER, mac=MAC)
    table = tables.Neighbors(host.state)
    table.load(host.now)
    for number in range(tables.MAX_NEIGHBORS + 10):
        table.confirm(ip4(0x0A010000 + number), PEER_MAC, host.now)
    assert table.get(ip4(PEER), host.now) == (OCTETS, float("-inf"))
    assert len(table) == tables.MAX_NEIGHBORS + 1


# Deleting


def test_a_deleted_neighbour_is_forgotten_by_ip_and_sought_anew(host):
    host.learn()
    assert host.manage("del", address=PEER) == ({}, [forgotten()])
    assert host.stored == {}
    (asked,) = host.resolves(PEER)
    assert asks(asked, BROADCAST)


def test_a_deleted_permanent_neighbour_is_sought_anew(host):
    host.manage("add", address=PEER, mac=MAC)
    assert host.manage("del", address=PEER) == ({}, [forgotten()])
    host.boots()
    assert (host.announced, host.stored) == ([], {})


def test_rfc1122_2_3_2_1_a_neighbour_deleted_while_it_is_polled_is_asked_for_by_broadcast_a_second_later(host):
    host.learn()
    host.now += 30
    host.resolves(PEER)
    host.manage("del", address=PEER)
    start = host.now
    assert host.resolves(PEER) == []  # the cap of a request a second holds
    when, asked = host.passes(1)[0]
    assert when == start + arp.RETRY_S
    assert asks(asked, BROADCAST)
    assert host.hears(reply(OTHER_MAC, PEER)) == [told(PEER, OTHER_MAC)]


@pytest.mark.parametrize("permanent", [False, True])
def test_an_order_to_delete_that_comes_again_because_arp_died_over_it_is_done_once_and_no_error(permanent):
    for line in range(1000):
        host = Host()
        host.manage("add", address=PEER, mac=MAC) if permanent else host.learn()
        died = dies(line, (arp, tables), lambda host=host: host.manage("del", address=PEER, order=7))
        host.boots()
        answer, sends = host.manage("del", address=PEER, order=7)
        assert (answer, sends, host.stored) == ({}, [forgotten()], {})
        assert host.manage("del", address=PEER, order=8)[0] == {"error": f"no neighbour {PEER} is known"}
        if not died:
            break
    assert line > 10


def test_an_order_without_a_number_is_not_known_again(host):
    for _ in range(2):
        assert host.manage("del", address=PEER)[0] == {"error": f"no neighbour {PEER} is known"}


def test_a_flush_spares_the_permanent_neighbours(host):
    host.learn()
    host.learn(OTHER, OTHER_MAC)
    host.manage("add", address="10.0.0.70", mac=MAC)
    answer, sends = host.manage("flush")
    assert answer == {"deleted": 2}
    assert sends == [forgotten(), forgotten(OTHER)]
    assert host.listed() == {"10.0.0.70": "permanent"}
    assert host.manage("flush") == ({"deleted": 0}, [])


# What cannot be


@pytest.mark.parametrize(("order", "fields", "text"), [
    ("add", {"address": OUR, "mac": MAC}, "an address of this stack"),
    ("add", {"address": "10.0.0.255", "mac": MAC}, "not the address of a single host"),
    ("add", {"address": "224.0.0.1", "mac": MAC}, "not the address of a single host"),
    ("add", {"address": PEER, "mac": "01:00:5e:00:00:01"}, "not the address of a single station"),
    ("add", {"address": PEER, "mac": "02:00"}, "not a MAC"),
    ("add", {"address": PEER}, "not a MAC"),
    ("add", {"mac": MAC}, "None"),
    ("del", {"address": PEER}, "no neighbour 10.0.0.1"),
    ("del", {"address": "10.0.0"}, "10.0.0"),
    ("list", {"after": 7.5}, "7.5"),
    ("polish", {}, "neighbor_polish"),
])
def test_an_impossible_order_is_refused_with_the_reason_and_changes_nothing(host, order, fields, text):
    answer, sends = host.manage(order, **fields)
    assert text in answer["error"]
    assert (sends, host.stored) == ([], {})


SCRAPS = st.none() | st.integers() | st.text("0123456789.:af", max_size=20) | st.lists(st.integers())
HOSTS = st.sampled_from([PEER, PEER, OTHER, OUR, "0.0.0.0", "224.0.0.1", "10.0.0.255"])
STATIONS = st.sampled_from([MAC, MAC, "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
REQUESTS = st.fixed_dictionaries(
    {"op": lengths.mostly(st.sampled_from(["neighbor_add", "neighbor_del", "neighbor_list", "neighbor_flush"]), SCRAPS),
     "address": lengths.mostly(HOSTS, SCRAPS), "mac": lengths.mostly(STATIONS, SCRAPS)},
    optional={"after": lengths.mostly(HOSTS, SCRAPS), "order": SCRAPS})


@given(lengths.lists(REQUESTS, 6)
       | st.lists(st.dictionaries(st.sampled_from(["op", "address", "mac", "after"]), SCRAPS)))
@example([{"op": "neighbor_add", "address": OTHER, "mac": MAC}, {"op": "neighbor_del", "address": PEER}])
def test_no_request_raises_and_what_is_listed_is_listed_after_a_restart(requests):
    host = Host()
    host.learn()
    for each in requests:
        answer, _ = host.core.manage(each, host.now)
        assert encode(answer)
    listed = host.listed()
    host.boots()
    assert host.listed() == listed


def test_packets_to_a_neighbour_that_was_flushed_wait_and_leave_when_it_is_found_again(host):
    """ip and arp glued together: nothing is lost between `flush` and the neighbour's reply."""
    router = ip.Core(host.config, {}, IpCounters.new(), random.Random(1))
    router.start(host.now)
    segment = transmit(bytes(4), PEER) + b"segment"
    host.learn()

    def from_arp(sends: list[Send]) -> list[Send]:
        return [out for _, kind, record in sends if kind in (NEIGHBOR, FORGET)
                for out in router.receive(ARP_LAYER, kind, [record], host.now)]

    from_arp([told()])
    assert [kind for _, kind, _ in router.receive(UDP, TRANSMIT, [segment], host.now)] == [PACKET_OUT]
    assert from_arp(host.manage("flush")[1]) == []
    (asked,) = router.receive(UDP, TRANSMIT, [segment, segment], host.now)
    assert asked == (ARP_LAYER, RESOLVE, ip4(PEER))
    host.resolves(PEER)
    assert [kind for _, kind, _ in from_arp(host.hears(reply(PEER_MAC, PEER)))] == [PACKET_OUT] * 2

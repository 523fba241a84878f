"""The ARP core: what it answers, learns, forgets, and how it behaves when flooded."""

from __future__ import annotations

import ipaddress
import itertools
import math
import struct
from collections import Counter as Tally

import lengths
import pytest
from arp_host import (
    BROADCAST,
    OTHER,
    OTHER_MAC,
    OUR,
    OUR_MAC,
    PEER,
    PEER_MAC,
    Host,
    arp_packet,
    asks,
    colons,
    ip4,
    reply,
    request,
    told,
    unreachable,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from bus.messages import ARP_OUT, NEIGHBOR, RESOLVE, UNREACHABLE
from bus.topology import IP, LINK
from layers.arp import acd, tables
from layers.arp import core as arp


@pytest.fixture
def host() -> Host:
    return Host()


# Answering


def test_rfc826_request_for_us_is_answered_and_its_sender_learnt(host):
    learnt, answer = host.hears(request(PEER_MAC, PEER, OUR))
    assert learnt == told()
    consumer, kind, record = answer
    assert (consumer, kind, record[:6]) == (LINK, ARP_OUT, PEER_MAC)
    sent = ARP(record[6:])
    assert (sent.op, sent.hwsrc, sent.psrc, sent.hwdst, sent.pdst) == (
        2, colons(OUR_MAC), OUR, colons(PEER_MAC), PEER)
    assert host.core.next_wake is None


@pytest.mark.parametrize("target_mac", [BROADCAST, OTHER_MAC, b"\x01" * 6])
def test_rfc826_the_target_mac_of_a_request_means_nothing(host, target_mac):
    answer = host.hears(arp_packet(1, PEER_MAC, PEER, OUR, target_mac))[1]
    assert (answer[2][:6], ARP(answer[2][6:]).op) == (PEER_MAC, 2)


def test_padding_of_a_short_frame_is_ignored(host):
    assert host.hears(request(PEER_MAC, PEER, OUR) + bytes(18)) == Host().hears(request(PEER_MAC, PEER, OUR))


def test_rfc826_request_for_another_host_is_neither_answered_nor_learnt(host):
    assert host.hears(request(PEER_MAC, PEER, OTHER)) == []
    assert host.knows() is None


def test_rfc5227_2_1_1_probe_for_our_address_is_answered_and_teaches_nothing(host):
    (answer,) = host.hears(request(PEER_MAC, "0.0.0.0", OUR))
    sent = ARP(answer[2][6:])
    assert (answer[2][:6], sent.op, sent.psrc, sent.pdst) == (PEER_MAC, 2, OUR, "0.0.0.0")
    assert host.stored == {}


def test_rfc5227_2_1_1_probe_for_another_address_is_not_ours_to_answer(host):
    assert host.hears(request(PEER_MAC, "0.0.0.0", OTHER)) == []


def test_a_request_from_outside_the_network_is_answered_but_not_learnt(host):
    (answer,) = host.hears(request(PEER_MAC, "192.0.2.7", OUR))
    assert answer[1] == ARP_OUT
    assert host.stored == {}


# Merging


def test_rfc826_merge_updates_a_known_sender_whatever_the_target(host):
    host.learn()
    assert host.hears(request(OTHER_MAC, PEER, OTHER)) == [told(PEER, OTHER_MAC)]
    assert host.knows() == OTHER_MAC
    assert host.counted("changed") == 1


def test_gratuitous_arp_updates_but_does_not_add(host):
    assert host.hears(request(PEER_MAC, PEER, PEER), arp_packet(2, PEER_MAC, PEER, PEER, BROADCAST)) == []
    assert host.knows() is None
    host.learn()
    assert host.hears(request(OTHER_MAC, PEER, PEER)) == [told(PEER, OTHER_MAC)]


def test_an_unsolicited_reply_updates_but_does_not_add(host):
    assert host.hears(reply(PEER_MAC, PEER)) == []
    assert host.knows() is None
    host.learn()
    assert host.hears(reply(OTHER_MAC, PEER)) == [told(PEER, OTHER_MAC)]


def test_a_sender_that_is_known_already_is_announced_once(host):
    host.learn()
    host.now += 5
    assert [kind for _, kind, _ in host.hears(request(PEER_MAC, PEER, OUR))] == [ARP_OUT]


@pytest.mark.parametrize("mac", ["ffffffffffff", "01005e000001", "000000000000"])
def test_a_mac_that_no_station_can_have_is_not_learnt_nor_answered(host, mac):
    assert host.hears(request(bytes.fromhex(mac), PEER, OUR)) == []
    assert host.counted("bad_sender_mac") == 1
    assert host.stored == {}


@pytest.mark.parametrize("sender", ["255.255.255.255", "224.0.0.1", "127.0.0.1", "240.0.0.1", "0.1.2.3", "10.0.0.255",
                                    "10.0.0.0"])
def test_an_address_that_no_neighbour_can_have_is_not_learnt_nor_answered(host, sender):
    assert host.hears(request(PEER_MAC, sender, OUR)) == []
    assert host.counted("bad_sender_address") == 1
    assert host.stored == {}


def test_rfc3021_both_addresses_of_a_31_are_hosts():
    host = Host(prefix=31)
    assert told("10.0.0.3") in host.hears(request(PEER_MAC, "10.0.0.3", OUR))


def test_our_own_packets_that_come_back_are_dropped(host):
    assert host.hears(request(OUR_MAC, OUR, PEER), request(OUR_MAC, PEER, OUR)) == []
    assert host.counted("own_packet") == 2
    assert host.stored == {}


@pytest.mark.parametrize(("octets", "counter"), [
    (b"", "too_short"),
    (request(PEER_MAC, PEER, OUR)[:27], "too_short"),
    (b"\x00\x07" + request(PEER_MAC, PEER, OUR)[2:], "not_ethernet_ipv4"),
    (request(PEER_MAC, PEER, OUR)[:2] + b"\x86\xdd" + request(PEER_MAC, PEER, OUR)[4:], "not_ethernet_ipv4"),
    (request(PEER_MAC, PEER, OUR)[:5] + b"\x10" + request(PEER_MAC, PEER, OUR)[6:], "not_ethernet_ipv4"),
    (arp_packet(3, PEER_MAC, PEER, OUR), "unknown_operation"),
])
def test_packets_other_than_arp_for_ipv4_over_ethernet_are_counted(host, octets, counter):
    assert host.hears(octets) == []
    assert host.counted(counter) == 1
    assert host.counted("received") == 1
    assert host.stored == {}


# Resolving


def test_an_unknown_neighbour_is_asked_for_and_found(host):
    (asked,) = host.resolves(PEER)
    assert asks(asked, BROADCAST)
    assert host.resolves(PEER) == []  # under way
    assert host.hears(reply(PEER_MAC, PEER)) == [told()]
    assert host.core.next_wake is None
    assert host.passes(30) == []
    assert host.counted("resolved") == 1


@pytest.mark.parametrize(("hardware", "known"), [(1, True), (6, True), (7, False)])
def test_rfc1122_2_3_3_a_neighbour_with_the_hardware_type_of_rfc1042_is_found_and_answered(host, hardware, known):
    """As Linux, arp_process: 1 (Ethernet) and 6 (IEEE 802)."""
    def typed(packet):
        return hardware.to_bytes(2, "big") + bytes(packet)[2:]

    host.resolves(PEER)
    assert host.hears(typed(reply(PEER_MAC, PEER))) == ([told()] if known else [])
    assert len(host.hears(typed(request(OTHER_MAC, OTHER, OUR)))) == (2 if known else 0)  # the answer, and it is learnt


def test_rfc1122_2_3_2_1_requests_are_a_second_apart_then_the_neighbour_is_unreachable(host):
    start = host.now
    assert len(host.resolves(PEER)) == 1
    first, second, end = host.passes(10)
    assert (first[0], second[0], end) == (start + 1, start + 2, (start + 3, unreachable()))
    assert asks(first[1], BROADCAST)
    assert asks(second[1], BROADCAST)
    assert host.core.next_wake is None


def test_rfc1122_2_3_2_1_the_cap_of_a_request_per_second_holds_over_failures_and_impatience(host):
    """ip asks ten times a second for twenty seconds."""
    sent = []
    for _ in range(200):
        sent += [(host.now, send) for send in host.resolves(PEER)]
        sent += host.passes(0.1)
    times = [when for when, (consumer, _, _) in sent if consumer == LINK]
    assert len(times) >= 18
    assert all(later - earlier > 0.999 for earlier, later in itertools.pairwise(times))
    assert Tally(kind for _, (_, kind, _) in sent)[UNREACHABLE] >= 5


def test_a_neighbour_that_appears_after_a_failure_is_found(host):
    host.resolves(PEER)
    host.passes(3)
    assert len(host.resolves(PEER)) == 1
    assert host.hears(reply(PEER_MAC, PEER)) == [told()]


def test_a_request_from_the_neighbour_sought_is_an_answer_too(host):
    host.resolves(PEER)
    assert host.hears(request(PEER_MAC, PEER, OTHER)) == [told()]


def test_a_neighbour_outside_the_network_is_found_where_ip_says_that_it_is_on_the_link():
    host = Host(prefix=32)
    assert asks(host.resolves(PEER)[0], BROADCAST)
    assert host.hears(reply(PEER_MAC, PEER)) == [told()]


def test_a_fresh_neighbour_is_answered_at_once_and_left_in_peace(host):
    host.learn()
    host.now += arp.FRESH_S - 1
    assert host.resolves(PEER) == [told()]
    assert host.core.next_wake is None


@pytest.mark.parametrize(("age_s", "state"), [(19.9, "reachable"), (20.0, "probing")])
def test_a_neighbour_is_fresh_for_twenty_seconds(host, age_s, state):
    host.learn()
    host.now += age_s
    host.resolves(PEER)
    assert host.listed() == {PEER: state}


def test_rfc1122_2_3_2_1_an_ageing_neighbour_is_answered_and_polled_by_unicast(host):
    host.learn()
    host.now += 30
    answer, poll = host.resolves(PEER)
    assert answer == told()
    assert asks(poll, PEER_MAC)
    assert host.resolves(PEER) == [told()]
    assert host.hears(reply(PEER_MAC, PEER)) == [told()]
    host.now += arp.FRESH_S - 1
    assert host.resolves(PEER) == [told()]


def test_rfc1122_2_3_2_1_a_neighbour_that_answers_no_poll_is_forgotten(host):
    host.learn()
    host.now += 30
    start = host.now
    host.resolves(PEER)
    sent = host.passes(10)
    assert [when - start for when, _ in sent] == [1, 2, 3, 4, 5]
    polls = [send for _, send in sent[:4]]
    assert asks(polls[0], PEER_MAC)
    assert all(asks(send, BROADCAST) for send in polls[1:])
    assert sent[-1][1] == unreachable()
    assert host.knows() is None
    assert host.stored == {}


def test_a_neighbour_with_a_new_mac_is_found_by_the_broadcast_that_follows_the_polls(host):
    host.learn()
    host.now += 30
    host.resolves(PEER)
    host.passes(2)
    assert host.hears(reply(OTHER_MAC, PEER)) == [told(PEER, OTHER_MAC)]
    assert host.passes(10) == []


def test_rfc1122_2_3_2_1_a_neighbour_not_seen_for_a_minute_is_out_of_date(host):
    host.learn()
    host.now += tables.ARP_TIMEOUT_S
    (asked,) = host.resolves(PEER)
    assert asks(asked, BROADCAST)
    assert host.stored == {}


@pytest.mark.parametrize(("age_s", "known"), [(59.9, True), (60.0, False)])
def test_rfc1122_2_3_2_1_a_minute_is_sixty_seconds(host, age_s, known):
    host.learn()
    host.now += age_s
    assert host.listed() == ({PEER: "stale"} if known else {})
    assert (Host(state=dict(host.state), now=host.now).announced == [told()]) is known
    assert (host.resolves(PEER)[0] == told()) is known


def test_rfc1122_2_3_2_1_seeing_the_sender_restarts_the_timeout(host):
    host.learn()
    for _ in range(10):
        host.now += 45
        host.hears(request(PEER_MAC, PEER, OTHER))
    assert host.resolves(PEER) == [told()]


@pytest.mark.parametrize("address", [OUR, "10.0.0.255", "10.0.0.0", "224.0.0.1", "255.255.255.255", "0.0.0.0"])
def test_an_address_that_no_neighbour_can_have_is_unreachable_at_once(host, address):
    assert host.resolves(address) == [unreachable(address)]
    assert host.core.next_wake is None


def test_a_request_to_resolve_of_the_wrong_length_is_counted(host):
    assert host.core.receive(IP, RESOLVE, [b"", b"\x0a\x00\x00", bytes(5)], host.now) == []
    assert host.counted("resolve_malformed") == 3


# Restarts


def test_a_restart_keeps_the_neighbours_and_tells_ip(host):
    host.learn()
    host.learn(OTHER, OTHER_MAC)
    again = Host(state=host.state, now=host.now + 10)
    assert sorted(again.announced) == sorted([told(), told(OTHER, OTHER_MAC)])
    assert again.resolves(PEER) == [told()]


def test_a_restart_keeps_the_age_of_neighbours(host):
    host.learn()
    host.now += 40
    host.learn(OTHER, OTHER_MAC)
    again = Host(state=host.state, now=host.now + 30)
    assert again.announced == [told(OTHER, OTHER_MAC)]
    assert len(again.stored) == 1


def test_only_a_restarted_ip_is_told_the_neighbours(host):
    host.learn()
    assert host.core.neighbor_started(IP, host.now) == [told()]
    assert host.core.neighbor_started(LINK, host.now) == []
    assert host.core.neighbor_started(IP, host.now + tables.ARP_TIMEOUT_S) == []


def test_a_restart_keeps_the_order_in_which_neighbours_leave_the_full_table(host):
    host.learn()
    host.learn(OTHER, OTHER_MAC)
    host.now += 2
    host.learn()
    table = tables.Neighbors(host.state)
    table.load(host.now)
    assert [address for address, _ in table.valid(host.now)] == [ip4(OTHER), ip4(PEER)]


STORED = tables.KEYS + (1 << 32)  # those on interface 1


@pytest.mark.parametrize(("mac", "confirmed"), [(BROADCAST, 990.0), (PEER_MAC, 1000.5), (PEER_MAC, math.nan)])
def test_stored_neighbours_that_cannot_be_are_deleted(mac, confirmed):
    host = Host(state={STORED: b"\4" + ip4(PEER) + struct.pack("<6sd", mac, confirmed)}, now=1000.0)
    assert (host.announced, host.stored) == ([], {})


JUNK = st.dictionaries(st.integers(0, 2**64 - 1) | st.integers(STORED + 10, STORED + 19), lengths.octets(20),
                       max_size=5)
NEIGHBORS = st.dictionaries(
    st.sampled_from([PEER, OTHER, "10.0.0.77"]),
    st.tuples(st.sampled_from([PEER_MAC, OTHER_MAC, BROADCAST, bytes(6)]),
              st.sampled_from([math.inf, 1000.0, 940.5, 940.0, 1000.5, -math.inf, math.nan]) | st.floats()))


@given(NEIGHBORS, JUNK)
@example({PEER: (PEER_MAC, math.inf), OTHER: (OTHER_MAC, 990.0)}, {})
def test_invalid_stored_records_are_deleted(neighbors, junk):
    stored = {STORED + place: b"\4" + ip4(address) + struct.pack("<6sd", mac, confirmed)
              for place, (address, (mac, confirmed)) in enumerate(neighbors.items())}
    host = Host(state=stored | junk, now=1000.0)
    valid = {address: mac for address, (mac, confirmed) in neighbors.items()
             if mac in (PEER_MAC, OTHER_MAC) and (confirmed == math.inf or 940.0 < confirmed <= 1000.0)}
    assert sorted(host.announced) == sorted(told(address, mac) for address, mac in valid.items())
    assert host.stored == {key: record for key, record in stored.items()
                           if str(ipaddress.ip_address(record[1:5])) in valid}


# Floods


def storm(count: int) -> list[bytes]:
    """Requests for us from `count` hosts of 10.0.0.0/8."""
    head, tail = request(PEER_MAC, PEER, OUR)[:14], request(PEER_MAC, PEER, OUR)[18:]
    return [head + ip4(0x0A010001 + number) + tail for number in range(count)]


def test_a_storm_of_senders_is_answered_but_learnt_only_so_fast(host):
    host = Host(prefix=8)
    kinds = Tally(kind for _, kind, _ in host.hears(*storm(10_000)))
    assert kinds == {ARP_OUT: 10_000, NEIGHBOR: 256}
    assert host.counted("learn_limited") == 10_000 - 256
    host.now += 1
    kinds = Tally(kind for _, kind, _ in host.hears(*storm(10_000)))
    assert kinds[NEIGHBOR] == 200


def test_a_storm_does_not_keep_a_resolution_from_ending(host):
    host = Host(prefix=8)
    host.resolves(PEER)
    host.hears(*storm(1000))
    assert host.hears(reply(PEER_MAC, PEER)) == [told()]


def test_two_hosts_that_quarrel_about_an_address_cost_ip_no_more_than_a_storm(host):
    host.learn()
    quarrel = [request(OTHER_MAC, PEER, OTHER), request(PEER_MAC, PEER, OTHER)] * 1000
    assert len(host.hears(*quarrel)) == arp.LEARN_BURST - 1


def test_the_table_is_bounded_and_the_least_recently_confirmed_goes_first():
    host = Host(prefix=8)
    host.learn()
    host.learn(OTHER, OTHER_MAC)
    host.now += 2
    packets = storm(4096)
    host.hears(request(PEER_MAC, PEER, OTHER))  # confirmed: OTHER is now the oldest
    for begin in range(0, len(packets) - 1, 200):
        host.now += 1
        host.hears(*packets[begin : min(begin + 200, len(packets) - 1)])
    assert len(host.stored) == 4096
    assert (host.knows(PEER), host.knows(OTHER)) == (PEER_MAC, None)
    assert host.counted("evicted") == 1


def test_resolutions_are_bounded_and_the_refused_ones_are_answered():
    host = Host(prefix=8)
    addresses = [str(ipaddress.IPv4Address(0x0A020001 + number)) for number in range(1024 + 5)]
    kinds = Tally(kind for _, kind, _ in host.resolves(*addresses))
    assert kinds == {ARP_OUT: 1024, UNREACHABLE: 5}
    host.hears(reply(PEER_MAC, addresses[0]))
    assert [kind for _, kind, _ in host.resolves(*addresses[-2:])] == [ARP_OUT, UNREACHABLE]
    host.passes(5)
    assert len(host.resolves(PEER)) == 1


def test_each_request_to_resolve_gets_an_answer_when_many_are_asked_for():
    host = Host(prefix=8)
    addresses = [str(ipaddress.IPv4Address(0x0A020001 + number)) for number in range(50)]
    for address in addresses:
        host.resolves(address)
        host.now += 0.01
    answered = host.hears(*[reply(PEER_MAC, address) for address in addresses[::2]])
    assert answered == [told(address) for address in addresses[::2]]
    ends = [send for _, send in host.passes(10) if send[0] == IP]
    assert ends == [unreachable(address) for address in addresses[1::2]]


# Anything


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(
    st.sampled_from(["link", "ip", "wait"]),
    st.binary(max_size=40) | st.builds(
        lambda head, operation, mac, sender, target: head + operation + mac + sender + bytes(6) + target,
        st.just(bytes.fromhex("000108000604")), st.sampled_from([b"\0\1", b"\0\2"]),
        st.sampled_from([PEER_MAC, OTHER_MAC, OUR_MAC, BROADCAST]),
        st.sampled_from([ip4(address) for address in (PEER, OTHER, OUR, "0.0.0.0", "10.0.0.255")]),
        st.sampled_from([ip4(PEER), ip4(OUR)])),
    st.floats(0, 70))))
def test_nothing_raises_and_what_is_stored_is_what_is_known(events):
    host = Host()
    for what, octets, seconds in events:
        if what == "link":
            host.hears(octets)
        elif what == "ip":
            host.core.receive(IP, RESOLVE, [octets[-4:]], host.now)
        else:
            host.passes(seconds)
        known = host.core.neighbor_started(IP, host.now)
        assert all(record[:4] != ip4(OUR) and not record[4] & 1 for _, _, record in known)
        assert host.core.next_wake is None or host.core.next_wake <= host.now + acd.CONFLICT_OVER_S
    assert sorted(Host(state=host.state, now=host.now).announced) == sorted(host.core.neighbor_started(IP, host.now))
    host.passes(acd.CONFLICT_OVER_S)
    assert host.core.next_wake is None


def test_many_resolutions_take_their_next_steps_in_portions_the_oldest_first(host):
    addresses = [f"10.0.0.{number}" for number in range(50, 150)]
    host.resolves(*addresses)
    host.now += 1.5
    asked = []
    while host.core.next_wake is not None and host.core.next_wake <= host.now:
        sends = host.core.wake(host.now)
        assert 0 < len(sends) <= arp.STEPS_AT_ONCE
        assert {kind for _, kind, _ in sends} == {ARP_OUT}
        asked += [record[-4:] for _, _, record in sends]
    assert asked == [ip4(address) for address in addresses]

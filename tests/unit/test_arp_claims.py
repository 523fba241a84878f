"""Our own addresses: probing, announcing, conflicts (RFC 5227), several of them."""

from __future__ import annotations

import itertools
import struct

import lengths
import msgspec
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
    asks,
    colons,
    ip4,
    reply,
    request,
    told,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from bus.messages import ARP_OUT, NOTICES, ROUTES, Routes, encode
from bus.topology import IP, KEEPER, LINK
from layers.arp import acd

SECOND = "192.0.2.7"


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def new() -> Host:
    return Host(new=True)


def kind_of(send: tuple, address: str = OUR) -> str:
    """What an ARP packet of ours is about an address of ours: probe, announcement, reply."""
    consumer, kind, record = send
    assert (consumer, kind) == (LINK, ARP_OUT)
    sent = ARP(record[6:])
    assert (sent.hwsrc, sent.hwtype, sent.ptype, sent.hwlen, sent.plen) == (colons(OUR_MAC), 1, 0x800, 6, 4)
    if sent.op == 2:
        return "reply"
    assert (record[:6], sent.op, sent.hwdst, sent.pdst) == (BROADCAST, 1, colons(bytes(6)), address)
    return {"0.0.0.0": "probe", address: "announcement"}[sent.psrc]


def notices(sends: list) -> list[dict[str, str]]:
    """The facts of the last notices among what was sent."""
    records = [record for consumer, kind, record in sends if (consumer, kind) == (KEEPER, NOTICES)]
    return [dict(notice["facts"]) for notice in msgspec.msgpack.decode(records[-1])]


def conflict(mac: bytes = PEER_MAC, address: str = OUR) -> dict[str, str]:
    return {"address": address, "mac": colons(mac)}


# Probing


@pytest.mark.parametrize("seed", range(20))
def test_rfc5227_2_1_1_three_probes_then_two_announcements_at_the_times_of_section_1_1(seed):
    new = Host(new=True, seed=seed)
    start = new.now
    sent = new.passes(30)
    assert [kind_of(send) for _, send in sent] == ["probe"] * 3 + ["announcement"] * 2
    first, *gaps = [later - earlier for earlier, later in itertools.pairwise([start, *(when for when, _ in sent)])]
    assert 0 <= first <= 1
    assert all(1 <= gap <= 2 for gap in gaps[:2])
    assert gaps[2:] == pytest.approx([2, 2])
    assert (new.counted("probes_sent"), new.counted("announcements_sent")) == (3, 2)


def test_rfc5227_2_1_1_the_times_of_probes_are_random():
    assert len({Host(new=True, seed=seed).core.next_wake for seed in range(20)}) == 20


def test_probing_goes_on_in_time_while_ip_repeats_itself_and_neighbours_are_sought(new):
    steps = [when for when, _ in Host(new=True).passes(30)]
    sent = []
    for _ in range(100):
        new.owns(f"{OUR}/24")
        new.resolves(PEER)
        sent += [when for when, send in new.passes(0.1) if send[0] == LINK and ARP(send[2][6:]).pdst == OUR]
    assert sent == pytest.approx(steps)


def test_an_address_serves_while_it_is_probed(new):
    learnt, answer = new.hears(request(PEER_MAC, PEER, OUR))
    assert (learnt, kind_of(answer)) == (told(), "reply")
    assert asks(new.resolves(OTHER)[0], BROADCAST, OTHER)


def test_rfc5227_2_1_a_host_must_not_probe_periodically(new):
    new.passes(10)
    assert new.core.next_wake is None
    assert new.passes(86400) == []


def test_a_restart_neither_probes_nor_announces_again(new):
    new.passes(10)
    new.boots()
    assert new.passes(30) == []


def test_a_restart_in_the_midst_of_probing_goes_on_where_it_was(new):
    sent = new.passes(3.0)
    new.boots()
    sent += new.passes(30)
    assert [kind_of(send) for _, send in sent] == ["probe"] * 3 + ["announcement"] * 2
    times = [when for when, _ in sent]
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("claim", [reply(PEER_MAC, OUR), request(PEER_MAC, OUR, OUR), request(PEER_MAC, OUR, OTHER)])
def test_rfc5227_2_1_1_any_packet_from_the_probed_address_is_a_conflict(new, claim):
    new.passes(1)
    sends = new.hears(claim)
    assert kind_of(sends[0]) == "announcement"
    assert notices(sends) == [conflict()]
    ((_, end),) = new.passes(600)  # the probes are not resumed: what they were to find out is known
    assert notices([end]) == []


def test_rfc5227_2_1_1_a_probe_for_the_address_that_we_are_probing_is_a_conflict(new):
    sends = new.hears(request(PEER_MAC, "0.0.0.0", OUR))
    assert [kind_of(send) for send in sends if send[0] == LINK] == ["announcement", "reply"]
    assert notices(sends) == [conflict()]


def test_rfc5227_2_1_1_the_trial_ends_announce_wait_after_the_last_probe(new):
    probes = [when for when, send in new.passes(10) if kind_of(send) == "probe"]
    again = Host(new=True)
    again.passes(probes[-1] + 1.9 - again.now)
    assert len(again.hears(request(PEER_MAC, "0.0.0.0", OUR))) > 1
    late = Host(new=True)
    late.passes(probes[-1] + 2.1 - late.now)
    (answer,) = late.hears(request(PEER_MAC, "0.0.0.0", OUR))
    assert kind_of(answer) == "reply"


def test_rfc5227_2_1_1_our_own_probe_that_comes_back_is_no_conflict(new):
    assert new.hears(request(OUR_MAC, "0.0.0.0", OUR)) == []


# Conflicts


@pytest.mark.parametrize("claim", [reply(PEER_MAC, OUR), request(PEER_MAC, OUR, OUR), request(PEER_MAC, OUR, OTHER)])
def test_rfc5227_2_4_c_our_address_is_defended_by_one_announcement_and_reported(host, claim):
    defence, report = host.hears(claim)
    assert kind_of(defence) == "announcement"
    assert notices([report]) == [conflict()]
    assert host.stored == {}
    assert (host.counted("conflict"), host.counted("defences_sent")) == (1, 1)


def test_rfc5227_2_4_c_must_not_defend_again_within_defend_interval(host):
    claim = request(PEER_MAC, OUR, OUR)
    host.hears(claim)
    assert host.hears(claim, reply(OTHER_MAC, OUR)) == []
    host.now += acd.DEFEND_INTERVAL_S - 0.1
    assert host.hears(claim) == []
    host.now += 0.2
    (defence,) = host.hears(claim)  # the rival is known: no second report
    assert kind_of(defence) == "announcement"
    assert (host.counted("conflict"), host.counted("defences_sent")) == (5, 2)


def test_rfc5227_2_4_c_reports_are_controlled_when_many_rivals_shout(host):
    rivals = [bytes.fromhex(f"0200000001{number:02x}") for number in range(100)]
    sends = host.hears(*[request(mac, OUR, OUR) for mac in rivals])
    assert [send[0] for send in sends] == [LINK, KEEPER]
    host.now += acd.DEFEND_INTERVAL_S
    assert notices(host.hears(request(rivals[-1], OUR, OUR))) == [conflict(rivals[-1])]


def test_rfc5227_2_4_must_not_defend_again_after_a_restart_either(host):
    host.hears(request(PEER_MAC, OUR, OUR))
    host.now += 5
    host.boots()
    assert [dict(notice["facts"]) for notice in host.noticed[0]] == [conflict()]
    assert host.hears(request(PEER_MAC, OUR, OUR)) == []
    host.now += 5
    assert len(host.hears(request(PEER_MAC, OUR, OUR))) == 1


def test_rfc5227_2_4_the_address_is_kept_and_answered_for_during_a_conflict(host):
    host.hears(request(OTHER_MAC, OUR, OUR))
    assert kind_of(host.hears(request(PEER_MAC, PEER, OUR))[1]) == "reply"


def test_a_conflict_is_over_when_the_rival_was_silent_for_long(host):
    host.hears(request(PEER_MAC, OUR, OUR))
    assert host.passes(299.0) == []
    host.hears(request(PEER_MAC, OUR, OUR))
    ((when, report),) = host.passes(301.0)
    assert when == pytest.approx(1000 + 299 + 300)
    assert notices([report]) == []
    assert host.core.next_wake is None
    assert notices(host.hears(request(PEER_MAC, OUR, OUR))) == [conflict()]


def test_a_conflict_that_ended_while_arp_was_down_is_over_at_once(host):
    host.hears(request(PEER_MAC, OUR, OUR))
    host.now += acd.CONFLICT_OVER_S + 1
    host.boots()
    assert [notices([send]) for _, send in host.passes(0.1)] == [[]]


# Several addresses


def test_until_ip_announces_addresses_the_configured_one_serves_and_its_announcement_changes_nothing(host):
    assert host.owns(f"{OUR}/24") == []
    assert host.passes(30) == []


def test_rfc826_each_own_address_is_answered_for(host):
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    for address in (OUR, SECOND):
        answer = ARP(host.hears(request(PEER_MAC, PEER, address))[-1][2][6:])
        assert (answer.op, answer.psrc, answer.pdst) == (2, address, PEER)


def test_rfc5227_2_1_only_the_address_that_is_new_is_probed(host):
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    sent = host.passes(30)
    assert [kind_of(send, SECOND) for _, send in sent] == ["probe"] * 3 + ["announcement"] * 2
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    assert host.passes(30) == []


def test_a_restart_keeps_the_addresses(host):
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    host.passes(30)
    host.boots()
    assert kind_of(host.hears(request(PEER_MAC, PEER, SECOND))[-1]) == "reply"
    assert host.passes(30) == []


def test_an_address_that_went_is_neither_answered_for_nor_defended_and_its_conflict_ends(host):
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    assert notices(host.hears(request(PEER_MAC, SECOND, SECOND))) == [conflict(address=SECOND)]
    assert notices(host.owns(f"{OUR}/24")) == []
    assert host.hears(request(PEER_MAC, PEER, SECOND), request(PEER_MAC, SECOND, SECOND)) == []


def test_rfc5227_2_1_an_address_that_came_back_is_probed_again(host):
    host.owns(f"{SECOND}/24")
    host.passes(30)
    host.owns(f"{OUR}/24")
    assert kind_of(host.passes(30)[0][1]) == "probe"


def test_requests_come_from_our_address_in_the_neighbours_network(host):
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    sources = [ARP(send[2][6:]).psrc for send in host.resolves(PEER, "192.0.2.99", "198.51.100.1")]
    assert sources == [OUR, SECOND, OUR]


def test_a_host_without_an_address_sends_requests_from_0_0_0_0(host):
    host.owns()
    assert ARP(host.resolves(PEER)[0][2][6:]).psrc == "0.0.0.0"


def test_two_addresses_are_defended_each_by_itself(host):
    host.owns(f"{OUR}/24", f"{SECOND}/24")
    sends = host.hears(request(PEER_MAC, OUR, OUR), request(OTHER_MAC, SECOND, SECOND))
    assert [send[0] for send in sends] == [LINK, KEEPER] * 2
    assert notices(sends) == [conflict(), conflict(OTHER_MAC, SECOND)]


def test_a_neighbour_whose_address_becomes_ours_is_forgotten(host):
    host.learn()
    host.owns(f"{OUR}/24", f"{PEER}/24")
    assert host.stored == {}
    assert notices(host.hears(request(PEER_MAC, PEER, OUR))) == [conflict(address=PEER)]


def test_loopback_addresses_are_on_no_link(host):
    host.owns(f"{OUR}/24", "127.0.0.1/8")
    assert host.hears(request(PEER_MAC, PEER, "127.0.0.1")) == []


@pytest.mark.parametrize("record", [b"", b"[]", b"{", encode(Routes([(-1, 24)], [])), encode(Routes([(1, 33)], [])),
                                    encode(Routes([(1 << 32, 24)], []))])
def test_an_invalid_announcement_of_addresses_is_counted_and_changes_nothing(host, record):
    assert host.core.receive(IP, ROUTES, [record], host.now) == []
    assert host.counted("routes_malformed") == 1
    assert kind_of(host.hears(request(PEER_MAC, PEER, OUR))[-1]) == "reply"


CLAIMS = lengths.lists(st.builds(
    lambda address, prefix, steps, rival, seen: struct.pack("<4sBB6sd", ip4(address), prefix, steps, rival, seen),
    st.sampled_from([OUR, SECOND, PEER, "0.0.0.0", "255.255.255.255"]), st.integers(0, 33),
    st.integers(0, 6) | st.just(255),
    st.sampled_from([bytes(6), PEER_MAC, BROADCAST]), st.sampled_from([0.0, 999.0, 1000.0, 1001.0]) | st.floats()), 3)


@given(lengths.octets(60) | CLAIMS.map(b"".join))
def test_any_stored_addresses_leave_a_core_that_serves(stored):
    host = Host(state={acd.OWN_KEY: stored})
    host.owns(f"{OUR}/24")
    assert kind_of(host.hears(request(PEER_MAC, PEER, OUR))[-1]) == "reply"
    host.passes(acd.CONFLICT_OVER_S + 60)
    assert host.core.next_wake is None


@given(st.lists(st.tuples(st.sampled_from(["claim", "probe", "wait", "restart", "one", "two", "none"]),
                          st.floats(0, 20))))
def test_rfc5227_2_4_defences_of_an_address_that_we_keep_are_never_closer_than_the_interval(events):
    host = Host(new=True)
    defended: list[float] = []
    for what, seconds in events:
        before = host.counted("defences_sent")
        if what == "claim":
            host.hears(request(PEER_MAC, OUR, OUR))
        elif what == "probe":
            host.hears(request(OTHER_MAC, "0.0.0.0", OUR))
        elif what == "restart":
            host.boots()
            before = 0
        elif what in ("one", "two", "none"):
            host.owns(*{"one": [f"{OUR}/24"], "two": [f"{SECOND}/24", f"{OUR}/24"], "none": []}[what])
            if what == "none":
                defended.clear()  # given up; if it comes back, it is a new one
        else:
            host.passes(seconds)
        if host.counted("defences_sent") != before:
            defended.append(host.now)
    assert all(later - earlier >= acd.DEFEND_INTERVAL_S for earlier, later in itertools.pairwise(defended))
    assert ip4(OUR) not in {record[:4] for _, _, record in host.core.neighbor_started(IP, host.now)}

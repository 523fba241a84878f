"""IGMP as a host, and multicast in ip: the core with a clock that the test moves; scapy makes and reads messages."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import lengths
import pytest
from effort import effort
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import GROUP, LOOPED, OUT, UP, address, from_link, out, transmit, up
from scapy.config import conf
from scapy.layers.igmp import IGMP, IGMPv3_MQ, IGMPv3_MR, IGMPv3_MR_Group
from scapy.layers.inet import IP, UDP, IPOption_Router_Alert
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bus import messages, topology
from bus.config import StackConfig
from bus.layer import Send
from bus.messages import (
    MEMBERSHIP,
    PACKET,
    PACKET_OUT,
    TRANSMIT,
    TRANSMIT_LOOP,
    TRANSMIT_MAY_FRAGMENT,
    Membership,
    SocketReply,
    SourceFilter,
    decode_socket_reply,
    encode,
)
from bus.topology import LINK
from layers.ip.core import Core
from layers.ip.counters import Counters
from layers.ip.igmp import NOTHING, Filter
from layers.ip.members import INCLUDED_MAX, Members
from packets.checksum import checksum, verifies
from packets.igmp import ALLOW, BLOCK, IS_EX, IS_IN, TO_EX, TO_IN, V3_REPORT, Record, reports

ME, ROUTER, PEER, OTHER = "10.0.0.2", "10.0.0.1", "10.0.0.7", "10.0.0.8"
ONE, TWO, NEVER = "239.1.1.1", "239.1.1.2", "239.9.9.9"
ALL_SYSTEMS = "224.0.0.1"
ROBUSTNESS = 2


def octets(address: str) -> bytes:
    return IPv4Address(address).packed


class Host:
    """An ip layer, driven by what sockets and link would send it."""

    def __init__(self) -> None:
        self.config = StackConfig(name="t", run_dir="", address=IPv4Address(ME).packed, prefix=24, mac=bytes(6))
        self.state: dict[int, bytes] = {}
        self.counters = Counters.new()
        self.now = 1000.0
        self.out: list[Packet] = []
        self.start()

    def start(self, seed: int = 1) -> None:
        """For the first time, or after a crash."""
        self.core = Core(self.config, self.state, self.counters, random.Random(seed))
        self.take(self.core.start(self.now))

    def take(self, sends: list[Send]) -> list[Send]:
        """Keep what goes to link, checked; return the rest."""
        rest = []
        for consumer, kind, record in sends:
            if consumer != LINK:
                rest.append((consumer, kind, record))
                continue
            assert kind == PACKET_OUT
            packet = IP(record[OUT:])
            low = int(IPv4Address(packet.dst)) & 0x7FFFFF
            assert record == out(b"\x01\x00\x5e" + low.to_bytes(3, "big"), record[OUT:])
            self.out.append(packet)
        return rest

    def sent(self) -> list[Packet]:
        packets, self.out = self.out, []
        return packets

    def joins(self, handle: int, *groups: tuple) -> None:
        """The groups of a socket, all of them: (group, exclude, sources...)."""
        filters = tuple(SourceFilter(address(group), exclude, tuple(map(address, sources)))
                        for group, exclude, *sources in groups)
        assert self.take(self.core.receive(topology.SOCKETS, MEMBERSHIP, [encode(Membership(handle, filters))],
                                           self.now)) == []

    def hears(self, packet: Packet, flags: int = GROUP) -> list[Send]:
        return self.take(self.core.receive(LINK, PACKET, [from_link(packet, flags)], self.now))

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.core.next_wake is not None and self.core.next_wake <= end:
            self.now = max(self.now, self.core.next_wake)
            assert self.take(self.core.wake(self.now)) == []
        self.now = end

    def counted(self, name: str) -> int:
        return Counters.read(self.counters)[name]

    def reports(self) -> list[tuple]:
        """(type, group, sources) of the group records sent since the last call, in version 3 reports."""
        found = []
        for packet in self.sent():
            checked_header(packet)
            assert packet.dst == "224.0.0.22"
            report = IGMPv3_MR(bytes(packet.payload))
            assert report.type == V3_REPORT
            assert report.numgrp == len(report.records)
            found += [(record.rtype, record.maddr, *record.srcaddrs) for record in report.records]
        return found

    def spoken(self) -> list[tuple]:
        """(type, destination, group) of the messages sent since the last call, in versions 1 and 2."""
        found = []
        for packet in self.sent():
            checked_header(packet)
            message = IGMP(bytes(packet.payload))
            assert len(packet.payload) == 8
            found.append((message.type, packet.dst, message.gaddr))
        return found


def checked_header(packet: Packet) -> None:
    """RFC 3376 section 4: TTL 1, internetwork control, router alert; checksums as scapy has them."""
    assert (packet.src, packet.ttl, packet.tos, packet.proto) == (ME, 1, 0xC0, 2)
    assert packet.options == [IPOption_Router_Alert()]
    again = packet.copy()
    del again.chksum, again.len
    assert bytes(again) == bytes(packet)
    message = IGMP(bytes(packet.payload))
    given = message.chksum
    del message.chksum
    assert IGMP(bytes(message)).chksum == given


def query(group: str = "0.0.0.0", *sources: str, response: int = 100, to: str = "", source: str = ROUTER,
          robustness: int = 2, interval: int = 125) -> Packet:
    """A version 3 query; `response` in tenths of a second."""
    body = IGMPv3_MQ(mrcode=response, gaddr=group, qrv=robustness, qqic=interval, srcaddrs=list(sources))
    to = to or (ALL_SYSTEMS if group == "0.0.0.0" else group)
    return IP(src=source, dst=to, ttl=1, options=[IPOption_Router_Alert()]) / body


def old(kind: int, group: str = "0.0.0.0", response: int = 100, source: str = ROUTER) -> Packet:
    """A message of version 1 or 2."""
    to = ALL_SYSTEMS if group == "0.0.0.0" else group
    return IP(src=source, dst=to, ttl=1) / IGMP(type=kind, mrcode=response, gaddr=group)


def udp(to: str, source: str = PEER) -> Packet:
    return IP(src=source, dst=to) / UDP(sport=9, dport=7) / Raw(b"payload")


def delivered(host: Host, to: str, source: str = PEER) -> bool:
    before = host.counted("other_group")
    sends = host.hears(udp(to, source))
    assert [send[:2] for send in sends] in ([], [(topology.UDP, PACKET)])
    assert host.counted("other_group") == before + (not sends)
    return bool(sends)


@pytest.fixture
def host() -> Host:
    return Host()


# -- what is let in ----------------------------------------------------------------------------------------------------


def test_rfc1112_7_2_only_joined_groups_are_let_in(host):
    assert not delivered(host, ONE)
    host.joins(1, (ONE, True))
    assert delivered(host, ONE)
    assert not delivered(host, TWO)
    host.joins(1)
    assert not delivered(host, ONE)


def test_rfc1112_7_2_all_systems_is_always_joined_and_never_reported(host):
    assert delivered(host, ALL_SYSTEMS)
    host.joins(1, (ALL_SYSTEMS, True))
    host.joins(1, (ALL_SYSTEMS, False, PEER))
    host.joins(1)
    host.hears(query())
    host.passes(20)
    assert host.sent() == []
    assert delivered(host, ALL_SYSTEMS)


def test_a_group_is_left_when_the_last_socket_leaves_it(host):
    host.joins(1, (ONE, True))
    host.joins(2, (ONE, True), (TWO, True))
    host.joins(1)
    assert delivered(host, ONE)
    host.joins(2)
    assert not delivered(host, ONE)
    assert not delivered(host, TWO)


def test_rfc3376_3_2_source_filters_decide_for_the_host_as_a_whole(host):
    host.joins(1, (ONE, False, PEER))
    assert (delivered(host, ONE, PEER), delivered(host, ONE, OTHER)) == (True, False)
    host.joins(2, (ONE, True, PEER, OTHER))
    assert [delivered(host, ONE, source) for source in (PEER, OTHER, ROUTER)] == [True, False, True]


A, B, C = (octets(address) for address in (PEER, OTHER, ROUTER))


def merged(filters):
    """The filter of a group that some have left again, or have joined with another filter before."""
    members = Members()
    for handle, chosen in enumerate([*filters, Filter(True, frozenset({B})), Filter(False, frozenset({A, B}))]):
        members.put(handle, Filter(not chosen.exclude, frozenset({A, C})))
        members.put(handle, chosen)
    members.remove(len(filters))
    members.remove(len(filters) + 1)
    assert len(members) == len(filters)
    return members.merged()


@pytest.mark.parametrize(("filters", "expected"), [
    ([], NOTHING),
    ([Filter(False, frozenset({A})), Filter(False, frozenset({B}))], Filter(False, frozenset({A, B}))),
    ([Filter(True, frozenset())], Filter(True, frozenset())),
    ([Filter(True, frozenset({A, B})), Filter(True, frozenset({B, C}))], Filter(True, frozenset({B}))),
    ([Filter(True, frozenset({A, B})), Filter(False, frozenset({A, C}))], Filter(True, frozenset({B}))),
])  # fmt: skip
def test_rfc3376_3_2_the_interface_state_that_follows_from_the_sockets(filters, expected):
    assert merged(filters) == expected


@given(st.lists(st.builds(Filter, st.booleans(), st.frozensets(st.sampled_from([A, B, C]))), max_size=4),
       st.sampled_from([A, B, C]))
def test_rfc3376_3_2_the_host_lets_in_just_what_some_socket_wants(filters, source):
    wanted = merged(filters)
    assert ((source in wanted.sources) != wanted.exclude) == any((source in one.sources) != one.exclude
                                                                 for one in filters)


def test_the_host_wants_all_sources_of_a_group_if_sockets_want_very_many():
    members = Members()
    for number in range(INCLUDED_MAX):
        members.put(number, Filter(False, frozenset({number.to_bytes(4, "big")})))
    assert len(members.merged().sources) == INCLUDED_MAX
    members.put(INCLUDED_MAX, Filter(False, frozenset({A})))
    assert members.merged() == Filter(True, frozenset())
    members.remove(0)
    assert len(members.merged().sources) == INCLUDED_MAX


def test_to_join_a_group_takes_no_longer_if_it_has_many_members(host):
    """256 joins in a frame were 1.6 s of ip with 20,000 members."""
    def joining(handle):
        return effort(lambda: host.joins(handle, (ONE, True, PEER)))

    host.joins(1, (ONE, True, PEER))
    early = joining(2)
    for handle in range(3, 500):
        host.joins(handle, (ONE, True, PEER))
    assert joining(500) < 1.5 * early


def test_a_membership_is_answered_once_it_is_stored_and_the_same_again_is_answered_again(host):
    record = encode(Membership(7, (SourceFilter(address(ONE)),), request=99))
    for _ in range(2):
        ((consumer, kind, reply),) = host.take(host.core.receive(topology.SOCKETS, MEMBERSHIP, [record], host.now))
        assert (consumer, kind) == (topology.SOCKETS, messages.SOCKET_REPLY)
        assert decode_socket_reply(reply) == SocketReply(handle=7, request=99)
        assert record in host.state.values()
    assert host.reports() == [(TO_EX, ONE)]


@pytest.mark.parametrize("record", [
    b"", b"\x80", b"\x90", b"{", encode(Membership(1, (SourceFilter(address(PEER)),))),
    encode(Membership(1, (SourceFilter(address(ONE), True, (b"",)),))), encode(Membership(1, (SourceFilter(b""),))),
    encode(Membership(1, (SourceFilter(address(ONE), True, (bytes(16),)),))),
    encode(Membership(1, (SourceFilter(b"\xff\2" + bytes(14)),))),  # IPv6 is not there
    encode({"handle": 1, "request": 10**19}), encode({"handle": 0, "groups": []}),
    encode({"handle": 1 << 32, "groups": []}), encode({"handle": 1, "groups": [[0xE0000009, True, []]]}),
    encode({"handle": 1, "groups": [[bytes(17), True, []]]}), b"\x82\xa6handle\1\xa6groups" + b"\x91" * 100_000,
])  # fmt: skip
def test_invalid_memberships_are_counted_and_change_nothing(host, record):
    host.joins(1, (ONE, True))
    host.sent()
    stored = dict(host.state)
    assert host.core.receive(topology.SOCKETS, MEMBERSHIP, [record], host.now) == []
    assert host.counted("bad_membership") == 1
    assert host.state == stored
    assert delivered(host, ONE)


# -- changes, in version 3 ---------------------------------------------------------------------------------------------


def test_rfc3376_5_1_joining_and_leaving_are_reported_at_once_and_again_within_a_second(host):
    host.joins(1, (ONE, True))
    assert host.reports() == [(TO_EX, ONE)]
    host.passes(1.0)
    assert host.reports() == [(TO_EX, ONE)]
    host.passes(60)
    assert host.reports() == []
    host.joins(1)
    assert host.reports() == [(TO_IN, ONE)]
    host.passes(1.0)
    assert host.reports() == [(TO_IN, ONE)]
    assert host.core.next_wake is None


@pytest.mark.parametrize(("before", "after", "records"), [
    ((ONE, False, PEER), (ONE, False, OTHER), [(ALLOW, ONE, OTHER), (BLOCK, ONE, PEER)]),
    ((ONE, True, PEER), (ONE, True, OTHER), [(ALLOW, ONE, PEER), (BLOCK, ONE, OTHER)]),
    ((ONE, False, PEER), (ONE, True, OTHER), [(TO_EX, ONE, OTHER)]),
    ((ONE, True, PEER), (ONE, False, OTHER), [(TO_IN, ONE, OTHER)]),
    ((ONE, True, PEER), (ONE, True, PEER, OTHER), [(BLOCK, ONE, OTHER)]),
    ((ONE, False, PEER), (ONE, False, PEER, OTHER), [(ALLOW, ONE, OTHER)]),
    ((ONE, True, PEER), (ONE, True, PEER), []),
])  # fmt: skip
def test_rfc3376_5_1_what_changes_is_what_is_reported(host, before, after, records):
    host.joins(1, before)
    host.passes(10)
    host.sent()
    host.joins(1, after)
    assert host.reports() == records
    host.passes(10)
    assert host.reports() == records * (ROBUSTNESS - 1)


def test_rfc3376_5_1_a_source_specific_join_allows_and_its_leave_blocks(host):
    host.joins(1, (ONE, False, PEER))
    assert host.reports() == [(ALLOW, ONE, PEER)]
    host.passes(10)
    host.sent()
    host.joins(1)
    assert host.reports() == [(BLOCK, ONE, PEER)]


def test_rfc3376_5_1_a_new_change_is_merged_with_what_was_to_be_repeated(host):
    host.joins(1, (ONE, True))
    host.sent()
    host.joins(1, (TWO, True), (ONE, True))
    assert sorted(host.reports()) == [(TO_EX, ONE), (TO_EX, TWO)]
    host.passes(1)
    assert host.reports() == [(TO_EX, TWO)]  # ONE has been reported twice
    host.joins(1, (ONE, True))
    host.joins(1, (TWO, True), (ONE, True))
    assert host.reports() == [(TO_IN, TWO), (TO_EX, TWO)]  # the leave was overtaken
    host.passes(1)
    assert host.reports() == [(TO_EX, TWO)]


def test_rfc3376_8_1_the_querier_says_how_often_changes_are_reported(host):
    host.hears(query(robustness=4))
    host.joins(1, (ONE, True))
    host.passes(4)
    assert host.reports() == [(TO_EX, ONE)] * 4
    host.hears(query(robustness=0, response=1))
    host.passes(1)
    host.sent()
    host.joins(1)
    host.passes(4)
    assert host.reports() == [(TO_IN, ONE)] * 2


def test_a_change_that_makes_no_difference_to_the_host_is_not_reported(host):
    host.joins(1, (ONE, True))
    host.passes(5)
    host.sent()
    host.joins(2, (ONE, True))
    host.joins(3, (ONE, False, PEER))
    host.joins(2)
    host.joins(3)
    host.passes(5)
    assert host.sent() == []


# -- queries, in version 3 ---------------------------------------------------------------------------------------------


def settled(host: Host, *groups: tuple) -> None:
    host.joins(1, *groups)
    host.passes(10)
    host.sent()


def test_rfc3376_5_2_a_general_query_is_answered_with_all_groups_within_its_time(host):
    settled(host, (ONE, True), (TWO, False, PEER))
    for code, within in ((1, 0.1), (100, 10.0), (248, 24.8)):
        host.hears(query(response=code))
        assert host.sent() == []
        due = host.core.next_wake
        assert host.now <= due <= host.now + within
        host.passes(within)
        assert sorted(host.reports()) == [(IS_IN, TWO, PEER), (IS_EX, ONE)]
        host.passes(60)
        assert host.sent() == []


def test_rfc3376_5_2_answers_are_spread_over_the_time_that_the_router_gives(host):
    settled(host, (ONE, True))
    delays = []
    for _ in range(50):
        host.hears(query(response=100))
        delays.append(host.core.next_wake - host.now)
        host.passes(10)
    assert min(delays) < 2
    assert max(delays) > 8


def test_rfc3376_5_2_rule_1_a_response_that_is_due_earlier_serves_a_later_query_too(host):
    settled(host, (ONE, True))
    host.hears(query(response=1))
    for _ in range(5):
        host.hears(query(response=127))
        host.hears(query(ONE, response=127))
    host.passes(30)
    assert host.reports() == [(IS_EX, ONE)]


def test_rfc3376_5_2_a_group_specific_query_is_answered_for_that_group(host):
    settled(host, (ONE, True, PEER), (TWO, True))
    host.hears(query(ONE, response=10))
    host.passes(1)
    assert host.reports() == [(IS_EX, ONE, PEER)]
    host.hears(query(NEVER, to=ALL_SYSTEMS))
    host.passes(20)
    assert host.sent() == []


@pytest.mark.parametrize(("wanted", "asked", "answer"), [
    ((ONE, False, PEER), (PEER, OTHER), [(IS_IN, ONE, PEER)]),
    ((ONE, False, PEER), (OTHER,), []),
    ((ONE, True, PEER), (PEER, OTHER), [(IS_IN, ONE, OTHER)]),
    ((ONE, True, PEER), (PEER,), []),
])  # fmt: skip
def test_rfc3376_5_2_a_query_about_sources_is_answered_by_those_that_we_want(host, wanted, asked, answer):
    settled(host, wanted)
    host.hears(query(ONE, *asked))
    host.passes(10)
    assert host.reports() == answer


def test_rfc3376_5_2_rules_4_and_5_queries_about_one_group_are_answered_together(host):
    settled(host, (ONE, True))
    host.hears(query(ONE, PEER))
    host.hears(query(ONE, OTHER))
    host.passes(10)
    assert host.reports() == [(IS_IN, ONE, PEER, OTHER)]
    host.hears(query(ONE, PEER, response=10))
    for _ in range(5):
        host.hears(query(ONE, response=127))
        host.hears(query(ONE, OTHER, response=127))
    host.passes(1)  # at the earliest of the times
    assert host.reports() == [(IS_EX, ONE)]


def test_a_flood_of_queries_about_sources_does_not_pile_up(host):
    settled(host, (ONE, True))
    for third in range(10):
        host.hears(query(ONE, *[f"10.1.{third}.{last}" for last in range(250)]))
    host.passes(10)
    assert host.reports() == [(IS_EX, ONE)]


def test_rfc3376_5_2_a_group_that_was_left_before_the_answer_was_due_is_not_reported(host):
    settled(host, (ONE, True), (TWO, True))
    host.hears(query(ONE, response=127))
    host.joins(1, (TWO, True))
    host.passes(30)
    assert [record for record in host.reports() if record[0] == IS_EX] == []


def test_rfc4541_2_1_1_a_querier_without_an_address_is_answered(host):
    settled(host, (ONE, True))
    host.hears(query(source="0.0.0.0"))
    host.passes(10)
    assert host.reports() == [(IS_EX, ONE)]
    assert host.hears(udp(ONE, "0.0.0.0")) == []
    assert host.counted("bad_source") == 1


def test_a_query_reaches_a_host_that_wants_nothing_of_its_sender(host):
    settled(host, (ONE, False, PEER))
    host.hears(query(ONE))
    host.passes(10)
    assert host.reports() == [(IS_IN, ONE, PEER)]


# -- versions 2 and 1 --------------------------------------------------------------------------------------------------


def test_rfc2236_a_router_of_version_2_is_answered_in_version_2(host):
    settled(host, (ONE, True), (TWO, False, PEER))
    host.hears(old(0x11, response=50))
    host.passes(5)
    assert sorted(host.spoken()) == [(0x16, ONE, ONE), (0x16, TWO, TWO)]
    host.hears(old(0x11, ONE, response=10))
    host.passes(1)
    assert host.spoken() == [(0x16, ONE, ONE)]
    host.hears(query(response=10))  # RFC 3376 section 7.2.1: a query of version 3 does not end it
    host.passes(1)
    assert sorted(host.spoken()) == [(0x16, ONE, ONE), (0x16, TWO, TWO)]


def test_rfc2236_3_joining_is_reported_twice_and_leaving_is_told_to_the_routers(host):
    host.hears(old(0x11))
    host.joins(1, (ONE, True))
    assert host.spoken() == [(0x16, ONE, ONE)]
    host.passes(10)
    assert host.spoken() == [(0x16, ONE, ONE)]
    host.joins(1, (ONE, True, PEER))  # no filters in version 2
    host.passes(30)
    assert host.spoken() == []
    host.joins(1)
    assert host.spoken() == [(0x17, "224.0.0.2", ONE)]
    host.passes(30)
    assert host.spoken() == []


def test_rfc2236_3_another_hosts_report_spares_ours_and_our_leave(host):
    settled(host, (ONE, True), (TWO, True))
    host.hears(old(0x11))
    host.hears(old(0x16, ONE, source=PEER))
    host.passes(10)
    assert host.spoken() == [(0x16, TWO, TWO)]
    host.hears(old(0x16, TWO, source=PEER))
    host.joins(1)
    assert host.spoken() == []


def test_rfc3376_in_version_3_all_report_for_themselves(host):
    settled(host, (ONE, True))
    host.hears(query())
    host.hears(old(0x16, ONE, source=PEER))
    host.passes(10)
    assert host.reports() == [(IS_EX, ONE)]


def test_rfc1112_a_router_of_version_1_gets_reports_of_version_1_and_no_leave(host):
    host.joins(1, (ONE, True))
    host.sent()
    host.hears(old(0x11, response=0))
    host.passes(10)
    assert host.spoken() == [(0x12, ONE, ONE)]
    host.joins(1)
    host.passes(10)
    assert host.spoken() == []


@pytest.mark.parametrize("response", [0, 100])
def test_rfc3376_8_12_an_older_querier_is_forgotten_once_it_has_been_silent_for_long_enough(host, response):
    host.hears(query(robustness=3, interval=20, response=1))
    host.hears(old(0x11, response=response))
    host.passes(3 * 20 + 10 - 0.1)
    host.joins(1, (ONE, True))
    assert [kind for kind, _, _ in host.spoken()] == [0x16 if response else 0x12]
    host.passes(0.2)
    host.joins(1, (ONE, True), (TWO, True))
    assert host.reports() == [(TO_EX, TWO)]
    host.passes(30)  # RFC 3376 section 7.2.1: what the old version had to repeat is cancelled
    assert host.reports() == [(TO_EX, TWO)] * 2


def test_rfc3376_7_2_1_a_change_of_version_cancels_what_is_pending(host):
    host.joins(1, (ONE, True))
    host.sent()
    host.hears(old(0x11, response=1))
    host.passes(30)
    assert host.spoken() == [(0x16, ONE, ONE)]


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_after_a_crash_groups_are_there_and_are_reported_again(host):
    settled(host, (ONE, True), (TWO, False, PEER))
    host.start(seed=2)
    assert sorted(host.reports()) == [(TO_EX, ONE), (ALLOW, TWO, PEER)]
    assert delivered(host, ONE)
    assert (delivered(host, TWO), delivered(host, TWO, OTHER)) == (True, False)
    host.joins(1)
    host.passes(2)
    host.start(seed=3)
    host.passes(5)
    host.sent()
    assert not delivered(host, ONE)


def test_after_a_crash_the_version_of_the_querier_is_remembered(host):
    settled(host, (ONE, True))
    host.hears(old(0x11))
    host.start(seed=2)
    assert host.spoken() == [(0x16, ONE, ONE)]


def test_state_that_cannot_be_read_is_counted_and_forgotten(host):
    settled(host, (ONE, True))
    keys = list(host.state)
    host.hears(query())
    host.state[3] = b"?"
    for key in keys:
        if key >> 32:
            host.state[key] = b"{"
    host.start()
    assert host.counted("state_unreadable") == 2
    assert not delivered(host, ONE)


# -- malformed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "counter"), [
    (b"", "igmp_malformed"), (bytes(7), "igmp_malformed"), (bytes(8), "igmp_malformed"),
    (bytes(IGMP(type=0x11, chksum=1)), "igmp_malformed"),
    (bytes(IGMP(type=0x11)) + bytes(2), "igmp_malformed"),
    (bytes(IGMPv3_MQ(numsrc=2, srcaddrs=[PEER])), "igmp_malformed"),
    (bytes(IGMP(type=0x17, gaddr=ONE)), "igmp_not_for_hosts"),
    (bytes(IGMPv3_MR(records=[IGMPv3_MR_Group(rtype=4, maddr=ONE)])), "igmp_not_for_hosts"),
])  # fmt: skip
def test_messages_that_are_not_for_a_host_are_counted_and_not_answered(host, message, counter):
    settled(host, (ONE, True))
    assert host.hears(IP(src=PEER, dst=ALL_SYSTEMS, proto=2) / Raw(message)) == []
    assert host.counted(counter) == 1
    assert host.core.next_wake is None


SAID = st.builds(
    lambda kind, code, group, tail: bytes((kind, code, 0, 0)) + IPv4Address(group).packed + tail,
    st.sampled_from([0x11, 0x11, 0x11, 0x12, 0x16, 0x17, 0x22]) | st.integers(0, 255),
    st.sampled_from([0, 1, 100, 128, 255]), st.sampled_from(["0.0.0.0", ONE, TWO, PEER]),
    st.sampled_from([b"", b"", b"\0", bytes(3), bytes(4), b"\2\x7d\0\0"]) | st.builds(
        lambda flags, interval, count, rest: bytes((flags, interval, 0, count)) + rest, st.integers(0, 255),
        st.integers(0, 255), st.integers(0, 3), st.lists(st.sampled_from([PEER, ME]), max_size=3).map(
            lambda sources: b"".join(IPv4Address(each).packed for each in sources))))


@settings(max_examples=200, deadline=None)
@given(lengths.lists(st.tuples(SAID | SAID | lengths.octets(40), st.sampled_from([True, True, True, False]),
                               st.floats(0, 400)), 6))
@example([(bytes((0x11, 100, 0, 0)) + bytes(4), True, 20.0), (bytes((0x16, 0, 0, 0)) + bytes(4), True, 0.0)])
def test_whatever_comes_as_igmp_nothing_raises_and_what_is_malformed_or_for_others_is_counted(messages):
    host = Host()
    host.joins(1, (ONE, True), (TWO, False, PEER))
    malformed = for_others = 0
    for message, summed, seconds in messages:
        if summed and len(message) >= 8:
            message = message[:2] + checksum(message[:2] + bytes(2) + message[4:]).to_bytes(2, "big") + message[4:]
        host.hears(IP(src=PEER, dst=ALL_SYSTEMS, proto=2) / Raw(message))
        host.passes(seconds)
        sources = len(message) // 4 - 3  # that there is room for
        if len(message) < 8 or not verifies(message) or (
                message[0] == 0x11 and len(message) > 8 and (sources < 0 or sources < message[10] << 8 | message[11])):
            malformed += 1
        elif message[0] not in (0x11, 0x12, 0x16):
            for_others += 1
    assert [host.counted(name) for name in ("igmp_in", "igmp_malformed", "igmp_not_for_hosts")] == [
        len(messages), malformed, for_others]


# -- reports that do not fit -------------------------------------------------------------------------------------------


def test_rfc3376_4_2_16_what_does_not_fit_one_report_goes_in_several(monkeypatch):
    monkeypatch.setattr(conf, "max_list_count", 1000)
    many = [(IPv4Address("10.5.0.0") + index).packed for index in range(1000)]
    records = [Record(kind, octets(ONE), many) for kind in (IS_EX, IS_IN, ALLOW)]
    records += [Record(IS_EX, octets(f"239.2.{index >> 8}.{index & 255}"), ()) for index in range(500)]
    told: dict[int, list[str]] = {}
    for message in reports(records, 1476):
        assert len(message) <= 1476
        for record in IGMPv3_MR(message).records:
            told.setdefault(record.rtype, []).extend(record.srcaddrs or [record.maddr])
    everything = [str(IPv4Address(source)) for source in many]
    assert told[IS_IN] == told[ALLOW] == everything
    sources = [address for address in told[IS_EX] if address.startswith("10.")]
    assert sources == everything[: len(sources)]  # cut short: more than was asked for comes, rather than less
    assert len(told[IS_EX]) - len(sources) == 500


# -- out ---------------------------------------------------------------------------------------------------------------


def sends(host: Host, to: str, flags: int = TRANSMIT_LOOP, ttl: int = 1, source: str = "0.0.0.0") -> list[Send]:
    """What comes back up of a multicast; what goes out is in `host.out`."""
    head = transmit(source, to, ttl=ttl, flags=flags | TRANSMIT_MAY_FRAGMENT)
    return host.take(host.core.receive(topology.UDP, TRANSMIT, [head + b"segment."], host.now))


def test_rfc1112_6_2_a_copy_comes_back_to_our_own_members_if_the_sender_wants_that(host):
    assert sends(host, ONE) == []
    settled(host, (ONE, True))
    ((consumer, kind, copy),) = sends(host, ONE)
    assert (consumer, kind) == (topology.UDP, PACKET)
    (sent,) = host.sent()
    assert copy == up(sent, GROUP | LOOPED)
    assert (sent.src, sent.dst, sent.ttl) == (ME, ONE, 1)
    assert sends(host, ONE, flags=0) == []
    assert sends(host, TWO) == []
    assert len(host.sent()) == 2
    host.joins(1)
    assert sends(host, ONE) == []


def test_a_copy_passes_the_source_filter_too(host):
    settled(host, (ONE, True, ME))
    assert sends(host, ONE) == []
    assert len(host.sent()) == 1


def test_rfc1112_6_1_a_ttl_of_zero_keeps_a_multicast_in_the_host(host):
    settled(host, (ONE, True))
    ((_, _, copy),) = sends(host, ONE, ttl=0)
    assert IP(copy[UP:]).ttl == 0
    assert host.sent() == []
    assert sends(host, TWO, ttl=0) == []
    assert host.sent() == []
    assert host.counted("no_lifetime") == 1


def test_rfc1112_6_4_the_mac_address_of_a_group():
    host = Host()
    for group in ("224.0.0.251", "239.129.2.3", "239.1.2.3"):
        head = transmit(bytes(4), group, ttl=1)
        ((_, _, record),) = host.core.receive(topology.UDP, TRANSMIT, [head + b"segment."], host.now)
        assert Ether(record[6:OUT] + bytes(8)).dst == f"01:00:5e:{octets(group)[1] & 127:02x}:{octets(group)[2]:02x}:" \
            f"{octets(group)[3]:02x}"

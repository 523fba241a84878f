"""Multicast memberships from an application's request to what it hears: sockets, udp and ip, glued in memory."""

from __future__ import annotations

import base64
import errno
import json
import random
import socket as std
from collections import deque
from ipaddress import IPv4Address
from sys import byteorder

import lengths
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import GROUP, OUT, from_link
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import DATAGRAM_HEADER, SocketReply, datagram_header, decode_membership, encode
from layers.ip.core import Core as Ip
from layers.ip.counters import Counters as IpCounters
from layers.sockets.core import Core as Sockets
from layers.sockets.counters import Counters as SocketsCounters
from layers.sockets.groups import MEMBERSHIPS, MEMBERSHIPS_MAX, SOURCES_MAX
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters

APP = topology.CLIENT_ID_MIN + 1
CONFIG = StackConfig(name="test", run_dir="", address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6))
ME, PEER, OTHER = "10.0.0.2", "10.0.0.7", "10.0.0.8"
ONE, TWO = "239.1.1.1", "239.1.1.2"
PORT = 5000
ADD, DROP, MULTICAST_IF, TTL, LOOP, ALL = 35, 36, 32, 33, 34, 49
UNBLOCK, BLOCK, ADD_SOURCE, DROP_SOURCE = 37, 38, 39, 40
MADE = {topology.IP: (Ip, IpCounters), topology.UDP: (Udp, UdpCounters), topology.SOCKETS: (Sockets, SocketsCounters)}


class Bench:
    """Three layers. `lost`: consumers that get nothing. `out`: what goes to all others."""

    def __init__(self) -> None:
        self.states = {number: {} for number in MADE}
        self.cores = {}
        self.lost: set[int] = set()
        self.out: list[tuple] = []
        self.ids = 0
        for number in MADE:
            self.crash(number)
        self.cores[topology.SOCKETS].client_joined(APP, {"pid": 1}, 0.0)

    def crash(self, number: int) -> None:
        """Start with nothing but what was stored; the neighbours are told."""
        core, counters = MADE[number]
        self.cores[number] = core(CONFIG, self.states[number], counters.new(), random.Random(1))
        self.run(number, self.cores[number].start(0.0))
        for other in [other for other in self.cores if other != number]:
            self.run(other, self.cores[other].neighbor_started(number, 0.0))

    def run(self, sender: int, sends: list) -> None:
        under_way = deque((sender, send) for send in sends)
        while under_way:
            sender, (consumer, kind, record) = under_way.popleft()
            if consumer in self.lost:
                continue
            if consumer in self.cores:
                under_way += [(consumer, send) for send in self.cores[consumer].receive(sender, kind, [record], 0.0)]
            else:
                self.out.append((consumer, kind, record))

    def take(self, consumer: int, kind: int) -> list[bytes]:
        found = [record for to, what, record in self.out if (to, what) == (consumer, kind)]
        self.out = [send for send in self.out if send[:2] != (consumer, kind)]
        return found

    def request(self, op: str, number: int = 0, **fields) -> list[dict]:
        """The replies that come."""
        self.ids += 1
        record = json.dumps({"id": number or self.ids, "op": op, **fields}).encode()
        self.run(topology.SOCKETS, self.cores[topology.SOCKETS].receive(APP, messages.REQUEST, [record], 0.0))
        return [json.loads(reply) for reply in self.take(APP, messages.REPLY)]

    def open(self, bound: bool = True) -> int:
        handle = self.request("socket", type="dgram")[0]["handle"]
        if bound:
            self.set(handle, std.SO_REUSEADDR, 1, level=std.SOL_SOCKET)
            assert self.request("bind", handle=handle, address="0.0.0.0", port=PORT)[0]["errno"] == 0
        return handle

    def set(self, handle: int, name: int, value: int | bytes, level: int = 0, number: int = 0) -> int:
        """setsockopt's errno."""
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        (reply,) = self.request("setsockopt", number, handle=handle, level=level, name=name, value=value)
        return reply["errno"]

    def get(self, handle: int, name: int) -> int:
        return self.request("getsockopt", handle=handle, level=0, name=name)[0]["value"]

    def heard(self, group: str = ONE, source: str = PEER) -> list[int]:
        """The sockets that a datagram from outside reaches."""
        packet = from_link(IP(src=source, dst=group) / UDP(sport=9, dport=PORT) / Raw(b"payload"), GROUP)
        self.run(topology.IP, self.cores[topology.IP].receive(topology.LINK, messages.PACKET, [packet], 0.0))
        return [DATAGRAM_HEADER.unpack_from(record)[0] for record in self.take(APP, messages.DATAGRAM)]

    def sends(self, handle: int, group: str = ONE) -> tuple[list[int], list[IP]]:
        """(sockets that get a copy of it, the packets that leave)."""
        self.take(topology.LINK, messages.PACKET_OUT)
        record = datagram_header(handle, IPv4Address(group).packed, PORT, bytes(4), 0, 0, 0) + b"payload"
        self.run(topology.SOCKETS, self.cores[topology.SOCKETS].receive(APP, messages.SEND, [record], 0.0))
        heard = [DATAGRAM_HEADER.unpack_from(copy)[0] for copy in self.take(APP, messages.DATAGRAM)]
        return heard, [IP(sent[OUT:]) for sent in self.take(topology.LINK, messages.PACKET_OUT)]


def mreq(group: str = ONE, interface: str = "0.0.0.0", index: int | None = None) -> bytes:
    tail = b"" if index is None else index.to_bytes(4, byteorder, signed=True)
    return std.inet_aton(group) + std.inet_aton(interface) + tail


def mreq_source(source: str = PEER, group: str = ONE, interface: str = "0.0.0.0") -> bytes:
    return std.inet_aton(group) + std.inet_aton(interface) + std.inet_aton(source)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- errors, as Linux has them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [mreq(), mreq(interface=ME), mreq(index=0), mreq(index=2), mreq(ONE, "192.0.2.1", 2),
                                   mreq() + b"\0\0"])
def test_a_group_is_joined_on_the_one_interface_however_it_is_named(bench, value):
    handle = bench.open()
    assert bench.heard() == []
    assert bench.set(handle, ADD, value) == 0
    assert bench.heard() == [handle]
    assert bench.set(handle, ADD, mreq()) == errno.EADDRINUSE
    assert bench.set(handle, DROP, value) == 0
    assert bench.heard() == []
    assert bench.set(handle, DROP, value) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(("name", "value", "number"), [
    (ADD, mreq("10.0.0.7"), errno.EINVAL), (ADD, mreq("240.0.0.1"), errno.EINVAL), (ADD, mreq()[:7], errno.EINVAL),
    (ADD, 1, errno.EINVAL), (ADD, mreq(interface="192.0.2.1"), errno.ENODEV), (ADD, mreq(index=1), errno.ENODEV),
    (ADD, mreq(index=-1), errno.ENODEV), (DROP, mreq(), errno.EADDRNOTAVAIL),
    (DROP, mreq("10.0.0.7"), errno.EADDRNOTAVAIL),
    (BLOCK, mreq_source(), errno.EINVAL), (UNBLOCK, mreq_source(), errno.EINVAL),
    (DROP_SOURCE, mreq_source(), errno.EINVAL), (ADD_SOURCE, mreq_source(group="10.0.0.7"), errno.EINVAL),
    (ADD_SOURCE, mreq(), errno.EINVAL), (ADD_SOURCE, mreq_source() + b"\0", errno.EINVAL),
    (ADD_SOURCE, mreq_source(interface="192.0.2.1"), errno.ENODEV), (50, mreq_source(), errno.ENOPROTOOPT),
    (MULTICAST_IF, 1 << 32, errno.EINVAL), (MULTICAST_IF, -(1 << 31) - 1, errno.EINVAL),
    (MULTICAST_IF, (1 << 63) - 1, errno.EINVAL), (MULTICAST_IF, b"\0\0\0", errno.EINVAL),
    (MULTICAST_IF, mreq(index=5), errno.EADDRNOTAVAIL),
    (MULTICAST_IF, std.inet_aton(PEER), errno.EADDRNOTAVAIL), (ALL, 2, errno.EINVAL), (TTL, 256, errno.EINVAL),
])  # fmt: skip
def test_a_refused_option_has_linuxs_errno_and_changes_nothing(bench, name, value, number):
    handle = bench.open()
    stored = dict(bench.states[topology.SOCKETS])
    assert bench.set(handle, name, value) == number
    assert bench.states[topology.SOCKETS] == stored


def test_igmp_max_memberships(bench):
    handle = bench.open()
    for last in range(MEMBERSHIPS_MAX):
        assert bench.set(handle, ADD, mreq(f"239.2.0.{last}")) == 0
    assert bench.set(handle, ADD, mreq()) == errno.ENOBUFS
    assert bench.set(bench.open(), ADD, mreq()) == 0


def test_igmp_max_msf(bench):
    handle = bench.open()
    for last in range(SOURCES_MAX):
        assert bench.set(handle, ADD_SOURCE, mreq_source(f"10.0.0.{10 + last}")) == 0
    assert bench.set(handle, ADD_SOURCE, mreq_source()) == errno.ENOBUFS


# -- sources --------------------------------------------------------------------------------------------------------


def test_sources_that_are_added_are_the_only_ones_heard(bench):
    handle = bench.open()
    assert bench.set(handle, ADD_SOURCE, mreq_source(PEER)) == 0
    assert bench.set(handle, ADD_SOURCE, mreq_source(PEER)) == errno.EADDRNOTAVAIL
    assert (bench.heard(source=PEER), bench.heard(source=OTHER)) == ([handle], [])
    assert bench.set(handle, BLOCK, mreq_source(OTHER)) == errno.EINVAL
    assert bench.set(handle, DROP_SOURCE, mreq_source(OTHER)) == errno.EADDRNOTAVAIL
    assert bench.set(handle, DROP_SOURCE, mreq_source(PEER)) == 0
    assert bench.set(handle, DROP, mreq()) == errno.EADDRNOTAVAIL  # RFC 3376 section 3.1: that was to leave


def test_sources_that_are_blocked_are_not_heard(bench):
    handle = bench.open()
    bench.set(handle, ADD, mreq())
    assert bench.set(handle, BLOCK, mreq_source(PEER)) == 0
    assert bench.set(handle, BLOCK, mreq_source(PEER)) == errno.EADDRNOTAVAIL
    assert bench.set(handle, ADD_SOURCE, mreq_source(OTHER)) == errno.EINVAL
    assert (bench.heard(source=PEER), bench.heard(source=OTHER)) == ([], [handle])
    assert bench.set(handle, UNBLOCK, mreq_source(PEER)) == 0
    assert bench.heard(source=PEER) == [handle]


def test_each_socket_has_its_own_filter_though_the_host_takes_what_any_of_them_wants(bench):
    one, two = bench.open(), bench.open()
    bench.set(one, ADD_SOURCE, mreq_source(PEER))
    bench.set(two, ADD, mreq())
    bench.set(two, BLOCK, mreq_source(PEER))
    assert (bench.heard(source=PEER), bench.heard(source=OTHER)) == ([one], [two])


# -- receivers of datagrams
# ----------------------------------------------------------------------------------------------------


def test_ip_multicast_all_is_on_unless_a_socket_turns_it_off(bench):
    member, other = bench.open(), bench.open()
    bench.set(member, ADD, mreq())
    assert bench.get(other, ALL) == 1
    assert bench.heard() == [member, other]
    assert bench.set(other, ALL, 0) == 0
    assert bench.heard() == [member]
    bench.set(other, ADD, mreq(TWO))
    assert bench.heard(TWO) == [member, other]
    bench.set(member, ALL, 0)
    assert bench.heard(TWO) == [other]


def test_a_socket_may_join_before_it_is_bound(bench):
    handle = bench.open(bound=False)
    assert bench.set(handle, ADD_SOURCE, mreq_source(PEER)) == 0
    assert bench.request("bind", handle=handle, address=ONE, port=PORT)[0]["errno"] == 0
    assert (bench.heard(source=PEER), bench.heard(source=OTHER), bench.heard(TWO)) == ([handle], [], [])


def test_loop_ttl_and_interface_of_what_is_sent(bench):
    member, sender = bench.open(), bench.open()
    bench.set(member, ADD, mreq())
    bench.set(sender, ALL, 0)
    heard, (packet,) = bench.sends(sender)
    assert (heard, packet.src, packet.ttl) == ([member], ME, 1)
    assert (bench.get(sender, LOOP), bench.get(sender, TTL), bench.get(sender, MULTICAST_IF)) == (1, 1, 0)
    assert bench.set(sender, LOOP, 0) == bench.set(sender, TTL, 9) == 0
    heard, (packet,) = bench.sends(sender)
    assert (heard, packet.ttl) == ([], 9)
    assert bench.set(sender, LOOP, 1) == bench.set(sender, TTL, 0) == 0
    assert bench.sends(sender) == ([member], [])


@pytest.mark.parametrize("value", [std.inet_aton(ME), mreq("0.0.0.0", ME), mreq("0.0.0.0", ME, 2)])
def test_the_interface_of_multicasts_is_read_as_an_address(bench, value):
    handle = bench.open()
    assert bench.set(handle, MULTICAST_IF, value) == 0
    assert bench.get(handle, MULTICAST_IF).to_bytes(4, byteorder, signed=True) == std.inet_aton(ME)
    assert bench.set(handle, MULTICAST_IF, int.from_bytes(std.inet_aton(ME), byteorder, signed=True)) == 0
    assert bench.set(handle, MULTICAST_IF, 0) == 0
    assert bench.get(handle, MULTICAST_IF) == 0


# -- ends and crashes --------------------------------------------------------------------------------------------------


def test_closing_and_dying_leave(bench):
    one, two = bench.open(), bench.open()
    for handle in (one, two):
        bench.set(handle, ADD, mreq())
    bench.request("close", handle=one)
    assert bench.heard() == [two]
    sockets = bench.cores[topology.SOCKETS]
    bench.run(topology.SOCKETS, sockets.client_left(APP, 0.0))
    assert bench.heard() == []
    assert not [key for key in bench.states[topology.IP] if key >> 32 == 2]


@pytest.mark.parametrize("layer", MADE)
def test_memberships_outlive_every_layer(bench, layer):
    handle = bench.open()
    bench.set(handle, ALL, 0)
    bench.set(handle, ADD_SOURCE, mreq_source(PEER))
    bench.crash(layer)
    assert (bench.heard(source=PEER), bench.heard(source=OTHER)) == ([handle], [])
    assert bench.set(handle, ADD_SOURCE, mreq_source(PEER)) == errno.EADDRNOTAVAIL


def test_sockets_tells_an_ip_that_has_lost_everything(bench):
    handle = bench.open()
    bench.set(handle, ADD, mreq())
    bench.states[topology.IP].clear()
    bench.crash(topology.IP)
    assert bench.heard() == [handle]


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize(("name", "value", "before"), [(ADD, mreq(), []), (DROP, mreq(), [(ADD, mreq())]),
                                                       (BLOCK, mreq_source(), [(ADD, mreq())])])
@pytest.mark.parametrize("gone", [topology.UDP, topology.IP, APP])
def test_a_request_whose_answer_was_lost_is_executed_once(bench, bound, name, value, before, gone):
    handle = bench.open(bound)
    for step in before:
        bench.set(handle, *step)
    bench.lost = {gone}
    bench.ids += 1
    replies = bench.request("setsockopt", 50, handle=handle, level=0, name=name,
                            value=base64.b64encode(value).decode())
    assert bool(replies) is (gone == topology.UDP and not bound)
    bench.lost = set()
    bench.crash(topology.SOCKETS)
    assert bench.set(handle, name, value, number=50) == 0
    assert bench.set(handle, name, value, number=51) == {ADD: errno.EADDRINUSE}.get(name, errno.EADDRNOTAVAIL)
    bench.request("bind", handle=handle, address="0.0.0.0", port=PORT)
    assert bench.heard() == ([handle] if name == ADD else [])


def test_the_answer_waits_for_ip_and_ip_is_asked_again_when_it_is_back(bench):
    handle = bench.open()
    bench.lost = {topology.IP}
    assert bench.request("setsockopt", handle=handle, level=0, name=ADD, value=base64.b64encode(mreq()).decode()) == []
    assert bench.request("getsockname", handle=handle) == []  # in order
    bench.lost = set()
    bench.crash(topology.IP)
    replies = [json.loads(reply) for reply in bench.take(APP, messages.REPLY)]
    assert [reply["errno"] for reply in replies] == [0, 0]
    assert bench.heard() == [handle]


def test_ips_word_is_not_taken_for_udps(bench):
    handle = bench.open()
    bench.lost = {topology.UDP}
    assert bench.request("setsockopt", handle=handle, level=0, name=ADD, value=base64.b64encode(mreq()).decode()) == []
    stray = encode(SocketReply(handle=handle, request=bench.ids))
    bench.run(topology.SOCKETS, bench.cores[topology.SOCKETS].receive(topology.IP, messages.SOCKET_REPLY, [stray], 0.0))
    assert bench.take(APP, messages.REPLY) == []
    bench.lost = set()
    bench.crash(topology.UDP)
    assert [json.loads(reply)["errno"] for reply in bench.take(APP, messages.REPLY)] == [0]


def storage(address: str) -> bytes:
    """A struct sockaddr_storage."""
    return std.AF_INET.to_bytes(2, byteorder) + bytes(2) + std.inet_aton(address).ljust(124, b"\0")


@st.composite
def sensible_options(draw: st.DrawFn) -> tuple[int, bytes | int]:
    """An option with a value that may be accepted."""
    name = draw(st.sampled_from([*MEMBERSHIPS, LOOP, ALL, TTL]))
    group, source = draw(st.sampled_from([ONE, TWO])), draw(st.sampled_from([PEER, OTHER]))
    sources = draw(st.lists(st.sampled_from([PEER, OTHER]), max_size=2, unique=True))
    count = len(sources) + draw(st.sampled_from([0, 0, 0, 1, 100]))  # so many are said to be there
    mode = b"".join(number.to_bytes(4, byteorder) for number in (draw(st.integers(0, 1)), count))
    index = draw(st.sampled_from([0, 2])).to_bytes(8, byteorder)
    match name:
        case 35 | 36:  # IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP
            return name, mreq(group)
        case 37 | 38 | 39 | 40:
            return name, mreq_source(source, group)
        case 41:  # IP_MSFILTER
            return name, mreq(group) + mode + b"".join(map(std.inet_aton, sources))
        case 42 | 45:  # MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP
            return name, index + storage(group)
        case 43 | 44 | 46 | 47:
            return name, index + storage(group) + storage(source)
        case 48:  # MCAST_MSFILTER
            return name, index + storage(group) + mode + b"".join(map(storage, sources))
    return name, draw(st.integers(0, 1))


ANY_OPTIONS = st.tuples(st.sampled_from([*MEMBERSHIPS, MULTICAST_IF, LOOP, ALL, TTL]),
                        lengths.octets(300) | st.integers(-(1 << 31), (1 << 31) - 1))


@settings(max_examples=200)
@given(lengths.lists(lengths.mostly(sensible_options(), ANY_OPTIONS), 12))
@example([(ADD, mreq()), (BLOCK, mreq_source()), (UNBLOCK, mreq_source()), (DROP, mreq()), (ADD, mreq(TWO))])
def test_whatever_options_are_set_every_request_is_answered_and_ip_and_udp_agree_with_sockets(steps):
    bench = Bench()
    handle = bench.open()
    for name, value in steps:
        assert bench.set(handle, name, value) >= 0
    groups = bench.cores[topology.SOCKETS]._table.entries[handle].socket.groups
    assert bench.cores[topology.UDP]._sockets.sockets[handle].declared.groups == groups
    stored = [decode_membership(record) for key, record in bench.states[topology.IP].items() if key >> 32 == 2]
    assert [membership.groups for membership in stored] == ([groups] if groups else [])

"""Multicast between the stack and the Linux kernel, IGMP reports on the cable, and memberships that survive layers."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.igmp import IGMP, IGMPv3_MQ, IGMPv3_MR
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

import usernet
from usernet import (
    IP_ADD_SOURCE_MEMBERSHIP,
    IP_BLOCK_SOURCE,
    IP_DROP_SOURCE_MEMBERSHIP,
    IP_MSFILTER,
    IP_MULTICAST_ALL,
    IP_UNBLOCK_SOURCE,
    MCAST_BLOCK_SOURCE,
    MCAST_EXCLUDE,
    MCAST_INCLUDE,
    MCAST_JOIN_GROUP,
    MCAST_JOIN_SOURCE_GROUP,
    MCAST_LEAVE_GROUP,
    MCAST_LEAVE_SOURCE_GROUP,
    MCAST_MSFILTER,
    MCAST_UNBLOCK_SOURCE,
)

from .peers import KERNEL, PATIENCE_S, STACK, TAP, Stack, frames, wait_for

GROUP, OTHER_GROUP = "239.1.2.3", "239.1.2.4"
IS_EX, TO_IN, TO_EX, ALLOW, BLOCK = 2, 3, 4, 5, 6
SILENCE_S = 0.3
ALIAS = "10.0.0.9"


def mreq(group: str = GROUP, interface: str = "0.0.0.0") -> bytes:
    return socket.inet_aton(group) + socket.inet_aton(interface)


def mreq_source(source: str, group: str = GROUP) -> bytes:
    return socket.inet_aton(group) + bytes(4) + socket.inet_aton(source)


def storage(address: str, family: int = socket.AF_INET) -> bytes:
    """A struct sockaddr_storage."""
    return (struct.pack("=HH", family, 0) + socket.inet_aton(address)).ljust(128, b"\0")


def group_req(group: str = GROUP, index: int = 0, family: int = socket.AF_INET) -> bytes:
    return struct.pack("=I4x", index) + storage(group, family)


def group_source_req(source: str, group: str = GROUP, index: int = 0, families: tuple = (2, 2)) -> bytes:
    return struct.pack("=I4x", index) + storage(group, families[0]) + storage(source, families[1])


def msfilter(mode: int, *sources: str, group: str = GROUP, interface: str = "0.0.0.0", count: int = -1) -> bytes:
    numbers = struct.pack("=II", mode, len(sources) if count < 0 else count)
    return mreq(group, interface) + numbers + b"".join(map(socket.inet_aton, sources))


def group_filter(mode: int, *sources: str, group: str = GROUP, index: int = 0, count: int = -1,
                 families: tuple = (2, 2)) -> bytes:
    numbers = struct.pack("=II", mode, len(sources) if count < 0 else count)
    return group_req(group, index, families[0]) + numbers + b"".join(storage(one, families[1]) for one in sources)


def join(app, group: str = GROUP, option: int = socket.IP_ADD_MEMBERSHIP) -> None:
    app.setsockopt(socket.IPPROTO_IP, option, mreq(group))


def member(stack: Stack, *groups: str, port: int = 0):
    """A socket of the stack that has joined."""
    app = stack.bound(port, "0.0.0.0")
    app.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)  # its own groups only
    for group in groups or (GROUP,):
        join(app, group)
    return app


def kernel_sender(stack: Stack) -> socket.socket:
    """A socket of the kernel whose multicasts go to the cable."""
    peer = stack.kernel.udp()
    peer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(KERNEL))
    return peer


def kernel_member(stack: Stack, group: str = GROUP) -> socket.socket:
    peer = stack.kernel.udp(address="0.0.0.0")
    peer.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq(group, KERNEL))
    return peer


def hears_nothing(app) -> bool:
    before = app.gettimeout()
    app.settimeout(SILENCE_S)
    try:
        app.recv(100)
    except TimeoutError:
        return True
    finally:
        app.settimeout(before)
    return False


def igmp(cable: socket.socket, timeout_s: float = PATIENCE_S) -> Iterator[IP]:
    """The IGMP packets that the stack sends from now on."""
    for frame in frames(cable, timeout_s):
        if frame[12:14] == b"\x08\x00" and frame[23] == 2:
            yield Ether(frame)[IP]


def told(cable: socket.socket, wanted: tuple, timeout_s: float = PATIENCE_S) -> IP:
    """The first report that has this (type, group, sources...) record."""
    seen = []
    for packet in igmp(cable, timeout_s):
        message = IGMP(bytes(packet.payload))
        if isinstance(message, IGMPv3_MR):
            records = [(record.rtype, record.maddr, *record.srcaddrs) for record in message.records]
            if wanted in records:
                return packet
            seen += records
    raise AssertionError(f"no {wanted}, but {seen}")


def spoken(cable: socket.socket, kind: int, group: str) -> IP:
    """The first message of version 2 like this."""
    for packet in igmp(cable):
        message = IGMP(bytes(packet.payload))
        if not isinstance(message, IGMPv3_MR) and (message.type, message.gaddr) == (kind, group):
            return packet
    raise AssertionError("no such message")


def query(stack: Stack, message: bytes) -> None:
    """A router's query, from a raw socket on the kernel's end."""
    with stack.kernel.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP) as router:
        router.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(KERNEL))
        router.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x94\x04\0\0")
        router.sendto(message, ("224.0.0.1", 0))


# -- datagrams --------------------------------------------------------------------------------------------------------


def test_from_the_kernel_to_members_only(stack: Stack) -> None:
    with member(stack) as app, kernel_sender(stack) as peer:
        port = app.getsockname()[1]
        peer.sendto(b"to another group", (OTHER_GROUP, port))
        peer.sendto(b"to ours", (GROUP, port))
        assert app.recvfrom(100) == (b"to ours", (KERNEL, peer.getsockname()[1]))
        join(app, option=socket.IP_DROP_MEMBERSHIP)
        peer.sendto(b"too late", (GROUP, port))
        assert hears_nothing(app)


def test_from_the_stack_to_the_kernel(stack: Stack) -> None:
    with stack.socket() as app, kernel_member(stack) as peer:
        app.sendto(b"to the group", (GROUP, peer.getsockname()[1]))
        assert peer.recvfrom(100)[0] == b"to the group"
        app.connect((GROUP, peer.getsockname()[1]))
        app.send(b"connected")
        assert peer.recv(100) == b"connected"


def test_our_own_multicasts_come_back_to_our_own_members_unless_the_sender_forbids_it(stack: Stack) -> None:
    with member(stack) as app, stack.socket() as sender:
        to = (GROUP, app.getsockname()[1])
        assert sender.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 1
        sender.sendto(b"heard", to)
        assert app.recvfrom(100) == (b"heard", (STACK, sender.getsockname()[1]))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        sender.sendto(b"not heard", to)
        assert hears_nothing(app)


def test_rfc1112_6_1_a_ttl_of_zero_stays_in_the_host(stack: Stack) -> None:
    with member(stack) as app, stack.socket() as sender, kernel_member(stack) as peer:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sender.sendto(b"inside", (GROUP, app.getsockname()[1]))
        assert app.recv(100) == b"inside"
        sender.sendto(b"inside", (GROUP, peer.getsockname()[1]))
        assert hears_nothing(peer)


def test_long_multicasts_go_in_fragments_both_ways(stack: Stack) -> None:
    long = os.urandom(5000)
    with member(stack) as app, stack.socket() as sender, kernel_member(stack) as peer, kernel_sender(stack) as remote:
        sender.sendto(long, (GROUP, peer.getsockname()[1]))
        assert peer.recv(6000) == long
        sender.sendto(long, (GROUP, app.getsockname()[1]))
        assert app.recv(6000) == long
        remote.sendto(long, (GROUP, app.getsockname()[1]))
        assert app.recv(6000) == long


def test_ip_multicast_if_chooses_the_source_address(new_stack) -> None:
    stack = new_stack().up()
    stack.run("address", "add", f"{ALIAS}/24")
    with stack.socket() as app, kernel_member(stack) as peer:
        for chosen, source in (("0.0.0.0", STACK), (ALIAS, ALIAS), (STACK, STACK)):
            app.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(chosen))
            assert app.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4) == socket.inet_aton(chosen)
            app.sendto(b"from where?", (GROUP, peer.getsockname()[1]))
            assert peer.recvfrom(100)[1][0] == source


# -- options, on both ends alike --------------------------------------------------------------------------------------


def outcome(made, option: int, value: object) -> int:
    try:
        made.setsockopt(socket.IPPROTO_IP, option, value)
    except OSError as error:
        return error.errno
    return 0


ADD, DROP, IF = socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP, socket.IP_MULTICAST_IF
LOOP, TTL, ALL = socket.IP_MULTICAST_LOOP, socket.IP_MULTICAST_TTL, IP_MULTICAST_ALL
SCRIPTS = {
    "joining twice": [(ADD, mreq()), (ADD, mreq()), (DROP, mreq()), (DROP, mreq())],
    "not a group": [(ADD, mreq("10.0.0.1")), (DROP, mreq("10.0.0.1")), (IP_ADD_SOURCE_MEMBERSHIP,
                                                                         mreq_source("10.0.0.7", "10.0.0.1"))],
    "lengths": [(ADD, mreq()[:7]), (ADD, b""), (ADD, mreq() + b"\0"), (DROP, mreq() + bytes(4)), (ADD, 1),
                (IP_BLOCK_SOURCE, mreq()), (IP_BLOCK_SOURCE, mreq() + bytes(5)), (IF, b"\0"), (LOOP, b"\1"),
                (LOOP, b""), (TTL, b"\x07"), (ALL, b"\1")],
    "an index that is none": [(ADD, mreq() + struct.pack("=i", 77)), (DROP, mreq() + struct.pack("=i", 77)),
                              (IF, mreq() + struct.pack("=i", 77))],
    "a foreign interface": [(ADD, mreq(GROUP, "192.0.2.1")), (ADD, mreq()), (DROP, mreq(GROUP, "192.0.2.1")),
                            (IF, socket.inet_aton("192.0.2.1")), (IF, mreq(GROUP, "192.0.2.1"))],
    "too many": [(ADD, mreq(f"239.5.0.{last}")) for last in range(22)],
    "sources in": [(IP_ADD_SOURCE_MEMBERSHIP, mreq_source("10.0.0.7")),
                   (IP_ADD_SOURCE_MEMBERSHIP, mreq_source("10.0.0.7")), (ADD, mreq()),
                   (IP_BLOCK_SOURCE, mreq_source("10.0.0.8")),
                   (IP_DROP_SOURCE_MEMBERSHIP, mreq_source("10.0.0.8")),
                   (IP_DROP_SOURCE_MEMBERSHIP, mreq_source("10.0.0.7")), (DROP, mreq())],
    "sources out": [(IP_BLOCK_SOURCE, mreq_source("10.0.0.7")), (ADD, mreq()),
                    (IP_UNBLOCK_SOURCE, mreq_source("10.0.0.7")), (IP_BLOCK_SOURCE, mreq_source("10.0.0.7")),
                    (IP_BLOCK_SOURCE, mreq_source("10.0.0.7")),
                    (IP_ADD_SOURCE_MEMBERSHIP, mreq_source("10.0.0.8")),
                    (IP_UNBLOCK_SOURCE, mreq_source("10.0.0.7")), (DROP, mreq())],
    "too many sources": [(IP_ADD_SOURCE_MEMBERSHIP, mreq_source(f"10.0.0.{last}")) for last in range(5, 17)],
    "from all to one": [(ADD, mreq()), (IP_ADD_SOURCE_MEMBERSHIP, mreq_source("10.0.0.7")),
                        (IP_BLOCK_SOURCE, mreq_source("10.0.0.8"))],
    "any family": [(MCAST_JOIN_GROUP, group_req()), (MCAST_JOIN_GROUP, group_req()), (ADD, mreq()),
                   (MCAST_JOIN_GROUP, group_req(OTHER_GROUP, 2)), (MCAST_LEAVE_GROUP, group_req(GROUP, 2)),
                   (MCAST_LEAVE_GROUP, group_req(OTHER_GROUP)), (MCAST_LEAVE_GROUP, group_req())],
    "another family": [(MCAST_JOIN_GROUP, group_req(family=10)), (MCAST_LEAVE_GROUP, group_req(family=10)),
                       (ADD, mreq()), (MCAST_BLOCK_SOURCE, group_source_req("10.0.0.7", families=(10, 2))),
                       (MCAST_BLOCK_SOURCE, group_source_req("10.0.0.7", families=(2, 10))),
                       (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, families=(0, 2))),
                       (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, "10.0.0.7", families=(2, 10)))],
    "lengths of any family": [(MCAST_JOIN_GROUP, group_req()[:135]), (MCAST_JOIN_GROUP, group_req()[:12]),
                              (MCAST_JOIN_GROUP, 1), (MCAST_JOIN_GROUP, group_req() + bytes(5000)),
                              (MCAST_LEAVE_GROUP, group_req()[:135]),
                              (MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.7")[:263]),
                              (MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.7") + b"\0"),
                              (MCAST_LEAVE_GROUP, group_req() + b"\0")],
    "any family, no group or interface": [
        (MCAST_JOIN_GROUP, group_req("10.0.0.1")), (MCAST_LEAVE_GROUP, group_req("10.0.0.1")),
        (MCAST_JOIN_GROUP, group_req(index=77)), (MCAST_LEAVE_GROUP, group_req(index=77)),
        (MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.7", index=77)),
        (MCAST_BLOCK_SOURCE, group_source_req("10.0.0.7", "10.0.0.1")),
        (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, index=77)),
        (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, group="10.0.0.1"))],
    "sources of any family": [
        (MCAST_BLOCK_SOURCE, group_source_req("10.0.0.7")), (MCAST_UNBLOCK_SOURCE, group_source_req("10.0.0.7")),
        (MCAST_LEAVE_SOURCE_GROUP, group_source_req("10.0.0.7")),
        *[(MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.7"))] * 2,
        (MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.8")),
        (MCAST_LEAVE_SOURCE_GROUP, group_source_req("10.0.0.9")),
        (MCAST_LEAVE_SOURCE_GROUP, group_source_req("10.0.0.7")),
        (MCAST_LEAVE_SOURCE_GROUP, group_source_req("10.0.0.8")),
        (MCAST_LEAVE_SOURCE_GROUP, group_source_req("10.0.0.8"))],
    "the last blocked source": [(ADD, mreq()), (MCAST_BLOCK_SOURCE, group_source_req("10.0.0.7")),
                                (MCAST_UNBLOCK_SOURCE, group_source_req("10.0.0.7")),
                                (MCAST_UNBLOCK_SOURCE, group_source_req("10.0.0.7")),
                                (MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.8")),
                                (IP_MSFILTER, msfilter(MCAST_EXCLUDE)),
                                (MCAST_JOIN_SOURCE_GROUP, group_source_req("10.0.0.8"))],
    "whole filters": [(IP_MSFILTER, msfilter(MCAST_EXCLUDE)), (IP_MSFILTER, msfilter(MCAST_INCLUDE)), (ADD, mreq()),
                      (IP_MSFILTER, msfilter(MCAST_INCLUDE, "10.0.0.7", "10.0.0.8")), (IP_MSFILTER, msfilter(2)),
                      (IP_MSFILTER, msfilter(MCAST_EXCLUDE, "10.0.0.7", "10.0.0.7")),
                      (IP_UNBLOCK_SOURCE, mreq_source("10.0.0.7")),
                      (IP_MSFILTER, msfilter(MCAST_EXCLUDE, interface="192.0.2.1")),
                      (IP_MSFILTER, msfilter(MCAST_EXCLUDE, group="10.0.0.1")), (IP_MSFILTER, msfilter(MCAST_INCLUDE)),
                      (IP_MSFILTER, msfilter(MCAST_INCLUDE, "10.0.0.7"))],
    "lengths of whole filters": [
        (ADD, mreq()), (IP_MSFILTER, msfilter(MCAST_EXCLUDE)[:15]), (IP_MSFILTER, 1),
        (IP_MSFILTER, msfilter(MCAST_EXCLUDE, "10.0.0.7", count=2)), (IP_MSFILTER, msfilter(MCAST_EXCLUDE, count=11)),
        (IP_MSFILTER, msfilter(MCAST_EXCLUDE, count=0x40000001)),
        (IP_MSFILTER, msfilter(MCAST_EXCLUDE, "10.0.0.7", count=0)),
        (IP_MSFILTER, msfilter(MCAST_EXCLUDE, *(f"10.0.0.{last}" for last in range(10, 20)))),
        (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE)[:143]), (MCAST_MSFILTER, 1),
        (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, "10.0.0.7", count=2)),
        (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, count=11)), (MCAST_MSFILTER, group_filter(3)),
        (MCAST_MSFILTER, group_filter(MCAST_EXCLUDE, *(f"10.0.0.{last}" for last in range(10, 20))))],
    "numbers": [(TTL, -1), (TTL, 256), (TTL, 0), (TTL, -2), (LOOP, 7), (ALL, 2), (ALL, 0), (ALL, -1)],
}


def filter_of(made, option: int, question: bytes) -> object:
    """What getsockopt makes of a structure; the standard module cannot put a question to the kernel, so C's does."""
    if not isinstance(made, socket.socket):
        try:
            return made.getsockopt(socket.IPPROTO_IP, option, question)
        except OSError as error:
            return errno.errorcode[error.errno]
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(question, 4096)  # Linux fills it by the count in it, whatever its length
    length = ctypes.c_uint32(len(question))
    if libc.getsockopt(made.fileno(), socket.IPPROTO_IP, option, room, ctypes.byref(length)):
        return errno.errorcode[ctypes.get_errno()]
    return room.raw[: length.value]


QUESTIONS = [
    (IP_MSFILTER, msfilter(0, count=5)), (IP_MSFILTER, msfilter(0, count=1)), (IP_MSFILTER, msfilter(1)),
    (IP_MSFILTER, msfilter(0)[:15]), (IP_MSFILTER, b""), (IP_MSFILTER, msfilter(0, interface="192.0.2.1")),
    (IP_MSFILTER, msfilter(0, group="10.0.0.1")), (IP_MSFILTER, msfilter(0, group="239.9.9.9")),
    (MCAST_MSFILTER, group_filter(0, count=5, index=2)), (MCAST_MSFILTER, group_filter(0, count=1, index=2)),
    (MCAST_MSFILTER, group_filter(1, index=2)), (MCAST_MSFILTER, group_filter(0)),
    (MCAST_MSFILTER, group_filter(0, index=7)),
    (MCAST_MSFILTER, group_filter(0)[:143]), (MCAST_MSFILTER, group_filter(0, group="10.0.0.1", index=2)),
    (MCAST_MSFILTER, group_filter(0, group="239.9.9.9", index=2)), (MCAST_MSFILTER, group_filter(0, families=(10, 2))),
]


@pytest.mark.parametrize("made", [(), (MCAST_EXCLUDE,), (MCAST_EXCLUDE, "10.0.0.7"),
                                  (MCAST_INCLUDE, "10.0.0.8", "10.0.0.7")], ids=["no member", "all", "but one", "two"])
def test_a_filter_is_told_as_by_linux(stack: Stack, made: tuple) -> None:
    with stack.socket() as app, stack.kernel.socket() as peer:
        stack.execute("ip", "route", "replace", "224.0.0.0/4", "dev", TAP)
        for one in (app, peer) if made else ():
            one.setsockopt(socket.IPPROTO_IP, ADD, mreq())
            one.setsockopt(socket.IPPROTO_IP, IP_MSFILTER, msfilter(*made))
        for option, question in QUESTIONS:
            assert filter_of(app, option, question) == filter_of(peer, option, question), (option, question)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_options_have_linuxs_outcomes(stack: Stack, script: list) -> None:
    with stack.socket() as app, stack.kernel.socket() as peer:
        stack.execute("ip", "route", "replace", "224.0.0.0/4", "dev", TAP)  # else it has no interface for a group
        ours = [outcome(app, *step) for step in script]
        theirs = [outcome(peer, *step) for step in script]
        assert [errno.errorcode.get(number) for number in ours] == [errno.errorcode.get(number) for number in theirs]
        for option in (LOOP, TTL, ALL):
            assert app.getsockopt(socket.IPPROTO_IP, option) == peer.getsockopt(socket.IPPROTO_IP, option)


def test_ip_multicast_all_decides_whether_a_socket_hears_what_others_have_joined(stack: Stack) -> None:
    with member(stack) as joined, kernel_sender(stack) as peer, stack.socket() as other:
        port = joined.getsockname()[1]
        joined.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", port))
        peer.sendto(b"to all", (GROUP, port))
        assert (joined.recv(100), other.recv(100)) == (b"to all", b"to all")
        other.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        peer.sendto(b"to members", (GROUP, port))
        assert joined.recv(100) == b"to members"
        assert hears_nothing(other)


def test_source_filters(stack: Stack) -> None:
    with stack.bound(0, "0.0.0.0") as app, kernel_sender(stack) as peer, stack.socket() as own:
        app.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        to = (GROUP, app.getsockname()[1])

        def sources() -> set[str]:
            for sender in (peer, own):
                sender.sendto(b"?", to)
                sender.sendto(b"the end", (STACK, to[1]))  # to one host: filters are for groups
            found, ends = set(), 0
            while ends < 2:
                octets, (source, _) = app.recvfrom(100)
                if octets == b"the end":
                    ends += 1
                else:
                    found.add(source)
            return found

        app.setsockopt(socket.IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, mreq_source(KERNEL))
        assert sources() == {KERNEL}
        app.setsockopt(socket.IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, mreq_source(STACK))
        assert sources() == {KERNEL, STACK}
        app.setsockopt(socket.IPPROTO_IP, DROP, mreq())
        assert sources() == set()
        join(app)
        app.setsockopt(socket.IPPROTO_IP, IP_BLOCK_SOURCE, mreq_source(KERNEL))
        assert sources() == {STACK}
        app.setsockopt(socket.IPPROTO_IP, IP_UNBLOCK_SOURCE, mreq_source(KERNEL))
        assert sources() == {KERNEL, STACK}


# -- IGMP -------------------------------------------------------------------------------------------------------------


def test_rfc3376_joining_and_leaving_are_reported(stack: Stack) -> None:
    with stack.kernel.packet() as cable:
        with member(stack, GROUP) as app:
            packet = told(cable, (TO_EX, GROUP))
            assert (packet.src, packet.dst, packet.ttl) == (STACK, "224.0.0.22", 1)
            app.setsockopt(socket.IPPROTO_IP, IP_BLOCK_SOURCE, mreq_source(KERNEL))
            told(cable, (BLOCK, GROUP, KERNEL))
        told(cable, (TO_IN, GROUP))  # by closing the socket


def test_the_death_of_an_application_leaves_its_groups(stack: Stack) -> None:
    with stack.kernel.packet() as cable:
        app = stack.application(f"import usernet, time; s = usernet.socket(2, 2); s.setsockopt(0, 35, {mreq()!r}); "
                                f"print('joined', flush=True); time.sleep(100)")
        assert app.stdout.readline() == "joined\n"
        told(cable, (TO_EX, GROUP))
        app.kill()
        told(cable, (TO_IN, GROUP))


def test_rfc3376_a_general_query_is_answered(stack: Stack) -> None:
    with stack.kernel.packet() as cable, member(stack, GROUP):
        told(cable, (TO_EX, GROUP))
        query(stack, bytes(IGMPv3_MQ(mrcode=5, qrv=2, qqic=125)))
        told(cable, (IS_EX, GROUP))


def test_rfc2236_a_version_2_query_is_answered_in_version_2(new_stack) -> None:
    stack = new_stack().up()
    with stack.kernel.packet() as cable:
        with member(stack, GROUP):
            told(cable, (TO_EX, GROUP))
            query(stack, bytes(IGMP(type=0x11, mrcode=5)))
            assert spoken(cable, 0x16, GROUP).dst == GROUP
        assert spoken(cable, 0x17, GROUP).dst == "224.0.0.2"


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["ip", "sockets", "udp", "link"])
def test_memberships_survive_the_death_of_a_layer(stack: Stack, layer: str) -> None:
    with member(stack) as app, stack.kernel.packet() as cable, kernel_sender(stack) as peer:
        to = (GROUP, app.getsockname()[1])
        peer.sendto(b"before", to)
        assert app.recv(100) == b"before"
        before = stack.ask()[layer]
        os.kill(before["pid"], signal.SIGKILL)
        if layer == "ip":
            told(cable, (TO_EX, GROUP))
        wait_for("the layer to serve", lambda: stack.serves(**{layer: before["incarnation"] + 1}))
        peer.sendto(b"after", to)
        assert app.recv(100) == b"after"
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EADDRINUSE):
            join(app)
        join(app, option=socket.IP_DROP_MEMBERSHIP)
        peer.sendto(b"too late", to)
        assert hears_nothing(app)


@pytest.mark.parametrize("layer", ["ip", "sockets"])
def test_joining_while_a_layer_dies_succeeds_once(stack: Stack, layer: str) -> None:
    with stack.bound(0, "0.0.0.0") as app, kernel_sender(stack) as peer:
        to = (GROUP, app.getsockname()[1])
        for _ in range(3):
            before = stack.ask()[layer]
            os.kill(before["pid"], signal.SIGKILL)
            join(app)
            wait_for("the layer to serve", lambda: stack.serves(**{layer: before["incarnation"] + 1}))  # noqa: B023
            peer.sendto(b"after", to)
            assert app.recv(100) == b"after"
            join(app, option=socket.IP_DROP_MEMBERSHIP)


# -- without a TAP ----------------------------------------------------------------------------------------------------


def test_two_stacks_on_a_wire() -> None:
    from .test_wire import Lab

    lab = Lab()
    try:
        lab.up(2, 3)
        runs = [usernet.Stack(f"s{number}", lab.runtime_dir / "usernet" / f"s{number}") for number in (2, 3)]
        one, other = (stack.socket(socket.AF_INET, socket.SOCK_DGRAM) for stack in runs)
        with one, other:
            for each in (one, other):
                each.settimeout(PATIENCE_S)
                each.bind(("0.0.0.0", 5353))
                join(each)
            lab.ping(2, 3, 1)  # so that the switch knows both
            one.sendto(b"hello, group", (GROUP, 5353))
            assert other.recvfrom(100) == (b"hello, group", ("10.0.0.2", 5353))
            assert one.recvfrom(100) == (b"hello, group", ("10.0.0.2", 5353))
            other.sendto(b"and back", (GROUP, 5353))
            assert one.recvfrom(100) == (b"and back", ("10.0.0.3", 5353))
    finally:
        lab.clean_up()

"""The socket service's core, with the real udp core below it."""

from __future__ import annotations

import base64
import errno
import json
import random
import socket as std
from ipaddress import IPv4Address

import lengths
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import CREDIT_RECORD, CREDIT_TOTAL, SocketError, SocketState, datagram_header
from layers.sockets.core import Core
from layers.sockets.counters import Counters
from layers.sockets.limits import LONG_WAITING_MAX, SOCKETS_MAX
from layers.sockets.requests import LIST_MAX, REQUEST_OCTETS_MAX
from layers.sockets.table import HANDLES_RESERVED
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters
from usernet.pipe import streams
from usernet.pipe.messages import WANT, WANT_RECORD, WANT_TAKEN, WANT_WAITS
from usernet.pipe.streams import (
    ACCEPT_RECORD,
    ACCEPTED_HEADER,
    READ_RECORD,
    RESUME,
    TCP_HANDLE_MIN,
)

ALICE, BOB, CAROL = (topology.CLIENT_ID_MIN + number for number in (1, 2, 3))
CONFIG = StackConfig(name="test", run_dir="", address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6))


class Bench:
    """sockets above udp, glued in memory. Everything else that either sends is kept in `out`."""

    config = CONFIG

    def __init__(self) -> None:
        self.state, self.udp_state = {}, {}
        self.udp = Udp(CONFIG, self.udp_state, UdpCounters.new(), random.Random(1))
        self.out = []
        self.ids = 0
        self.udp_away = False
        self.unchecked = False  # the bus has not looked yet which clients have ended
        self.clients = {ALICE, BOB}
        self.crash()

    def crash(self) -> None:
        """The service starts again, with nothing but its state; the clients that have not ended join."""
        self.core = Core(self.config, self.state, Counters.new(), random.Random(1))
        self.carry(self.core.start(0.0))
        for client in sorted(self.clients):
            self.carry(self.core.client_joined(client, {"pid": client & 0xFF}, 0.0))
        self.settle([])

    def leaves(self, client) -> None:
        """The process of a client has ended."""
        self.clients.discard(client)
        self.settle(self.core.client_left(client, 0.0))

    def settle(self, sends) -> None:
        """Carry records, and go on turn by turn while something is due."""
        self.carry(sends)
        while self.core.next_wake is not None:
            self.carry(self.core.wake(0.0))

    def carry(self, sends) -> None:
        for consumer, kind, record in sends:
            if consumer == topology.UDP and not self.udp_away:
                for _, kind_up, answer in self.udp.receive(topology.SOCKETS, kind, [record], 0.0):
                    if _ == topology.SOCKETS:
                        self.carry(self.core.receive(topology.UDP, kind_up, [answer], 0.0))
                    else:
                        self.out.append((_, kind_up, answer))
            else:
                self.out.append((consumer, kind, record))

    def give(self, sender, kind, *octets):
        self.out = []
        if sender >= topology.CLIENT_ID_MIN:
            self.clients.add(sender)
        self.settle(self.core.receive(sender, kind, list(octets), 0.0))
        if self.core.contested and not self.unchecked:
            self.settle(self.core.clients_checked(0.0))
        return self.out

    def send_request(self, op, client=ALICE, number=None, **fields):
        self.ids += 1
        request = {"id": number or self.ids, "op": op, **fields}
        self.give(client, messages.REQUEST, json.dumps(request).encode())
        return [json.loads(record) for to, kind, record in self.out if to == client and kind == messages.REPLY]

    def ask(self, op, client=ALICE, number=None, **fields):
        (reply,) = self.send_request(op, client, number, **fields)
        assert reply["id"] == (number or self.ids)
        return reply

    def open(self, client=ALICE, type="dgram"):
        return self.ask("socket", client, type=type)["handle"]

    def bound(self, port, client=ALICE):
        handle = self.open(client)
        assert self.ask("bind", client, handle=handle, address="10.0.0.2", port=port)["errno"] == 0
        return handle

    def count(self, counter):
        return self.core.counters[counter]


@pytest.fixture
def bench():
    return Bench()


def datagram(handle: int, payload: bytes) -> bytes:
    return datagram_header(handle, bytes([10, 0, 0, 1]), 7, bytes([10, 0, 0, 2]), 64, 0) + payload


def test_handles_count_from_one(bench):
    assert [bench.open(), bench.open(BOB), bench.open()] == [1, 2, 3]


def test_a_port_in_use_is_refused_only_after_ended_clients_are_known(bench):
    bench.bound(5055, ALICE)
    other = bench.open(BOB)
    bench.unchecked = True
    assert bench.send_request("bind", BOB, number=77, handle=other, address="10.0.0.2", port=5055) == []
    assert bench.core.contested
    bench.leaves(ALICE)
    bench.out = []
    bench.settle(bench.core.clients_checked(0.0))
    assert not bench.core.contested
    (reply,) = [json.loads(record) for to, kind, record in bench.out if to == BOB]
    assert (reply["id"], reply["errno"], reply["port"]) == (77, 0, 5055)


def test_a_client_that_leaves_while_its_refusal_waits_is_forgotten(bench):
    bench.bound(5055, ALICE)
    other = bench.open(BOB)
    bench.unchecked = True
    bench.send_request("bind", BOB, handle=other, address="10.0.0.2", port=5055)
    bench.leaves(BOB)
    assert not bench.core.contested
    assert bench.core.clients_checked(0.0) == []


def test_bind_answers_with_what_udp_chose(bench):
    handle = bench.open()
    reply = bench.ask("bind", handle=handle, address="0.0.0.0", port=0)
    assert reply["address"] == "0.0.0.0"
    assert reply["port"] > 1023
    assert bench.ask("getsockname", handle=handle)["port"] == reply["port"]


def test_bind_twice_is_invalid_and_a_port_in_use_is_refused(bench):
    handle = bench.bound(5055)
    assert bench.ask("bind", handle=handle, address="10.0.0.2", port=5056)["errno"] == errno.EINVAL
    other = bench.open(BOB)
    assert bench.ask("bind", BOB, handle=other, address="10.0.0.2", port=5055)["errno"] == errno.EADDRINUSE
    assert bench.ask("bind", BOB, handle=other, address="10.9.9.9", port=5056)["errno"] == errno.EADDRNOTAVAIL
    assert bench.ask("bind", BOB, handle=other, address="10.0.0.2", port=5056)["errno"] == 0


def test_close_gives_the_port_back(bench):
    bench.ask("close", handle=bench.bound(5055))
    bench.bound(5055, BOB)


def test_an_answer_is_stored_before_it_is_given(bench):
    handle = bench.bound(5055)
    bench.crash()
    assert bench.ask("getsockname", handle=handle) == {"id": bench.ids, "errno": 0, "address": "10.0.0.2", "port": 5055}


def test_a_request_sent_again_after_a_crash_is_executed_once(bench):
    handle = bench.ask("socket", number=70, type="dgram")["handle"]
    bench.crash()
    assert bench.ask("socket", number=70, type="dgram")["handle"] == handle
    first = bench.ask("bind", number=71, handle=handle, address="10.0.0.2", port=0)
    bench.crash()
    assert bench.ask("bind", number=71, handle=handle, address="10.0.0.2", port=0) == first
    assert bench.ask("bind", number=72, handle=handle, address="10.0.0.2", port=0)["errno"] == errno.EINVAL


def test_a_request_under_way_at_a_crash_is_answered_when_it_comes_again(bench):
    handle = bench.open()
    bench.udp_away = True
    assert bench.send_request("bind", number=71, handle=handle, address="10.0.0.2", port=5055) == []
    bench.crash()
    bench.udp_away = False
    assert bench.ask("bind", number=71, handle=handle, address="10.0.0.2", port=5055)["port"] == 5055


def test_a_transport_that_restarts_is_asked_again(bench):
    handle = bench.open()
    bench.udp_away = True
    assert bench.send_request("bind", handle=handle, address="10.0.0.2", port=5055) == []
    bench.udp_away = False
    bench.out = []
    bench.settle(bench.core.neighbor_started(topology.UDP, 0.0))
    ((client, kind, record),) = bench.out
    assert (client, kind, json.loads(record)["port"]) == (ALICE, messages.REPLY, 5055)


def test_requests_on_one_socket_are_done_in_turn(bench):
    handle = bench.open()
    bench.udp_away = True
    assert bench.send_request("bind", handle=handle, address="10.0.0.2", port=5055) == []
    assert bench.send_request("setsockopt", handle=handle, level=0, name=std.IP_TTL, value=9) == []
    assert bench.send_request("getsockopt", handle=handle, level=0, name=std.IP_TTL) == []
    bench.udp_away = False
    bench.out = []
    bench.settle(bench.core.neighbor_started(topology.UDP, 0.0))
    assert [json.loads(record).get("value") for _, _, record in bench.out] == [None, 9, 9]


def test_close_answers_what_still_waits(bench):
    handle = bench.open()
    bench.udp_away = True
    bench.send_request("bind", handle=handle, address="10.0.0.2", port=5055)
    replies = bench.send_request("close", handle=handle)
    assert [reply["errno"] for reply in replies] == [errno.EBADF, 0]
    assert bench.ask("close", handle=handle)["errno"] == 0  # closed stays closed


def test_connect_names_the_socket_and_dissolving_undoes_it(bench):
    handle = bench.open()
    assert bench.ask("getpeername", handle=handle)["errno"] == errno.ENOTCONN
    reply = bench.ask("connect", handle=handle, address="10.0.0.1", port=9)
    assert (reply["source"], reply["local"], reply["mtu"]) == ("10.0.0.2", "10.0.0.2", 65535)
    assert bench.ask("getpeername", handle=handle)["port"] == 9
    bench.crash()
    assert bench.ask("getpeername", handle=handle)["address"] == "10.0.0.1"
    assert bench.ask("connect", handle=handle, address="0.0.0.0", port=0)["address"] == "0.0.0.0"
    assert bench.ask("getpeername", handle=handle)["errno"] == errno.ENOTCONN


def test_prepare_binds_and_finds_the_way(bench):
    handle = bench.open()
    reply = bench.ask("prepare", handle=handle, address="10.0.0.1", port=9)
    assert (reply["source"], reply["mtu"], reply["local"]) == ("10.0.0.2", 65535, "0.0.0.0")
    assert bench.ask("prepare", handle=handle, address="10.0.0.7", port=9)["port"] == reply["port"]


@pytest.mark.parametrize(
    ("address", "port", "number"),
    [("8.8.8.8", 53, errno.ENETUNREACH), ("10.0.0.255", 9, errno.EACCES), ("255.255.255.255", 9, errno.EACCES),
     ("10.0.0.1", 0, errno.EINVAL), ("ten", 9, errno.EINVAL)],
)
def test_prepare_refuses_as_linux_does(bench, address, port, number):
    assert bench.ask("prepare", handle=bench.open(), address=address, port=port)["errno"] == number


@pytest.mark.parametrize("chosen", [{}, {"source": "127.0.0.1"}])
@pytest.mark.parametrize(("address", "broadcast", "number"), [
    ("10.0.0.1", 0, errno.EINVAL), ("10.0.0.255", 0, errno.EINVAL), ("10.0.0.255", 1, errno.EINVAL),
    ("224.0.0.251", 0, errno.EINVAL), ("255.255.255.255", 0, errno.EACCES), ("255.255.255.255", 1, errno.EINVAL),
    ("10.0.0.2", 0, 0), ("127.3.3.3", 0, 0)])
def test_rfc1122_3_2_1_3_g_what_would_leave_from_127_is_refused_at_once(bench, address, broadcast, number, chosen):
    """At the call that sends, not later; with Linux's errno."""
    handle = bench.open()
    if broadcast:
        bench.ask("setsockopt", handle=handle, level=std.SOL_SOCKET, name=std.SO_BROADCAST, value=1)
    if not chosen:
        assert bench.ask("bind", handle=handle, address="127.0.0.1", port=0)["errno"] == 0
    assert bench.ask("prepare", handle=handle, address=address, port=9, **chosen)["errno"] == number
    if not chosen:
        assert bench.ask("connect", handle=handle, address=address, port=9)["errno"] == number


def test_broadcast_with_leave(bench):
    handle = bench.open()
    assert bench.ask("setsockopt", handle=handle, level=std.SOL_SOCKET, name=std.SO_BROADCAST, value=1)["value"] == 1
    assert bench.ask("prepare", handle=handle, address="10.0.0.255", port=9)["errno"] == 0


ME, GATEWAY = (IPv4Address(text).packed for text in ("10.0.0.2", "10.0.0.1"))
IP_MTU_DISCOVER, IP_MTU = 10, 14  # Linux, <linux/in.h>; not in Python's socket module


@pytest.mark.parametrize(("mode", "longest"), [(0, 65535), (1, 65535), (2, 1400), (3, 1500), (4, 1500), (5, 65535)])
def test_the_longest_packet_depends_on_the_mode_of_path_mtu_discovery(bench, mode, longest):
    routes = messages.Routes([(ME, 24)], [messages.Route(bytes(4), 0, GATEWAY, ME, 1400)])
    bench.give(topology.IP, messages.ROUTES, messages.encode(routes))
    handle = bench.open()
    assert bench.ask("setsockopt", handle=handle, level=0, name=IP_MTU_DISCOVER, value=mode)["value"] == mode
    assert bench.ask("prepare", handle=handle, address="8.8.8.8", port=53)["mtu"] == longest
    assert bench.ask("prepare", handle=handle, address="10.0.0.2", port=53)["mtu"] == 65535  # to ourselves


def test_the_mtu_of_a_connected_socket_follows_the_routes(bench):
    handle = bench.open()
    assert bench.ask("getsockopt", handle=handle, level=0, name=IP_MTU)["errno"] == errno.ENOTCONN
    bench.ask("connect", handle=handle, address="10.0.0.1", port=9)
    assert bench.ask("getsockopt", handle=handle, level=0, name=IP_MTU)["value"] == 1500
    routes = messages.Routes([(ME, 24)], [messages.Route(bytes(4), 0, GATEWAY, ME, 1400)])
    bench.give(topology.IP, messages.ROUTES, messages.encode(routes))
    assert bench.ask("getsockopt", handle=handle, level=0, name=IP_MTU)["value"] == 1400
    assert bench.ask("setsockopt", handle=handle, level=0, name=IP_MTU, value=1)["errno"] == errno.ENOPROTOOPT


def test_routes_of_ip_count_and_are_remembered(bench):
    routes = messages.Routes([(ME, 24)], [messages.Route(bytes(4), 0, GATEWAY, ME, 1400)])
    bench.give(topology.IP, messages.ROUTES, messages.encode(routes))
    bench.crash()
    handle = bench.open()
    assert bench.ask("setsockopt", handle=handle, level=0, name=IP_MTU_DISCOVER, value=2)["errno"] == 0
    assert bench.ask("prepare", handle=handle, address="8.8.8.8", port=53)["mtu"] == 1400
    bench.give(topology.IP, messages.ROUTES, messages.encode({"addresses": [[bytes(4), 99]], "routes": []}), b"no")
    assert bench.count(Counters.routes_refused) == 2


OPTIONS = [
    (std.SOL_SOCKET, std.SO_REUSEADDR, 5), (std.SOL_SOCKET, std.SO_BROADCAST, 1),
    (std.SOL_SOCKET, std.SO_RCVBUF, 10_000), (std.SOL_SOCKET, std.SO_RCVBUF, 1), (std.SOL_SOCKET, std.SO_SNDBUF, 1),
    (std.IPPROTO_IP, std.IP_TTL, 9), (std.IPPROTO_IP, std.IP_TTL, 0), (std.IPPROTO_IP, std.IP_TTL, -1),
    (std.IPPROTO_IP, std.IP_TTL, 256), (std.IPPROTO_IP, std.IP_TTL, b"\x07"), (std.IPPROTO_IP, std.IP_TOS, 0x10),
    (std.IPPROTO_IP, std.IP_MULTICAST_TTL, 0), (std.IPPROTO_IP, std.IP_MULTICAST_TTL, 300), (std.IPPROTO_IP, 10, 2),
    (std.IPPROTO_IP, 10, 9), (std.IPPROTO_IP, 11, 1), (std.SOL_SOCKET, std.SO_TYPE, 1), (std.SOL_SOCKET, 9999, 1),
    (std.SOL_SOCKET, std.SO_RCVBUF, b"\x01"), (std.SOL_SOCKET, std.SO_REUSEPORT, 1),
]


@pytest.mark.parametrize(("level", "name", "value"), OPTIONS)
def test_options_as_the_kernel_has_them(bench, level, name, value):
    """The kernel's own UDP socket is the oracle."""


    handle = bench.open()
    sent = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    reply = bench.ask("setsockopt", handle=handle, level=level, name=name, value=sent)
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as kernel:
        number = 0
        try:
            kernel.setsockopt(level, name, value)
        except OSError as error:
            number = error.errno
        assert reply["errno"] == number
        if not number:
            expected = kernel.getsockopt(level, name)
            assert bench.ask("getsockopt", handle=handle, level=level, name=name)["value"] == expected


def test_datagrams_go_unchanged_to_the_owner(bench):
    mine, other = bench.bound(5055), bench.bound(5056, BOB)
    first, second = datagram(mine, b"one"), datagram(other, b"two")
    out = bench.give(topology.UDP, messages.DATAGRAM, first, second, datagram(99, b"?"), b"")
    assert out == [(ALICE, messages.DATAGRAM, first), (BOB, messages.DATAGRAM, second)]
    assert bench.count(Counters.closed) == 2
    assert bench.count(Counters.delivered) == 2


def test_only_the_owner_sends_on_a_socket(bench):
    handle = bench.bound(5055)
    record = datagram_header(handle, bytes([10, 0, 0, 1]), 9, bytes(4), 0, 0, 0) + b"hello"
    bench.udp_away = True
    assert bench.give(ALICE, messages.SEND, record) == [(topology.UDP, messages.SEND, record)]
    assert bench.give(BOB, messages.SEND, record, b"", b"\xff") == []
    assert bench.count(Counters.send_foreign) == 3


def test_only_the_owner_asks_about_a_socket(bench):
    handle = bench.bound(5055)
    for op in ("getsockname", "close"):
        assert bench.ask(op, BOB, handle=handle)["errno"] == errno.EBADF
    assert bench.ask("getsockname", handle=handle)["errno"] == 0


def test_a_full_receive_buffer_drops_and_asks_once(bench):
    handle = bench.bound(5055)
    bench.ask("setsockopt", handle=handle, level=std.SOL_SOCKET, name=std.SO_RCVBUF, value=2000)  # becomes 4000
    record = datagram(handle, bytes(1000))  # costs 1256
    out = bench.give(topology.UDP, messages.DATAGRAM, *[record] * 5)
    assert [kind for _, kind, _ in out] == [messages.DATAGRAM] * 3 + [messages.CREDIT]
    assert CREDIT_RECORD.unpack(out[-1][2]) == (handle, 3 * 1256)
    assert bench.count(Counters.buffer_full) == 2
    bench.give(ALICE, messages.CREDIT, CREDIT_RECORD.pack(handle, 1256))
    assert len(bench.give(topology.UDP, messages.DATAGRAM, record)) == 1
    (summary,) = bench.ask("list")["sockets"]
    assert (summary["queued"], summary["drops"], summary["pid"]) == (3 * 1256, 2, ALICE & 0xFF)


def test_a_total_sets_the_books_right(bench):
    handle = bench.bound(5055)
    bench.give(topology.UDP, messages.DATAGRAM, datagram(handle, bytes(100)))
    bench.give(ALICE, messages.CREDIT, CREDIT_RECORD.pack(handle, 7 | CREDIT_TOTAL))
    assert bench.ask("list")["sockets"][0]["queued"] == 7


def test_a_request_for_the_list_asks_the_applications_what_they_have_queued(bench):
    handle, idle = bench.bound(5055), bench.bound(5056)
    bench.give(topology.UDP, messages.DATAGRAM, datagram(handle, bytes(100)))
    assert [each["queued"] for each in bench.ask("list", BOB)["sockets"]] == [356, 0]
    assert [send for send in bench.out if send[1] == messages.CREDIT] == [
        (ALICE, messages.CREDIT, CREDIT_RECORD.pack(handle, 356))]
    bench.give(ALICE, messages.CREDIT, CREDIT_RECORD.pack(handle, CREDIT_TOTAL))
    assert [each["queued"] for each in bench.ask("list", BOB)["sockets"]] == [0, 0]
    assert idle not in [CREDIT_RECORD.unpack(record)[0] for _, kind, record in bench.out if kind == messages.CREDIT]


def test_linux_takes_the_first_datagram_whatever_its_size(bench):
    handle = bench.bound(5055)
    bench.ask("setsockopt", handle=handle, level=std.SOL_SOCKET, name=std.SO_RCVBUF, value=0)
    assert len(bench.give(topology.UDP, messages.DATAGRAM, datagram(handle, bytes(60000)))) == 1


def test_errors_go_to_the_owner(bench):
    handle = bench.bound(5055, BOB)
    record = SocketError(handle, errno.ECONNREFUSED, 2, 3, 3, 0, bytes(4), bytes(4), 9).pack() + b"start"
    assert bench.give(topology.UDP, messages.SOCKET_ERROR, record, b"\0") == [(BOB, messages.SOCKET_ERROR, record)]


def test_a_process_that_ends_loses_its_sockets(bench):
    bench.bound(5055)
    bench.open()
    bench.crash()
    bench.leaves(ALICE)
    bench.bound(5055, BOB)
    assert len(bench.ask("list", BOB)["sockets"]) == 1


def test_a_handle_is_never_given_twice(bench):
    handle = bench.open()
    bench.ask("close", handle=handle)
    bench.crash()
    assert bench.open() == 1 + HANDLES_RESERVED


def test_list_comes_in_pages(bench):
    for _ in range(LIST_MAX + 1):
        bench.open()
    first = bench.ask("list")
    assert (len(first["sockets"]), first["more"]) == (LIST_MAX, True)
    rest = bench.ask("list", after=first["sockets"][-1]["handle"])
    assert (len(rest["sockets"]), rest["more"]) == (1, False)


def asks(bench, client, *requests):
    """A frame of requests [(id, op, fields)]: the ids and errnos of what is answered before the turn ends."""
    return answers(bench.core.receive(client, messages.REQUEST, [
        json.dumps({"id": number, "op": op, **fields}).encode() for number, op, fields in requests], 0.0))


def answers(sends):
    replies = [(to, json.loads(record)) for to, kind, record in sends if kind == messages.REPLY]
    return [(to, reply["id"], reply["errno"]) for to, reply in replies]


def turns(bench):
    """The answers of each turn, until nothing is due."""
    taken = []
    while bench.core.next_wake is not None:
        taken.append(answers(bench.core.wake(0.0)))
    return taken


def test_a_frame_of_long_requests_takes_no_long_turn_and_delays_nobody(bench):
    """One page of a list in each turn, the applications one after the other, and others at once."""
    handle = bench.bound(5055, BOB)
    assert asks(bench, ALICE, *((number, "list", {}) for number in range(101, 357))) == []
    assert asks(bench, BOB, (101, "getsockname", {"handle": handle})) == [(BOB, 101, 0)]
    assert asks(bench, BOB, (102, "list", {})) == []
    taken = turns(bench)
    assert taken[:3] == [[(ALICE, 101, 0)], [(BOB, 102, 0)], [(ALICE, 102, 0)]]
    assert taken[3:] == [[(ALICE, number, 0)] for number in range(103, 357)]


def test_what_an_application_asks_behind_a_long_request_is_answered_behind_it(bench):
    handle = bench.bound(5055)
    assert asks(bench, ALICE, (101, "list", {}), (102, "getsockname", {"handle": handle})) == []
    assert asks(bench, ALICE, (103, "close", {"handle": handle})) == []
    assert turns(bench) == [[(ALICE, 101, 0)], [(ALICE, 102, 0), (ALICE, 103, 0)]]


def test_the_sockets_that_a_process_shares_are_shared_in_portions(bench):
    handles = [bench.open() for _ in range(512)]
    assert asks(bench, BOB, *((100 + at, "share", {"owner": ALICE, "handles": handles[at : at + 128]})
                              for at in range(0, 512, 128))) == []
    assert turns(bench) == [[(BOB, 100 + at, 0)] for at in range(0, 512, 128)]


def test_an_application_gets_no_more_waiting_requests_than_its_share(bench):
    share = LONG_WAITING_MAX // 2
    asks(bench, ALICE, *((number, "list", {}) for number in range(101, 101 + share)))
    assert asks(bench, ALICE, (9001, "list", {})) == [(ALICE, 9001, errno.ENOBUFS)]
    assert asks(bench, BOB, (101, "list", {})) == []
    bench.leaves(ALICE)
    assert asks(bench, CAROL, *((number, "list", {}) for number in range(101, 101 + share))) == []


def test_a_list_that_waits_is_answered_after_a_crash_if_it_is_asked_again(bench):
    asks(bench, ALICE, (101, "list", {}), (102, "list", {}))
    bench.crash()
    assert turns(bench) == []
    asks(bench, ALICE, (101, "list", {}), (102, "list", {}))
    assert turns(bench) == [[(ALICE, 101, 0)], [(ALICE, 102, 0)]]


@pytest.mark.parametrize(
    ("octets", "number", "error"),
    [
        (b'{"id":5,"op":"sendfile"}', 5, errno.ENOSYS),
        (b'{"id":5,"op":"bind","handle":"one"}', 5, errno.EINVAL),
        (b'{"id":5,"op":"bind","handle":1,"address":"10.0.0.2","port":65536}', 5, errno.EINVAL),
        (b'{"id":5,"op":"socket","type":"seqpacket"}', 5, errno.EINVAL),
        (b'{"id":5,"op":"close","handle":' + b"[" * 4000, 0, errno.EPROTO),
        (b'{"op":"socket","type":"dgram"}', 0, errno.EPROTO),
        (b'{"id":0,"op":"socket","type":"dgram"}', 0, errno.EPROTO),
        (b"\xff", 0, errno.EPROTO),
        (b" " * REQUEST_OCTETS_MAX + b'{"id":5,"op":"list"}', 0, errno.EPROTO),
    ],
)
def test_invalid_requests_are_refused(bench, octets, number, error):
    ((_, kind, record),) = bench.give(ALICE, messages.REQUEST, octets)
    assert (kind, json.loads(record)) == (messages.REPLY, {"id": number, "errno": error})


def test_state_of_another_version_is_left_behind(bench):
    bench.state[5] = b"\xc1 never msgpack"
    bench.crash()
    assert bench.count(Counters.state_unreadable) == 1
    assert 5 not in bench.state


OPENED = 1  # the handle of the first socket
HEADER = datagram_header(OPENED, bytes((10, 0, 0, 7)), 7, bytes(4), 0, 0, 0)
CLIENT_KINDS = st.sampled_from([messages.SEND, messages.CREDIT, *[messages.REQUEST] * 4, messages.DATAGRAM,
                                messages.STREAM, messages.READ, messages.ACCEPT, messages.STREAM_INFO, 250])
LAYER_KINDS = st.sampled_from([messages.DATAGRAM, messages.SOCKET_ERROR, messages.SOCKET_REPLY, messages.ROUTES,
                               messages.STREAM, messages.ROOM, messages.ACCEPTED, messages.STREAM_RESET, 250])
WORDS = ["bind", "connect", "prepare", "setsockopt", "getsockopt", "socket", "close", "list", "dgram", "10.0.0.2", ""]
REQUESTS = st.fixed_dictionaries(
    {"id": st.integers(1, 9), "op": st.sampled_from(["bind", "connect", "listen", "prepare", "setsockopt", "getsockopt",
                                                     "getsockname", "getpeername", "close", "share", "take", "list"]),
     "handle": st.sampled_from([OPENED, OPENED, OPENED, 7]),
     "address": st.sampled_from(["10.0.0.2", "10.0.0.7", "::1", ""]), "port": st.sampled_from([0, 5055, 5056, 70000]),
     "level": st.sampled_from([0, 1, 41]), "name": st.integers(0, 49),
     "value": st.sampled_from([0, 1, "AAAAAAAAAAA="])},
    optional={"backlog": st.integers(0, 5), "owner": st.integers(1, 9), "handles": st.just([OPENED]),
              "linger": st.integers(-1, 0), "after": st.integers(0, 5)})
SCRAPS = st.one_of(
    lengths.octets(64),
    *[REQUESTS.map(msgspec.json.encode)] * 3,
    *[lengths.damaged(st.builds(lambda size: HEADER + bytes(size), st.integers(0, 20)))] * 2,
    st.builds(
        lambda fields, encode: encode(fields),
        st.dictionaries(
            st.sampled_from(["id", "op", "handle", "address", "port", "level", "name", "value", "type", "request"]),
            st.one_of(st.integers(-2, 70000), st.sampled_from(WORDS), st.none())),
        st.sampled_from([msgspec.json.encode, msgspec.msgpack.encode]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(lengths.lists(st.tuples(st.booleans(), CLIENT_KINDS, LAYER_KINDS, SCRAPS), 8))
def test_no_octets_raise(pieces):
    bench = Bench()
    assert bench.bound(5055) == OPENED
    for from_client, client_kind, layer_kind, scrap in pieces:
        sender, kind = (ALICE, client_kind) if from_client else (topology.UDP, layer_kind)
        bench.give(sender, kind, scrap)
    bench.crash()


# -- streams, with tcp in the test's hands -----------------------------------------------------------------------------


def replied(bench, record, **fields):
    """tcp's agreement to a SOCKET_SET."""
    wanted = msgspec.msgpack.decode(record)
    reply = {"handle": wanted["handle"], "request": wanted["request"], "local": ME, "port": 80, **fields}
    return bench.give(topology.TCP, messages.SOCKET_REPLY, messages.encode(reply))


def listening(bench, client=ALICE):
    handle = bench.ask("socket", client, type="stream")["handle"]
    assert bench.send_request("listen", client, handle=handle, backlog=5) == []
    ((to, kind, record),) = bench.out
    assert (to, kind, msgspec.msgpack.decode(record)["listen"]) == (topology.TCP, messages.SOCKET_SET, 5)
    replied(bench, record)
    return handle


def accepted(listener, number, handle):
    head = streams.ACCEPTED_HEADER.pack(listener, handle, number, 80, 5000, 4, 2)
    return head + bytes([10, 0, 0, 2]) + bytes([10, 0, 0, 1])


CHILD = streams.TCP_HANDLE_MIN


def test_a_connect_is_told_to_tcp_once_and_again_after_a_crash(bench):
    handle = bench.ask("socket", type="stream")["handle"]
    bench.send_request("connect", handle=handle, address="10.0.0.1", port=80)
    ((to, kind, record),) = bench.out
    wanted = msgspec.msgpack.decode(record)
    assert (to, kind, wanted["connect"], wanted["peer_port"]) == (topology.TCP, messages.SOCKET_SET, bench.ids, 80)
    replied(bench, record, port=40000)
    (answer,) = [json.loads(record) for _, kind, record in bench.out if kind == messages.REPLY]
    assert (answer["local"], answer["port"], answer["peer"]) == ("10.0.0.2", 40000, "10.0.0.1")
    bench.crash()
    (again,) = bench.send_request("connect", number=bench.ids, handle=handle, address="10.0.0.1", port=80)
    assert again == answer


def test_streams_pass_unchanged_between_owner_and_tcp(bench):
    handle = bench.ask("socket", type="stream")["handle"]
    record = streams.STREAM_HEADER.pack(handle, 0, 7) + b"octets"
    assert bench.give(ALICE, messages.STREAM, record) == [(topology.TCP, messages.STREAM, record)]
    assert bench.give(BOB, messages.STREAM, record, b"") == []
    assert bench.count(Counters.send_foreign) == 2
    assert bench.give(topology.TCP, messages.STREAM, record) == [(ALICE, messages.STREAM, record)]


def test_an_accepted_connection_is_stored_before_the_application_is_told(bench):
    listener = listening(bench)
    record = accepted(listener, 1, CHILD)
    assert bench.give(topology.TCP, messages.ACCEPTED, record) == [(ALICE, messages.ACCEPTED, record)]
    bench.crash()
    octets = streams.STREAM_HEADER.pack(CHILD, 0, 0) + b"x"
    assert bench.give(topology.TCP, messages.STREAM, octets) == [(ALICE, messages.STREAM, octets)]
    assert bench.give(topology.TCP, messages.ACCEPTED, record) == [(ALICE, messages.ACCEPTED, record)], "told again"
    credit = streams.ACCEPT_RECORD.pack(listener, 0, 0, 9)
    assert bench.give(ALICE, messages.ACCEPT, credit) == [
        (topology.TCP, messages.ACCEPT, streams.ACCEPT_RECORD.pack(listener, 0, 1, 9))]
    assert bench.give(BOB, messages.ACCEPT, credit, b"") == []


@pytest.mark.parametrize("crashes", [False, True])
def test_a_connection_to_a_shared_listener_belongs_to_a_process_once_it_is_accepted(bench, crashes):
    listener = listening(bench)
    assert bench.ask("share", BOB, owner=ALICE, handles=[listener])["shared"]
    record = accepted(listener, 1, CHILD)
    assert bench.give(topology.TCP, messages.ACCEPTED, record) == []  # no process waits
    bench.give(BOB, WANT, WANT_RECORD.pack(listener, WANT_WAITS))
    assert (BOB, messages.ACCEPTED, record) in bench.out
    if crashes:
        bench.crash()
    bench.give(ALICE, WANT, WANT_RECORD.pack(listener, WANT_WAITS))
    assert bench.out == []  # not for two processes
    octets = streams.STREAM_HEADER.pack(CHILD, 0, 0) + b"x"
    assert bench.give(topology.TCP, messages.STREAM, octets) == [(BOB, messages.STREAM, octets)]

    bench.out = []
    bench.leaves(BOB)  # before it has accepted: for the process that waits
    assert (ALICE, messages.ACCEPTED, record) in bench.out
    bench.out = []
    bench.leaves(ALICE)  # the last owner
    closed = {int.from_bytes(told[:4], "little") for _, kind, told in bench.out if kind == messages.SOCKET_CLOSE}
    assert closed == {listener, CHILD}


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_what_a_program_has_not_taken_is_for_the_other_owners_when_it_ends(bench, taken):
    handle = bench.bound(7)
    bench.ask("share", BOB, owner=ALICE, handles=[handle])
    bench.ask("share", CAROL, owner=ALICE, handles=[handle])
    records = [datagram(handle, octets) for octets in (b"1", b"2", b"3")]
    for record in records[:2]:
        bench.give(BOB, WANT, WANT_RECORD.pack(handle, WANT_WAITS))
        assert bench.give(topology.UDP, messages.DATAGRAM, record) == [(BOB, messages.DATAGRAM, record)]
    for _ in range(taken):
        assert bench.give(BOB, WANT, WANT_RECORD.pack(handle, WANT_TAKEN)) == []
    bench.give(topology.UDP, messages.DATAGRAM, records[2])  # waits
    bench.out = []
    bench.leaves(BOB)
    left = []
    while got := [record for to, kind, record in bench.give(
            CAROL, WANT, WANT_RECORD.pack(handle, WANT_WAITS | (WANT_TAKEN if left else 0)))
            if (to, kind) == (CAROL, messages.DATAGRAM)]:
        left += got
    assert left == records[taken:]
    bench.give(topology.UDP, messages.DATAGRAM, records[0])  # for Carol, who waits and does not take it
    bench.out = []
    bench.leaves(CAROL)
    assert [send for send in bench.out if send[1] == messages.DATAGRAM] == [
        (ALICE, messages.DATAGRAM, records[0])]  # the last one, which need not ask


def test_an_accepted_connection_ends_with_its_process(bench):
    listener = listening(bench)
    bench.ask("share", BOB, owner=ALICE, handles=[listener])
    bench.give(BOB, WANT, WANT_RECORD.pack(listener, WANT_WAITS))
    assert (BOB, messages.ACCEPTED, accepted(listener, 1, CHILD)) in bench.give(
        topology.TCP, messages.ACCEPTED, accepted(listener, 1, CHILD))
    bench.give(BOB, WANT, WANT_RECORD.pack(CHILD, WANT_TAKEN))
    bench.crash()
    bench.out = []
    bench.leaves(BOB)
    (closed,) = [record for _, kind, record in bench.out if kind == messages.SOCKET_CLOSE]
    assert int.from_bytes(closed[:4], "little") == CHILD


def test_a_connection_to_a_listener_that_is_gone_is_reset_unless_it_was_told_before(bench):
    listener = listening(bench)
    bench.give(topology.TCP, messages.ACCEPTED, accepted(listener, 1, CHILD))
    bench.ask("close", handle=listener)
    assert bench.give(topology.TCP, messages.ACCEPTED, accepted(listener, 1, CHILD)) == []
    ((to, kind, record),) = bench.give(topology.TCP, messages.ACCEPTED, accepted(listener, 2, CHILD + 1))
    assert (to, kind) == (topology.TCP, messages.SOCKET_CLOSE)
    assert streams.CLOSE_RECORD.unpack(record)[:2] == (CHILD + 1, 0)


def test_a_close_says_how_much_was_written_and_read(bench):
    handle = bench.ask("socket", type="stream")["handle"]
    bench.ask("close", handle=handle, end=100, read=7)
    ((_, _, record),) = [send for send in bench.out if send[1] == messages.SOCKET_CLOSE]
    assert streams.CLOSE_RECORD.unpack(record) == (handle, -1, 100, 7)


@pytest.mark.parametrize("linger", [-1, 0, 5])
def test_the_streams_of_a_process_that_ends_are_closed_behind_what_came(bench, linger):
    handle = bench.ask("socket", type="stream")["handle"]
    bench.ask("setsockopt", handle=handle, level=std.SOL_SOCKET, name=std.SO_LINGER, value=linger)
    bench.out = []
    bench.leaves(ALICE)
    ((_, _, record),) = [send for send in bench.out if send[0] == topology.TCP]
    assert streams.CLOSE_RECORD.unpack(record)[:3] == (handle, 0 if linger == 0 else -1, streams.WRITTEN_UNKNOWN)


# -- raw sockets, with raw in the test's hands -------------------------------------------------------------------------


class RawBench(Bench):
    config = msgspec.structs.replace(CONFIG, layers=tuple(topology.LAYERS))

    def asked(self) -> SocketState:
        """What raw was asked last."""
        consumer, kind, record = self.out[-1]
        assert (consumer, kind) == (topology.RAW, messages.SOCKET_SET)
        return messages.decode_socket_state(record)

    def answers(self, wanted: SocketState, number: int = 0) -> list[dict]:
        """What the application is told when raw has answered."""
        reply = messages.SocketReply(handle=wanted.handle, request=wanted.request, errno=number, port=wanted.protocol)
        self.give(topology.RAW, messages.SOCKET_REPLY, messages.encode(reply))
        return [json.loads(record) for to, kind, record in self.out if (to, kind) == (ALICE, messages.REPLY)]


@pytest.fixture
def raw_bench():
    return RawBench()


@pytest.mark.parametrize(("protocol", "number"), [(1, errno.EPERM), (0, errno.EPROTONOSUPPORT), (256, errno.EINVAL)])
def test_raw_sockets_need_the_owners_consent(bench, protocol, number):
    assert bench.ask("socket", type="raw", protocol=protocol)["errno"] == number
    assert bench.ask("list")["sockets"] == []


def test_a_raw_socket_is_answered_for_once_raw_knows_it(raw_bench):
    assert raw_bench.send_request("socket", type="raw", protocol=1) == []
    asked = raw_bench.asked()
    assert (asked.protocol, asked.port, asked.header_included) == (1, 1, False)
    assert raw_bench.send_request("socket", number=1, type="raw", protocol=1) == []  # sent again while under way
    assert raw_bench.out == []
    (reply,) = raw_bench.answers(asked)
    assert reply["handle"] == asked.handle
    assert raw_bench.ask("getsockname", handle=asked.handle)["port"] == 1
    assert raw_bench.ask("list")["sockets"][0]["type"] == "raw"


@pytest.mark.parametrize("answered", [False, True])
def test_a_raw_socket_asked_for_again_after_a_crash_is_the_same(raw_bench, answered):
    raw_bench.send_request("socket", number=70, type="raw", protocol=253)
    asked = raw_bench.asked()
    if answered:
        raw_bench.answers(asked)
    raw_bench.crash()
    again = raw_bench.send_request("socket", number=70, type="raw", protocol=253)
    if not answered:
        again = raw_bench.answers(raw_bench.asked())
    assert [reply["handle"] for reply in again] == [asked.handle]


def test_a_raw_socket_that_raw_refuses_is_not_opened(raw_bench):
    raw_bench.send_request("socket", type="raw", protocol=253)
    assert [reply["errno"] for reply in raw_bench.answers(raw_bench.asked(), errno.ENOBUFS)] == [errno.ENOBUFS]
    assert raw_bench.ask("list")["sockets"] == []


def announce(bench: Bench, *addresses: str) -> list:
    """ip has these addresses from now on; what sockets sends thereupon."""
    own = [(IPv4Address(address).packed, 24) for address in addresses]
    link = messages.Route(IPv4Address("10.0.0.0").packed, 24, b"", own[0][0], 1500)
    told = messages.encode(messages.Routes(own, [link]))
    bench.udp.receive(topology.IP, messages.ROUTES, [told], 0.0)
    return bench.give(topology.IP, messages.ROUTES, told)


@pytest.mark.parametrize("connected", [True, False])
def test_a_socket_whose_address_has_gone_has_no_way_anywhere_until_it_is_back(bench, connected):
    peer = {"address": "10.0.0.1", "port": 7}
    announce(bench, "10.0.0.2", "10.0.0.9")
    handle = bench.open()
    assert bench.ask("bind", handle=handle, address="10.0.0.9", port=5055)["errno"] == 0
    if connected:
        assert bench.ask("connect", handle=handle, **peer)["source"] == "10.0.0.9"
    announce(bench, "10.0.0.2")
    assert bench.ask("prepare", handle=handle, **peer)["errno"] == errno.ENETUNREACH
    assert bench.ask("connect", handle=handle, **peer)["errno"] == errno.ENETUNREACH
    assert bench.ask("prepare", handle=handle, source="10.0.0.2", **peer)["source"] == "10.0.0.2"
    assert bench.ask("getsockname", handle=handle)["address"] == "10.0.0.9"
    assert bench.ask("setsockopt", handle=handle, level=0, name=std.IP_TTL, value=9)["errno"] == 0
    announce(bench, "10.0.0.2", "10.0.0.9")
    assert bench.ask("prepare", handle=handle, **peer)["source"] == "10.0.0.9"


def test_applications_are_told_when_an_address_goes_and_only_then(bench):
    handle = bench.bound(5055)
    bench.open()  # has asked for no way yet
    for own, told in ((["10.0.0.2", "10.0.0.9"], []), (["10.0.0.9", "10.0.0.2"], []), (["10.0.0.2"], [(handle, 0)])):
        out = announce(bench, *own)
        assert [
            SocketError.of(record)[:2] for _, kind, record in out if kind == messages.SOCKET_ERROR
        ] == told


def test_a_socket_bound_to_a_group_sends_from_the_routes_address(bench):
    handle = bench.open()
    assert bench.ask("bind", handle=handle, address="239.1.1.1", port=5055)["errno"] == 0
    assert bench.ask("prepare", handle=handle, address="10.0.0.1", port=7)["source"] == "10.0.0.2"


def test_a_connection_that_tcp_tells_of_again_outlives_its_listener(bench):
    listener, handle = bench.open(type="stream"), 1 << 31
    told = ACCEPTED_HEADER.pack(listener, handle, 1, 80, 4242, 4, 2) + bytes((10, 0, 0, 2, 10, 0, 0, 1))
    bench.give(topology.TCP, messages.ACCEPTED, told)
    assert [send[:2] for send in bench.out] == [(ALICE, messages.ACCEPTED)]
    bench.ask("close", handle=listener, linger=-1)
    bench.give(topology.TCP, messages.ACCEPTED, told)  # a tcp that started anew, and has not worked off the closing
    assert bench.out == []
    other = ACCEPTED_HEADER.pack(listener, handle + 1, 2, 80, 4243, 4, 2) + told[-8:]
    bench.give(topology.TCP, messages.ACCEPTED, other)
    assert [send[:2] for send in bench.out] == [(topology.TCP, messages.SOCKET_CLOSE)], "one without an owner"


def test_requests_with_ipv6_addresses_are_eafnosupport(bench):
    assert bench.ask("socket", type="dgram", family=6)["errno"] == errno.EAFNOSUPPORT
    assert bench.ask("socket", type="dgram", family=5)["errno"] == errno.EINVAL
    handle = bench.open()
    for address in ("2001:db8::1", "::", "fe80::1%2", "::ffff:10.0.0.1"):
        for op in ("bind", "connect", "prepare"):
            assert bench.ask(op, handle=handle, address=address, port=5)["errno"] == errno.EAFNOSUPPORT, (op, address)
    for address in ("", "10.0.0", "fe80::1%", ":::", "one"):
        assert bench.ask("bind", handle=handle, address=address, port=5)["errno"] == errno.EINVAL, address
    bound = bench.ask("bind", handle=handle, address="10.0.0.2", port=5)
    assert (bound["errno"], bound["address"]) == (0, "10.0.0.2")


def test_the_sockets_of_an_ended_process_are_closed_in_portions(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.core.AT_ONCE", 3)
    for port in range(5000, 5010):
        bench.bound(port)
    other = bench.open(BOB)
    bench.carry(bench.core.client_left(ALICE, 0.0))
    assert len(bench.udp_state) == 7
    assert bench.core.next_wake == 0.0
    # Linux: a port is free as soon as its process has ended
    assert bench.ask("bind", BOB, handle=other, address="10.0.0.2", port=5000)["errno"] == 0
    assert len(bench.udp_state) == 1
    assert bench.core.next_wake is None


def test_a_service_that_starts_closes_what_its_predecessor_had_not_closed(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.core.AT_ONCE", 3)
    for port in range(5000, 5010):
        bench.bound(port)
    kept = bench.bound(6000, BOB)
    bench.clients.discard(ALICE)
    bench.carry(bench.core.client_left(ALICE, 0.0))
    bench.crash()
    assert set(bench.udp_state) == {kept}
    assert bench.core.next_wake is None


def test_a_connection_that_comes_while_the_listener_is_to_be_closed_is_closed_too(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.core.AT_ONCE", 2)
    listener = listening(bench)
    for number in range(1, 4):
        bench.give(topology.TCP, messages.ACCEPTED, accepted(listener, number, CHILD + number))
    bench.carry(bench.core.client_left(ALICE, 0.0))
    bench.out = []
    bench.settle(bench.core.receive(topology.TCP, messages.ACCEPTED, [accepted(listener, 4, CHILD + 4)], 0.0))
    closed = {int.from_bytes(record[:4], "little") for _, kind, record in bench.out if kind == messages.SOCKET_CLOSE}
    assert closed == {listener, CHILD + 1, CHILD + 4}
    assert not bench.state.keys() - {0xFFFFFFFF}


def fill(bench, client, most=SOCKETS_MAX + 1):
    """Open sockets until one is refused; how many, and the errno."""
    for opened in range(most):
        reply = bench.ask("socket", client, type="dgram")
        if reply["errno"]:
            return opened, reply["errno"]
    raise AssertionError(f"{client} was never refused")


def test_applications_that_open_sockets_for_ever_leave_some_for_the_next_and_all_are_read_back(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.table.SOCKETS_MAX", 1024)
    bench.crash()
    opened = [fill(bench, ALICE + number) for number in range(5)]
    assert opened == [(512, errno.EMFILE), (256, errno.EMFILE), (128, errno.EMFILE), (64, errno.EMFILE),
                      (32, errno.EMFILE)]
    assert bench.count(Counters.limit) == 5
    bench.crash()
    assert bench.ask("socket", ALICE, type="dgram")["errno"] == errno.EMFILE
    assert bench.ask("socket", ALICE + 5, type="dgram")["errno"] == 0
    bench.leaves(ALICE)
    assert fill(bench, ALICE) == (272, errno.EMFILE)  # half of 543, rounded up


def test_connections_to_a_listener_count_among_its_applications_sockets(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.table.SOCKETS_MAX", 8)
    bench.crash()
    listener = bench.ask("socket", type="stream")["handle"]
    assert fill(bench, ALICE) == (3, errno.EMFILE)
    ends = ACCEPTED_HEADER.pack(listener, streams.TCP_HANDLE_MIN, 1, 80, 4000, 4, 4) + bytes([10, 0, 0, 2, 10, 0, 0, 1])
    ((consumer, kind, record),) = bench.give(topology.TCP, messages.ACCEPTED, ends)
    assert (consumer, kind, record[:4]) == (
        topology.TCP, messages.SOCKET_CLOSE, streams.TCP_HANDLE_MIN.to_bytes(4, "little"))


def test_memberships_are_limited_in_all_and_given_back(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.table.MEMBERSHIPS_MAX", 8)
    bench.crash()

    def join(handle, client, last, name=std.IP_ADD_MEMBERSHIP):
        value = base64.b64encode(bytes([239, 0, 0, last, 10, 0, 0, 2])).decode()
        replies = bench.send_request("setsockopt", client, handle=handle, level=0, name=name, value=value)
        if not replies:  # ip has to agree
            ((_, kind, record),) = [each for each in bench.out if each[0] == topology.IP]
            assert kind == messages.MEMBERSHIP
            asked = messages.decode_membership(record)
            answer = messages.encode(messages.SocketReply(handle=handle, request=asked.request))
            bench.give(topology.IP, messages.SOCKET_REPLY, answer)
            replies = [json.loads(record) for to, kind, record in bench.out if kind == messages.REPLY]
        return replies[0]["errno"]

    mine, theirs = bench.open(ALICE), bench.open(BOB)
    assert [join(mine, ALICE, last) for last in range(1, 6)] == [0, 0, 0, 0, errno.ENOBUFS]
    assert [join(theirs, BOB, last) for last in range(1, 4)] == [0, 0, errno.ENOBUFS]
    assert join(mine, ALICE, 1, std.IP_DROP_MEMBERSHIP) == 0
    assert [join(theirs, BOB, last) for last in (3, 4)] == [0, errno.ENOBUFS]  # as many as are free
    assert bench.ask("close", handle=mine)["errno"] == 0
    assert join(theirs, BOB, 4) == 0


def test_requests_that_wait_are_limited_in_all(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.changes.WAITING_MAX", 8)
    bench.crash()
    handles = [bench.open() for _ in range(8)]
    bench.udp_away = True
    for handle in handles:
        assert bench.send_request("bind", handle=handle, address="10.0.0.2", port=0) == []
    asked = [bench.send_request("getsockname", handle=handle) for handle in handles]
    assert asked[:4] == [[]] * 4
    assert [reply["errno"] for (reply,) in asked[4:]] == [errno.ENOBUFS] * 4
    bench.udp_away = False
    bench.settle(bench.core.neighbor_started(topology.UDP, 0.0))
    assert bench.core._changes._waiting.free == 8


def test_streams_are_resumed_when_frames_of_an_application_or_of_tcp_are_lost(bench):
    mine, others, dgram = bench.open(type="stream"), bench.open(BOB, type="stream"), bench.open()
    resumed = {handle: (topology.TCP, messages.READ, READ_RECORD.pack(handle, RESUME, 0, 0))
               for handle in (mine, others)}
    assert bench.core.frames_lost(ALICE, 0.0) == [resumed[mine]]
    assert bench.core.frames_lost(topology.TCP, 0.0) == list(resumed.values())
    assert bench.count(Counters.streams_resumed) == 2
    assert dgram


def test_connections_that_were_handed_up_are_handed_up_again_to_an_application_that_lost_them(bench):
    listener = bench.open(type="stream")
    local, peer = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
    records = [ACCEPTED_HEADER.pack(listener, TCP_HANDLE_MIN + number, number, 80, 5000 + number, messages.FAMILY_4, 0)
               + local + peer for number in (1, 2, 3)]
    told = [(ALICE, messages.ACCEPTED, record) for record in records]
    assert bench.give(topology.TCP, messages.ACCEPTED, *records) == told

    def accept(flags, taken):
        sends = bench.give(ALICE, messages.ACCEPT, ACCEPT_RECORD.pack(listener, flags, taken, 9))
        return [record for to, kind, record in sends if (to, kind) == (ALICE, messages.ACCEPTED)]

    assert accept(0, 1) == []
    assert accept(RESUME, 1) == records[1:]
    often = bench.give(ALICE, messages.ACCEPT, *[ACCEPT_RECORD.pack(listener, RESUME, 1, 9)] * 256)
    assert [record for to, kind, record in often if kind == messages.ACCEPTED] == records[1:]
    assert accept(RESUME, 3) == []


def test_an_application_that_never_says_what_it_accepted_costs_bounded_memory(bench, monkeypatch):
    monkeypatch.setattr("layers.sockets.streams.ACCEPTED_MAX", 2)
    listener = bench.open(type="stream")
    records = [ACCEPTED_HEADER.pack(listener, TCP_HANDLE_MIN + number, number, 80, 5000 + number, messages.FAMILY_4, 0)
               + bytes([10, 0, 0, 2, 10, 0, 0, 1]) for number in (1, 2, 3)]
    bench.give(topology.TCP, messages.ACCEPTED, *records)
    sends = bench.give(ALICE, messages.ACCEPT, ACCEPT_RECORD.pack(listener, RESUME, 0, 9))
    assert [record for to, kind, record in sends if (to, kind) == (ALICE, messages.ACCEPTED)] == records[1:]

"""A layer dies in the turn in which a socket is closed: what came before the close finds the socket again."""

from __future__ import annotations

import gc
import json
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from durable import Durable, dies
from records import address, transmitted

from bus import messages, topology
from bus.config import StackConfig
from bus.durable import journal, key_value_log, layout
from bus.durable.journal import Journal
from bus.durable.key_value_log import KeyValueLog
from bus.layer import Core, CounterWords, Send
from bus.messages import (
    INTERFACE,
    Membership,
    Route,
    Routes,
    SocketReply,
    SocketState,
    SourceFilter,
    datagram_header,
    encode,
)
from bus.runtime import event_loop, inbox, outbox, turn
from bus.runtime.control import Control
from bus.runtime.event_loop import EventLoop
from bus.runtime.spawn import SpawnArguments
from bus.streams import StreamState
from layers.arp import core as arp_core
from layers.arp import tables as arp_tables
from layers.arp.core import Core as Arp
from layers.arp.counters import Counters as ArpCounters
from layers.common import keyed_state, raw_transport, transport
from layers.common.keyed_state import KeyedState
from layers.common.transport import TransportCounters
from layers.icmp import tables as icmp_tables
from layers.icmp.core import Core as Icmp
from layers.icmp.counters import Counters as IcmpCounters
from layers.ip import groups as groups_module
from layers.ip.core import Core as Ip
from layers.ip.counters import Counters as IpCounters
from layers.ip.groups import MEMBERS_KEYS
from layers.raw import tables as raw_tables
from layers.raw.core import Core as Raw
from layers.raw.counters import Counters as RawCounters
from layers.sockets.core import Core as Sockets
from layers.sockets.counters import Counters as SocketsCounters
from layers.sockets.table import KEY_NEXT_HANDLE
from layers.tcp.core import Core as Tcp
from layers.tcp.counters import Counters as TcpCounters
from layers.udp import core as udp_core
from layers.udp import tables as udp_tables
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters
from usernet.pipe.frame import pack_frame, unpack_frame
from usernet.pipe.streams import CLOSE_RECORD, STREAM_END, STREAM_HEADER, WRITTEN_UNKNOWN

ME, PEER, COOKIE = "10.0.0.2", "10.0.0.1", 1000
ALICE, BOB, CAROL = range(topology.CLIENT_ID_MIN + 1, topology.CLIENT_ID_MIN + 4)
ROUTES = Routes([(address(ME), 24)], [Route(address("10.0.0.0"), 24, b"", address(ME), 1500)])
NOW = 1.0
NEIGHBORS = arp_tables.KEYS + (INTERFACE << 32)  # keys of arp's state


def config(run_dir: str = "") -> StackConfig:
    return StackConfig(name="t", run_dir=run_dir, address=IPv4Address(ME).packed, prefix=24, mac=bytes(6),
                       cookie=COOKIE)


# -- the socket service: the last octets of a stream, and the request that closes it


class Service:
    """The core of sockets and its durable memory. A turn is published, or cut short by the next `born`."""

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self.born()

    def born(self) -> None:
        self._durable.map().words[layout.BLAMELESS] = 1
        self._core = Sockets(config(), KeyValueLog(self._durable.map()), SocketsCounters.new(), random.Random(1))
        assert self._core.start(NOW) == []
        for client in (ALICE, BOB, CAROL):
            assert self._core.client_joined(client, {"pid": 1}, NOW) == []
        self._core.receive(topology.IP, messages.ROUTES, [encode(ROUTES)], NOW)

    def publish(self) -> None:
        self._durable.map().words[layout.JOURNAL_HEAD] += 1

    def ask(self, client: int = ALICE, **fields: object) -> list[tuple[int, int, bytes]]:
        return self._core.receive(client, messages.REQUEST, [json.dumps(fields).encode()], NOW)

    def connected(self) -> int:
        """The handle of a connection."""
        ((_, _, answer),) = self.ask(id=1, op="socket", type="stream")
        handle = json.loads(answer)["handle"]
        ((consumer, kind, _),) = self.ask(id=2, op="connect", handle=handle, address=PEER, port=80)
        assert (consumer, kind) == (topology.TCP, messages.SOCKET_SET)
        agreed = SocketReply(handle=handle, request=2, local=IPv4Address(ME).packed, port=50000)
        self._core.receive(topology.TCP, messages.SOCKET_REPLY, [encode(agreed)], NOW)
        self.publish()
        return handle

    def last_words(self, handle: int) -> list[tuple[int, bytes]]:
        """The program writes and closes: what tcp is told."""
        octets = STREAM_HEADER.pack(handle, STREAM_END, 0) + b"last words"
        sends = self._core.receive(ALICE, messages.STREAM, [octets], NOW)
        sends = [*sends, *self.ask(id=3, op="close", handle=handle, end=10)]
        return [(kind, record) for consumer, kind, record in sends if consumer == topology.TCP]

    def inherited(self, handle: int, *clients: int) -> None:
        """These have forked from ALICE."""
        for client in clients:
            self.ask(client, id=1, op="share", owner=ALICE, handles=[handle])
            assert json.loads(self._core.wake(NOW)[-1][2])["shared"]
        self.publish()

    def bound(self) -> int:
        """The handle of a socket for datagrams."""
        ((_, _, answer),) = self.ask(id=1, op="socket", type="dgram")
        return json.loads(answer)["handle"]

    def last_datagram(self, client: int, handle: int) -> list[tuple[int, bytes]]:
        """One of its programs sends and closes: what udp is told, and the answer."""
        datagram = datagram_header(handle, IPv4Address(PEER).packed, 7, bytes(4)) + b"from %d" % client
        sends = self._core.receive(client, messages.SEND, [datagram], NOW)
        assert sends in ([], [(topology.UDP, messages.SEND, datagram)])
        told = self.ask(client, id=3, op="close", handle=handle)
        (answer,) = (json.loads(record) for to, kind, record in told if (to, kind) == (client, messages.REPLY))
        assert answer["errno"] == 0
        return [(kind, record) for to, kind, record in [*sends, *told] if to == topology.UDP]


def test_octets_that_a_program_wrote_before_it_closed_reach_tcp_though_the_service_dies(durable: Durable):
    service = Service(durable)
    handle = service.connected()
    told = service.last_words(handle)
    assert [kind for kind, _ in told] == [messages.STREAM, messages.SOCKET_CLOSE]
    assert CLOSE_RECORD.unpack(told[1][1])[2] == 10
    for _ in range(3):  # so often it dies before that turn is published
        service.born()
        assert service.last_words(handle) == told
    service.publish()
    service.born()  # now tcp gets it from the journal
    assert [kind for kind, _ in service.last_words(handle)] == [messages.SOCKET_CLOSE]


def test_octets_that_one_owner_wrote_before_it_closed_reach_tcp_though_the_service_dies(durable: Durable):
    service = Service(durable)
    handle = service.connected()
    service.inherited(handle, BOB)
    told = service.last_words(handle)
    assert [kind for kind, _ in told] == [messages.STREAM, messages.READ]  # BOB has it now, and asks where it is
    for _ in range(2):
        service.born()
        assert service.last_words(handle) == told
    service.publish()
    service.born()
    assert messages.STREAM not in dict(service.last_words(handle))


@pytest.mark.parametrize("leaving", [(ALICE,), (BOB,), (ALICE, BOB), (BOB, ALICE), (CAROL, ALICE, BOB)])
def test_a_datagram_of_one_owner_before_its_close_reaches_udp_though_the_service_dies(durable: Durable, leaving):
    service = Service(durable)
    handle = service.bound()
    service.inherited(handle, BOB, CAROL)
    told = [service.last_datagram(client, handle) for client in leaving]
    closed = [messages.SOCKET_CLOSE] if len(leaving) == 3 else []
    assert [[kind for kind, _ in each] for each in told] == [
        *[[messages.SEND]] * (len(leaving) - 1), [messages.SEND, *closed]]
    for _ in range(2):
        service.born()
        assert [service.last_datagram(client, handle) for client in leaving] == told
    service.publish()
    stored = KeyValueLog(durable.map())
    assert (handle in stored) == (not closed)
    assert max(stored) <= KEY_NEXT_HANDLE
    service.born()
    for client in {ALICE, BOB, CAROL} - {*leaving}:
        assert messages.SEND in dict(service.last_datagram(client, handle))


# -- tcp: a listener, and the one before it


def test_the_listener_that_stays_gets_connections_until_the_other_is_closed_again(durable: Durable):
    former, later = 5, 3

    def born() -> Tcp:
        core = Tcp(config(), KeyValueLog(durable.map()), TcpCounters.new(), random.Random(1))
        assert core.start(NOW) == []
        return core

    def listen(core: Tcp, handle: int) -> None:
        wanted = encode(StreamState(handle=handle, request=1, port=80, listen=8))
        ((_, _, answer),) = core.receive(topology.SOCKETS, messages.SOCKET_SET, [wanted], NOW)
        assert messages.decode_socket_reply(answer).errno == 0

    def cut_short(core: Tcp) -> None:
        closing = CLOSE_RECORD.pack(former, -1, WRITTEN_UNKNOWN, 0)
        assert core.receive(topology.SOCKETS, messages.SOCKET_CLOSE, [closing], NOW) == []
        listen(core, later)

    durable.map().words[layout.BLAMELESS] = 1
    core = born()
    listen(core, former)
    durable.map().words[layout.JOURNAL_HEAD] += 1
    cut_short(core)
    for _ in range(2):
        core = born()
        assert {*core.engine.lookup.listeners} == {former, later}
        assert core.engine.lookup.listener(IPv4Address(ME).packed, 80).handle == later
        cut_short(core)
        assert {*core.engine.lookup.listeners} == {later}
    durable.map().words[layout.JOURNAL_HEAD] += 1
    assert {*born().engine.lookup.listeners} == {later}


# -- a whole layer, at any line: what a program sends, and the close of its socket

HANDLES = range(1, 5)
CALLED = (event_loop, turn, inbox, outbox, journal, key_value_log, transport)


class Kind(NamedTuple):
    """A layer, and what its sockets are bound to: two values, used again."""

    name: str
    core: Callable[..., Core]
    counters: type[TransportCounters]
    modules: tuple[ModuleType, ...]
    bound: Callable[[int], dict[str, int]]
    sent: Callable[[bytes], bytes]  # a message of these octets
    header: int  # octets before them in the packet


UDP = Kind("udp", Udp, UdpCounters, (udp_core, udp_tables), lambda number: {"port": 5000 + number}, bytes, 8)
ICMP = Kind("icmp", Icmp, IcmpCounters, (raw_transport, icmp_tables), lambda number: {"port": 77 + number},
            lambda octets: bytes((8, 0, 0, 0, 0, 0, 0, 0)) + octets, 8)
RAW = Kind("raw", Raw, RawCounters, (raw_transport, raw_tables), lambda number: {"protocol": 253 + number}, bytes, 0)


def inputs(kind: Kind) -> list[tuple[int, int, bytes]]:
    """(sender, kind, record): each socket is bound, sends, and is closed."""
    taken = [(topology.IP, messages.ROUTES, encode(ROUTES))]
    for handle in HANDLES:
        state = SocketState(handle=handle, request=handle, bind=True, **kind.bound(handle % 2))
        head = datagram_header(handle, IPv4Address(PEER).packed, 7, bytes(4))
        taken += [
            (topology.SOCKETS, messages.SOCKET_SET, encode(state)),
            (topology.SOCKETS, messages.SEND, head + kind.sent(b"%d first" % handle)),
            (topology.SOCKETS, messages.SEND, head + kind.sent(b"%d second" % handle)),
            (topology.SOCKETS, messages.SOCKET_CLOSE, handle.to_bytes(4, "little")),
        ]
    return taken


class Process:
    """A layer's process over one durable memory: its event loop and its core."""

    def __init__(self, folder: Path, durable: Durable, name: str, make_core: Callable[..., Core],
                 counts: CounterWords) -> None:
        self._durable, self._folder, self.name, self._make_core = durable, folder, name, make_core
        self.counts = counts
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / f"{name}.sock"))
        self._listener.listen()
        ours, self.keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = Control(ours)
        self._line = ours
        self._incarnation = 0
        self._loop: EventLoop | None = None
        self.born()

    def born(self, blameless: bool = True) -> None:
        self.end()
        self._incarnation += 1
        memory = self._durable.map()
        memory.words[layout.INCARNATION] = self._incarnation
        memory.words[layout.BLAMELESS] = blameless
        settings = config(str(self._folder))
        spawned = SpawnArguments(self.name, settings, -1, self._listener.dup().detach(), self._control)
        self.state = KeyValueLog(memory)
        self.core = self._make_core(settings, self.state, self.counts, random.Random(1))
        self._loop = EventLoop(spawned, self.core, memory)

    def live(self, given: list[tuple[int, int, bytes]], apart: int) -> None:
        """Start, and take what the neighbours repeat, so many frames a turn."""
        assert self._loop is not None
        self._loop._start()
        numbers = dict.fromkeys((sender for sender, _, _ in given), 0)
        for place, (sender, kind, record) in enumerate(given):
            numbers[sender] += 1
            if numbers[sender] > self._loop._inboxes[COOKIE + sender].done:
                self._loop._take(pack_frame(kind, COOKIE + sender, 1, numbers[sender], [record]), NOW)
            if place % apart == 0:
                self._loop._turn.end()
        self._loop._turn.end()

    def asked(self, request: dict[str, object]) -> None:
        """The keeper has a question."""
        assert self._loop is not None
        self._loop._handle_message(json.dumps({"id": 1, "request": request}), NOW)
        self._loop._turn.end()

    def answers(self) -> list[dict[str, object]]:
        """What the keeper has heard."""
        found = []
        with suppress(BlockingIOError):
            while True:
                told = json.loads(self.keeper.recv(1 << 16, socket.MSG_DONTWAIT))
                found += [told["answer"]] if told["event"] == "answer" else []
        return found

    def sent(self, consumer: int, kind: int) -> list[bytes]:
        """The records that have left."""
        kept = [unpack_frame(frame) for _, frame in Journal(self._durable.map()).frames(consumer, 0)]
        return [record for found, _, _, _, records in kept if found == kind for record in records]

    def end(self) -> None:
        if self._loop is not None:
            self._loop._poller.close()
            self._loop = None

    def close(self) -> None:
        self.end()
        self._listener.close()
        self._line.close()
        self.keeper.close()


@pytest.fixture
def process(tmp_path, durable):
    made: list[Process] = []

    def make(name: str, make_core: Callable[..., Core], counts: CounterWords) -> Process:
        made.append(Process(tmp_path, durable, name, make_core, counts))
        return made[0]

    yield make
    for each in made:
        each.close()
    gc.unfreeze()  # a loop that starts excludes all objects from garbage collection
    gc.collect()


@pytest.mark.parametrize("apart", [2, 3, 5, 100])
@pytest.mark.parametrize("line", range(0, 2400, 300))
@pytest.mark.parametrize("kind", [UDP, ICMP, RAW], ids=lambda kind: kind.name)
def test_no_message_before_a_close_is_lost_or_leaves_twice_whatever_line_the_layer_dies_at(process, kind, line, apart):
    chance, deaths, counts = random.Random(line), 0, kind.counters.new()
    layer = process(kind.name, kind.core, counts)
    while dies(line, (*CALLED, *kind.modules), lambda: layer.live(inputs(kind), apart)):
        deaths, line = deaths + 1, chance.randrange(4000)
        layer.born()
    left = [transmitted(record)[2][kind.header :] for record in layer.sent(topology.IP, messages.TRANSMIT)]
    assert left == [b"%d %s" % (handle, word) for handle in HANDLES for word in (b"first", b"second")], deaths
    assert not set(HANDLES) & set(layer.state), deaths
    answers = [messages.decode_socket_reply(record) for record in layer.sent(topology.SOCKETS, messages.SOCKET_REPLY)]
    assert [(answer.handle, answer.errno) for answer in answers] == [(handle, 0) for handle in HANDLES]
    assert counts[kind.counters.state_unreadable] == 0


@pytest.mark.parametrize("kind", [UDP, ICMP, RAW], ids=lambda kind: kind.name)
def test_a_close_without_output_counts_when_its_turn_has_ended(process, durable, kind):
    process(kind.name, kind.core, kind.counters.new()).live(inputs(kind), 1)
    assert not set(HANDLES) & set(KeyValueLog(durable.map()))


class Faulty(Udp):
    """It closes a socket, and that kills it."""

    def _close_sockets(self, closings: list[bytes]) -> list[Send]:
        super()._close_sockets(closings)
        raise ZeroDivisionError


def test_a_close_that_kills_its_layer_is_done_when_it_is_set_aside(process):
    layer, given = process("udp", Faulty, UdpCounters.new()), inputs(UDP)[:5]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            layer.live(given, 2)
        layer.born(blameless=False)
    layer.live(given, 2)
    assert 1 not in layer.state
    sent = [transmitted(record)[2][8:] for record in layer.sent(topology.IP, messages.TRANSMIT)]
    assert sent == [b"1 first"]  # the second was in the turn of the close, which is not repeated for ever


# -- groups, and neighbours


@pytest.mark.parametrize("seed", range(10))
def test_a_group_that_a_socket_has_left_is_left_whatever_line_ip_dies_at(process, seed):
    groups = (SourceFilter(address("239.1.2.3")),)
    given = [(topology.SOCKETS, messages.MEMBERSHIP, encode(Membership(handle=handle, request=request, groups=wanted)))
             for handle in HANDLES for request, wanted in ((2 * handle, groups), (2 * handle + 1, ()))]
    chance, layer = random.Random(seed), process("ip", Ip, IpCounters.new())
    while dies(chance.randrange(6000), (*CALLED, groups_module), lambda: layer.live(given, 1 + seed % 4)):
        layer.born()
    answers = [messages.decode_socket_reply(record) for record in layer.sent(topology.SOCKETS, messages.SOCKET_REPLY)]
    assert [answer.request for answer in answers] == list(range(2, 10))
    assert not [key for key in layer.state if key >> 32 == MEMBERS_KEYS >> 32]


def test_a_neighbour_whose_deletion_was_answered_stays_deleted_whatever_line_arp_dies_at(process, durable):
    layer, line, died = process("arp", Arp, ArpCounters.new()), 0, True
    delete = {"op": "neighbor_del", "address": PEER, "order": "17"}
    while died:
        layer.born()
        layer.live([], 1)
        layer.asked({"op": "neighbor_add", "address": PEER, "mac": "02:00:00:00:00:01"})
        layer.answers()
        died = dies(line, (*CALLED, arp_core, arp_tables, keyed_state), lambda: layer.asked(delete))
        answers = layer.answers()
        assert answers in ([], [{}])
        assert answers or died
        assert not answers or not KeyedState(KeyValueLog(durable.map()), NEIGHBORS).load(), line
        line += 1
    assert line > 50

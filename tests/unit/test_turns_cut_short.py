"""A layer dies in the turn in which a socket is closed: what came before the close finds the socket again."""

from __future__ import annotations

import gc
import json
import random
import socket
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from durable import Durable, dies
from records import address, transmitted

from bus import messages, topology
from bus.config import StackConfig
from bus.durable import journal, key_value_log, layout
from bus.durable.journal import Journal
from bus.durable.key_value_log import KeyValueLog
from bus.messages import Route, Routes, SocketReply, SocketState, datagram_header, encode
from bus.runtime import event_loop, inbox, outbox, turn
from bus.runtime.control import Control
from bus.runtime.event_loop import EventLoop
from bus.runtime.spawn import SpawnArguments
from layers.common import transport
from layers.sockets.core import Core as Sockets
from layers.sockets.counters import Counters as SocketsCounters
from layers.udp import core as udp_core
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters
from usernet.pipe.frame import pack_frame, unpack_frame
from usernet.pipe.streams import CLOSE_RECORD, STREAM_END, STREAM_HEADER

ME, PEER, ALICE, COOKIE = "10.0.0.2", "10.0.0.1", topology.CLIENT_ID_MIN + 1, 1000
ROUTES = Routes([(address(ME), 24)], [Route(address("10.0.0.0"), 24, b"", address(ME), 1500)])
NOW = 1.0


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
        self._core = Sockets(config(), KeyValueLog(self._durable.map()), SocketsCounters.new(), random.Random(1))
        assert self._core.start(NOW) == []
        assert self._core.client_joined(ALICE, {"pid": 1}, NOW) == []
        self._core.receive(topology.IP, messages.ROUTES, [encode(ROUTES)], NOW)

    def publish(self) -> None:
        self._durable.map().words[layout.JOURNAL_HEAD] += 1

    def ask(self, **fields: object) -> list[tuple[int, int, bytes]]:
        return self._core.receive(ALICE, messages.REQUEST, [json.dumps(fields).encode()], NOW)

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


# -- a whole layer, at any line: datagrams, and the close of their socket

HANDLES = range(1, 5)
MODULES = (event_loop, turn, inbox, outbox, journal, key_value_log, udp_core, transport)


def inputs() -> list[tuple[int, int, bytes]]:
    """(sender, kind, record): each socket is bound, sends, and is closed."""
    taken = [(topology.IP, messages.ROUTES, encode(ROUTES))]
    for handle in HANDLES:
        state = SocketState(handle=handle, request=handle, bind=True, port=5000 + handle % 2)  # two ports, used again
        head = datagram_header(handle, IPv4Address(PEER).packed, 7, bytes(4))
        taken += [
            (topology.SOCKETS, messages.SOCKET_SET, encode(state)),
            (topology.SOCKETS, messages.SEND, head + b"%d first" % handle),
            (topology.SOCKETS, messages.SEND, head + b"%d second" % handle),
            (topology.SOCKETS, messages.SOCKET_CLOSE, handle.to_bytes(4, "little")),
        ]
    return taken


class Layer:
    """udp's process over one durable memory: its event loop and its core."""

    def __init__(self, folder: Path, durable: Durable) -> None:
        self._durable, self._folder = durable, folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / "udp.sock"))
        self._listener.listen()
        self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._incarnation = 0
        self._loop: EventLoop | None = None
        self.born()

    def born(self) -> None:
        self.end()
        self._incarnation += 1
        memory = self._durable.map()
        memory.words[layout.INCARNATION] = self._incarnation
        memory.words[layout.BLAMELESS] = 1
        settings = config(str(self._folder))
        spawned = SpawnArguments("udp", settings, -1, self._listener.dup().detach(), Control(self._keeper[0]))
        self.state = KeyValueLog(memory)
        core = Udp(settings, self.state, UdpCounters.new(), random.Random(1))
        self._loop = EventLoop(spawned, core, memory)

    def live(self, apart: int) -> None:
        """Start, and take what the neighbours repeat, so many frames a turn."""
        assert self._loop is not None
        self._loop._start()
        numbers = dict.fromkeys((topology.IP, topology.SOCKETS), 0)
        for place, (sender, kind, record) in enumerate(inputs()):
            numbers[sender] += 1
            if numbers[sender] > self._loop._inboxes[COOKIE + sender].done:
                self._loop._take(pack_frame(kind, COOKIE + sender, 1, numbers[sender], [record]), NOW)
            if place % apart == 0:
                self._loop._turn.end()
        self._loop._turn.end()

    def sent(self) -> list[bytes]:
        """The payloads of what has left for ip."""
        kept = Journal(self._durable.map()).frames(topology.IP, 0)
        return [transmitted(record)[2][8:] for _, frame in kept for record in unpack_frame(frame)[4]]

    def end(self) -> None:
        if self._loop is not None:
            self._loop._poller.close()
            self._loop = None

    def close(self) -> None:
        self.end()
        self._listener.close()
        for each in self._keeper:
            each.close()



@pytest.fixture
def layer(tmp_path, durable):
    made = Layer(tmp_path, durable)
    yield made
    made.close()
    gc.unfreeze()  # a loop that starts excludes all objects from garbage collection
    gc.collect()


@pytest.mark.parametrize("apart", [2, 3, 5, 100])
@pytest.mark.parametrize("seed", range(15))
def test_no_datagram_before_a_close_is_lost_or_leaves_twice_whatever_line_the_layer_dies_at(layer, seed, apart):
    chance = random.Random(seed)
    deaths = 0
    while dies(chance.randrange(2500), MODULES, lambda: layer.live(apart)):
        deaths += 1
        layer.born()
    assert layer.sent() == [b"%d %s" % (handle, word) for handle in HANDLES for word in (b"first", b"second")]
    assert not set(HANDLES) & set(layer.state), deaths


def test_a_close_without_output_counts_when_its_turn_has_ended(layer, durable):
    layer.live(1)
    assert not set(HANDLES) & set(KeyValueLog(durable.map()))

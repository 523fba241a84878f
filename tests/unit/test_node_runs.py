"""Frames that came at once: taken in runs they come to the same as taken one by one, in fewer calls."""

from __future__ import annotations

import os
import socket
from tempfile import TemporaryDirectory

import lengths
from durable import Durable
from hypothesis import given
from hypothesis import strategies as st

from bus import topology
from bus.config import StackConfig
from bus.counters import PipeCounters
from bus.durable import layout
from bus.runtime.clients import CLIENT_KINDS
from bus.runtime.control import Control
from bus.runtime.event_loop import EventLoop
from bus.runtime.inbox import Inbox
from bus.runtime.spawn import SpawnArguments
from supervisor.policy import AT_ONCE
from usernet.pipe.frame import pack_frame
from usernet.pipe.messages import CREDIT, DATAGRAM, REQUEST, SEND

COOKIE, NOW = 1000, 1.0
CLIENTS = (topology.CLIENT_ID_MIN, topology.CLIENT_ID_MIN + 1)
UDP = COOKIE + topology.UDP
STRANGER = topology.CLIENT_ID_MIN + 2
SENDERS = (*CLIENTS, UDP, STRANGER)


class Died(Exception):
    """What a record does to the core that cannot bear it."""


class Recorder:
    """A core for the place of the socket service's, that remembers what it was given."""

    next_wake = None

    def __init__(self):
        self.calls = []
        self.poison = b"none"

    def receive(self, sender, kind, records, now):
        if self.poison in records:
            raise Died
        self.calls.append((sender, kind, list(records)))
        return []

    def client_joined(self, client, hello, now):
        return []

    def records(self):
        return [(sender, kind, record) for sender, kind, records in self.calls for record in records]


class Service:
    """A node in the place of the socket service, with two applications that it knows."""

    def __init__(self, folder: str) -> None:
        self._durable = Durable()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"{folder}/{len(os.listdir(folder))}.sock")
        self._listener.listen()
        self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._config = StackConfig(name="t", run_dir=f"{folder}/nobody", address=bytes((10, 0, 0, 2)), prefix=24,
                                   mac=bytes(6), mtu=1500, cookie=COOKIE)
        self.core = Recorder()
        self.node: EventLoop | None = None
        self.born()

    def born(self) -> None:
        """The next incarnation, from durable memory."""
        if self.node is not None:
            self.node._poller.close()
        self.durable = self._durable.map()
        spawned = SpawnArguments("sockets", self._config, -1, os.dup(self._listener.fileno()), Control(self._keeper[0]))
        self.node = EventLoop(spawned, self.core, self.durable)
        self.node._suspect.inherit(self.node._turn.journal.done)
        self.inboxes = [Inbox(client, CLIENT_KINDS, self.durable, layout.CLIENTS + place)
                       for place, client in enumerate(CLIENTS)]
        self.node._inboxes |= {inbox.sender: inbox for inbox in self.inboxes}
        for inbox in self.node._inboxes.values():
            inbox.incarnation, inbox.awaiting = 1, False

    def outcome(self):
        self.node._turn.end()
        done = {sender: inbox.done for sender, inbox in self.node._inboxes.items()}
        in_hand = self.durable.words[layout.IN_HAND_SENDER]
        return self.core.records(), done, list(self.durable.bus_counters), in_hand

    def close(self) -> None:
        self.node._poller.close()
        self._listener.close()
        for each in self._keeper:
            each.close()
        self._durable.close()


STEPS = st.sampled_from([1] * 12 + [0, 2, 3])  # mostly the next number; else a repetition, or some are missing
FRAMES = lengths.lists(st.one_of(
    st.tuples(st.sampled_from(SENDERS[:1] * 6 + SENDERS), st.sampled_from([SEND] * 6 + [CREDIT, REQUEST, DATAGRAM, 99]),
              STEPS, st.lists(st.binary(max_size=8), min_size=1, max_size=3), st.sampled_from([1] * 9 + [0])),
    lengths.octets(40)), 30)


def frames_of(drawn) -> list[bytes]:
    numbers = dict.fromkeys(SENDERS, 0)
    frames = []
    for each in drawn:
        if isinstance(each, bytes):
            frames.append(each)
            continue
        sender, kind, step, records, incarnation = each
        numbers[sender] = number = max(1, numbers[sender] + step)
        frames.append(pack_frame(kind, sender, incarnation, number, records))
    return frames


@given(drawn=FRAMES)
def test_runs_come_to_the_same_as_one_frame_after_the_other(drawn):
    frames = frames_of(drawn)
    with TemporaryDirectory() as folder:
        outcomes = []
        for at_once in (True, False):
            service = Service(folder)
            try:
                if at_once:
                    service.node._take_many(frames, NOW)
                else:
                    for frame in frames:
                        service.node._take(frame, NOW)
                outcomes.append(service.outcome())
            finally:
                service.close()
    assert outcomes[0] == outcomes[1]


def test_frames_of_one_application_go_to_the_core_in_one_call_but_for_requests(tmp_path):
    service = Service(str(tmp_path))
    try:
        first, second = CLIENTS
        sent = [(first, SEND, b"1"), (first, SEND, b"2"), (first, CREDIT, b"3"), (first, SEND, b"4"),
                (second, SEND, b"5"), (second, REQUEST, b"6"), (second, REQUEST, b"7")]
        numbers = dict.fromkeys(CLIENTS, 0)
        frames = []
        for client, kind, record in sent:
            numbers[client] += 1
            frames.append(pack_frame(kind, client, 1, numbers[client], [record]))
        service.node._take_many(frames, NOW)
        assert service.core.calls == [(first, SEND, [b"1", b"2"]), (first, CREDIT, [b"3"]), (first, SEND, [b"4"]),
                                      (second, SEND, [b"5"]), (second, REQUEST, [b"6"]), (second, REQUEST, [b"7"])]
        assert service.durable.words[layout.IN_HAND_SENDER] == second
        service.node._turn.end()
        assert [inbox.done for inbox in service.inboxes] == [4, 3]
        assert service.durable.words[layout.IN_HAND_SENDER] == 0
    finally:
        service.close()


def test_poison_in_a_run_is_set_aside_after_three_deaths_and_all_else_is_served(tmp_path):
    service = Service(str(tmp_path))
    try:
        service.core.poison = b"5"
        frames = [pack_frame(SEND, CLIENTS[0], 1, number, [b"%d" % number]) for number in range(1, 11)]
        deaths = 0
        while True:
            left = frames[service.inboxes[0].done :]  # the application sends again what was not worked off
            try:
                if service.node._suspect.watching:
                    for frame in left:
                        service.node._take(frame, NOW)
                else:
                    service.node._take_many(left, NOW)
                break
            except Died:
                deaths += 1
                assert deaths <= AT_ONCE  # supervisor.policy: those that are answered without a pause
                service.core.calls.clear()
                service.born()
        assert deaths == AT_ONCE
        assert [record for _, _, record in service.core.records()] == [b"%d" % n for n in range(1, 11) if n != 5]
        assert service.durable.bus_counters[PipeCounters.bus_poison] == 1
    finally:
        service.close()

"""A layer's loop over a device, killed at any line: what the device gives goes up once, what comes down goes out once.

The TAP is a socket pair. A SIGKILL between the line that counts a write and the system call costs that one frame.
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest
from durable import Durable, dies

from bus import messages, topology
from bus.config import StackConfig
from bus.durable import journal, layout, rx_log
from bus.durable.journal import ENTRIES_MAX, Journal
from bus.runtime import device, event_loop, greetings, inbox, outbox, turn
from bus.runtime.control import Control
from bus.runtime.event_loop import EventLoop
from bus.runtime.ring import IN, OUT, RingReader
from bus.runtime.spawn import SpawnArguments
from bus.runtime.taps import Taps
from layers.link import tap
from layers.link.counters import Counters
from layers.link.tap import Tap
from packets import ethernet
from usernet.pipe import numbering
from usernet.pipe.frame import pack_frame, unpack_frame

MODULES = (event_loop, greetings, turn, device, inbox, outbox, numbering, journal, rx_log, tap)
DOWN_FRAMES, RECORDS, UP = 6, 4, 12  # the frames that come down have few records, three, and many, five, by turns
UP_OCTETS = 84  # of each packet that comes up
COOKIE = 1000
UP_HEADER = bytes(12) + ethernet.TYPE_IPV4 + b"\x45\0" + UP_OCTETS.to_bytes(2, "big")
START = len(UP_HEADER)
NUMBER = struct.Struct("!I")
NOW = event_loop.DEVICE_PATIENCE_S / 2


class Relay:
    """A core that passes on what it gets."""

    next_wake = None

    def start(self, now):
        return []

    def wake(self, now):
        return []

    def neighbor_started(self, sender, now):
        return []

    def receive(self, sender, kind, records, now):
        up = sender == topology.DEVICE
        return [
            (topology.IP, messages.PACKET, each) if up else (topology.DEVICE, messages.ETHERNET, each)
            for each in records
        ]


class Link:
    """link's node with the relay as its core, over one durable memory, and the far end of its TAP."""

    def __init__(self, folder: Path) -> None:
        self._durable = Durable()
        self._folder = folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / "link.sock"))
        self._listener.listen()
        self._near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.setblocking(False)
        self.incarnation = 0
        self.node: EventLoop | None = None
        self.born()

    def born(self) -> None:
        """The next incarnation, from durable memory."""
        self.end()
        self.incarnation += 1
        durable = self._durable.map()
        durable.words[layout.INCARNATION] = self.incarnation
        durable.words[layout.BLAMELESS] = 1
        config = StackConfig(name="t", run_dir=str(self._folder), address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6),
                             mtu=1500, cookie=COOKIE)
        spawned = SpawnArguments("link", config, -1, os.dup(self._listener.fileno()), Control(self._keeper[0]))
        core = Relay()
        self.tap = durable.tap(0, False)
        self.node = EventLoop(spawned, core, durable, Tap(self._near.fileno(), Counters.new()),
                              Taps(core, durable, [], False))

    def end(self) -> None:
        if self.node is not None:
            self.node._poller.close()
            self.node = None

    def live(self) -> None:
        """Start; take what ip repeats; take what the TAP has; all of it in turns."""
        self.node._start()
        done = self.node._inboxes[COOKIE + topology.IP].done
        for sequence in range(done + 1, DOWN_FRAMES + 1):
            few = sequence % 2
            first, count = sequence * RECORDS - 1 + few, RECORDS + 1 - 2 * few
            records = [b"down %d" % number for number in range(first, first + count)]
            self.node._take(pack_frame(messages.PACKET_OUT, COOKIE + topology.IP, 1, sequence, records), NOW)
            if sequence % 2:
                self.node._turn.end()
        self.node._turn.end()
        while not self.node._holds_back(NOW) and self.node._take_device(self.node._device, NOW):
            self.node._turn.end()

    def written(self) -> list[int]:
        found = []
        try:
            while True:
                found.append(int(self.far.recv(100).removeprefix(b"down ")) - RECORDS)
        except BlockingIOError:
            return found

    def sent_up(self) -> list[int]:
        kept = Journal(self._durable.map()).frames(topology.IP, 0)
        return [NUMBER.unpack_from(record, START)[0] for _, frame in kept for record in unpack_frame(frame)[4]
                if record.startswith(UP_HEADER)]

    def close(self) -> None:
        self.end()
        self._listener.close()
        self.far.close()
        self._near.close()
        for each in self._keeper:
            each.close()
        self._durable.close()


@pytest.fixture(autouse=True)
def collected():
    """A loop that starts excludes all objects from garbage collection, also dead loops and their descriptors."""
    yield
    gc.unfreeze()
    gc.collect()


@pytest.fixture
def link(tmp_path):
    made = Link(tmp_path)
    yield made
    made.close()


def send_up(link: Link) -> None:
    """Frames arrive at the TAP."""
    for number in range(UP):
        link.far.send((UP_HEADER + NUMBER.pack(number)).ljust(ethernet.HEADER_OCTETS + UP_OCTETS, b"."))


def block_the_pipe(link: Link) -> None:
    """ip does not listen: its pipe is full, and more waits in front of it."""
    while not any(outbox.blocked for outbox in link.node._turn.touched):
        link.node._dispatch([(topology.IP, messages.PACKET, b"old")])
        link.node._turn.end()


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_a_death_at_any_line_repeats_nothing_and_costs_one_frame_on_its_way_out_at_most(link, seed, blocked):
    chance = random.Random(seed)
    if blocked:
        block_the_pipe(link)
    send_up(link)
    deaths = 0
    while dies(chance.randrange(1300), MODULES, link.live):
        deaths += 1
        link.born()
    link.born()  # whatever is left; and what did not hold it up before is there now
    link.live()
    written, up = link.written(), link.sent_up()
    assert len(link.sent_up()) < ENTRIES_MAX
    for seen, expected in ((written, DOWN_FRAMES * RECORDS), (up, UP)):
        assert max(Counter(seen).values()) == 1
        assert seen == sorted(seen)
        assert set(seen) <= set(range(expected))
    assert len(up) == UP
    assert DOWN_FRAMES * RECORDS - len(written) <= deaths


def test_frames_have_few_records_and_more():
    assert RECORDS - 1 <= event_loop.FEW < RECORDS + 1


def test_nothing_is_lost_without_a_crash(link):
    send_up(link)
    link.live()
    assert link.written() == list(range(DOWN_FRAMES * RECORDS))
    assert link.sent_up() == list(range(UP))


def test_what_the_loop_passes_on_is_shown_while_somebody_watches(link):
    def watch(*captures: dict[str, object]) -> None:
        assert link.node._handle_message(json.dumps({"id": 1, "taps": {"captures": captures}}), NOW)

    watch({"number": 1, "slot": 0, "taken": [topology.DEVICE], "sent": [topology.IP, topology.DEVICE]})
    send_up(link)
    link.live()
    seen = RingReader(link.tap).read()
    shown = {entry[1:3]: [record for each in seen if each[1:3] == entry[1:3] for record in each.records]
             for entry in seen}  # {(direction, peer): records}
    assert set(shown) == {(IN, topology.DEVICE), (OUT, topology.IP), (OUT, topology.DEVICE)}
    assert shown[OUT, topology.DEVICE] == [b"down %d" % (RECORDS + number) for number in range(DOWN_FRAMES * RECORDS)]
    assert len(link.written()) == DOWN_FRAMES * RECORDS
    assert shown[OUT, topology.IP] == shown[IN, topology.DEVICE]
    assert len(shown[OUT, topology.IP]) == UP == len(link.sent_up())
    watch()
    send_up(link)
    link.live()
    assert len(link.sent_up()) == 2 * UP
    assert RingReader(link.tap).read() == []

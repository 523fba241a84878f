"""A layer whose frames take long: timers are served in between, and nothing is lost or out of order."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace

import pytest
from durable import Durable

from bus import topology
from bus.config import StackConfig
from bus.durable import layout
from bus.messages import PACKET, SOCKET_CLOSE
from bus.runtime import event_loop
from bus.runtime.control import Control
from bus.runtime.event_loop import TURN_S, EventLoop
from bus.runtime.spawn import SpawnArguments
from usernet.pipe.contract import open_poller
from usernet.pipe.frame import pack_frame

PATIENCE_S = 20
COOKIE = 1000
FRAMES = 40
COST_S = TURN_S / 3  # of a frame


class Slow:
    """A core for which time passes with each frame, with a timer that is always due."""

    next_wake = 0.0

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[tuple[int, bytes] | None] = []  # (sender, record); None: the timer
        self.may_go_on = threading.Event()
        self.over = lambda: None

    def start(self, now):
        return []

    def receive(self, sender, kind, records, now):
        assert self.may_go_on.wait(PATIENCE_S)
        self.now += COST_S
        self.done += [(sender, record) for record in records]
        if len([each for each in self.done if each]) == 2 * FRAMES:
            self.over()
        return []

    def wake(self, now):
        self.done.append(None)
        return []


@pytest.mark.parametrize("kind", ["direct", "zmq"])
def test_frames_that_arrive_together_do_not_delay_timers(kind, tmp_path, monkeypatch):
    core, durable = Slow(), Durable()
    monkeypatch.setattr(event_loop, "time", SimpleNamespace(monotonic=lambda: core.now))
    memory = durable.map()
    memory.words[layout.INCARNATION] = 1
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = str(tmp_path / "tcp.sock")
    listener.bind(path)
    listener.listen()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = StackConfig(name="t", run_dir=str(tmp_path), address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6),
                         cookie=COOKIE, pipes=kind, owner=os.geteuid())
    loop = EventLoop(SpawnArguments("tcp", config, -1, listener.detach(), Control(near)), core, memory)
    core.over = lambda: far.send(b"stop")
    senders = {topology.SOCKETS: SOCKET_CLOSE, topology.IP: PACKET}
    poller = open_poller("direct")
    pushes = {sender: poller.push(path) for sender in senders}
    thread = threading.Thread(target=loop.run)
    thread.start()
    for sequence in range(1, FRAMES + 1):
        for sender, push in pushes.items():
            frame = pack_frame(senders[sender], COOKIE + sender, 1, sequence, [b"%d" % sequence])
            while not push.send(frame):
                push.await_room(0.05)
    while any(push.waiting for push in pushes.values()):
        for push in pushes.values():
            push.await_room(0.05)
    core.may_go_on.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    for sender in senders:
        assert [each[1] for each in core.done if each and each[0] == sender] == [
            b"%d" % sequence for sequence in range(1, FRAMES + 1)]
        assert memory.words[layout.DONE + sender] == FRAMES
    in_a_row = max(len(run.split()) for run in " ".join("." if each else "|" for each in core.done).split("|"))
    assert in_a_row <= 1 + TURN_S / COST_S
    poller.close()
    loop._poller.close()
    durable.close()

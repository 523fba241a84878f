"""When a client whose process has ended leaves: not before everything was read that it sent (bus.runtime.clients)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.config import StackConfig
from bus.durable import layout
from bus.runtime.clients import CONTESTED_S_MAX, LAST_FRAMES_S, Client, Clients
from bus.runtime.pipes import Pipes
from bus.runtime.turn import Turn
from usernet.pipe.contract import Poller, Pull, open_poller, waits_at
from usernet.pipe.frame import MAX_FRAME_OCTETS, VERSION
from usernet.pipe.messages import inbox_name
from usernet.pipe.numbering import decode_hello

PATIENCE_S = 20
# Has an inbox, argv[1], and a connection to the service, argv[2], which its child inherits and keeps until its standard
# input ends, if argv[3] says so. Ends itself.
APPLICATION = """
import os, socket, sys
inbox, service = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
inbox.bind(sys.argv[1])
inbox.listen()
service.connect(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[3] == "inherited" and not os.fork():
    sys.stdin.read()
"""


@pytest.fixture(params=["direct", "zmq"])
def poller(request) -> Iterator[Poller]:
    made = open_poller(request.param)
    yield made
    made.close()


class Contest:
    """As the socket service: whether a requested address may be that of an application that has ended."""

    contested = False


class Stage:
    """The clients of a service, its PULL, and one application."""

    def __init__(self, run_dir: Path, poller: Poller, connection: str) -> None:
        memory_fd = layout.create("test")
        config = StackConfig(name="t", run_dir=str(run_dir), address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6),
                             owner=os.geteuid())
        self.poller = poller
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir / "service"))
            listener.listen()
            self.listener_fd = listener.detach()
            self.pull: Pull = poller.pull(self.listener_fd, MAX_FRAME_OCTETS, 10, lambda _: None)
        self.core = Contest()
        self.clients = Clients(self.core, config, Pipes(poller, Turn(layout.Memory(memory_fd))))
        os.close(memory_fd)
        name = inbox_name(7)
        self.process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, run_dir / name, run_dir / "service", connection],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        hello = decode_hello(b'{"version": %d, "inbox": "%s", "done": 0, "token": ""}' % (VERSION, name.encode()))
        self.client: Client = self.clients.admit(hello, VERSION, 0)
        self.now = 0.0
        deadline = time.monotonic() + PATIENCE_S
        while waits_at(self.listener_fd) or self.pull.drained(self.process.pid):  # not yet accepted, or not yet known
            assert time.monotonic() < deadline
            self.turn()

    def turn(self) -> None:
        for descriptor, _ in self.poller.epoll.poll(0.01):
            self.pull.read(descriptor)

    def end(self) -> None:
        """The process ends; a child of it goes on until `close`."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.process.wait(PATIENCE_S)

    def ended(self, after_s: float = 0.0) -> list[int]:
        self.now += after_s
        return self.clients.ended(self.pull, self.now)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def stage(request, poller) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="un-") as name:
        made = Stage(Path(name), poller, request.param)
        yield made
        made.close()


@pytest.mark.parametrize("stage", ["alone"], indirect=True)
def test_a_client_leaves_when_its_connection_was_read_to_the_end(stage):
    assert stage.ended() == []
    stage.end()
    for _ in range(3):
        assert stage.ended() == []
    deadline = time.monotonic() + PATIENCE_S
    while not stage.pull.drained(stage.process.pid):
        assert time.monotonic() < deadline
        stage.turn()
    assert stage.ended() == [], "a frame may have come with the end"
    assert stage.ended() == [stage.client.number]


@pytest.mark.parametrize("stage", ["inherited"], indirect=True)
def test_a_client_whose_child_has_its_connection_leaves_after_a_time(stage):
    stage.end()
    assert stage.ended() == []
    stage.turn()
    assert stage.ended(LAST_FRAMES_S / 2) == []
    assert stage.ended(LAST_FRAMES_S / 2) == []
    assert stage.ended() == [stage.client.number]


@pytest.mark.parametrize("stage", ["inherited"], indirect=True)
def test_nobody_waits_for_an_address_longer_while_clients_end_again_and_again(stage):
    stage.end()
    stage.core.contested = True
    assert stage.ended() == []
    assert not stage.clients.is_contested
    assert stage.ended(CONTESTED_S_MAX - LAST_FRAMES_S / 4) == []
    stage.client.awaited_until = stage.now + LAST_FRAMES_S  # as of one that has ended just now
    stage.client.heard_at_end = -1
    assert not stage.clients.is_contested
    assert stage.ended(LAST_FRAMES_S / 4) == []
    assert stage.clients.is_contested
    stage.core.contested = False
    assert stage.ended() == []
    stage.core.contested = True
    assert stage.ended() == []
    assert not stage.clients.is_contested

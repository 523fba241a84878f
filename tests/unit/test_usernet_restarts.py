"""The application's library while its service restarts: a service that says, frame by frame, what the test wants.

Its pipes are real; the order in which the library reads them is the test's.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from usernet.client.connection import Connection
from usernet.client.description import Description
from usernet.client.requests import decode, encode
from usernet.pipe.contract import Push, open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS, pack_frame, unpack_frame
from usernet.pipe.messages import DATAGRAM, DATAGRAM_HEADER, HELLO, REQUEST, RESUME, datagram_header

ID, HANDLE = (1 << 52) + 7, 5
DEADLINE_S = 10.0


class Script:
    """The service's side. One PUSH for each incarnation, as for each process of a service."""

    def __init__(self) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="un-"))
        (self.run_dir / "sockets").mkdir()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.run_dir / "sockets.sock"))
        listener.listen()
        self._poller = open_poller("direct")
        self._pull = self._poller.pull(listener.detach(), MAX_FRAME_OCTETS, 16, lambda _: None)
        self.heard: list[bytes] = []  # frames
        self.pushes: dict[int, Push] = {}  # by incarnation

    def turn(self) -> None:
        """Process what is there."""
        for descriptor, _ in self._poller.epoll.poll(0.01):
            frames = self._pull.read(descriptor)
            if frames is not None:
                self.heard += frames
            else:
                self._poller.pushes[descriptor].hear()

    def until(self, condition) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def of_kind(self, wanted: int) -> list[dict]:
        """The JSON of all frames of a kind that were heard."""
        frames = [unpack_frame(frame) for frame in self.heard]
        return [decode(records[0]) for kind, _, _, _, records in frames if kind == wanted]

    def connect(self, incarnation: int, path: Path) -> None:
        self.pushes[incarnation] = self._poller.push(str(path))

    def greet(self, incarnation: int, **fields: object) -> None:
        self._say(incarnation, HELLO, 0, encode({"version": 2, "done": 0, **fields}))

    def resume(self, incarnation: int, first: int) -> None:
        self._say(incarnation, RESUME, 0, encode({"first": first, "done": 0}))

    def deliver(self, incarnation: int, number: int) -> None:
        """A datagram that says its number, in the frame of this number."""
        record = datagram_header(HANDLE, bytes(4), 7, bytes(4)) + b"%d" % number
        self._say(incarnation, DATAGRAM, number, record)

    def _say(self, incarnation: int, kind: int, number: int, record: bytes) -> None:
        push = self.pushes[incarnation]
        assert push.send(pack_frame(kind, ID, incarnation, number, [record]))
        assert push.open  # it has left

    def close(self) -> None:
        self._poller.close()
        shutil.rmtree(self.run_dir)


@pytest.fixture
def script(monkeypatch) -> Iterator[Script]:
    monkeypatch.setenv("USERNET_PIPES", "direct")
    made = Script()
    yield made
    made.close()


@pytest.fixture
def connection(script: Script) -> Iterator[Connection]:
    """Connected to incarnation 1, with a socket."""
    made: list[Connection] = []
    opening = threading.Thread(target=lambda: made.append(Connection(script.run_dir, "test")))
    opening.start()
    script.until(lambda: script.of_kind(HELLO))
    hello = script.of_kind(HELLO)[0]
    script.connect(1, script.run_dir / "sockets" / hello["inbox"])
    script.until(lambda: script.pushes[1].ready)
    script.greet(1, token=hello["token"])
    script.resume(1, 1)
    script.until(lambda: not opening.is_alive())
    opened = made[0]
    opened.look()
    opened.boxes[HANDLE] = Description(opened.readers.lock, HANDLE, 1 << 16)
    yield opened
    opened._line.close()
    opened._line.destroy()


def restart(script: Script, connection: Connection, *incarnations: int) -> None:
    """Processes with these incarnations have connected to the library's inbox."""
    for incarnation in incarnations:
        script.connect(incarnation, connection.inbox_path)
    while not all(script.pushes[each].ready for each in incarnations):
        connection.look()
        script.turn()


def received(connection: Connection) -> list[int]:
    return [int(record[DATAGRAM_HEADER.size :]) for record in connection.boxes[HANDLE].items]


@pytest.mark.parametrize("said", [(), (1,), (1, 2)])
@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_a_second_restart_before_the_first_was_heard_of_loses_nothing(script, connection, monkeypatch, order, said):
    """Whatever order the two processes are heard in, whatever the first one `said`, and though the second one says more
    meanwhile."""
    resume, met = connection._resume, []

    def resumed(done: int) -> None:
        resume(done)
        if not met:
            met.append(done)
            script.deliver(3, 3)

    monkeypatch.setattr(connection, "_resume", resumed)
    restart(script, connection, 2, 3)
    for incarnation in order:
        script.greet(incarnation)
        for number in said if incarnation == 2 else (1, 2):
            script.deliver(incarnation, number)
    connection.look()
    assert met
    script.resume(3, 1)
    script.deliver(3, 4)
    connection.look()
    assert (received(connection), connection._incoming.lost) == ([1, 2, 3, 4], 0)


def test_a_socket_that_is_dropped_while_the_library_answers_a_restart_is_closed(script, connection, monkeypatch):
    """By a destructor, at any moment: a thread that only receives afterwards sends nothing that would take it along."""
    send, dropped = connection._line.send, []

    def sending(frame: bytes, timeout: float | None) -> None:
        send(frame, timeout)
        if not dropped:
            dropped.append(HANDLE)
            connection.forget(connection.boxes[HANDLE])

    monkeypatch.setattr(connection._line, "send", sending)
    restart(script, connection, 2)
    script.greet(2)
    connection.look()
    assert dropped
    script.until(lambda: len(script.of_kind(RESUME)) == 2)
    script.until(lambda: script.of_kind(REQUEST))
    (closed,) = script.of_kind(REQUEST)
    assert (closed["op"], closed["handle"]) == ("close", HANDLE)

"""The bus's sockets against libzmq's and against each other: the same messages in the same order."""

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import zmq

from usernet.pipe.contract import WAITING_MAX, Trust
from usernet.pipe.direct import Poller, Pull, Push

OCTETS_MAX = 1 << 18
PATIENCE_S = 5.0
MESSAGES = [b"", b"x", bytes(255), bytes(256), b"y" * 70_000, *(b"%d" % number for number in range(200))]


class End:
    """One process's end: a poller, with a PULL and any number of PUSHes."""

    def __init__(self, stack: ExitStack, path: str) -> None:
        self.path = path
        self.poller = Poller(Trust(os.geteuid(), (os.geteuid(),)))
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.bind(path)
        self.listener.listen()
        self.taken: list[bytes] = []
        self.refused: list[int] = []
        self._pull: Pull | None = None
        stack.callback(self.close)

    def serve(self, connections_max: int = 10) -> Pull:
        """Begin to read; what came before waits at the listener."""
        self._pull = Pull(os.dup(self.listener.fileno()), self.poller, OCTETS_MAX, connections_max,
                          lambda: self.refused.append(1))
        return self._pull

    def push(self, path: str) -> Push:
        return Push(path, self.poller)

    def turn(self, wait_s: float = 0.0) -> None:
        for descriptor, _ in self.poller.epoll.poll(wait_s):
            if descriptor in self.poller.pushes:
                self.poller.pushes[descriptor].hear()
            else:
                self.taken += self._pull.read(descriptor)

    def close(self) -> None:
        for push in list(self.poller.pushes.values()):
            push.close()
        if self._pull is not None:
            self._pull.close()
            self._pull = None


def until(met, *ends: End) -> None:
    """Turn the loops until that is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        for end in ends:
            end.turn(0.001)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def test_libzmq_reads_what_a_push_sends(stack, context, tmp_path):
    end = End(stack, str(tmp_path / "a"))
    pull = context.socket(zmq.PULL)
    pull.bind(f"ipc://{tmp_path}/b")
    push = end.push(f"{tmp_path}/b")
    got = []
    for message in MESSAGES:
        until(lambda message=message: push.send(message), end)
        while pull.poll(0):
            got.append(pull.recv())
    until(lambda: not push.waiting, end)
    while len(got) < len(MESSAGES):
        assert pull.poll(PATIENCE_S * 1000)
        got.append(pull.recv())
    assert got == MESSAGES


def test_a_pull_reads_what_libzmq_sends(stack, context, tmp_path):
    end = End(stack, str(tmp_path / "a"))
    push = context.socket(zmq.PUSH)
    push.connect(f"ipc://{end.path}")
    for message in MESSAGES:
        push.send(message)
    end.serve()
    until(lambda: len(end.taken) == len(MESSAGES), end)
    assert end.taken == MESSAGES


def test_one_to_the_other(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    far.serve()
    push = near.push(far.path)
    for message in MESSAGES:
        until(lambda message=message: push.send(message), near, far)
    until(lambda: len(far.taken) == len(MESSAGES), near, far)
    assert far.taken == MESSAGES
    assert not push.waiting


def test_messages_wait_for_a_reader_and_no_more_than_so_many(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    push = near.push(far.path)
    taken = [push.send(b"%d" % number) for number in range(WAITING_MAX + 10)]
    assert taken == [True] * WAITING_MAX + [False] * 10
    far.serve()
    until(lambda: len(far.taken) == WAITING_MAX, near, far)
    assert far.taken == [b"%d" % number for number in range(WAITING_MAX)]


def test_who_waits_does_not_spin(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    near.push(far.path).send(b"waits")
    assert near.poller.epoll.poll(0) == []  # nobody accepts
    far.serve()
    push = near.push(far.path)
    until(lambda: push.ready, near, far)
    assert near.poller.epoll.poll(0) == []  # there is room: no news
    while push.send(bytes(60_000)):
        pass
    assert near.poller.epoll.poll(0) == []  # no room
    until(lambda: not push.waiting, near, far)
    until(lambda: near.poller.epoll.poll(0) == [], far)


def test_a_push_finds_the_next_reader_at_once(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    first = far.serve()
    push = near.push(far.path)
    push.send(b"first")
    until(lambda: far.taken == [b"first"], near, far)
    while push.send(b"L" * 60_000):
        pass
    far.taken.clear()
    first.close()  # it dies, and the keeper holds its listener
    until(lambda: not push.ready, near)
    far.serve()
    until(lambda: not push.waiting and len(far.taken) == WAITING_MAX - 1, near, far)
    assert set(far.taken) == {b"L" * 60_000}  # nothing of the message that the dead one had read in part


def test_a_push_whose_file_is_not_there_yet(stack, tmp_path):
    near = End(stack, str(tmp_path / "a"))
    push = near.push(str(tmp_path / "b"))
    assert push.send(b"early")
    far = End(stack, str(tmp_path / "b"))
    far.serve()
    push.flush()
    until(lambda: far.taken == [b"early"], near, far)


def test_who_speaks_no_zmtp_is_hung_up_on_and_harms_nobody(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    far.serve()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(far.path)
        stranger.send(b"GET / HTTP/1.1\r\n\r\n")
        until(lambda: len(far.refused) == 1, far)
        while stranger.recv(1000):
            pass
    push = near.push(far.path)
    push.send(b"still there")
    until(lambda: far.taken == [b"still there"], near, far)


def test_one_process_has_so_many_connections_and_no_more(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    far.serve(connections_max=8)
    pushes = [near.push(far.path) for _ in range(5)]
    until(lambda: len(far.refused) == 1, near, far)
    until(lambda: sum(push.ready for push in pushes) == 4, near, far)
    for push in pushes:
        push.send(b"in")
    until(lambda: far.taken == [b"in"] * 4, near, far)
    other = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(len(s.recv(100)))"
    with subprocess.Popen([sys.executable, "-c", other, far.path], stdout=subprocess.PIPE) as newcomer:
        until(lambda: newcomer.poll() is not None, near, far)
        assert int(newcomer.stdout.read()) > 0  # it was greeted: one process does not keep another out


def test_a_reader_that_hangs_up_at_once_is_not_called_in_a_circle(stack, tmp_path):
    near = End(stack, str(tmp_path / "a"))
    with socket.socket(socket.AF_UNIX) as rude:
        rude.bind(str(tmp_path / "b"))
        rude.listen()
        push = near.push(str(tmp_path / "b"))
        rude.accept()[0].close()
        until(lambda: not near.poller.pushes, near)
        rude.setblocking(False)
        with pytest.raises(BlockingIOError):
            rude.accept()
        push.send(b"now there is something to say")
        rude.accept()[0].close()


def test_the_descriptor_of_the_poller_tells_of_all(stack, tmp_path):
    near, far = (End(stack, str(tmp_path / name)) for name in "ab")
    far.serve()
    poll = select.poll()
    poll.register(far.poller.epoll, select.POLLIN)
    assert poll.poll(0) == []
    near.push(far.path)
    assert poll.poll(0)

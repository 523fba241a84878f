"""The contract of sockets, kept by both implementations: towards each other, themselves, and plain pyzmq."""

import errno
import os
import resource
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import zmq

from supervisor.limits import DESCRIPTORS_MIN
from usernet.pipe import libzmq, zmtp
from usernet.pipe.contract import (
    ACCEPTED_AT_ONCE,
    HANDSHAKE_S,
    IMPLEMENTATIONS,
    WAITING_MAX,
    Pull,
    Push,
    Trust,
    open_poller,
    waits_at,
)

OCTETS_MAX = 1 << 18
PATIENCE_S = 20
MESSAGES = [b"", b"x", bytes(255), bytes(256), b"y" * 70_000, *(b"%d" % number for number in range(200))]

each = pytest.mark.parametrize("kind", sorted(IMPLEMENTATIONS))
pairs = pytest.mark.parametrize(("kind", "other"), [(near, far) for near in sorted(IMPLEMENTATIONS)
                                                    for far in sorted(IMPLEMENTATIONS)])


class End:
    """One process's end: a poller, with a PULL and any number of PUSHes."""

    def __init__(self, stack: ExitStack, path: str, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.poller = open_poller(kind)
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.bind(path)
        self.listener.listen()
        self.taken: list[bytes] = []
        self.most_octets = 0  # that were read at once
        self.refused: list[int] = []
        self._pull: Pull | None = None
        stack.callback(self.die)

    def serve(self, connections_max: int = 10) -> Pull:
        """Begin to read; what came before waits at the listener."""
        self._pull = self.poller.pull(os.dup(self.listener.fileno()), OCTETS_MAX, connections_max,
                                      self.refused.append)
        return self._pull

    def push(self, path: str) -> Push:
        return self.poller.push(path)

    def turn(self, wait_s: float = 0.0) -> None:
        for descriptor, _ in self.poller.epoll.poll(wait_s):
            if descriptor in self.poller.pushes:
                self.poller.pushes[descriptor].hear()
            else:
                read = self._pull.read(descriptor)
                self.most_octets = max(self.most_octets, sum(map(len, read)))
                self.taken += read

    def tick(self, now: float) -> None:
        self._pull.expire(now)

    def die(self) -> None:
        """The process is gone; the listener is the keeper's."""
        if self.poller is not None:
            self.poller.close()
            self.poller = self._pull = None

    def reborn(self) -> None:
        self.poller = open_poller(self.kind)
        self.serve()


def until(met, *ends: End) -> None:
    """Turn the loops until that is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        for end in ends:
            end.turn(0.001)


def sends(push: Push, message: bytes, *ends: End) -> None:
    until(lambda: push.send(message), *ends)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ends(stack, tmp_path, kind, other):
    return End(stack, str(tmp_path / "a"), kind), End(stack, str(tmp_path / "b"), other)


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@each
def test_libzmq_reads_what_a_push_sends(stack, context, tmp_path, kind):
    end = End(stack, str(tmp_path / "a"), kind)
    pull = context.socket(zmq.PULL)
    pull.bind(f"ipc://{tmp_path}/b")
    push = end.push(f"{tmp_path}/b")
    got = []
    for message in MESSAGES:
        sends(push, message, end)
        while pull.poll(0):
            got.append(pull.recv())
    until(lambda: not push.waiting, end)
    while len(got) < len(MESSAGES):
        assert pull.poll(PATIENCE_S * 1000)
        got.append(pull.recv())
    assert got == MESSAGES


SENDER = """
import sys
from usernet.pipe.contract import open_poller
poller = open_poller("direct")
push = poller.push(sys.argv[1])
for message in (b"first", b"last"):
    push.send(message)
    while push.waiting:
        push.await_room(1)
    sys.stdin.readline()
"""


@each
@pytest.mark.parametrize("messages", [1, 200])
def test_a_pull_is_drained_when_everything_was_read_that_a_process_sent_before_its_end(stack, tmp_path, kind, messages):
    """Also if another process sends more than is read at a time."""
    end, other = End(stack, str(tmp_path / "a"), kind), End(stack, str(tmp_path / "b"), "direct")
    pull = end.serve()
    sender = subprocess.Popen([sys.executable, "-c", SENDER, end.path], stdin=subprocess.PIPE, text=True)
    with sender:
        until(lambda: end.taken == [b"first"], end)
        assert not pull.drained(sender.pid)
        push = other.push(end.path)
        until(lambda: push.open, other, end)
        for _ in range(messages):
            sends(push, b"x", other)
        sender.communicate("\n\n", PATIENCE_S)
        assert not pull.drained(sender.pid)
        until(lambda: pull.drained(sender.pid), end)
        end.turn()
        assert b"last" in end.taken


@each
def test_a_pull_is_not_drained_while_a_connection_waits(stack, tmp_path, kind):
    end = End(stack, str(tmp_path / "a"), kind)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(end.path)
        pull = end.serve()
        if kind == "direct":
            assert not pull.drained(os.getpid())
        until(lambda: not waits_at(end.listener.fileno()), end)
        until(lambda: not pull.drained(os.getpid()), end)
    until(lambda: pull.drained(os.getpid()), end)


@each
def test_a_pull_reads_what_libzmq_sends(stack, context, tmp_path, kind):
    end = End(stack, str(tmp_path / "a"), kind)
    push = context.socket(zmq.PUSH)
    push.connect(f"ipc://{end.path}")
    for message in MESSAGES:
        push.send(message)
    end.serve()
    until(lambda: len(end.taken) == len(MESSAGES), end)
    assert end.taken == MESSAGES


@pairs
def test_one_to_the_other(ends):
    near, far = ends
    far.serve()
    push = near.push(far.path)
    for message in MESSAGES:
        sends(push, message, near, far)
    until(lambda: len(far.taken) == len(MESSAGES), near, far)
    assert far.taken == MESSAGES
    assert not push.waiting


@pairs
def test_messages_wait_for_a_reader_and_no_more_than_so_many(ends):
    near, far = ends
    push = near.push(far.path)
    taken = [push.send(b"%d" % number) for number in range(WAITING_MAX + 10)]
    assert taken == [True] * WAITING_MAX + [False] * 10
    far.serve()
    until(lambda: len(far.taken) == WAITING_MAX, near, far)
    assert far.taken == [b"%d" % number for number in range(WAITING_MAX)]
    until(lambda: push.send(b"and again"), near, far)


@pairs
def test_a_waiting_push_does_not_spin(ends):
    near, far = ends
    push = near.push(far.path)
    push.send(b"waits")
    assert near.poller.epoll.poll(0) == []  # the listener accepts nothing
    far.serve()
    until(lambda: far.taken, near, far)
    until(lambda: near.poller.epoll.poll(0) == [], far)  # there is room: no news
    while push.send(bytes(60_000)):
        pass
    until(lambda: near.poller.epoll.poll(0) == [], near)  # no room
    until(lambda: push.open and not push.waiting, near, far)
    until(lambda: near.poller.epoll.poll(0) == [], near, far)


@pairs
def test_a_push_finds_the_next_reader_at_once(ends):
    near, far = ends
    far.serve()
    push = near.push(far.path)
    sends(push, b"first", near)
    until(lambda: far.taken == [b"first"], near, far)
    if far.kind == "zmq":  # its thread takes WAITING_MAX messages, and the kernel some, before anything has to wait
        for _ in range(WAITING_MAX + 8):
            sends(push, b"L" * 60_000, near)
    while push.send(b"L" * 60_000):
        pass
    far.taken.clear()
    far.die()
    far.reborn()
    started = time.monotonic()
    until(lambda: far.taken, near, far)
    assert time.monotonic() - started < 5  # by the reconnections of 1 ms, on a machine that may be busy
    until(lambda: not push.waiting and push.open, near, far)
    sends(push, b"last", near, far)
    until(lambda: far.taken[-1] == b"last", near, far)
    assert set(far.taken) == {b"L" * 60_000, b"last"}  # nothing of the message that the dead one had read in part


@pairs
def test_a_push_whose_file_is_not_there_yet(stack, tmp_path, kind, other):
    near = End(stack, str(tmp_path / "a"), kind)
    push = near.push(str(tmp_path / "b"))
    assert push.send(b"early")
    far = End(stack, str(tmp_path / "b"), other)
    far.serve()
    push.flush()
    until(lambda: far.taken == [b"early"], near, far)


@pairs
def test_a_burst_longer_than_one_look_is_read_without_another_event(ends):
    near, far = ends
    far.serve()
    push = near.push(far.path)
    sends(push, b"0", near)
    until(lambda: far.taken == [b"0"], near, far)
    for number in range(1, 1000):
        sends(push, b"%d" % number, near, far)
    until(lambda: len(far.taken) == 1000, near, far)
    assert far.taken == [b"%d" % number for number in range(1000)]


@pairs
def test_long_messages_are_read_in_portions(ends):
    near, far = ends
    far.serve()
    push = near.push(far.path)
    reads_by_itself = far.kind == "zmq"
    for number in range(40):  # where libzmq's thread takes them they wait together, 10 MB
        sends(push, bytes([number]) * OCTETS_MAX, near, *([] if reads_by_itself else [far]))
    until(lambda: len(far.taken) == 40, near, far)
    assert far.taken == [bytes([number]) * OCTETS_MAX for number in range(40)]
    assert far.most_octets <= libzmq.READ_OCTETS + 2 * OCTETS_MAX


@pairs
def test_a_peer_without_zmtp_does_no_harm(ends):
    near, far = ends
    far.serve()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(far.path)
        stranger.send(b"GET / HTTP/1.1\r\n\r\n")
        stranger.setblocking(False)
        if far.kind == "direct":  # libzmq takes it for a peer of ZMTP 1.0 whose message is long in coming
            until(lambda: _hung_up(stranger), far)
            assert far.refused == [0]
        push = near.push(far.path)
        push.send(b"still there")
        until(lambda: far.taken == [b"still there"], near, far)


def _hung_up(stranger: socket.socket) -> bool:
    try:
        return not stranger.recv(1000)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pairs
def test_a_peer_that_goes_by_itself_is_not_refused(ends):
    near, far = ends
    far.serve()
    opening = zmtp.opening(b"PUSH")
    for said in (b"", opening[:5], opening[:30], opening, opening + b"\x02" + (1000).to_bytes(8, "big") + b"part"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(far.path)
            stranger.sendall(said)
        until(lambda: not far.poller.epoll.poll(0), far)
    push = near.push(far.path)
    push.send(b"the next one")
    until(lambda: far.taken == [b"the next one"], near, far)
    assert far.refused == []


@each
def test_a_silent_connection_is_closed_in_time_and_counted(stack, tmp_path, kind):
    far = End(stack, str(tmp_path / "b"), kind)
    far.serve()
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(far.path)
        stranger.send(b"\xff\0\0")
        stranger.setblocking(False)
        until(lambda: not far.poller.epoll.poll(0), far)
        while not far.refused:
            assert time.monotonic() < started + HANDSHAKE_S + 20
            far.turn(0.01)
            far.tick(time.monotonic())
        assert time.monotonic() > started + HANDSHAKE_S - 0.5
        while not _hung_up(stranger):
            far.turn(0.01)


@pairs
def test_part_of_a_message_delays_no_other_connection(ends):
    near, far = ends
    far.serve()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(far.path)
        stranger.send(zmtp.opening(b"PUSH") + b"\x02" + (200_000).to_bytes(8, "big") + b"the beginning")
        push = near.push(far.path)
        for _ in range(10):
            sends(push, b"whole", near, far)
        until(lambda: far.taken == [b"whole"] * 10, near, far)
    assert not far.refused


@each
def test_a_message_that_is_too_long_ends_the_connection(stack, tmp_path, kind):
    far = End(stack, str(tmp_path / "b"), kind)
    far.serve()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(far.path)
        stranger.send(zmtp.opening(b"PUSH") + b"\x02" + (OCTETS_MAX + 1).to_bytes(8, "big"))
        stranger.setblocking(False)
        until(lambda: _hung_up(stranger), far)
    assert far.taken == []


def test_without_a_descriptor_connections_wait_and_no_process_spins(stack, tmp_path):
    near, far = End(stack, str(tmp_path / "a"), "direct"), End(stack, str(tmp_path / "b"), "direct")
    far.serve()
    push = near.push(far.path)
    push.send(b"waits")
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno() + 1, former[1]))
    try:
        with open(os.devnull):
            until(lambda: not far.poller.epoll.poll(0), far)
            assert set(far.refused) == {errno.EMFILE}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
    far.tick(0.0)
    until(lambda: far.taken == [b"waits"], near, far)


# A process of its own, because libzmq would abort it. It reads nothing until libzmq has accepted all that it does.
HANGS = """
import os, resource, socket, sys, time
from usernet.pipe.contract import open_poller

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(4096)
poller, refused = open_poller("zmq"), []
pull = poller.pull(os.dup(listener.fileno()), 1 << 18, 10_000, refused.append)
print("listens", flush=True)
input()
while len(refused) < limit:
    for descriptor, _ in poller.epoll.poll(0.1):
        pull.read(descriptor)
poller.close()
print("closed", flush=True)
"""


def test_libzmq_never_accepts_more_than_there_are_descriptors(tmp_path):
    """accept(2) without a descriptor would end the process: its thread must wait for the loop."""
    path, limit = str(tmp_path / "p"), DESCRIPTORS_MIN["zmq"]
    program = [sys.executable, "-c", HANGS, path, str(limit)]
    with (subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
          ExitStack() as connections):
        assert process.stdout.readline() == "listens\n"
        accepted = -1
        for _ in range(2 * limit):
            caller = connections.enter_context(socket.socket(socket.AF_UNIX))
            caller.connect(path)
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and accepted < libzmq.UNREPORTED_MAX:
            assert time.monotonic() < deadline
            accepted = len(os.listdir(f"/proc/{process.pid}/fd"))
        answer, _ = process.communicate("go on\n", timeout=PATIENCE_S)
        assert process.returncode == 0
    assert answer == "closed\n"


@each
def test_one_process_has_so_many_connections_and_no_more(stack, tmp_path, kind):
    near, far = End(stack, str(tmp_path / "a"), "direct"), End(stack, str(tmp_path / "b"), kind)
    far.serve(connections_max=8)
    pushes = [near.push(far.path) for _ in range(4)]
    for push in pushes:
        push.send(b"in")
    until(lambda: far.taken == [b"in"] * 4, near, far)
    with socket.socket(socket.AF_UNIX) as fifth:
        fifth.connect(far.path)
        fifth.setblocking(False)
        until(lambda: _hung_up(fifth), far)
    until(lambda: far.refused == [0], far)
    other = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(len(s.recv(10)))"
    with subprocess.Popen([sys.executable, "-c", other, far.path], stdout=subprocess.PIPE) as newcomer:
        until(lambda: newcomer.poll() is not None, near, far)
        assert int(newcomer.stdout.read()) > 0  # it was greeted: one process does not keep another out
    near.die()
    until(lambda: not far.poller.epoll.poll(0.05), far)  # they are gone: there is room
    again = End(stack, str(tmp_path / "c"), "direct")
    push = again.push(far.path)
    push.send(b"instead")
    until(lambda: far.taken[-1] == b"instead", again, far)


def test_connections_that_arrive_while_it_is_made_are_seen_and_so_are_all_later_ones(stack, tmp_path, monkeypatch):
    """Else libzmq's thread waits for ever once its monitor is full of events that no one reads."""
    end = End(stack, str(tmp_path / "p"), "zmq")
    first = stack.enter_context(socket.socket(socket.AF_UNIX))
    first.connect(end.path)
    first.settimeout(PATIENCE_S)

    class Late(libzmq.Socket):
        """`bind` returns after libzmq has accepted the connection that waits, and has reported it."""

        def bind(self, address):
            super().bind(address)
            assert first.recv(64)

    monkeypatch.setattr(libzmq, "Socket", Late)
    end.serve(1)
    assert end.refused == []
    later = stack.enter_context(socket.socket(socket.AF_UNIX))
    later.connect(end.path)
    until(lambda: end.refused == [0], end)


@each
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_refused_whether_users_are_listed_or_asked_for(stack, tmp_path, kind):
    class Nobody:
        def __contains__(self, user: object) -> bool:
            return user == 65534

    for number, users in enumerate(((65534,), Nobody())):
        far = End(stack, str(tmp_path / str(number)), kind)
        far.poller.close()
        far.poller = open_poller(kind, Trust(0, users))
        far.serve()
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(far.path)
            stranger.setblocking(False)
            until(lambda: _hung_up(stranger), far)
        until(lambda: far.refused == [0], far)  # noqa: B023


def test_a_reader_that_hangs_up_at_once_is_not_called_in_a_circle(stack, tmp_path):
    """Of direct: libzmq calls again a thousand times a second, in its own thread."""
    near = End(stack, str(tmp_path / "a"), "direct")
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


@pairs
def test_the_descriptor_of_the_poller_tells_of_all(ends):
    near, far = ends
    far.serve()
    poll = select.poll()
    poll.register(far.poller.epoll, select.POLLIN)
    until(lambda: poll.poll(0) == [], far)
    near.push(far.path)
    assert poll.poll(PATIENCE_S * 1000)


@pairs
def test_await_room_returns_when_there_is_some(ends):
    near, far = ends
    far.serve()
    push = near.push(far.path)
    while push.send(bytes(60_000)):
        pass
    deadline = time.monotonic() + PATIENCE_S
    while not push.send(b"room"):
        assert time.monotonic() < deadline
        far.turn()
        push.await_room(0.01)


@pairs
def test_closing_lets_what_was_sent_be_read(ends):
    near, far = ends
    far.serve()
    push = near.push(far.path)
    sends(push, b"first", near)
    until(lambda: far.taken == [b"first"], near, far)
    sends(push, b"goodbye", near)
    near.die()
    until(lambda: far.taken == [b"first", b"goodbye"], far)


@pytest.mark.parametrize("kind", ["direct"])  # libzmq accepts in its own thread
def test_many_that_connect_at_once_are_accepted_in_portions(stack, tmp_path, kind):
    """So that none of them, and no crowd, keeps the process from its other work."""
    end, count = End(stack, str(tmp_path / "a"), kind), ACCEPTED_AT_ONCE + 10
    callers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
    for caller in callers:
        caller.connect(end.path)
    end.serve(connections_max=4 * count)
    answered = [len(select.select(callers, [], [], 0)[0])]
    for _ in range(2):
        end.turn()
        answered.append(len(select.select(callers, [], [], 0)[0]))
    assert answered == [0, ACCEPTED_AT_ONCE, count]


CALLS = """
import socket, sys
callers = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for caller in callers:
    caller.connect(sys.argv[1])
    caller.recv(1)
print("in", flush=True)
for caller in callers:
    caller.settimeout(None)
    while caller.recv(1000):
        pass
    print("cut off", flush=True)
"""


@pytest.mark.parametrize("each_has", [1, 2])
def test_without_memory_connections_are_closed_but_not_those_of_neighbouring_layers(stack, tmp_path, each_has):
    """The newer half, or all of processes that have several."""
    end = End(stack, str(tmp_path / "a"), "zmq")
    pull = end.serve(connections_max=100)
    crowd = []
    for _ in range(5):
        program = [sys.executable, "-c", CALLS, end.path, str(each_has)]
        crowd.append(stack.enter_context(subprocess.Popen(program, stdout=subprocess.PIPE)))
        stack.callback(crowd[-1].kill)
        until(lambda: select.select([crowd[-1].stdout], [], [], 0)[0], end)
        assert crowd[-1].stdout.readline() == b"in\n"
    until(lambda: pull._places.taken == 5 * each_has, end)
    # the one that would be closed first if it were an application, and those that are closed
    neighbor, others = (crowd[-1], crowd[2:4]) if each_has == 1 else (crowd[0], crowd[1:3])
    pull.spare(1, neighbor.pid)
    pull._statm_fd, pull._memory_max = os.open("/proc/self/statm", os.O_RDONLY), 0
    stack.callback(os.close, pull._statm_fd)
    pull.expire(time.monotonic())
    for cut in others:
        until(lambda: select.select([cut.stdout], [], [], 0)[0], end)  # noqa: B023
    assert len(end.refused) == 2 * each_has
    assert not select.select([neighbor.stdout], [], [], 0.05)[0]

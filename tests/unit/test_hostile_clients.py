"""Programs of the same user that would speak for others, crowd them out, or kill the socket service: a real service."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import socket as std
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from usernet_service import ADDRESS, REPOSITORY, Service

from bus import topology
from bus.config import StackConfig
from bus.counters import PipeCounters
from bus.durable import layout
from bus.runtime.clients import OFFENCES_MAX, REFUSAL_CHECKS, REFUSALS_MAX, Clients
from bus.runtime.pipes import Pipes
from bus.runtime.turn import Turn
from supervisor.resources import Resources
from usernet.client.connection import Connection
from usernet.pipe.contract import open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS, VERSION, of_version, pack_frame, unpack_frame
from usernet.pipe.messages import BYE, HELLO, REFUSAL, REPLY, REQUEST, RESUME, inbox_name, inbox_number
from usernet.pipe.numbering import decode_hello

# Knows all that can be seen of the client argv[2], an inbox, and guesses argv[3:], ids. Says HELLO for it, and in the
# names of those ids: I repeat from number 1000 on; goodbye, whatever number is next. Says to it, as the service would:
# I have started anew, and am at number 1000; there was an error.
FORGER = """
import sys
from pathlib import Path
from usernet.pipe.contract import open_poller
from usernet.pipe.frame import pack_frame
run_dir, inbox, ids = Path(sys.argv[1]), sys.argv[2], list(map(int, sys.argv[3:]))
poller = open_poller("direct")
service, application = poller.push(str(run_dir / "sockets.sock")), poller.push(str(run_dir / "sockets" / inbox))
hello = b'{"version": 2, "inbox": "%s", "done": 0, "token": "", "name": "forged"}' % inbox.encode()
resume = b'{"first": 1000, "done": 0}'
service.send(pack_frame(128, 0, 1, 0, [hello]))
for number in ids:
    for push, incarnation in ((service, 1), (application, 99)):
        push.send(pack_frame(128, number, incarnation, 0, [hello]))
        push.send(pack_frame(129, number, incarnation, 0, [resume]))
    for sequence in range(1, 5):
        service.send(pack_frame(134, number, 1, sequence, []))
        application.send(pack_frame(131, number, 99, sequence, [b'{"id": 1, "errno": 5}']))
while service.waiting or application.waiting or not (service.open and application.open):
    service.await_room(0.05)
    application.await_room(0.05)
"""

# Knows the id argv[2], too.
KNOWING_FORGER = """
import sys
from usernet.pipe.contract import open_poller
from usernet.pipe.frame import pack_frame
poller = open_poller("direct")
push = poller.push(f"{sys.argv[1]}/sockets.sock")
push.send(pack_frame(129, int(sys.argv[2]), 1, 0, [b'{"first": 1000, "done": 0}']))
for sequence in range(1, 30):
    push.send(pack_frame(134, int(sys.argv[2]), 1, sequence, []))
while push.waiting or not push.open:
    push.await_room(0.05)
"""
PATIENCE_S = 20


@pytest.fixture(scope="module", params=["direct", "zmq"])
def service(request):
    """With both kinds of pipe: libzmq does not tell which process sent a message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USERNET_PIPES", request.param)
        made = Service()
        yield made
        made.down()


def forge(service: Service, inbox: str, *ids: int, listening: Callable[[], object]) -> None:
    """Run the forger to its end, while the owner of the inbox is `listening`."""
    with subprocess.Popen([sys.executable, "-c", FORGER, str(service.run_dir), inbox, *map(str, ids)],
                          cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as forger:
        deadline = time.monotonic() + PATIENCE_S
        while forger.poll() is None:
            listening()
            if time.monotonic() > deadline:
                forger.kill()
        assert forger.returncode == 0, forger.stderr.read()


def of_pipes(kind: str) -> bool:
    return os.environ["USERNET_PIPES"] == kind


def test_no_process_can_send_frames_as_another(service):
    connection = Connection(service.run_dir, "test")
    box = connection.open_socket("dgram")
    number = inbox_number(connection.inbox_path.name)
    ids = [0, 1, topology.LAYERS["sockets"], topology.CLIENT_ID_MIN, number, number % topology.CLIENT_ID_END]
    forge(service, connection.inbox_path.name, *ids, listening=connection.look)
    if of_pipes("direct"):  # from another process not even with the id
        forged = subprocess.run([sys.executable, "-c", KNOWING_FORGER, str(service.run_dir), str(connection.id)],
                                cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=30)
        assert forged.returncode == 0, forged.stderr
    connection.request("bind", handle=box.handle, address=ADDRESS, port=5995)
    assert [ADDRESS, 5995] in [each["local"] for each in connection.request("list", after=0)["sockets"]]
    assert connection.welcome["name"] == "test"
    service.restart()
    assert [ADDRESS, 5995] in [each["local"] for each in connection.request("list", after=0)["sockets"]]
    connection.close()


def test_an_inbox_that_another_process_claims_first_is_still_its_owners(service):
    """A process that names the inbox of another in its HELLO gets no answer; the owner of the inbox gets it."""
    with Stranger(service.run_dir) as owner:
        forge(service, owner.inbox_name, 0, 1, listening=owner.listen)
        owner.say(HELLO, 0, 0, owner.hello())
        number, answer = owner.hears(HELLO, lambda fields: fields.get("token") == "mine")
        assert number >= topology.CLIENT_ID_MIN
        assert answer["version"] == 2
        owner.say(RESUME, number, 0, b'{"first": 1, "done": 0}')
        forge(service, owner.inbox_name, 0, 1, listening=owner.listen)
        owner.say(REQUEST, number, 1, b'{"id": 1, "op": "socket", "type": "dgram"}')
        same, reply = owner.hears(REPLY, lambda fields: "handle" in fields)
        assert (same, reply["errno"]) == (number, 0)
        owner.say(BYE, number, 2)


def test_a_forged_answer_to_a_hello_is_ignored(service, monkeypatch):
    """Before it knows its id, the library knows the service by the token of its own HELLO."""
    monkeypatch.setattr("usernet.client.connection.CONNECT_TIMEOUT_S", 0.2)  # for the pipe to the stopped service
    monkeypatch.setattr("usernet.client.connection.HELLO_INTERVAL_S", PATIENCE_S)  # for the answer
    before = set(service.run_dir.glob("sockets/app-*.sock"))
    service.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            connecting = pool.submit(Connection, service.run_dir, "test")
            while not (inboxes := set(service.run_dir.glob("sockets/app-*.sock")) - before):
                assert not connecting.done(), connecting.exception()
            (inbox,) = inboxes
            poller = open_poller("direct")
            push = poller.push(str(inbox))
            for number in (0, 5):
                push.send(pack_frame(HELLO, number, 99, 0, [b'{"version": 2, "done": 0, "name": "forged"}']))
                push.send(pack_frame(REFUSAL, number, 99, 0, [b'{"errno": 1, "error": "forged", "token": ""}']))
            while push.waiting or not push.open:
                push.await_room(0.05)
            service.process.send_signal(signal.SIGCONT)
            connection = connecting.result(PATIENCE_S)
            poller.close()
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert (connection.welcome["name"], connection.id >= topology.CLIENT_ID_MIN) == ("test", True)
    assert connection.malformed > 0
    assert connection.request("list", after=0)["errno"] == 0
    connection.close()


@pytest.mark.parametrize(("octet", "version"), [(1, 1), (3, 3), (255, 255), (2, 1), (2, 3)])
def test_a_client_of_another_version_is_told_so_in_its_own(service, octet, version):
    with Stranger(service.run_dir) as stranger:
        hello = b'{"version": %d, "inbox": "%s", "done": 0, "token": "mine"}' % (version, stranger.inbox_name.encode())
        said = of_version(pack_frame(HELLO, 0, 1, 0, [hello]), octet)
        frame = stranger.hears_frame(lambda: stranger.push.send(said))
        assert frame[0] == octet
        kind, _, number, sequence, (record,) = unpack_frame(of_version(frame, VERSION))
        assert (kind, number, sequence) == (REFUSAL, 0, 0)
        assert json.loads(record) == {
            "errno": errno.EPROTONOSUPPORT, "version": 2, "token": "mine",
            "error": f"this stack speaks version 2 of the application protocol, the application version {version}"}


def test_a_program_of_another_version_gets_an_error_that_says_so(service, monkeypatch):
    for module in ("usernet.pipe.frame", "usernet.client.connection"):
        monkeypatch.setattr(f"{module}.VERSION", 3)
    with pytest.raises(OSError, match=r"stack speaks version 2 of the .*, the application version 3") as caught:
        Connection(service.run_dir, "test")
    assert caught.value.errno == errno.EPROTONOSUPPORT


class Stranger:
    """A process with an inbox and a pipe to the service, that does nothing by itself."""

    def __init__(self, run_dir: Path) -> None:
        self.inbox_name = inbox_name(1 + secrets.randbelow(1 << 63))
        self.poller = open_poller(os.environ["USERNET_PIPES"])
        listener = std.socket(std.AF_UNIX, std.SOCK_STREAM)
        listener.bind(str(run_dir / "sockets" / self.inbox_name))
        listener.listen()
        self.pull = self.poller.pull(listener.detach(), 1 << 18, 16, lambda starved: None)
        self.push = self.poller.push(str(run_dir / "sockets.sock"))
        self.frames: list[bytes] = []

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.poller.close()

    def hello(self) -> bytes:
        return json.dumps({"version": VERSION, "inbox": self.inbox_name, "done": 0, "token": "mine"}).encode()

    def say(self, kind: int, number: int, sequence: int, *records: bytes) -> None:
        assert self.push.send(pack_frame(kind, number, 1, sequence, records))

    def listen(self) -> None:
        for descriptor, _ in self.poller.epoll.poll(0.1):
            if descriptor in self.poller.pushes:
                self.poller.pushes[descriptor].hear()
            self.frames += self.pull.read(descriptor) or []
        self.push.flush()

    def hears_frame(self, ask: Callable[[], object] = lambda: None) -> bytes:
        """The next frame; `ask` is called each half of a second, as the library repeats its HELLO."""
        deadline, asked = time.monotonic() + PATIENCE_S, 0.0
        while not self.frames:
            now = time.monotonic()
            assert now < deadline, "nothing came"
            if now > asked + 0.5:
                asked = now
                ask()
            self.listen()
        return self.frames.pop(0)

    def hears(self, kind: int, wanted: Callable[[dict], bool]) -> tuple[int, dict]:
        """(id, fields) of the first frame of this kind with a record that is wanted; others are passed over."""
        while True:
            said, _, number, _, records = unpack_frame(self.hears_frame())
            for record in records:
                if said == kind and wanted(json.loads(record)):
                    return number, json.loads(record)


def test_an_inbox_that_is_a_symbolic_link_is_refused(service):
    """Else the service could be made to speak to any socket that it can reach."""
    with std.socket(std.AF_UNIX) as elsewhere:
        elsewhere.bind(str(service.run_dir / "elsewhere.sock"))
        elsewhere.listen()
        elsewhere.setblocking(False)
        number = 77
        (service.run_dir / "sockets" / inbox_name(number)).symlink_to(service.run_dir / "elsewhere.sock")
        poller = open_poller("direct")
        push = poller.push(str(service.run_dir / "sockets.sock"))
        hello = b'{"version": 2, "inbox": "%s", "done": 0}' % inbox_name(number).encode()
        push.send(pack_frame(HELLO, 0, 1, 0, [hello]))
        while push.waiting or not push.open:
            push.await_room(0.05)
        Connection(service.run_dir, "test").close()  # what was sent before is heard by now
        poller.close()
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_a_process_that_sends_a_second_record_that_kills_is_disconnected():
    memory_fd = layout.create("test")
    durable = layout.Memory(memory_fd)
    config = StackConfig(name="t", run_dir="/nowhere", address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6))
    clients = Clients(None, config, Pipes(open_poller("direct"), Turn(durable)))
    clients.offended(1000)
    assert not clients.is_barred(1000)
    for other in range(1, layout.OFFENDERS_MAX):
        clients.offended(other)
    clients.offended(1000)
    assert clients.is_barred(1000)
    assert not clients.is_barred(1)
    os.close(memory_fd)


def test_a_request_that_is_too_long_is_refused_and_kills_no_process(tmp_path):
    resources = Resources("arp", tmp_path)
    answers: list[dict] = []
    assert resources.ask({"op": "x" * 70_000}, answers.append) == ""
    assert "octets" in answers[0]["error"]
    assert resources.ask({"op": "list"}, answers.append)
    resources.listener.close()
    os.close(resources.memory_fd)


@pytest.fixture
def run_dir():
    """With a short name: pytest's own may be too long for a socket (unix(7))."""
    with tempfile.TemporaryDirectory(prefix="un-") as name:
        (Path(name) / "sockets").mkdir()
        yield Path(name)


@pytest.mark.parametrize("kind", ["direct", "zmq"])
def test_a_refused_client_is_told_the_reason(kind, run_dir, monkeypatch):
    monkeypatch.setenv("USERNET_PIPES", kind)
    memory_fd = layout.create("test")
    durable = layout.Memory(memory_fd)
    config = StackConfig(name="t", run_dir=str(run_dir / "sockets"), address=bytes((10, 0, 0, 2)), prefix=24,
                         mac=bytes(6), owner=os.geteuid())
    poller = open_poller(kind)
    listener = std.socket(std.AF_UNIX)
    listener.bind(str(run_dir / "service"))
    listener.listen()
    reading = open_poller(kind)
    pull = reading.pull(listener.detach(), MAX_FRAME_OCTETS, 1, lambda _: None)
    clients = Clients(None, config, Pipes(poller, Turn(durable)))

    def answer(stranger: Stranger) -> dict:
        assert clients.admit(decode_hello(stranger.hello()), VERSION, 0) is None
        while not stranger.frames:
            for descriptor, _ in poller.epoll.poll(0):
                poller.pushes[descriptor].hear()
            stranger.listen()
        said, _, number, _, (record,) = unpack_frame(stranger.frames.pop())
        assert (said, number) == (REFUSAL, 0)
        return json.loads(record)

    with Stranger(run_dir) as stranger:
        for _ in range(OFFENCES_MAX):
            clients.offended(os.getpid())
        assert answer(stranger)["errno"] == errno.ECONNABORTED
        ids = slice(layout.CLIENTS + layout.CLIENT_ID, layout.WORDS, layout.CLIENT_WORDS)
        for place in range(*ids.indices(layout.WORDS)):
            durable.words[place] = topology.CLIENT_ID_MIN
        refusal = answer(stranger)
        assert refusal["errno"] == errno.EUSERS
        assert str(os.getpid()) in refusal["error"]
        assert durable.bus_counters[PipeCounters.bus_turned_away] == 2
        for _ in range(2 * REFUSALS_MAX):
            assert clients.admit(decode_hello(stranger.hello()), VERSION, 0) is None
        assert durable.bus_counters[PipeCounters.bus_turned_away] == 2 + 2 * REFUSALS_MAX
        assert len(clients._refusals) == REFUSALS_MAX, "no more are on their way at a time"
        for _ in range(REFUSAL_CHECKS + 1):
            clients.ended(pull, time.monotonic())
        assert not clients._refusals
    reading.close()
    poller.close()
    os.close(memory_fd)


def test_an_application_that_asks_and_never_reads_is_cut_off_and_others_are_served(service):
    with Stranger(service.run_dir) as greedy:
        greedy.say(HELLO, 0, 0, greedy.hello())
        number, _ = greedy.hears(HELLO, lambda fields: fields.get("token") == "mine")
        greedy.say(RESUME, number, 0, b'{"first": 1, "done": 0}')
        inbox = service.run_dir / "sockets" / greedy.inbox_name
        requests = [b'{"id": %d, "op": "socket", "type": "dgram"}' % asked for asked in range(1, 257)]
        greedy.say(REQUEST, number, 1, *requests)
        sequence, deadline = 1, time.monotonic() + PATIENCE_S
        while inbox.exists():  # a list of 256 sockets is 30 kB
            assert time.monotonic() < deadline, "it was not cut off"
            again = pack_frame(REQUEST, number, 1, sequence + 1, [b'{"id": 1, "op": "list", "after": 0}'] * 16)
            if greedy.push.send(again):
                sequence += 1
            else:
                greedy.push.await_room(0.05)
        connection = Connection(service.run_dir, "test")
        assert connection.open_socket("dgram").handle > 256
        assert connection.request("list", after=0)["sockets"][0]["handle"] > 256  # those of the other are closed
        connection.close()

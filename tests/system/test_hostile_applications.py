"""Applications that fill every queue of the socket service: what each can hold is bounded and counted, and a quiet one
beside them is served as ever. Real processes, over both kinds of pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from supervisor.child import MEMORY_LIMIT_OCTETS

from .peers import ROOT, Stack, wait_for

PIPES = ["direct", "zmq"]
CONNECTIONS = 1000
STOPPED, SOCKETS_EACH, ROUNDS = 100, 4, 8  # 30,000 octets for each socket in each round: more than its buffer
STOPPED_OCTETS = 3 * MEMORY_LIMIT_OCTETS // 4
ROUND_TRIPS = 50
RESEND_S, LOST_MAX = 5.0, 2
WINDOW = 10
KILLS = 12

# Connects so many times, and sends half of the longest frame on each.
HALF_FRAMES = """
import resource, socket, sys
from usernet.pipe import zmtp
from usernet.pipe.frame import MAX_FRAME_OCTETS

path, count = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
half = zmtp.message(bytes(MAX_FRAME_OCTETS))[: MAX_FRAME_OCTETS - 10]
callers, cut_off = [], 0
for _ in range(count):
    callers.append(socket.socket(socket.AF_UNIX))
    callers[-1].connect(path)
    try:
        callers[-1].sendall(zmtp.opening(b"PUSH"))
    except OSError:
        cut_off += 1
for caller in callers:
    caller.settimeout(20)
    try:
        caller.sendall(half)
    except OSError:
        cut_off += 1
print(cut_off, flush=True)
sys.stdin.read()
"""

# So many processes with sockets whose receive buffers together are more than the service lends; each answers what it
# gets. The first line tells their pids, and the addresses.
CROWD = """
import json, os, select, sys
import usernet

count, each, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def serve(answer):
    sockets = [usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) for _ in range(each)]
    for made in sockets:
        made.bind((address, 0))
    os.write(answer, json.dumps([os.getpid(), *(made.getsockname()[1] for made in sockets)]).encode() + b"\\n")

    while True:
        for made in select.select(sockets, [], [])[0]:
            octets, peer = made.recvfrom(65536)
            made.sendto(octets[:10], peer)

ours, theirs = os.pipe()
for _ in range(count):
    if os.fork() == 0:
        try:
            serve(theirs)
        finally:
            os._exit(1)
os.close(theirs)
with os.fdopen(ours) as lines:
    print(json.dumps([json.loads(next(lines)) for _ in range(count)]), flush=True)
sys.stdin.read()
"""

# An application that reads nothing after its socket is open. "errors": sends to a closed port for ever, and each
# datagram is answered by an error; "replies": asks for ever. Ends when it is cut off.
DEAF = """
import json, os, secrets, socket, sys
from pathlib import Path
from usernet.pipe.contract import Trust, open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS, VERSION, pack_frame, unpack_frame
from usernet.pipe.messages import HELLO, REPLY, REQUEST, RESUME, SEND, datagram_header, inbox_name

run_dir, kind = Path(sys.argv[1]), sys.argv[2]
inbox = inbox_name(1 + secrets.randbelow(1 << 63))
path = run_dir / "sockets" / inbox
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(path))
listener.listen()
service = (run_dir / "sockets").stat().st_uid
poller = open_poller("direct", Trust(os.geteuid(), {os.geteuid(), service}))
pull = poller.pull(listener.detach(), MAX_FRAME_OCTETS, 16, lambda _: None)
push = poller.push(str(run_dir / "sockets.sock"))
push.send(pack_frame(HELLO, 0, 1, 0, [json.dumps({"version": VERSION, "inbox": inbox, "done": 0,
                                                  "token": "mine"}).encode()]))
number = handle = 0
while not handle:
    for descriptor, _ in poller.epoll.poll(0.1):
        if descriptor in poller.pushes:
            poller.pushes[descriptor].hear()
        for frame in pull.read(descriptor) or ():
            said, _, to, _, (record, *_) = unpack_frame(frame)
            if said == HELLO and not number and json.loads(record).get("token") == "mine":
                number = to
                push.send(pack_frame(RESUME, number, 1, 0, [b'{"first": 1, "done": 0}']))
                push.send(pack_frame(REQUEST, number, 1, 1, [b'{"id": 1, "op": "socket", "type": "dgram"}']))
            elif said == REPLY:
                handle = json.loads(record)["handle"]
    push.flush()
if kind == "errors":
    connect = {"id": 2, "op": "connect", "handle": handle, "address": sys.argv[3], "port": 9}
    push.send(pack_frame(REQUEST, number, 1, 2, [json.dumps(connect).encode()]))
    told, records = SEND, [datagram_header(handle, bytes(4), 0, bytes(4)) + bytes(1000)] * 32
else:
    told, records = REQUEST, [b'{"id": 3, "op": "list", "after": 0}'] * 64
    push.send(pack_frame(REQUEST, number, 1, 2, records))
sent = 2
print("asks", flush=True)
while path.exists():
    if push.send(pack_frame(told, number, 1, sent + 1, records)):
        sent += 1
    else:
        push.await_room(0.05)
"""

# Sends to itself for ever, 64 datagrams at a time: a multiple of what the journals hold passes while a layer restarts.
FLOOD = """
import usernet
with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as flooder:
    flooder.bind(("127.0.0.9", 0))
    flooder.settimeout(0.3)
    print("floods", flush=True)
    while True:
        for _ in range(64):
            flooder.sendto(bytes(1000), flooder.getsockname())
        try:
            for _ in range(64):
                flooder.recv(2000)
        except TimeoutError:
            pass
"""


@pytest.fixture(params=PIPES)
def booted(new_stack, request) -> Stack:
    return new_stack().up("--pipes", request.param)


def program(stack: Stack, code: str, *arguments: object):
    return stack.spawn([sys.executable, "-c", code, *map(str, arguments)], stdin=-1,
                       env=stack.env | {"PYTHONPATH": str(ROOT)})


def is_served(stack: Stack) -> None:
    """An application that comes now gets its answers. In a flood the pipes between layers may drop a datagram."""
    number = lost = 0
    with stack.bound() as app:
        app.settimeout(RESEND_S)
        while number < ROUND_TRIPS:
            app.sendto(b"%d" % number, app.getsockname())
            try:
                number += app.recv(100) == b"%d" % number
            except TimeoutError:
                lost += 1
                assert lost <= LOST_MAX


def most_octets(pid: int) -> int:
    """The most memory that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def test_a_thousand_connections_with_half_a_frame_each(booted):
    pid = booted.pids()["sockets"]
    hostile = program(booted, HALF_FRAMES, booted.run_dir / "sockets.sock", CONNECTIONS)
    hostile.stdout.readline()
    is_served(booted)
    wait_for("the connections to be closed", lambda: booted.counters("sockets")["bus_refused"] > 0)
    assert booted.pids()["sockets"] == pid
    assert most_octets(pid) < MEMORY_LIMIT_OCTETS
    assert hostile.poll() is None
    is_served(booted)


@pytest.mark.timeout(300)
def test_a_hundred_stopped_applications_with_full_buffers(booted):
    pid = booted.pids()["sockets"]
    crowd = program(booted, CROWD, STOPPED, SOCKETS_EACH, "127.0.0.3")
    told = json.loads(crowd.stdout.readline())
    with booted.bound(address="127.0.0.3") as sender:
        for stopped, *_ in told:
            os.kill(stopped, signal.SIGSTOP)
        try:
            def fill() -> bool:  # some is dropped before, behind the pipes between layers
                for _, *ports in told * ROUNDS:
                    for port in ports:
                        sender.sendto(bytes(30_000), ("127.0.0.3", port))
                return booted.counters("sockets")["buffer_full"] > 0

            wait_for("full buffers", fill, timeout_s=100)
            found = booted.counters("sockets")
            is_served(booted)
            assert most_octets(pid) < STOPPED_OCTETS
            os.kill(pid, signal.SIGKILL)
            wait_for("another service", lambda: booted.serves() and booted.pids()["sockets"] != pid)
            is_served(booted)
        finally:
            for stopped, *_ in told:
                os.kill(stopped, signal.SIGCONT)
        assert found["bus_cut_off"] == 0
        for _, *ports in told:  # each goes on
            sender.sendto(b"still here", ("127.0.0.3", ports[-1]))
        left = {ports[-1] for _, *ports in told}
        sender.settimeout(RESEND_S)

        def all_heard() -> bool:  # all answer at once what waited for them: more than there is room for here
            try:
                while left:
                    octets, (_, port) = sender.recvfrom(100)
                    if octets == b"still here":
                        left.discard(port)
            except TimeoutError:
                for port in left:
                    sender.sendto(b"still here", ("127.0.0.3", port))
            return not left

        wait_for("each to go on", all_heard, timeout_s=100)


@pytest.mark.parametrize("kind", ["errors", "replies"])
def test_an_application_that_reads_neither_errors_nor_replies_is_bounded(booted, kind):
    pid = booted.pids()["sockets"]
    deaf = program(booted, DEAF, booted.run_dir, kind, "127.0.0.1")
    assert deaf.stdout.readline() == "asks\n"
    if kind == "errors":
        wait_for("a full pipe", lambda: booted.counters("sockets")["bus_pipe_full"] > 0, timeout_s=60)
        assert deaf.poll() is None
    else:
        assert deaf.wait(60) == 0
        assert booted.counters("sockets")["bus_cut_off"] == 1
    is_served(booted)
    assert booted.pids()["sockets"] == pid
    assert most_octets(pid) < MEMORY_LIMIT_OCTETS


def test_a_quiet_application_loses_nothing_beside_a_flood_and_kills(booted):
    """Its frames stay in the journals of sockets and udp, whatever the other sends."""
    flood = booted.application(FLOOD)
    assert flood.stdout.readline() == "floods\n"
    with booted.bound(address="127.0.0.4") as app:
        for kill in range(KILLS):
            layer = ("udp", "sockets")[kill % 2]
            before = booted.ask()[layer]
            for start in range(0, ROUND_TRIPS, WINDOW):
                window = [b"%d %d" % (kill, number) for number in range(start, start + WINDOW)]
                for octets in window:
                    app.sendto(octets, app.getsockname())
                if start == WINDOW:
                    os.kill(before["pid"], signal.SIGKILL)
                assert [app.recv(100) for _ in window] == window
            wait_for("the layer", lambda: booted.serves(**{layer: before["incarnation"] + 1}))  # noqa: B023
    assert flood.poll() is None

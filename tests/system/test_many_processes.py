"""Two hundred processes that take all the places there are: each keeps one, and who comes later finds one."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import time

import pytest

from supervisor.limits import DESCRIPTORS_MIN
from usernet.client.connection import CONNECT_TIMEOUT_S, Connection

from .peers import PATIENCE_S, Stack, wait_for
from .test_hostile_applications import is_served, program

PROCESSES, CONNECTIONS_EACH, CLIENTS_EACH = 200, 24, 12

# So many processes with so many connections each, which say nothing but their greeting. Tells how many were left to
# each when all had connected.
HOLDERS = """
import json, os, socket, sys
from usernet.pipe import zmtp

path, processes, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
(ready, tell), (go, start), (over, end) = os.pipe(), os.pipe(), os.pipe()

def is_open(caller):
    try:
        while octets := caller.recv(1000):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False

def hold():
    callers = []
    for _ in range(each):
        caller = socket.socket(socket.AF_UNIX)
        try:
            caller.connect(path)  # waits for room in the backlog, which it would not with a time limit
            caller.settimeout(10)
            caller.sendall(zmtp.opening(b"PUSH"))
            caller.recv(1)  # the other end has looked at it
            callers.append(caller)
        except OSError:
            pass
        caller.setblocking(False)
    os.write(tell, b"x")
    os.read(go, 1)
    os.write(tell, b"%4d" % sum(map(is_open, callers)))
    os.read(over, 1)  # until the first process ends

for _ in range(processes):
    if os.fork() == 0:
        os.close(end)
        os.close(start)  # so that it ends with the first process, whatever it waits for
        try:
            hold()
        finally:
            os._exit(0)
for _ in range(processes):
    os.read(ready, 1)
print("full", flush=True)
sys.stdin.readline()
os.write(start, b"g" * processes)
print(json.dumps([int(os.read(ready, 4)) for _ in range(processes)]), flush=True)
sys.stdin.read()
"""

# So many processes that become clients of the service, each several times if it may. Tells [clients, errno] of each.
CLIENTS = """
import json, os, sys
from pathlib import Path
from usernet.client.connection import Connection

run_dir, name, processes, each = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
(ready, tell), (over, end) = os.pipe(), os.pipe()

def join():
    joined, error = [], 0
    while not error and len(joined) < each:
        try:
            joined.append(Connection(run_dir, name))
        except TimeoutError:
            pass  # the crowd is large and the machine busy: again
        except OSError as failed:
            error = failed.errno
    os.write(tell, b"%4d%4d" % (len(joined), error))
    os.read(over, 1)  # until the first process ends

for _ in range(processes):
    if os.fork() == 0:
        os.close(end)
        try:
            join()
        finally:
            os._exit(0)
told = [os.read(ready, 8) for _ in range(processes)]
print(json.dumps([[int(each[:4]), int(each[4:])] for each in told]), flush=True)
sys.stdin.read()
"""


# Forks while it has a socket: what the child has of it, and the parent.
CHILD = """
import os, sys, usernet
endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
endpoint.bind(("127.0.0.7", 0))
print("ready", flush=True)
sys.stdin.readline()
if (child := os.fork()) == 0:
    try:
        endpoint.sendto(b"x", endpoint.getsockname())
    except OSError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
endpoint.sendto(b"y", endpoint.getsockname())
if endpoint.recv(9) == b"y":
    print("the parent has its socket", flush=True)
"""


@pytest.fixture(params=["direct", "zmq"])
def booted(new_stack, request):
    return new_stack().up("--pipes", request.param)


@pytest.fixture
def small(new_stack):
    """A stack with 56 places for clients, 256 for connections."""
    stack = new_stack()
    stack.run("up", "--detach", "--pipes", "direct", preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_NOFILE, (DESCRIPTORS_MIN["direct"], DESCRIPTORS_MIN["direct"])))
    return stack


def serves_again(stack: Stack, layer: str) -> None:
    """A layer that is killed finds a place for its connection, and applications are served."""
    before = stack.ask()[layer]
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(layer, lambda: stack.serves(**{layer: before["incarnation"] + 1}))
    is_served(stack)


def test_who_comes_when_all_connections_are_taken_finds_a_place(booted):
    """Applications, and layers that restart; those with several connections lose one for each."""
    pid = booted.pids()["sockets"]
    holders = program(booted, HOLDERS, booted.run_dir / "sockets.sock", PROCESSES, CONNECTIONS_EACH)
    assert holders.stdout.readline() == "full\n"
    assert booted.counters("sockets")["bus_refused"] > 0
    is_served(booted)
    for layer in ("udp", "sockets"):
        serves_again(booted, layer)
        if layer == "udp":
            assert booted.pids()["sockets"] == pid
            print("tell", file=holders.stdin, flush=True)
            left = json.loads(holders.stdout.readline())
            assert min(left) >= 1
            assert sum(left) > PROCESSES
    assert booted.run("status").returncode == 0


def test_tools_get_in_when_applications_have_taken_all_places(small):
    """Applications and forked children are told at once why they do not."""
    parent = small.application(CHILD, stdin=subprocess.PIPE)
    assert parent.stdout.readline() == "ready\n"
    crowd = program(small, CLIENTS, small.run_dir, small.name, 80, 1)
    told = json.loads(crowd.stdout.readline())
    assert {tuple(each) for each in told} == {(1, 0), (0, errno.EUSERS)}
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"no room for another one of .*`launcher.py ss` shows whose") as refused:
        Connection(small.run_dir, small.name)
    assert refused.value.errno == errno.EUSERS
    assert time.monotonic() - begun < CONNECT_TIMEOUT_S / 2
    parent.stdin.write("fork\n")
    parent.stdin.flush()
    assert "no room for another one of process" in parent.stdout.readline()
    assert parent.stdout.readline() == "the parent has its socket\n"
    assert "1 received" in small.run("ping", "-c", 1, "-W", PATIENCE_S, "127.0.0.1").stdout
    for command in (("ss",), ("status",), ("counters",), ("top", "--once")):
        small.run(*command)


def test_whoever_comes_is_heard_when_as_many_as_there_are_connections_say_nothing(small):
    """Applications, tools, and layers that restart."""
    holders = program(small, HOLDERS, small.run_dir / "sockets.sock", 300, 1)
    assert holders.stdout.readline() == "full\n"
    assert small.counters("sockets")["bus_refused"] > 0
    is_served(small)
    for layer in ("udp", "sockets"):
        serves_again(small, layer)
    assert "1 received" in small.run("ping", "-c", 1, "-W", PATIENCE_S, "127.0.0.1").stdout


def test_whoever_gets_no_further_connection_is_told(new_stack):
    """The service cannot tell, because it reads nothing of a connection that it refuses; the library can."""
    booted = new_stack().up("--pipes", "direct")
    holders = program(booted, HOLDERS, booted.run_dir / "sockets.sock", PROCESSES, CONNECTIONS_EACH)
    assert holders.stdout.readline() == "full\n"
    joined: list[Connection] = []
    try:
        with pytest.raises(OSError, match=f"no place for another connection of process {os.getpid()}") as refused:
            joined.extend(Connection(booted.run_dir, booted.name) for _ in range(CONNECTIONS_EACH))
    finally:
        for each in joined:
            each.close()
    assert joined
    assert refused.value.errno == errno.EUSERS


def test_who_joins_when_clients_are_many_finds_a_place(booted):
    """Whoever has its share is told why it gets no more."""
    crowd = program(booted, CLIENTS, booted.run_dir, booted.name, PROCESSES, CLIENTS_EACH)
    told = json.loads(crowd.stdout.readline())
    assert {error for _, error in told} <= {0, errno.EUSERS}
    assert any(error for _, error in told)
    assert min(clients for clients, _ in told) >= 1
    assert booted.counters("sockets")["bus_turned_away"] > 0
    is_served(booted)

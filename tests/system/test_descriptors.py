"""Out of descriptors (RLIMIT_NOFILE): no process dies or spins, and it is reported."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil

from supervisor.limits import DESCRIPTORS_MIN

from .peers import LAYERS, Stack, wait_for

LIMIT = max(DESCRIPTORS_MIN.values())  # with any kind of pipes
BURST = 500
BUSY = 0.2  # of a core


def callers(stack: Stack, layer: str, count: int) -> Iterator[socket.socket]:
    """Connections of unknown clients, one after the other as there is room for them to wait."""
    for _ in range(count):
        caller = socket.socket(socket.AF_UNIX)
        caller.setblocking(False)
        try:
            wait_for("room", lambda: caller.connect_ex(str(stack.run_dir / f"{layer}.sock")) == 0)  # noqa: B023
        except BaseException:
            caller.close()
            raise
        yield caller


def hung_up_on(caller: socket.socket) -> bool:
    """True if the other end was closed; what it has sent before is read."""
    try:
        while caller.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def spent_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """A process that can open no more than it has."""
    held = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min({*range(len(held) + 1)} - held), former[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)


def test_more_connections_than_descriptors_end_no_layer(new_stack) -> None:
    stack = new_stack()
    stack.run("up", "--detach", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)))
    before = stack.incarnations()
    with contextlib.ExitStack() as closing:
        for layer in ("sockets", "ip", "link"):
            held = [closing.enter_context(caller) for caller in callers(stack, layer, BURST)]
            # However slowly they come: some are refused, the others hung up on for want of a handshake.
            wait_for("room again", lambda: all(map(hung_up_on, held)))  # noqa: B023
        with stack.bound() as app:  # an application finds room
            app.sendto(b"to itself", app.getsockname())
            assert app.recv(100) == b"to itself"
        assert stack.incarnations() == before


# Connects as fast as it can and as often as it may, and holds what it has until its input ends.
FLOOD = """
import resource, socket, sys

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
while len(held) < int(sys.argv[2]):
    caller = socket.socket(socket.AF_UNIX)
    caller.setblocking(False)
    while caller.connect_ex(sys.argv[1]):
        pass
    held.append(caller)
print("connected", flush=True)
sys.stdin.read()
"""


def test_a_flood_of_connections_to_a_layer_that_is_busy_does_not_end_it(new_stack) -> None:
    stack = new_stack()
    stack.run("up", "--detach", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)))
    before = stack.incarnations()
    for layer in ("sockets", "udp"):
        flood = stack.spawn([sys.executable, "-c", FLOOD, str(stack.run_dir / f"{layer}.sock"), str(2 * LIMIT)],
                            stdin=subprocess.PIPE)
        assert flood.stdout.readline() == "connected\n"
        flood.communicate("")
    with stack.bound() as app:
        app.sendto(b"to itself", app.getsockname())
        assert app.recv(100) == b"to itself"
    assert stack.incarnations() == before


def test_a_service_without_descriptors_waits_says_so_and_serves_once_it_has_some(new_stack) -> None:
    stack = new_stack().up("--pipes", "direct")
    pid = stack.pids()["sockets"]
    with without_descriptors(pid), contextlib.ExitStack() as closing:
        for caller in callers(stack, "sockets", 3):
            closing.enter_context(caller)
        wait_for("the event", lambda: any(event["event"] == "starved" and event["layer"] == "sockets"
                                          for event in stack.events()))
        before, counted = spent_s(pid), stack.counters("sockets")["bus_starved"]
        wait_for("another try", lambda: stack.counters("sockets")["bus_starved"] >= counted + 10)  # one in 0.1 s
        assert spent_s(pid) - before < BUSY
    with stack.bound() as app:
        app.sendto(b"to itself", app.getsockname())
        assert app.recv(100) == b"to itself"
    assert stack.pids()["sockets"] == pid


def test_a_keeper_without_descriptors_tells_callers_and_still_restarts_layers(new_stack) -> None:
    stack = new_stack().up()
    status = stack.status()
    keeper = status["keeper"]
    wait_for("every spare", lambda: len(stack.processes()) >= 2 * len(LAYERS) + 2)
    held = {int(name) for name in os.listdir(f"/proc/{keeper}/fd")}
    limit = max(held) + 1
    former = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper, resource.RLIMIT_NOFILE, (limit, former[1]))
    try:
        with contextlib.ExitStack() as closing:

            def refused() -> str:
                """What a caller is told. The keeper has room again once a spare is ready and needs fewer of them."""
                for _ in range(limit - len(os.listdir(f"/proc/{keeper}/fd"))):
                    caller = closing.enter_context(socket.socket(socket.AF_UNIX))
                    caller.connect(str(stack.run_dir / "control.sock"))
                done = stack.run("status", status=None)
                return done.stderr if done.returncode == 1 else ""

            wait_for("no room", refused)
            before = spent_s(keeper)
            for _ in range(3):
                assert "cannot accept this caller: Too many open files" in wait_for("no room", refused)
            assert spent_s(keeper) - before < BUSY
    finally:
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, former)
    os.kill(status["layers"]["udp"]["pid"], 9)
    wait_for("udp", lambda: stack.serves(udp=2))
    assert any(event["event"] == "starved" for event in stack.events())
    assert set(stack.incarnations()) >= set(LAYERS)


def test_a_keeper_without_a_descriptor_replaces_every_layer_by_its_spare(new_stack) -> None:
    """Not even /proc can be read, which only decides where a layer runs."""
    stack = new_stack().up()
    status = stack.status()
    wait_for("every spare", lambda: len(stack.processes()) >= 2 * len(LAYERS) + 2)
    former = resource.prlimit(status["keeper"], resource.RLIMIT_NOFILE)
    # the number of a descriptor that it closes is not free, either
    resource.prlimit(status["keeper"], resource.RLIMIT_NOFILE, (3, former[1]))
    try:
        for layer in LAYERS:
            with stack.bound() as app:  # the keeper answers nobody
                os.kill(status["layers"][layer]["pid"], 9)
                for number in range(20):
                    app.sendto(b"%d" % number, app.getsockname())
                    assert app.recv(100) == b"%d" % number
    finally:
        resource.prlimit(status["keeper"], resource.RLIMIT_NOFILE, former)
    wait_for("all layers", lambda: stack.serves(**dict.fromkeys(LAYERS, 2)))
    told = stack.events()
    assert sorted(event["layer"] for event in told if event["event"] == "serves" and event["incarnation"] == 2) == (
        sorted(LAYERS))
    assert not [event["detail"] for event in told if event["event"] == "trouble"]

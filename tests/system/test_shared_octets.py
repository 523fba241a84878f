"""Octets of streams in shared memory: bulk both ways with all that may have to see them, and without any sharing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import unique_name
from .peers import KERNEL, STACK, Stack, wait_for
from .test_tcp_survival import OCTETS, Drain, Pump, both_ways, connected

# Bulk, also over layers that die.
pytestmark = [pytest.mark.tcp(snaplen=128), pytest.mark.provokes("window full", "retransmission", "out of order")]


def exchange(one: socket.socket, other: socket.socket, shared: bool = True) -> tuple[bool, bool]:
    """OCTETS each way, compared; what `shares` said of `one` meanwhile: idle rings are given back.

    `shared`: the other way begins when `one` has the memory, for which a busy keeper can be asked longer than it takes.
    """
    seen = False, False

    def over() -> bool:
        nonlocal seen
        sends, receives = shares(one)
        seen = seen[0] or sends, seen[1] or receives
        return all(each.ended for each in drains)

    drains = [Drain(one), Drain(other)]
    pumps = [Pump(one)]
    if shared:
        wait_for("the memory", lambda: shares(one)[0])
    pumps.append(Pump(other))
    wait_for("the end of both streams", over, 120)
    assert [(each.received, each.wrong) for each in drains] == [(OCTETS, -1)] * 2
    assert [each.sent for each in pumps] == [OCTETS] * 2
    return seen


def shares(endpoint: socket.socket) -> tuple[bool, bool]:
    """Whether the octets that an end sends, and those that it receives, are in shared memory."""
    box = endpoint._box
    return box.send_ring is not None, box.receive_ring is not None


def gone(stack: Stack) -> int:
    """How many references led to nothing."""
    return sum(layer["bus"]["bus_held_gone"] for layer in stack.ask().values())


@pytest.mark.parametrize("flags", [(), ("--no-offload",), ("--pipes", "zmq")], ids=["offload", "plain", "zmq"])
def test_bulk_both_ways(new_stack: Callable[..., Stack], flags: tuple[str, ...]) -> None:
    stack = new_stack().up(*flags)
    ours, kernel = connected(stack)
    with ours, kernel:
        sends, receives = exchange(ours, kernel)
        assert sends
        assert receives or "--no-offload" in flags  # single segments are short enough to travel in records
    assert gone(stack) == 0


def test_bulk_while_every_pipe_is_captured(stack: Stack, tmp_path: Path) -> None:
    ours, kernel = connected(stack)
    with ours, kernel:
        capture = stack.popen("capture", "-w", tmp_path / "all.pcapng")
        wait_for("the capture to begin", lambda: (tmp_path / "all.pcapng").exists())
        assert exchange(ours, kernel) == (True, True)
        capture.send_signal(signal.SIGINT)
        capture.wait(30)
    assert (tmp_path / "all.pcapng").stat().st_size > OCTETS  # the octets themselves, not references to them


@pytest.mark.parametrize("address", ["127.0.0.1", STACK])
def test_bulk_within_the_stack(stack: Stack, address: str) -> None:
    with stack.socket(socket.SOCK_STREAM) as listener, stack.socket(socket.SOCK_STREAM) as near:
        listener.bind((address, 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            far.settimeout(60)
            near.settimeout(60)
            exchange(near, far)
            assert shares(near)[0]
            assert shares(far)[0]


def test_an_application_without_shared_memory(new_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(directory: str) -> None:
        raise OSError("the stack has none")

    monkeypatch.setattr("usernet.client.memory.Memory", refused)
    stack = new_stack().up()
    ours, kernel = connected(stack)
    with ours, kernel:
        exchange(ours, kernel, shared=False)
        assert shares(ours) == (False, False)


@pytest.mark.parametrize("layers", [("link", "tcp"), ("ip", "link"), ("sockets", "link"), ("ip", "tcp")])
def test_layers_that_die_with_references_under_way(stack: Stack, layers: tuple[str, ...]) -> None:
    def fault() -> None:
        pids = stack.pids()
        for layer in layers:
            os.kill(pids[layer], signal.SIGKILL)

    both_ways(stack, fault)
    wait_for("all layers to serve", stack.serves)


def test_octets_in_the_ring_arrive_though_the_application_and_sockets_die_before_tcp_is_told(stack: Stack) -> None:
    with stack.kernel.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((KERNEL, 0))
        listener.listen()
        listener.settimeout(30)
        port = listener.getsockname()[1]
        program = stack.application(
            "import sys, usernet\n"
            "from tests.system.test_tcp_survival import pattern\n"
            f"s = usernet.create_connection(('{KERNEL}', {port}))\n"
            "sent = 0\n"
            "while sent < 200_000 or s._box.send_ring is None:\n"
            "    sent += s.send(pattern(sent, 50_000))\n"
            "s.recv(1)\n"  # by now tcp knows of all these
            "print(sent, flush=True)\n"
            "sys.stdin.readline()\n"
            "s.sendall(pattern(sent, 60_000))\n"
            "print('sent', flush=True)\n"
            "sys.stdin.readline()\n", stdin=-1)
        kernel, _ = listener.accept()
        with kernel:
            kernel.settimeout(30)
            kernel.sendall(b".")
            first = int(program.stdout.readline())
            sockets = stack.pids()["sockets"]
            os.kill(sockets, signal.SIGSTOP)  # what it has not read dies with it
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "sent\n"
            program.kill()
            with suppress(ProcessLookupError):  # if all this took long, the keeper did it
                os.kill(sockets, signal.SIGKILL)
            drain = Drain(kernel)
            wait_for("the end of the stream", lambda: drain.ended, 60)
            assert (drain.received, drain.wrong) == (first + 60_000, -1)


@pytest.fixture
def wired() -> Iterator[list[Stack]]:
    """Two stacks on a virtual wire."""
    home = Path(tempfile.mkdtemp(prefix="un", dir="/tmp"))
    wire = unique_name()
    stacks = [Stack(home, unique_name()) for _ in range(2)]
    try:
        for number, each in enumerate(stacks, 2):
            each.up("--wire", wire, "--address", f"10.0.0.{number}/24", "--mac", f"02:00:5e:00:00:{number:02x}")
        yield stacks
    finally:
        for each in stacks:
            each.end()
        shutil.rmtree(home, ignore_errors=True)


def test_bulk_between_two_stacks_on_a_wire(wired: list[Stack]) -> None:
    one, other = wired
    with one.socket(socket.SOCK_STREAM) as listener, other.socket(socket.SOCK_STREAM) as near:
        listener.bind(("10.0.0.2", 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            far.settimeout(60)
            near.settimeout(60)
            exchange(near, far)
            assert shares(near)[0]


def test_one_application_cannot_read_the_memory_of_another(stack: Stack) -> None:
    from usernet.client.memory import Memory

    mine = Memory(str(stack.run_dir))
    assert Memory(str(stack.run_dir)).number == mine.number  # one for each process
    program = stack.application(
        "from usernet.client.memory import Memory\n"
        f"memory = Memory({str(stack.run_dir)!r})\n"
        "print(memory.number, memory.offer(1).hex(), flush=True)\n"
        "input()\n", stdin=-1)
    number, offer = program.stdout.readline().split()
    assert int(number) != mine.number
    assert bytes.fromhex(offer)[8:] != mine.offer(1)[8:]  # another token
    program.kill()
    program.wait()

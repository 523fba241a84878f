"""A TCP connection outlives the death of any process of the stack: every octet once and in order, at both ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import end_all, unique_name
from .peers import KERNEL, STACK, Stack, copy_product, poisoned_by, wait_for

pytestmark = [pytest.mark.tcp(snaplen=128), pytest.mark.provokes("window full", "retransmission", "out of order")]

OCTETS = 12_000_000
KILL_AFTER = 2_000_000
POISON = b"POISONOUS SEGMENT"
BLOCK = bytes(i * 7 % 251 for i in range(251)) * 300


def pattern(offset: int, length: int) -> bytes:
    """Octets that tell their place; at most 65,536."""
    return BLOCK[offset % 251 :][:length]


class Pump(threading.Thread):
    """Sends the pattern, then ends its way."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock, self.sent = sock, 0
        self.start()

    def run(self) -> None:
        while self.sent < OCTETS:
            self.sent += self.sock.send(pattern(self.sent, min(65_536, OCTETS - self.sent)))
        self.sock.shutdown(socket.SHUT_WR)


class Drain(threading.Thread):
    """Takes what comes until its end, and compares."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock, self.received, self.wrong, self.ended = sock, 0, -1, False
        self.start()

    def run(self) -> None:
        while octets := self.sock.recv(65_536):
            if octets != pattern(self.received, len(octets)) and self.wrong < 0:
                self.wrong = self.received
            self.received += len(octets)
        self.ended = True


def connected(stack: Stack) -> tuple[socket.socket, socket.socket]:
    """A connection: the stack's end, which accepted it, and the kernel's."""
    with stack.socket(socket.SOCK_STREAM) as listener:
        listener.bind((STACK, 0))
        listener.listen()
        kernel = stack.kernel.socket(socket.AF_INET, socket.SOCK_STREAM)
        kernel.settimeout(30)
        kernel.connect(listener.getsockname())
        ours, _ = listener.accept()
        ours.settimeout(30)
        return ours, kernel


def both_ways(stack: Stack, fault: Callable[[], None]) -> None:
    ours, kernel = connected(stack)
    with ours, kernel:
        drains = [Drain(ours), Drain(kernel)]
        pumps = [Pump(ours), Pump(kernel)]
        wait_for("a stream to flow", lambda: min(each.received for each in drains) > KILL_AFTER)
        fault()
        wait_for("the end of both streams", lambda: all(each.ended for each in drains), 60)
        assert [(each.received, each.wrong) for each in drains] == [(OCTETS, -1)] * 2
        assert [each.sent for each in pumps] == [OCTETS] * 2


@pytest.mark.parametrize("layer", ["link", "arp", "ip", "icmp", "tcp", "sockets"])
def test_streams_both_ways_outlive_a_sigkill_of_a_layer(stack: Stack, layer: str) -> None:
    before = stack.ask()[layer]
    both_ways(stack, lambda: os.kill(before["pid"], signal.SIGKILL))
    wait_for("the layer to serve", lambda: stack.serves(**{layer: before["incarnation"] + 1}))


@pytest.mark.parametrize("again", range(6))  # what is lost with both is another thing each time
def test_streams_outlive_two_layers_that_die_at_once(stack: Stack, again: int) -> None:
    def fault() -> None:
        pids = stack.pids()
        for layer in ("tcp", "sockets"):
            os.kill(pids[layer], signal.SIGKILL)

    both_ways(stack, fault)


def test_idle_connections_and_listeners_outlive_a_sigkill_of_tcp(stack: Stack) -> None:
    pairs = [connected(stack) for _ in range(10)]
    before = stack.ask()["tcp"]
    os.kill(before["pid"], signal.SIGKILL)
    wait_for("tcp to serve", lambda: stack.serves(tcp=before["incarnation"] + 1))
    for ours, kernel in pairs:
        kernel.sendall(b"still there?")
        assert ours.recv(100) == b"still there?"
        ours.sendall(b"yes")
        assert kernel.recv(100) == b"yes"
        ours.close()
        assert kernel.recv(100) == b""
        kernel.close()


def test_a_restart_of_tcp_during_a_transfer(stack: Stack) -> None:
    both_ways(stack, lambda: stack.run("restart", "tcp"))


def test_octets_that_a_process_sent_before_its_end_arrive_then_fin(stack: Stack) -> None:
    with stack.kernel.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((KERNEL, 0))
        listener.listen()
        listener.settimeout(30)
        port = listener.getsockname()[1]
        program = stack.application(
            "import os, usernet\n"
            f"s = usernet.create_connection(('{KERNEL}', {port}))\n"
            "s.sendall(bytes(range(250)) * 4000)\n"
            "os._exit(0)\n")
        kernel, _ = listener.accept()
        with kernel:
            kernel.settimeout(30)
            received = bytearray()
            while octets := kernel.recv(65_536):
                received += octets
        assert received == bytes(range(250)) * 4000
        assert program.wait(30) == 0


@pytest.fixture
def poisoned(home: Path, tap: None) -> Iterator[Stack]:
    """A stack in a checkout of its own, whose tcp dies of a segment with POISON."""
    checkout = copy_product(home / "checkout-poisoned")
    poisoned_by(checkout, POISON)
    stack = Stack(home, unique_name(), checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    try:
        yield stack.up()
    finally:
        end_all([stack])


def test_a_segment_that_kills_tcp_costs_its_own_connection_only(poisoned: Stack) -> None:
    ours, kernel = connected(poisoned)
    others = [connected(poisoned) for _ in range(5)]
    before = poisoned.ask()["tcp"]
    kernel.sendall(b"before ")
    assert ours.recv(100) == b"before "
    kernel.sendall(POISON)
    with pytest.raises(ConnectionResetError):
        ours.recv(100)
    with pytest.raises(ConnectionResetError):
        kernel.recv(100)
    for our_end, kernel_end in others:
        kernel_end.sendall(b"still there?")
        assert our_end.recv(100) == b"still there?"
        our_end.sendall(b"yes")
        assert kernel_end.recv(100) == b"yes"
    died = [event for event in poisoned.events() if event["event"] == "died"]
    assert [event["layer"] for event in died] == ["tcp", "tcp"]
    assert poisoned.ask()["tcp"]["counters"]["poison_resets"] == 1
    assert poisoned.serves(tcp=before["incarnation"] + 2)
    for sock in (ours, kernel, *(each for pair in others for each in pair)):
        sock.close()

"""Streams of the library, the kernel's TCP at the other end of the wire, and layers that are killed meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from .peers import KERNEL, PATIENCE_S, STACK, Stack, wait_for

OCTETS = 4 << 20
pytestmark = [pytest.mark.tcp, pytest.mark.provokes("window full")]  # bulk, as fast as it goes


def exchange(near: socket.socket, far: socket.socket, half_way) -> None:
    """OCTETS each way at once, judged octet by octet; `half_way` is called when half of them have come."""
    data = os.urandom(OCTETS)
    received: dict[int, bytes] = {}
    halves = threading.Event()

    def send(endpoint: socket.socket) -> None:
        endpoint.sendall(data)
        endpoint.shutdown(socket.SHUT_WR)

    def receive(number: int, endpoint: socket.socket) -> None:
        parts, count = [], 0
        while part := endpoint.recv(1 << 16):
            parts.append(part)
            count += len(part)
            if count >= OCTETS // 2:
                halves.set()
        received[number] = b"".join(parts)

    threads = [threading.Thread(target=send, args=(each,), daemon=True) for each in (near, far)]
    threads += [threading.Thread(target=receive, args=each, daemon=True) for each in enumerate((near, far))]
    for thread in threads:
        thread.start()
    assert halves.wait(PATIENCE_S)
    half_way()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert received == {0: data, 1: data}


@pytest.mark.provokes("retransmission", "out of order")
@pytest.mark.parametrize("layer", ["link", "ip", "tcp", "sockets"])
def test_every_octet_once_and_in_order_over_a_sigkill(stack: Stack, layer: str) -> None:
    before = stack.ask()[layer]
    with stack.socket(socket.SOCK_STREAM) as server:
        server.bind((STACK, 0))
        server.listen()
        with stack.kernel.socket(kind=socket.SOCK_STREAM) as far:
            far.settimeout(PATIENCE_S)
            far.connect(server.getsockname())
            near, _ = server.accept()
            with near:
                near.settimeout(PATIENCE_S)
                exchange(near, far, lambda: os.kill(before["pid"], signal.SIGKILL))
    wait_for("the layer to serve", lambda: stack.serves(**{layer: before["incarnation"] + 1}))


def test_a_connection_to_the_kernel(stack: Stack) -> None:
    with stack.kernel.socket(kind=socket.SOCK_STREAM) as server:
        server.bind((KERNEL, 0))
        server.listen()
        with stack.socket(socket.SOCK_STREAM) as near:
            near.connect(server.getsockname())
            far, peer = server.accept()
            with far:
                far.settimeout(PATIENCE_S)
                assert peer == near.getsockname()
                exchange(near, far, lambda: None)
        with stack.socket(socket.SOCK_STREAM) as near, pytest.raises(ConnectionRefusedError):
            near.connect((KERNEL, 1))


def test_the_kernel_with_nagles_algorithm_does_not_wait_for_a_delayed_ack(stack: Stack) -> None:
    """It writes twice and gets no answer: docs/decisions/acknowledgments.md."""
    with stack.socket(socket.SOCK_STREAM) as server:
        server.bind((STACK, 0))
        server.listen()
        with stack.kernel.socket(kind=socket.SOCK_STREAM) as far:
            far.connect(server.getsockname())
            near, _ = server.accept()
            with near:
                near.settimeout(PATIENCE_S)
                delayed = stack.counters("tcp")["delayed_acks"]
                for _ in range(20):  # the first 16 segments are acknowledged at once anyway
                    far.sendall(b"h" * 100)
                    far.sendall(b"b" * 100)
                    assert near.recv(200, socket.MSG_WAITALL) == b"h" * 100 + b"b" * 100
                assert stack.counters("tcp")["delayed_acks"] == delayed

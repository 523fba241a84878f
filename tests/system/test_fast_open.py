"""Fast Open (RFC 7413) with the kernel's TCP at the other end, each as client and as server."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from .peers import KERNEL, PATIENCE_S, STACK, Stack, wait_for

pytestmark = pytest.mark.tcp

TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, MSG_FASTOPEN = 23, 30, 0x20000000  # linux/tcp.h, linux/socket.h
SYN_DATA = 32  # TCPI_OPT_SYN_DATA: the SYN-ACK acknowledged text of the SYN


def option_bits(endpoint: socket.socket) -> int:
    """tcpi_options."""
    return endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]


def exchange(server: socket.socket, client: socket.socket, send: Callable[[], int]) -> tuple[int, int]:
    """A question by `send`, and its answer; tcpi_options of client and server."""
    client.settimeout(None)  # without a cookie the kernel sends nothing where a call does not wait
    assert send() == 8
    server.settimeout(PATIENCE_S)
    accepted, _ = server.accept()
    with accepted, client:
        for endpoint in (accepted, client):
            endpoint.settimeout(PATIENCE_S)
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(100) == b"answer"
        return option_bits(client) & SYN_DATA, option_bits(accepted) & SYN_DATA


@pytest.mark.parametrize("client_is", ["kernel", "stack"])
@pytest.mark.parametrize("how", ["sendto", "connect"])
def test_the_second_connection_sends_with_its_syn(stack: Stack, client_is: str, how: str) -> None:
    stack.execute("sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_fastopen")

    def kernels() -> socket.socket:
        return stack.kernel.socket(kind=socket.SOCK_STREAM)

    def ours() -> socket.socket:
        return stack.socket(socket.SOCK_STREAM)

    new_client, new_server, address = (kernels, ours, STACK) if client_is == "kernel" else (ours, kernels, KERNEL)
    with new_server() as server:
        server.bind((address, 0))
        server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5)
        assert server.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN) == 5
        server.listen()
        seen: list[tuple[int, int]] = []
        while len(seen) < 6 and seen[-2:] != [(SYN_DATA, SYN_DATA)] * 2:
            client = new_client()
            if how == "sendto":
                send = lambda client=client: client.sendto(b"question", MSG_FASTOPEN, server.getsockname())  # noqa: E731
            else:
                client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
                client.connect(server.getsockname())
                send = lambda client=client: client.send(b"question")  # noqa: E731
            seen.append(exchange(server, client, send))
        # The first had no cookie, unless from another test; one whose SYN is answered after a second gives it up
        assert seen[-2:] == [(SYN_DATA, SYN_DATA)] * 2


def test_a_server_without_fast_open_and_a_port_without_a_server(stack: Stack) -> None:
    with stack.kernel.socket(kind=socket.SOCK_STREAM) as server:
        server.bind((KERNEL, 0))
        server.listen()
        client = stack.socket(socket.SOCK_STREAM)
        assert exchange(server, client,
                        lambda: client.sendto(b"question", MSG_FASTOPEN, server.getsockname())) == (0, 0)
    with stack.socket(socket.SOCK_STREAM) as client:
        with pytest.raises(ConnectionRefusedError):
            client.sendto(b"question", MSG_FASTOPEN, (KERNEL, 1))
        client.settimeout(0)
        assert client.sendto(b"question", MSG_FASTOPEN, (KERNEL, 1)) == 8
        wait_for("the refusal", lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def test_cookies_stay_valid_over_a_restart_of_tcp(stack: Stack) -> None:
    stack.execute("sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_fastopen")
    with stack.socket(socket.SOCK_STREAM) as server:
        server.bind((STACK, 0))
        server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, struct.pack("@i", 5))
        server.listen()

        def connect() -> tuple[int, int]:
            client = stack.kernel.socket(kind=socket.SOCK_STREAM)
            return exchange(server, client,
                            lambda: client.sendto(b"question", MSG_FASTOPEN, server.getsockname()))

        connect()
        stack.run("restart", "tcp")
        assert connect() == (SYN_DATA, SYN_DATA)

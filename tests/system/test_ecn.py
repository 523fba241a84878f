"""Explicit congestion notification (RFC 3168) is agreed on with the kernel, also where that asks for accurate ECN."""

from __future__ import annotations

import socket

import pytest

from .peers import PATIENCE_S, STACK, Stack

ECN = 8  # TCPI_OPT_ECN in tcpi_options (linux/tcp.h)
SETTING = "/proc/sys/net/ipv4/tcp_ecn"


@pytest.mark.parametrize(("setting", "agreed"), [(0, 0), (1, ECN), (3, ECN)])
def test_the_kernel_asks_for_it(stack: Stack, setting: int, agreed: int) -> None:
    # 3: accurate ECN (RFC 9768), for which older kernels have no setting: then it stays with RFC 3168
    stack.execute("sh", "-c", f"echo {setting} > {SETTING} || echo 1 > {SETTING}")
    with stack.socket(socket.SOCK_STREAM) as server:
        server.bind((STACK, 0))
        server.listen()
        with stack.kernel.socket(kind=socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"x" * 100_000)
                accepted.settimeout(PATIENCE_S)
                assert len(accepted.recv(100_000, socket.MSG_WAITALL)) == 100_000
                for endpoint in (client, accepted):
                    options = endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
                    assert options & ECN == agreed

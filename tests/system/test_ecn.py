"""Explicit congestion notification: RFC 3168 with the kernel, also where that asks for accurate feedback; accurate
feedback (RFC 9768) with a peer of scapy's segments, because kernels that have it are rare."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether

from .peers import PATIENCE_S, STACK, Stack, next_frame

pytestmark = [pytest.mark.tcp, pytest.mark.provokes("window full")]

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


PEER, PEER_MAC, PEER_PORT = "10.0.0.9", "02:00:00:00:00:09", 4242
CE = 3


def test_a_peer_with_accurate_feedback_learns_of_each_mark(new_stack) -> None:
    stack = new_stack().up("--sysctl", "net.ipv4.tcp_ecn=3")
    mac = stack.mac
    with stack.socket(socket.SOCK_STREAM) as server, stack.kernel.packet() as cable:
        server.bind((STACK, 0))
        server.listen()
        port = server.getsockname()[1]

        def says(flags: str, seq: int, ack: int = 0, text: bytes = b"", tos: int = 0) -> None:
            cable.send(bytes(Ether(src=PEER_MAC, dst=mac) / IP(src=PEER, dst=STACK, tos=tos)
                             / TCP(sport=PEER_PORT, dport=port, flags=flags, seq=seq, ack=ack, window=65535) / text))

        def hears() -> TCP:
            found = Ether(next_frame(cable, lambda frame: TCP in Ether(frame) and Ether(frame)[TCP].dport == PEER_PORT))
            return found[TCP]

        cable.send(bytes(Ether(src=PEER_MAC, dst=mac)
                         / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, hwdst=mac, pdst=STACK)))  # it knows the peer now
        says("SECN", 100)
        answer = hears()
        assert str(answer.flags) == "SAC"
        number = answer.seq + 1
        says("AC", 101, number)
        accepted, _ = server.accept()
        with accepted:
            for count, flags in enumerate(("ACN", "AECN", "A", "AE")):  # 6, 7, 0, 1
                says("PAEN", 101 + count, number, b"m", tos=CE)
                while (heard := hears()).ack != 102 + count:
                    pass
                assert str(heard.flags) == flags
            accepted.settimeout(PATIENCE_S)
            assert accepted.recv(4, socket.MSG_WAITALL) == b"mmmm"
            options = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
            assert options & ECN

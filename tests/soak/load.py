"""The load of the soak, one process a role: `python -m tests.soak.load ROLE`, until its input ends.

server   an application of the stack: echoes over UDP and TCP
asker    on the kernel's end: asks the stack's server
client   an application of the stack: asks the kernel's echoes, and opens and closes sockets that do nothing
echo     on the kernel's end: echoes over UDP and TCP

A client has a few datagrams under way at a time, and one TCP connection after the other, short and long ones. It prints
how many were answered, and ends with status 1 at the first octet that is not what it sent, or where nothing is answered
for PATIENCE_S.
"""

from __future__ import annotations

import os
import random
import select
import sys
import threading
from types import ModuleType
from typing import Any

UDP_PORT, TCP_PORT = 5201, 5202
STACK, KERNEL = "10.0.0.2", "10.0.0.1"
WINDOW = 8  # datagrams under way at a time
SILENCE_S, PATIENCE_S = 2.0, 60.0
PAUSE_S = 0.01  # between two windows, and two connections: half of a core is left for others
SIZES = (1, 64, 1472, 9000)  # octets of a datagram: the last is fragmented
LENGTHS = (1, 1000, 100_000, 2_000_000)  # octets of a connection, each way
PART = 1 << 16
IDLE_SOCKETS = 50

stopped = threading.Event()


def serve_udp(net: ModuleType, address: str) -> None:
    """Echo datagrams."""
    with net.socket(net.AF_INET, net.SOCK_DGRAM) as server:
        server.bind((address, UDP_PORT))
        server.settimeout(SILENCE_S)
        while not stopped.is_set():
            try:
                server.sendto(*server.recvfrom(1 << 16))
            except TimeoutError:
                continue


def serve_tcp(net: ModuleType, address: str) -> None:
    """Echo connections, one after the other."""
    with net.socket(net.AF_INET, net.SOCK_STREAM) as listener:
        listener.setsockopt(net.SOL_SOCKET, net.SO_REUSEADDR, 1)
        listener.bind((address, TCP_PORT))
        listener.listen(16)
        listener.settimeout(SILENCE_S)
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(PATIENCE_S)
                while octets := connection.recv(PART):
                    connection.sendall(octets)


def ask_udp(net: ModuleType, address: str, rng: random.Random) -> None:
    """Windows of numbered datagrams; one that is lost is counted, and asked no more."""
    answered = lost = number = 0
    with net.socket(net.AF_INET, net.SOCK_DGRAM) as client:
        client.connect((address, UDP_PORT))
        client.settimeout(SILENCE_S)
        while not stopped.wait(PAUSE_S):
            window = set()
            for _ in range(WINDOW):
                number += 1
                window.add(number.to_bytes(8, "big") + bytes(rng.choice(SIZES)))
            for datagram in window:
                client.send(datagram)
            while window:
                try:
                    window.discard(client.recv(1 << 16))
                except TimeoutError:
                    lost += len(window)
                    break
            answered += WINDOW - len(window)
    print(f"{answered} datagrams answered, {lost} not", flush=True)


def ask_tcp(net: ModuleType, address: str, rng: random.Random) -> None:
    """One connection after the other; all that it sends has to come back."""
    connections = octets = 0
    text = rng.randbytes(PART)
    while not stopped.wait(PAUSE_S):
        length = rng.choice(LENGTHS)
        with net.create_connection((address, TCP_PORT), timeout=PATIENCE_S) as connection:
            for start in range(0, length, PART):
                part = text[: min(PART, length - start)]
                connection.sendall(part)
                back = b""
                while len(back) < len(part):
                    more = connection.recv(PART)
                    assert more, "the connection ended early"
                    back += more
                assert back == part, "other octets came back"
        connections += 1
        octets += length
    print(f"{connections} connections, {octets >> 20} MB each way", flush=True)


def churn(net: ModuleType, rng: random.Random) -> None:
    """Open, bind and close sockets, a crowd at a time."""
    opened = 0
    while not stopped.wait(10 * PAUSE_S):
        crowd: list[Any] = []
        for _ in range(rng.randrange(IDLE_SOCKETS)):
            crowd.append(net.socket(net.AF_INET, rng.choice((net.SOCK_DGRAM, net.SOCK_STREAM))))
            crowd[-1].bind((STACK, 0))
        for each in crowd:
            each.close()
        opened += len(crowd)
    print(f"{opened} sockets opened and closed", flush=True)


def main() -> None:
    """Run the role."""
    role = sys.argv[1]
    if role in ("server", "client"):
        import usernet as net
    else:
        import socket as net  # type: ignore[no-redef]
    rng = random.Random(role)
    own, other = (STACK, KERNEL) if role in ("server", "client") else (KERNEL, STACK)
    tasks = {"server": [(serve_udp, own), (serve_tcp, own)], "echo": [(serve_udp, own), (serve_tcp, own)],
             "asker": [(ask_udp, other, rng), (ask_tcp, other, rng)],
             "client": [(ask_udp, other, rng), (ask_tcp, other, rng), (churn, rng)]}[role]
    threads = [threading.Thread(target=_run, args=(task, net, *rest), daemon=True) for task, *rest in tasks]
    for thread in threads:
        thread.start()
    while select.select([sys.stdin], [], [], 1.0)[0] == [] or sys.stdin.read(1):
        pass
    stopped.set()
    for thread in threads:
        thread.join(PATIENCE_S + SILENCE_S)


def _run(task: Any, *arguments: Any) -> None:
    try:
        task(*arguments)
    except BaseException as error:
        print(f"{task.__name__}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()

"""Programs that measure TCP connections: each function is a role of `python -m bench.load`.

`net` is the socket module, the kernel's or usernet's; the server is the same program with both.
"""

from __future__ import annotations

import random
import resource
import selectors
import socket as kernel
import struct
import sys
import time
from collections.abc import Callable
from statistics import quantiles
from types import ModuleType
from typing import Any

import usernet
from bench.load import across_veth
from packets.checksum import checksum
from packets.tcp import SYN, Options, Segment, pseudo_sum

OCTETS = 64
LONE = 3000
QUESTION = bytes(OCTETS)
FLOOD_BATCH_S = 0.01


def _allow_descriptors() -> None:
    """As many as the machine permits: each connection needs one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(net: ModuleType, address: str, port: str) -> None:
    """Send back what each connection says, until its end."""
    _allow_descriptors()
    listener = net.socket(net.AF_INET, net.SOCK_STREAM)
    listener.setsockopt(net.SOL_SOCKET, net.SO_REUSEADDR, 1)
    listener.bind((address, int(port)))
    listener.listen(4096)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock: Any = key.fileobj
            try:
                if sock is listener:
                    accepted, _ = listener.accept()
                    accepted.setblocking(False)
                    selector.register(accepted, selectors.EVENT_READ)
                    continue
                octets = sock.recv(4096)
                if octets:
                    sock.send(octets)
                    continue
            except BlockingIOError:
                continue
            except OSError:  # a connection that was reset has ended; the listener goes on
                if sock is listener:
                    continue
            selector.unregister(sock)
            sock.close()


def tcp_echo(address: str, port: str) -> None:
    """The server as an application of the stack."""
    serve(usernet, address, port)


def kernel_tcp_echo(address: str, port: str) -> None:
    """The server with the kernel's sockets."""
    serve(kernel, address, port)


def _connected(address: str, port: str) -> kernel.socket:
    sock = kernel.create_connection((address, int(port)), 10)
    sock.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)
    return sock


def _ask(sock: kernel.socket) -> None:
    sock.sendall(QUESTION)
    left = OCTETS
    while left:
        left -= len(sock.recv(left)) or sys.exit("the connection has ended")


def tcp_lone(address: str, port: str) -> dict[str, float]:
    """Requests and responses over one connection: microseconds."""
    with _connected(address, port) as sock:
        times = []
        for _ in range(LONE):
            started = time.perf_counter()
            _ask(sock)
            times.append((time.perf_counter() - started) * 1e6)
    cuts = quantiles(times, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def tcp_many(address: str, port: str, connections: str, seconds: str) -> dict[str, float]:
    """Requests and responses over many connections at a time: per second."""
    selector = selectors.DefaultSelector()
    for _ in range(int(connections)):
        sock = _connected(address, port)
        selector.register(sock, selectors.EVENT_READ)
        sock.sendall(QUESTION)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(seconds):
        for key, _ in selector.select(1):
            answering: Any = key.fileobj
            count += len(answering.recv(4096)) // OCTETS
            answering.send(QUESTION)
    return {"per_s": count / (time.perf_counter() - started)}


def tcp_short(address: str, port: str, at_a_time: str, seconds: str) -> dict[str, float]:
    """Connect, request, answer, close, so many at a time: per second."""
    selector = selectors.DefaultSelector()

    def begin() -> None:
        sock = kernel.socket(kernel.AF_INET, kernel.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex((address, int(port)))
        selector.register(sock, selectors.EVENT_WRITE)

    for _ in range(int(at_a_time)):
        begin()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(seconds):
        for key, events in selector.select(1):
            sock: Any = key.fileobj
            if events & selectors.EVENT_WRITE:
                sock.send(QUESTION)
                selector.modify(sock, selectors.EVENT_READ)
                continue
            count += len(sock.recv(4096)) == OCTETS
            selector.unregister(sock)
            sock.close()
            begin()
    return {"per_s": count / (time.perf_counter() - started), "count": count}


def veth_short(at_a_time: str, seconds: str) -> dict:
    """The same with the kernel at both ends, through a veth pair."""
    return across_veth(kernel_tcp_echo, lambda address, port: tcp_short(address, port, at_a_time, seconds))


def tcp_idle(address: str, port: str, connections: str) -> None:
    """Open many connections and leave them alone."""
    _allow_descriptors()
    kept = [_connected(address, port) for _ in range(int(connections))]
    print("ready", flush=True)
    sys.stdin.read()
    del kept


def syn_flood(source: str, address: str, port: str, per_s: str, seconds: str) -> None:
    """SYNs from addresses of the network that do not exist, at a rate.

    All are made before the first is sent: to make one takes longer than to send it, and the flood is to disturb the
    stack, not the programs that share a processor with this one.
    """
    rng = random.Random(1)
    network, destination = kernel.inet_aton(source)[:3], kernel.inet_aton(address)
    count = int(float(per_s) * float(seconds))
    syns = [_syn(network + bytes((rng.randrange(100, 250),)), destination, int(port), rng) for _ in range(count)]
    with kernel.socket(kernel.AF_INET, kernel.SOCK_RAW, kernel.IPPROTO_RAW) as raw:
        print("ready", flush=True)
        started, sent = time.perf_counter(), 0
        while sent < count:
            due = min(count, int((time.perf_counter() - started) * float(per_s)))
            for syn in syns[sent:due]:
                raw.sendto(syn, (address, 0))
            sent = max(sent, due)
            time.sleep(FLOOD_BATCH_S)


def _syn(source: bytes, destination: bytes, port: int, rng: random.Random) -> bytes:
    segment = bytearray(Segment(rng.randrange(1024, 65536), port, rng.getrandbits(32), 0, SYN, 64240,
                                options=Options(mss=1460)).pack())
    struct.pack_into("!H", segment, 16, checksum(segment, pseudo_sum(source, destination, len(segment))))
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0, source, destination) + segment


ROLES: dict[str, Callable[..., Any]] = {
    "tcp-echo": tcp_echo, "kernel-tcp-echo": kernel_tcp_echo, "tcp-lone": tcp_lone, "tcp-many": tcp_many,
    "tcp-short": tcp_short, "veth-short": veth_short, "tcp-idle": tcp_idle, "syn-flood": syn_flood}

"""The load generators, each a process: `python -m bench.load ROLE ...`.

Roles at the kernel's end use the kernel's sockets; the others are applications of the stack. Each prints one JSON line.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import signal
import socket as kernel
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from statistics import median, quantiles

import usernet
from bench import stack, stream_load
from packets.checksum import checksum
from supervisor import sandbox

QUIET_S = 2.0
BATCH = 64  # datagrams per call
SETTLE_S = 1.0  # of load before counting starts, in which layers may move to another core
UDP_SEGMENT, IP_PKTINFO = 103, 8  # linux/udp.h, linux/in.h; the socket module does not have them
NEAR, FAR, VETH_PORT = "10.9.0.1", "10.9.0.2", 5056  # in namespaces created for this purpose
_ECHO = struct.Struct("!BBHHH")


def _summary(times_s: list[float]) -> dict[str, float]:
    return {"p50_us": median(times_s) * 1e6, "p99_us": quantiles(times_s, n=100)[98] * 1e6}


def ping(address: str, count: str) -> dict:
    """Echo requests from a raw socket, one at a time."""
    raw = kernel.socket(kernel.AF_INET, kernel.SOCK_RAW, kernel.IPPROTO_ICMP)
    raw.settimeout(QUIET_S)
    raw.connect((address, 0))
    identifier = os.getpid() & 0xFFFF
    times = []
    for number in range(int(count) + 50):
        message = _ECHO.pack(8, 0, 0, identifier, number & 0xFFFF) + bytes(56)
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
        started = time.perf_counter()
        raw.send(message)
        while True:
            reply = raw.recv(2048)
            if reply[20] == 0 and reply[24:28] == message[4:8]:
                break
        times.append(time.perf_counter() - started)
    return _summary(times[50:])


def first_ping(address: str) -> dict:
    """Wait until one echo request is answered; returns CLOCK_MONOTONIC then."""
    raw = kernel.socket(kernel.AF_INET, kernel.SOCK_RAW, kernel.IPPROTO_ICMP)
    raw.settimeout(0.05)
    message = _ECHO.pack(8, 0, 0, 1, 1)
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    for _ in range(200):
        raw.sendto(message, (address, 0))
        try:
            while raw.recv(2048)[20] != 0:
                pass
        except TimeoutError:
            continue
        break
    return {"at": time.monotonic()}


def lone(address: str, port: str, size: str, count: str) -> dict:
    """UDP echoes one at a time."""
    endpoint = kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    endpoint.settimeout(QUIET_S)
    endpoint.connect((address, int(port)))
    payload = bytes(int(size))
    times = []
    for _ in range(int(count) + 100):
        started = time.perf_counter()
        endpoint.send(payload)
        endpoint.recv(2048)
        times.append(time.perf_counter() - started)
    return _summary(times[100:])


def window(address: str, port: str, size: str, in_flight: str, seconds: str) -> dict:
    """UDP echoes with a given number in flight."""
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as endpoint:
        endpoint.connect((address, int(port)))
        return _echoes(endpoint, partial(endpoint.send, bytes(int(size))), int(in_flight), float(seconds))


def peers(address: str, port: str, size: str, in_flight: str, seconds: str, count: str, first: str) -> dict:
    """As `window`, from `count` addresses in turn, starting at `first`; the kernel's end gets these addresses."""
    octets = [IPv4Address(int(IPv4Address(first)) + number).packed for number in range(int(count))]
    added = "".join(f"address replace {IPv4Address(each)}/32 dev lo\n" for each in octets)
    subprocess.run(["ip", "-batch", "-"], input=f"link set lo up\n{added}", text=True, check=True)
    # ip(7): struct in_pktinfo; the kernel selects the interface.
    sources = itertools.cycle([[(kernel.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4x", 0, each))] for each in octets])
    to, payload = (address, int(port)), [bytes(int(size))]
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(QUIET_S)
        for _ in octets:  # each address becomes a neighbour, a flow and a destination
            endpoint.sendmsg(payload, next(sources), 0, to)
            endpoint.recv(2048)
        return _echoes(endpoint, lambda: endpoint.sendmsg(payload, next(sources), 0, to), int(in_flight),
                       float(seconds))


def _echoes(endpoint: kernel.socket, send: Callable[[], int], in_flight: int, seconds: float) -> dict:
    """Keep `count` echoes in flight. Counts the echoes after SETTLE_S, and the stack's processor time meanwhile."""
    endpoint.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 1 << 22)
    endpoint.settimeout(QUIET_S)
    receive, clock = endpoint.recv, time.perf_counter
    measured = stack.Bench(os.environ["USERNET_NAME"])
    for _ in range(in_flight):
        send()
    used_s = 0.0
    for lasts in (SETTLE_S, seconds):
        used_s, received, started = stack.cpu_s(measured), 0, clock()
        end = started + lasts
        while clock() < end:
            receive(2048)
            send()
            received += 1
    return {"per_s": received / (clock() - started), "cpu_us": (stack.cpu_s(measured) - used_s) * 1e6 / received}


def flood(address: str, port: str, size: str, seconds: str) -> dict:
    """Send as fast as the kernel accepts datagrams, and count the answers."""
    endpoint = kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    endpoint.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 1 << 22)
    endpoint.connect((address, int(port)))
    endpoint.setblocking(False)
    payload = bytes(int(size))
    sent = received = 0
    started = time.perf_counter()
    while time.perf_counter() - started < float(seconds):
        for _ in range(16):
            try:
                endpoint.send(payload)
                sent += 1
            except BlockingIOError:
                pass
        try:
            while True:
                endpoint.recv(2048)
                received += 1
        except BlockingIOError:
            pass
    elapsed = time.perf_counter() - started
    return {"sent_per_s": sent / elapsed, "per_s": received / elapsed}


def echo(address: str, port: str) -> None:
    """An application that echoes until it is ended, one datagram per call, by calls of the socket module only."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.bind((address, int(port)))
        print("ready", flush=True)
        receive, send = endpoint.recvfrom, endpoint.sendto
        while True:
            data, peer = receive(65536)
            send(data, peer)


def sockperf_echo(address: str, port: str) -> None:
    """An echo server for sockperf: the lowest bit of the flags distinguishes client and server."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            data, peer = endpoint.recvfrom(65536)
            endpoint.sendto(data[:9] + bytes((data[9] & 0xFE,)) + data[10:], peer)


def echo_many(address: str, port: str) -> None:
    """The same, with all available datagrams per call."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            endpoint.sendmany(endpoint.recvmany(256))


def veth() -> dict:
    """The kernel's own echo, through a veth pair into another network namespace, for scale and to test the load
    generators."""
    return across_veth(kernel_echo, lambda address, port: {**lone(address, port, "64", "2000"),
                                                           **window(address, port, "64", "64", "1")})


def across_veth(serve: Callable[[str, str], None], ask: Callable[[str, str], dict]) -> dict:
    """Serve in another network namespace, behind a veth pair, and ask from this one."""
    ready, go = os.pipe(), os.pipe()
    server = os.fork()
    if server == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(sandbox.CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot create a network namespace")
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        subprocess.run(["ip", "-batch", "-"], input=f"address add {FAR}/24 dev b1\nlink set b1 up\n", text=True)
        sys.stdout = os.fdopen(ready[1], "w")
        serve(FAR, str(VETH_PORT))
    try:
        os.read(ready[0], 1)
        commands = f"link add b0 type veth peer name b1 netns {server}\naddress add {NEAR}/24 dev b0\nlink set b0 up\n"
        subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
        os.write(go[1], b"x")
        os.read(ready[0], 16)
        return ask(FAR, str(VETH_PORT))
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def kernel_echo(address: str, port: str) -> None:
    """The same with the kernel's sockets."""
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as endpoint:
        endpoint.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            data, peer = endpoint.recvfrom(65536)
            endpoint.sendto(data, peer)


def pour(address: str, port: str, size: str, seconds: str) -> dict:
    """Send datagrams from the stack as fast as it accepts them, many per call."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.connect((address, int(port)))
        batch = [(bytes(int(size)), None)] * BATCH
        return _timed(lambda: endpoint.sendmany(batch), float(seconds))


def kernel_pour(address: str, port: str, size: str, seconds: str, per_s: str) -> dict:
    """The same from the kernel, with UDP_SEGMENT, `per_s` datagrams per second."""
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as endpoint:
        endpoint.setsockopt(kernel.SOL_UDP, UDP_SEGMENT, int(size))
        endpoint.connect((address, int(port)))
        count = min(BATCH, 65507 // int(size))
        whole = bytes(int(size) * count)
        started, sent = time.perf_counter(), 0

        def send() -> int:
            nonlocal sent
            ahead = sent / float(per_s) - (time.perf_counter() - started)
            if ahead > 0:
                time.sleep(ahead)
            endpoint.send(whole)
            sent += count
            return count

        return _timed(send, float(seconds))


def _timed(send: Callable[[], int], seconds: float) -> dict:
    started, sent = time.perf_counter(), 0
    try:
        while time.perf_counter() - started < seconds:
            sent += send()
    except ConnectionRefusedError:
        pass  # the sink has ended
    return {"per_s": sent / (time.perf_counter() - started)}


def sink(address: str, port: str, seconds: str) -> dict:
    """An application that counts the datagrams within `seconds` after the first."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.setsockopt(usernet.SOL_SOCKET, usernet.SO_RCVBUF, 1 << 22)
        endpoint.bind((address, int(port)))
        return _counted(endpoint, lambda: [len(data) for data, _ in endpoint.recvmany(256)], float(seconds))


def kernel_sink(address: str, port: str, seconds: str) -> dict:
    """The same with the kernel's sockets, one datagram per call."""
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as endpoint:
        endpoint.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 1 << 22)
        endpoint.bind((address, int(port)))
        buffer = bytearray(2048)
        return _counted(endpoint, lambda: [endpoint.recv_into(buffer) for _ in range(16)], float(seconds))


def _counted(endpoint, receive: Callable[[], list[int]], seconds: float) -> dict:
    print("ready", flush=True)
    endpoint.settimeout(QUIET_S)
    datagrams, octets = 1, len(endpoint.recv(2048))
    started = last = time.perf_counter()
    try:
        while last - started < seconds:
            lengths = receive()
            last = time.perf_counter()
            datagrams += len(lengths)
            octets += sum(lengths)
    except TimeoutError:
        pass  # the source has ended; the time counts up to the last datagram
    return {"per_s": datagrams / (last - started), "mbit_s": octets * 8e-6 / (last - started)}


def idle_sockets(count: str, first_port: str) -> None:
    """An application that binds many sockets and does not use them."""
    sockets = []
    for number in range(int(count)):
        endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
        endpoint.bind(("0.0.0.0", int(first_port) + number))
        sockets.append(endpoint)
    print("ready", flush=True)
    select.select([sys.stdin], [], [])


def applications(count: str, first_port: str) -> None:
    """Many applications, each a process with one bound socket that it does not use."""
    ready, told = os.pipe()
    end, parent_lives = os.pipe()
    for number in range(int(count)):
        if os.fork() == 0:
            os.close(parent_lives)
            try:
                with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
                    endpoint.bind(("0.0.0.0", int(first_port) + number))
                    os.write(told, b"x")
                    os.read(end, 1)
            except OSError as error:
                print(error, file=sys.stderr, flush=True)
                os.write(told, b"!")
            os._exit(0)
    if any(os.read(ready, 1) == b"!" for _ in range(int(count))):
        sys.exit(1)
    print("ready", flush=True)
    select.select([sys.stdin], [], [])


if __name__ == "__main__":
    from bench import connection_load, http_load

    roles = {**connection_load.ROLES, **http_load.ROLES,
             "ping": ping, "first-ping": first_ping, "lone": lone, "window": window, "flood": flood, "echo": echo,
             "kernel-echo": kernel_echo, "echo-many": echo_many, "sockperf-echo": sockperf_echo, "peers": peers,
             "veth": veth, "applications": applications, "idle-sockets": idle_sockets,
             "pour": pour, "kernel-pour": kernel_pour, "sink": sink, "kernel-sink": kernel_sink, **stream_load.ROLES}
    result = roles[sys.argv[1]](*sys.argv[2:])
    if result is not None:
        print(json.dumps(result))

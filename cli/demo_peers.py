"""The programs that talk to each other in the demo, each a process: `python -m cli.demo_peers ROLE`.

The programs named kernel use the kernel's sockets and run inside the sandbox; the applications use usernet's sockets.
"""

from __future__ import annotations

import os
import select
import socket as kernel
import struct
import sys
import time
from collections.abc import Callable

import usernet
from packets.checksum import checksum

_ECHO = struct.Struct("!BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
INTERVAL_S = 0.005  # 200 messages a second while a layer is killed
LOOK_AGAIN_S = 0.01
UNANSWERED_MAX = 64  # the receive buffer has room for four times as many if this process waits for its processor
PATIENCE_S = 10.0  # for an answer: on a busy machine a process may wait for its processor for seconds


def kernel_ping(address: str, count: str) -> None:
    """Ping through the kernel, by a raw socket; print one line per reply."""
    raw = kernel.socket(kernel.AF_INET, kernel.SOCK_RAW, kernel.IPPROTO_ICMP)
    raw.settimeout(PATIENCE_S)
    identifier = os.getpid() & 0xFFFF
    for number in range(1, int(count) + 1):
        message = _ECHO.pack(8, 0, 0, identifier, number) + bytes(range(56))
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
        started = time.perf_counter()
        raw.sendto(message, (address, 0))
        while True:
            reply, peer = raw.recvfrom(2048)
            kind, _, _, theirs, sequence = _ECHO.unpack_from(reply, 20)
            if (kind, theirs, sequence) == (0, identifier, number):
                break
        elapsed_ms = (time.perf_counter() - started) * 1000
        print(f"{len(reply) - 20} octets from {peer[0]}: icmp_seq={number} ttl={reply[8]} time={elapsed_ms:.2f} ms",
              flush=True)
        time.sleep(0.1)


def echo(address: str, port: str) -> None:
    """An application of the stack that returns each message with its own name in front."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            data, peer = endpoint.recvfrom(65536)
            endpoint.sendto(b"application: " + data, peer)


def talk(library: str, address: str, port: str, *words: str) -> None:
    """Send each word to an echo server, by the kernel's sockets or by the stack's, and print the answers."""
    module = kernel if library == "kernel" else usernet
    with module.socket(module.AF_INET, module.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(PATIENCE_S)
        endpoint.connect((address, int(port)))
        for word in words:
            endpoint.send(word.encode())
            print(f"{word!r} -> {endpoint.recv(2048).decode()!r}", flush=True)


def stream(address: str, port: str, seconds: str) -> None:
    """Send numbered messages from the kernel to an echo server; print "sent answered longest_gap_ms"."""
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as endpoint:
        endpoint.connect((address, int(port)))
        answered: set[bytes] = set()
        sent = 0
        started = last = time.monotonic()
        longest = 0.0
        print("started", flush=True)
        until = started + float(seconds)
        while (now := time.monotonic()) < until or (len(answered) < sent and now < until + PATIENCE_S):
            due = started + sent * INTERVAL_S
            if due <= now < until and sent - len(answered) < UNANSWERED_MAX:
                endpoint.send(b"%d" % sent)
                sent += 1
                due += INTERVAL_S
            if select.select([endpoint], [], [], due - now if now < due < until else LOOK_AGAIN_S)[0]:
                answered.add(endpoint.recv(2048))
                longest = max(longest, time.monotonic() - last)
                last = time.monotonic()
        print(sent, len(answered), round(longest * 1000, 1), flush=True)


if __name__ == "__main__":
    roles: dict[str, Callable[..., None]] = {"kernel-ping": kernel_ping, "echo": echo, "talk": talk, "stream": stream}
    roles[sys.argv[1]](*sys.argv[2:])

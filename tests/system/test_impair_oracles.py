"""`impair` against oracles that do not know it: the kernel's nftables and tbf, and the laws that netem promises.

test_impair_system.py compares with netem itself where the kernel has it (docs/decisions/impair.md). Here loss is
compared with nftables' `numgen random`, and the rate with tc-tbf(8), for pings and for TCP transfers; everything else
with its law: binomial shares within five standard deviations, the one-sided Kolmogorov-Smirnov bound for delays, which
a busy machine can only make longer.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from .peers import PATIENCE_S, STACK, Stack, wait_for

pytestmark = pytest.mark.long

TOTAL_RETRANS_AT = 100  # linux/tcp.h, struct tcp_info: eight octets, then the 24th 32-bit field
REPLY = re.compile(r"icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms( \(DUP!\))?")
N = 400
FURTHER = 60  # requests after those that count, 5 ms apart: more than any jitter here


def pinged(stack: Stack, count: int = N, size: int = 56, further: int = FURTHER) -> tuple[dict[int, float], int]:
    """({sequence number: round trip in ms} of the first replies, number of duplicates), of the first `count` requests.

    With -w, because ping(8) would soon stop waiting for a late one (Stack.pinged); it goes on until as many came,
    whichever, so `further` must be more than may overtake.
    """
    out = stack.execute("ping", "-c", count + further, "-i", 0.005, "-w", 30, "-s", size, STACK).stdout
    times: dict[int, float] = {}
    duplicates = 0
    for number, ms, again in REPLY.findall(out):
        if int(number) > count:
            continue
        times.setdefault(int(number), float(ms))
        duplicates += bool(again)
    return times, duplicates


def assert_share(found: int, count: int, share: float, spare: int = 1) -> None:
    """A binomial number within five standard deviations; `spare`: what ARP may take from it."""
    assert abs(found - count * share) <= 5 * math.sqrt(count * share * (1 - share)) + spare, (found, count, share)


@pytest.fixture(scope="module")
def plain(home, tap) -> Iterator[Stack]:
    """A stack without offload, and a kernel that sends single segments: a packet is a packet for all."""
    from .conftest import end_all, unique_name

    stack = Stack(home, unique_name())
    try:
        stack.up("--no-offload")
        stack.execute("ip", "link", "set", "tap0", "gso_max_segs", 1)
        stack.execute("ip", "neigh", "replace", STACK, "lladdr", stack.mac, "dev", "tap0")
        pinged(stack, 1)
        yield stack
    finally:
        end_all([stack])


@contextlib.contextmanager
def kernels_loss(stack: Stack, percent: int) -> Iterator[None]:
    """nftables drops a share of what comes from the stack. (What the kernel's TCP sends would not be lost: it hears of
    the drop.)"""
    stack.execute("nft", "add table ip oracle; add chain ip oracle in { type filter hook prerouting priority 0; }; "
                  f"add rule ip oracle in ip saddr {STACK} numgen random mod 100 < {percent} drop")
    try:
        yield
    finally:
        stack.execute("nft", "delete table ip oracle")


@contextlib.contextmanager
def kernels_rate(stack: Stack, rate: str) -> Iterator[None]:
    """tbf limits what the kernel sends to the stack."""
    stack.execute("tc", "qdisc", "add", "dev", "tap0", "root", "tbf", "rate", rate, "burst", 1600, "limit", 300000)
    try:
        yield
    finally:
        stack.execute("tc", "qdisc", "del", "dev", "tap0", "root")


@contextlib.contextmanager
def ours(stack: Stack, *words: object, pipe: str = "device:link") -> Iterator[None]:
    """An impairment, by default of what the kernel sends to the stack."""
    stack.run("impair", pipe, *words)
    try:
        yield
    finally:
        stack.run("impair", "--clear")


def transferred(stack: Stack, octets: int, to_kernel: bool = False) -> tuple[float, int]:
    """(seconds, segments that were retransmitted) of a transfer between the kernel and an application of the stack."""
    with stack.socket(socket.SOCK_STREAM) as listener, stack.kernel.socket(kind=socket.SOCK_STREAM) as theirs:
        listener.bind((STACK, 0))
        listener.listen()
        theirs.settimeout(PATIENCE_S)
        theirs.connect(listener.getsockname())
        app, _ = listener.accept()
        with app:
            app.settimeout(3 * PATIENCE_S)
            theirs.settimeout(3 * PATIENCE_S)
            source, sink = (app, theirs) if to_kernel else (theirs, app)
            sender = threading.Thread(target=source.sendall, args=(bytes(octets),))
            started, got = time.monotonic(), 0
            sender.start()
            while got < octets and (part := sink.recv(1 << 16)):
                got += len(part)
            took = time.monotonic() - started
            sender.join(PATIENCE_S)
            assert got == octets
            info = source.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return took, struct.unpack_from("=I", info, TOTAL_RETRANS_AT)[0]


def test_loss_of_pings_as_by_nftables(plain):
    with kernels_loss(plain, 20):
        theirs = len(pinged(plain)[0])
    with ours(plain, "--loss", "20%", pipe="link:device"):
        mine = len(pinged(plain)[0])
    assert_share(theirs, N, 0.8)
    assert_share(mine, N, 0.8)


def test_retransmissions_of_a_transfer_as_by_nftables(plain):
    octets = 2_000_000
    with kernels_loss(plain, 3):
        _, theirs = transferred(plain, octets, to_kernel=True)
    with ours(plain, "--loss", "3%", pipe="link:device"):
        _, mine = transferred(plain, octets, to_kernel=True)
    lost = octets / 1448 * 0.03 / 0.97
    within = 5 * math.sqrt(lost)
    assert lost - within <= theirs <= 2 * lost + within  # a TCP may send more again than was lost
    assert lost - within <= mine <= 2 * lost + within
    assert abs(mine - theirs) <= 5 * math.sqrt(theirs + mine) + 0.5 * max(theirs, mine)


def test_rate_of_datagrams_and_of_a_transfer_as_by_tbf(plain):
    def spaced() -> float:
        """Seconds until the last of 60 frames of 1250 octets has arrived; the first may leave at once."""
        with plain.bound() as app, plain.kernel.udp() as peer:
            started = time.monotonic()
            for _ in range(60):
                peer.sendto(bytes(1208), app.getsockname())
            for _ in range(60):
                app.recv(2000)
            return time.monotonic() - started

    def as_long() -> bool:
        with kernels_rate(plain, "2mbit"):
            theirs, their_transfer = spaced(), transferred(plain, 400_000)[0]
        with ours(plain, "--rate", "2mbit"):
            mine, my_transfer = spaced(), transferred(plain, 400_000)[0]
        for took in (mine, theirs):
            assert took >= 59 * 10_000 / 2e6 - 0.005  # the first of them may have been read late
        for took in (my_transfer, their_transfer):
            assert took >= 0.95 * 400_000 * 8 / 2e6
        return my_transfer <= 1.5 * their_transfer + 1  # it is the rate that takes the time, in both

    wait_for("a transfer for which no process waited long", as_long, timeout_s=60)


def test_delay_and_jitter_by_their_law(plain):
    with ours(plain, "--delay", "30ms", "10ms", "--queue", "10000", "--seed", "1"):
        times = sorted(pinged(plain)[0].values())
    assert len(times) == N
    assert times[0] >= 20
    bound = 1.95 / math.sqrt(N)  # one-sided, exceeded by chance in one of 2,000 runs
    for place, ms in enumerate(times, 1):
        assert place / N <= min(max((ms - 20) / 20, 0), 1) + bound, (place, ms)  # no earlier than uniform in [20, 40]
    with ours(plain, "--delay", "30ms"):
        assert min(pinged(plain, 50)[0].values()) >= 30


def test_duplicates_and_reordering_by_their_law(plain):
    with ours(plain, "--duplicate", "30%"):
        times, duplicates = pinged(plain)
    assert len(times) == N
    assert_share(duplicates, N, 0.3)
    with ours(plain, "--delay", "400ms", "--reorder", "25%"):
        times, _ = pinged(plain, further=200)
    assert len(times) == N
    assert_share(sum(ms < 400 for ms in times.values()), N, 0.25)  # those are sent at once


def test_bursts_by_the_law_of_gilbert_and_elliott(plain):
    to_bad, to_good = 0.05, 0.25
    with ours(plain, "--loss", "gemodel", "5%", "25%"):
        there = set(pinged(plain, 1000)[0])
    lost = sorted(set(range(1, 1001)) - there)
    share = to_bad / (to_bad + to_good)
    # the variance of the mean of a two-state chain with the second eigenvalue 1 - p - r
    memory = 1 - to_bad - to_good
    deviation = math.sqrt(1000 * share * (1 - share) * (1 + memory) / (1 - memory))
    assert abs(len(lost) - 1000 * share) <= 5 * deviation
    bursts = sum(number - 1 not in lost for number in lost)
    mean, deviation = 1 / to_good, math.sqrt(1 - to_good) / to_good
    assert abs(len(lost) / bursts - mean) <= 5 * deviation / math.sqrt(bursts)

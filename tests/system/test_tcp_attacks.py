"""Attackers on the cable: nothing dies, memory stays bounded, and others' connections go on, at what they cost before.

What a connection costs is measured in processor time: how long it takes says more of a busy machine than of the stack.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.tcpcases.octets import parse_tcp

from .attacker import Attacker, mutated, processor_s, resident
from .peers import KERNEL, PATIENCE_S, STACK, Stack, wait_for
from .test_tcp_survival import connected

MEGABYTE = 1 << 20
MEMORY_MAX = 128 * MEGABYTE  # what an attack may add
SEGMENTS = 100_000
SLOW_READERS = 2000
TRANSFER = 4 * MEGABYTE
DEARER_MAX, BUSY_MAX = 1.25, 0.2  # others' connections keep 0.8 of their speed
OPTIONS: dict[str, tuple] = {"mss": (1460,), "sackOK": ()}


@contextlib.contextmanager
def listening(stack: Stack, backlog: int = 4096) -> Iterator[tuple]:
    """A listener of an application, and its port."""
    with stack.socket(socket.SOCK_STREAM) as listener:
        listener.bind((STACK, 0))
        listener.listen(backlog)
        yield listener, listener.getsockname()[1]


@pytest.fixture
def unharmed(stack: Stack) -> Iterator[None]:
    """No layer was started again, and memory is bounded."""
    before, octets = len(stack.events()), resident(stack)
    yield
    assert [event for event in stack.events()[before:] if event["event"] in ("died", "poison", "hung")] == []
    assert resident(stack) < octets + MEMORY_MAX


def transfer(stack: Stack, octets: int = TRANSFER) -> None:
    """Octets from the stack to the kernel and back, compared, while whatever goes on goes on."""
    data = random.Random(1).randbytes(octets)
    ours, kernel = connected(stack)
    with ours, kernel:
        for sender, receiver in ((ours, kernel), (kernel, ours)):
            thread = threading.Thread(target=sender.sendall, args=(data,), daemon=True)
            thread.start()
            got = bytearray()
            while len(got) < octets and (part := receiver.recv(MEGABYTE)):
                got += part
            thread.join()
            assert got == data


def busy(stack: Stack, seconds: float = 1.0) -> float:
    """The share of a processor that the layers take while nobody asks for anything."""
    begun = processor_s(stack)
    time.sleep(seconds)
    return (processor_s(stack) - begun) / seconds


def cost_s(stack: Stack) -> float:
    """Processor time of the layers for a transfer, without what they do in any case: the least of several."""
    otherwise, costs = busy(stack), []
    for _ in range(5):
        begun, at = processor_s(stack), time.monotonic()
        transfer(stack)
        costs.append(processor_s(stack) - begun - otherwise * (time.monotonic() - at))
    return min(costs)


def test_rfc4987_a_flood_of_syns_leaves_room_for_others(stack: Stack, unharmed) -> None:
    before = stack.counters("tcp")["cookies_sent"]
    rng = random.Random(2)
    with Attacker(stack) as attacker, listening(stack) as (listener, port):
        def flood() -> Iterator[bytes]:
            for _ in range(6000):
                source = IPv4Address(f"10.0.0.{rng.randrange(3, 250)}")
                yield attacker.segment(rng.randrange(1024, 65536), port, "S", rng.randrange(1 << 32), source=source,
                                       **OPTIONS)

        flooding = threading.Thread(target=attacker.send, args=(flood(),))
        flooding.start()
        served = 0
        while flooding.is_alive() or not served:
            with stack.kernel.socket(kind=socket.SOCK_STREAM) as kernel:
                kernel.connect((STACK, port))
                accepted, peer = listener.accept()
                with accepted:
                    assert peer[0] == KERNEL
                    accepted.sendall(b"served")
                    assert kernel.recv(6, socket.MSG_WAITALL) == b"served"
            served += 1
        flooding.join()
    assert stack.counters("tcp")["cookies_sent"] > before


@pytest.mark.parametrize(("flags", "counter"), [("R", "blind_reset"), ("S", "unexpected_syn"),
                                                ("P.", "unacceptable_ack")])
def test_rfc5961_blind_segments_all_over_sequence_space_change_nothing(stack: Stack, unharmed, flags: str,
                                                                        counter: str) -> None:
    """From the peer's address: 4,000 over all numbers, and 60 within the window, but none exactly at its start."""
    ours, kernel = connected(stack)
    before = stack.counters("tcp")[counter]
    with ours, kernel, Attacker(stack) as attacker:
        source_port, port = kernel.getsockname()[1], ours.getsockname()[1]
        kernel.sendall(b"seen on the cable")
        seen = iter(lambda: parse_tcp(attacker.cable.recv(1 << 16)[14:]), 0)  # what the kernel sends, too
        last = next(each for each in seen if each is not None and each.payload == b"seen on the cable")
        start, never_sent = last.seq + 17, last.ack ^ 1 << 31
        numbers = [start + 1 + at for at in (*range(0, 60_000, 1000), *range(1 << 20, 1 << 32, 1 << 20))]
        attacker.send(attacker.segment(source_port, port, flags, seq, never_sent, b"injected" * (flags == "P."),
                                       source=IPv4Address(KERNEL)) for seq in numbers)
        data = random.Random(3).randbytes(200_000)
        kernel.sendall(data)
        kernel.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: ours.recv(MEGABYTE), b"")) == b"seen on the cable" + data
        ours.sendall(b"still here")
        assert kernel.recv(10, socket.MSG_WAITALL) == b"still here"
    assert stack.counters("tcp")[counter] > before


def test_optimistic_acks_and_a_receiver_that_reneges_get_the_octets_again(stack: Stack, unharmed) -> None:
    """It acknowledges what was never sent, then reports by SACK what it has thrown away: RFC 2018 section 8."""
    before = stack.counters("tcp")["unacceptable_ack"]
    with Attacker(stack) as attacker, listening(stack) as (listener, port):
        said = attacker.open(port, [4000], 65535, **OPTIONS)[4000]
        accepted, _ = listener.accept()
        with accepted:
            first = said.seq + 1
            ahead = range(1, 1 << 20, 1 << 13)
            attacker.send(attacker.segment(4000, port, ".", 4001, first + each) for each in ahead)
            accepted.sendall(bytes(8 * 1460))
            attacker.send([attacker.segment(4000, port, ".", 4001, first, sack=((first + 1460, first + 4 * 1460),))])
            again = {0}
            for segment in attacker.heard():
                again.add((segment.seq + len(segment.payload) - first) % (1 << 32))
                if (segment.seq - first) % (1 << 32) == 1460 and len(again) > 1:
                    break
                if 1460 in again:  # the hole is filled; what was reported is not there any more
                    attacker.send([attacker.segment(4000, port, ".", 4001, first + 1460)])
            else:
                raise AssertionError(f"what was thrown away does not come again: {sorted(again)}")
            attacker.send([attacker.segment(4000, port, "R", 4001)])
    assert stack.counters("tcp")["unacceptable_ack"] > before


def test_tiny_segments_out_of_order_are_put_together(stack: Stack, unharmed) -> None:
    octets = random.Random(4).randbytes(6000)
    with Attacker(stack) as attacker, listening(stack) as (listener, port):
        said = attacker.open(port, [4001], 65535, **OPTIONS)[4001]
        accepted, _ = listener.accept()
        with accepted:
            for parity in (1, 0):
                attacker.send(attacker.segment(4001, port, ".", 4002 + at, said.seq + 1, octets[at : at + 1])
                              for at in reversed(range(parity, len(octets), 2)))
            # What was too much to keep is sent again, as by any TCP.
            attacker.send(attacker.segment(4001, port, ".", 4002 + at, said.seq + 1, octets[at : at + 1000])
                          for at in range(0, len(octets), 1000))
            assert accepted.recv(len(octets), socket.MSG_WAITALL) == octets
            attacker.send([attacker.segment(4001, port, "R", 4002 + len(octets))])


ATTACKED = """import socket, sys, usernet
with usernet.socket(usernet.AF_INET, usernet.SOCK_STREAM) as listener:
    listener.bind(("%s", 0))
    listener.listen(4096)
    print(listener.getsockname()[1], flush=True)
    held = [listener.accept()[0] for _ in range(%d)]
    for each in held:
        each.setblocking(False)
        each.send(bytes(16_384))
    print("sent", flush=True)
    sys.stdin.read()
"""


@pytest.mark.timeout(420)
@pytest.mark.parametrize("window", [0, 1000], ids=["sockstress", "slow readers"])
def test_connections_that_do_not_read_cost_other_applications_nothing(stack: Stack, unharmed, quiet, window: int
                                                                      ) -> None:
    """2,000 connections whose peer holds its window shut, or opens it a little; 16 kB wait for each."""
    usual = cost_s(stack)
    ports = range(10_000, 10_000 + SLOW_READERS)
    attacked = stack.application(ATTACKED % (STACK, SLOW_READERS), stdin=subprocess.PIPE)
    port = int(attacked.stdout.readline())
    with Attacker(stack) as attacker:
        answers = attacker.open(port, ports, window, **OPTIONS)
        assert attacked.stdout.readline() == "sent\n"
        wait_for("probes to become rare", lambda: busy(stack) <= BUSY_MAX, 60)
        # Once is enough: what shares the caches and the core of a machine can only add to it.
        wait_for("a transfer as cheap as usual", lambda: cost_s(stack) <= usual * DEARER_MAX, 120)
        attacker.send(attacker.segment(each, port, "R", each + 1, answers[each].seq + 1) for each in ports)
    attacked.stdin.close()
    assert attacked.wait(PATIENCE_S) == 0


@pytest.mark.timeout(300)
def test_mutated_segments_in_all_states_kill_nothing(stack: Stack, unharmed, quiet) -> None:
    rng = random.Random(5)
    with Attacker(stack) as attacker, listening(stack) as (listener, port):
        listener.setblocking(False)
        peers = list(range(20_000, 20_040))
        attacker.open(port, peers, 65535, **OPTIONS)

        def segments() -> Iterator[bytes]:
            for number in range(SEGMENTS):
                peer = rng.choice(peers)
                flags = rng.choice(("S", ".", "P.", "F.", "R", "R.", "S.", "FPU.", "", "SF", "U."))
                seq = peer + 1 + rng.choice((-1, 0, 0, 0, 1, 1460, 65_536, rng.randrange(1 << 32)))
                yield mutated(attacker.segment(peer + rng.randrange(2) * 100, port, flags, seq, rng.randrange(1 << 32),
                                               rng.randbytes(rng.choice((0, 0, 1, 100, 1400))),
                                               rng.choice((0, 1, 1000, 65535)), **rng.choice((OPTIONS, {}))), rng)
                if number % 500 == 0:
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            listener.accept()[0].close()

        assert attacker.send(segments()) == SEGMENTS
    transfer(stack)


def test_nmap_finds_sequence_numbers_hard_to_predict(stack: Stack, unharmed) -> None:
    with listening(stack) as (_, port):
        said = stack.execute("nmap", "-n", "-Pn", "-O", "-v", "--max-os-tries", 1, "-p", f"{port},1", STACK,
                             timeout=100).stdout
    assert "Good luck!" in said.partition("TCP Sequence Prediction: ")[2].splitlines()[0], said

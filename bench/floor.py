"""The floor: a chain of bare pyzmq sockets with as many hops, as a measure of what the pipes alone cost.

A chain of N hops is N processes in a ring of PUSH and PULL sockets over ipc. The last process is this program, which
sends and receives. The floor of a rate is the best of three placements: all on one core; spread over all cores; all on
one core with this program on another. The floor of a latency is the last of these, because the kernel puts the programs
that use a stack on another core than its layers, and the time to wake a core differs by a factor of two between hosts.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import zmq

PAYLOAD = b"x" * 106  # as long as a frame of the stack with a datagram of 64 octets


class Rate(NamedTuple):
    """Microseconds for one message through the chain, and messages/s with many in flight."""

    p50_us: float
    p99_us: float
    per_s: float


def _relay(inbox: str, outbox: str, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.bind(inbox)
    push = context.socket(zmq.PUSH)
    push.connect(outbox)
    while True:
        message = pull.recv()
        push.send(message)
        if message == b"end":
            break
    context.destroy(linger=1000)


def chain(hops: int, core: int | None, in_flight: int = 64, lone: int = 2000, many: int = 40000,
          payload: bytes = PAYLOAD, ends: int | None = None) -> Rate:
    """Measure a chain of `hops` pipes, all on `core`; None: where the kernel puts them.

    `ends`: the core of this program, which sends and receives, during the measurement, if it is another.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"ipc://{Path(folder) / str(number)}" for number in range(hops)]
        children = []
        for number in range(hops - 1):
            pid = os.fork()
            if pid == 0:
                try:
                    _relay(paths[number], paths[number + 1], core)
                finally:
                    os._exit(0)
            children.append(pid)
        before = os.sched_getaffinity(0)
        if core is not None:
            os.sched_setaffinity(0, {core if ends is None else ends})
        context = zmq.Context()
        pull = context.socket(zmq.PULL)
        pull.bind(paths[-1])
        push = context.socket(zmq.PUSH)
        push.connect(paths[0])
        try:
            return _measure(push, pull, in_flight, lone, many, payload)
        finally:
            push.send(b"end")
            while pull.recv() != b"end":
                pass
            context.destroy(linger=0)
            for pid in children:
                os.waitpid(pid, 0)
            os.sched_setaffinity(0, before)


def _measure(push: zmq.Socket, pull: zmq.Socket, in_flight: int, lone: int, many: int, payload: bytes) -> Rate:
    times = []
    for _ in range(lone + 200):
        started = time.perf_counter()
        push.send(payload)
        pull.recv()
        times.append(time.perf_counter() - started)
    times = times[200:]
    started = time.perf_counter()
    for _ in range(in_flight):
        push.send(payload)
    for _ in range(many - in_flight):
        pull.recv()
        push.send(payload)
    for _ in range(in_flight):
        pull.recv()
    elapsed = time.perf_counter() - started
    return Rate(median(times) * 1e6, quantiles(times, n=100)[98] * 1e6, many / elapsed)


def floor(hops: int, payload: bytes = PAYLOAD) -> Rate:
    """The latency of a chain whose ends are on another core, and the best rate of the three placements."""
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    afar = chain(hops, last, payload=payload, ends=first)
    per_s = [chain(hops, core, payload=payload, lone=2).per_s for core in (last, None)]
    return Rate(afar.p50_us, afar.p99_us, max(afar.per_s, *per_s))


def at_home(hops: int) -> Rate:
    """A chain on one core, with its ends on the same core."""
    return chain(hops, max(os.sched_getaffinity(0)))


if __name__ == "__main__":
    for hops in (4, 8):
        print(hops, "one core", at_home(hops))
        print(hops, "spread", chain(hops, None))
        print(hops, "one core, its ends on another; best rate", floor(hops))

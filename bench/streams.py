"""The goals for bulk over TCP: one connection, with the kernel against a chain of bare pyzmq sockets that moves as many
octets, and from application to application of usernet."""

from __future__ import annotations

import json
import os

from bench import floor, stack
from bench.goals import FEW, WINDOW_S, Goal, median_of

PORT = 5060
OTHER = "10.0.0.3"
MESSAGE_OCTETS = 64_240  # 44 segments of 1,460 octets: the largest super-segment
MESSAGES = 6000
WIRE_MBIT_S, LOOPBACK_MBIT_S = 1000, 2000
TO_KERNEL, FROM_KERNEL, IN_RECORDS = 1.2, 0.7, 0.3  # goals, as multiples of the chain


def chain() -> float:
    """Mbit/s of four hops with messages of that size, in the better placement."""
    payload = bytes(MESSAGE_OCTETS)
    rates = [floor.chain(4, core, in_flight=8, lone=2, many=MESSAGES, payload=payload).per_s
             for core in (max(os.sched_getaffinity(0)), None)]
    return max(rates) * MESSAGE_OCTETS * 8e-6


def bulk(bench: stack.Bench) -> list[Goal]:
    """One connection, both ways, with shared memory and without."""
    bare = chain()
    found = []
    for way, out in (("to", True), ("from", False)):
        for how, suffix in (("octets in shared memory", ""), ("octets in records", "-in-records")):
            if out:
                ends = ("stream-source" + suffix, stack.KERNEL, PORT, 2 * WINDOW_S), (
                    "kernel-stream-sink", stack.KERNEL, PORT)
            else:
                ends = ("kernel-stream-source", stack.ADDRESS, PORT, 2 * WINDOW_S), (
                    "stream-sink" + suffix, stack.ADDRESS, PORT)
            moved, _ = median_of(lambda ends=ends, out=out: bench.through(*ends, out=out), "mbit_s", FEW)
            least = IN_RECORDS if suffix else TO_KERNEL if out else FROM_KERNEL
            ratio = moved / bare
            found.append(Goal(f"TCP {way} the kernel, one connection, {how}", f"{moved:.0f} Mbit/s", moved,
                              f"{bare:.0f} Mbit/s, 4 hops of 64 kB: {ratio:.2f}", f">= {least:g} x", ratio >= least))
    return found


def loopback(bench: stack.Bench) -> Goal:
    """One connection from the stack to itself."""
    return _at_least("TCP over loopback, one connection", _between(bench, bench, stack.ADDRESS), LOOPBACK_MBIT_S)


def wire(options: list[str]) -> Goal:
    """One connection from one stack to another on a virtual wire."""
    options = [*options, "--wire", f"bench-{os.getpid()}", "--address"]
    with (stack.booted(*options, f"{stack.ADDRESS}/24") as near, stack.booted(*options, f"{OTHER}/24") as far):
        return _at_least("TCP between two stacks on a wire, one connection", _between(near, far, OTHER), WIRE_MBIT_S)


def _between(source: stack.Bench, sink: stack.Bench, address: str) -> float:
    def once() -> dict:
        with sink.during("stream-sink", address, PORT) as program:
            source.run("stream-source", address, PORT, 2 * WINDOW_S, inside=False)
            assert program.stdout is not None
            found: dict = json.loads(program.stdout.readline())
            return found

    return median_of(once, "mbit_s", FEW)[0]


def _at_least(name: str, moved: float, least: float) -> Goal:
    return Goal(name, f"{moved:.0f} Mbit/s", moved, "", f">= {least:g} Mbit/s", moved >= least)

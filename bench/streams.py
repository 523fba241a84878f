"""The goals for bulk over TCP: one connection, against a chain of bare pyzmq sockets that moves as many octets."""

from __future__ import annotations

import os

from bench import floor, stack
from bench.goals import FEW, WINDOW_S, Goal, median_of

PORT = 5060
MESSAGE_OCTETS = 64_240  # 44 segments of 1,460 octets: the largest super-segment
MESSAGES = 6000
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

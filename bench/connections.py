"""The goals for TCP connections with little traffic: round trips, short and idle connections, HTTP, a flood of SYNs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from statistics import median

from bench import stack
from bench.goals import FEW, IN_FLIGHT, Goal, median_of

PORT, HTTP_PORT = 5057, 5058
AT_A_TIME = 32
SECONDS = 2.0
HTTP_S = 2  # wrk takes whole seconds
IDLE = 9_000  # two descriptors each at the server, which often may have 20,000
FLOOD_FACTOR = 10  # SYNs for each connection that is served
FLOODS = 5
PAST, NOBODY = "10.0.9.1", "10.0.9.2"  # of a network where nobody answers
QUIET_S = 10.0  # until idle connections sleep and have given their memory back


def small(bench: stack.Bench, udp_per_s: float, chain_us: float) -> list[Goal]:
    """All of them, with the UDP echo's rate and the latency of a bare 8-hop chain of the same run."""
    with bench.during("tcp-echo", "0.0.0.0", PORT):
        at, _ = median_of(lambda: bench.run("tcp-lone", stack.ADDRESS, PORT), "p50", FEW)
        many, _ = median_of(lambda: _many(bench), "per_s", FEW)
        short, cpu_us = _short(bench)
        return [
            Goal("TCP request and response, 64 octets, p50", f"{at:.0f} us", at,
                 f"{chain_us:.0f} us, 8 hops: {at / chain_us:.2f}", "<= 1.7 x", at <= 1.7 * chain_us),
            Goal(f"the same, {IN_FLIGHT} connections", f"{many:.0f} /s", many,
                 f"{udp_per_s:.0f} /s, UDP echo: {many / udp_per_s:.2f}", ">= 0.5 x", many >= 0.5 * udp_per_s),
            *_against_the_kernel(bench, short, cpu_us),
            *_flooded(bench, short),
        ]


def idle(options: list[str]) -> list[Goal]:
    """Idle connections, on a stack of their own: the server needs nearly all descriptors that it may have for them."""
    with stack.booted(*options) as bench, bench.during("tcp-echo", "0.0.0.0", PORT):
        return _idle(bench)


def _many(bench: stack.Bench) -> dict[str, float]:
    return bench.run("tcp-many", stack.ADDRESS, PORT, IN_FLIGHT, SECONDS)


def http(bench: stack.Bench) -> list[Goal]:
    """wrk(1) against an asyncio program on the stack, and on the kernel's own. No row if wrk is not installed."""
    if shutil.which("wrk") is None:
        return []
    with bench.during("http-server", stack.ADDRESS, HTTP_PORT):
        ours, _ = median_of(lambda: bench.run("wrk", stack.ADDRESS, HTTP_PORT, IN_FLIGHT, HTTP_S), "per_s", FEW)
    kernels, _ = median_of(lambda: bench.run("veth-wrk", IN_FLIGHT, HTTP_S), "per_s", FEW)
    return [Goal(f"HTTP requests to an asyncio server, wrk, {IN_FLIGHT} connections", f"{ours:.0f} /s", ours,
                 f"{kernels:.0f} /s, the same server on the kernel's stack: {ours / kernels:.2f}", ">= 0.5 x",
                 ours >= 0.5 * kernels)]


def _cpu_us(bench: stack.Bench, run: Callable[[], dict[str, float]], count: str) -> tuple[dict[str, float], float]:
    """The result, and microseconds of processor time of the stack for each that it counts."""
    before = stack.cpu_s(bench)
    result = run()
    return result, (stack.cpu_s(bench) - before) * 1e6 / result[count]


def _short(bench: stack.Bench) -> tuple[float, float]:
    runs = [_cpu_us(bench, lambda: bench.run("tcp-short", stack.ADDRESS, PORT, AT_A_TIME, SECONDS), "count")
            for _ in range(FEW)]
    return median(result["per_s"] for result, _ in runs), median(cpu_us for _, cpu_us in runs)


def _against_the_kernel(bench: stack.Bench, short: float, cpu_us: float) -> list[Goal]:
    kernels, _ = median_of(lambda: bench.run("veth-short", AT_A_TIME, SECONDS), "per_s", FEW)
    return [Goal(f"connect, request, answer, close, {AT_A_TIME} at a time", f"{short:.0f} /s", short,
                 f"{kernels:.0f} /s, the kernel through a veth pair: {short / kernels:.2f}", ">= 0.2 x",
                 short >= 0.2 * kernels),
            Goal("processor time of the stack for one of these", f"{cpu_us:.0f} us", cpu_us, "", "<= 250 us",
                 cpu_us <= 250)]


def _flooded(bench: stack.Bench, short: float) -> list[Goal]:
    """A flood of SYNs to the same port beside established connections, against the same flood past the stack: on a
    machine of few cores its sender alone takes a tenth of their rate."""
    bench.command("ip", "link", "add", "past", "type", "veth", "peer", "name", "drop")
    bench.command("ip", "address", "add", f"{PAST}/24", "dev", "past")
    for end in ("past", "drop"):
        bench.command("ip", "link", "set", end, "up")
    bench.command("ip", "neighbor", "add", NOBODY, "lladdr", "02:00:00:00:00:09", "dev", "past")

    def beside(source: str, address: str) -> float:
        flood = ("syn-flood", source, address, PORT, FLOOD_FACTOR * short, 2 * SECONDS)
        with bench.during(*flood, inside=True):
            return _many(bench)["per_s"]

    pairs = [(beside(PAST, NOBODY), beside(stack.KERNEL, stack.ADDRESS)) for _ in range(FLOODS)]
    past, flooded = (median(rates) for rates in zip(*pairs, strict=True))
    return [Goal(f"{IN_FLIGHT} connections beside {FLOOD_FACTOR * short:.0f} SYNs/s", f"{flooded:.0f} /s", flooded,
                 f"{past:.0f} /s beside the same flood past the stack: {flooded / past:.2f}", ">= 0.8 x",
                 flooded >= 0.8 * past)]


def _idle(bench: stack.Bench) -> list[Goal]:
    def cost_us() -> float:  # several times: the journals of the pipes are then as long as they become
        return median(_cpu_us(bench, lambda: {**_many(bench), "seconds": SECONDS}, "per_s")[1] / SECONDS
                      for _ in range(FEW))

    few_us, before = cost_us(), stack.pss_bytes(bench)
    with bench.during("tcp-idle", stack.ADDRESS, PORT, IDLE, inside=True):
        time.sleep(QUIET_S)
        each = (stack.pss_bytes(bench) - before) / IDLE
        many_us = cost_us()
    return [Goal("memory (PSS) of an idle TCP connection", f"{each:.0f} octets", each, f"of {IDLE}", "<= 1200 octets",
                 each <= 1200),
            Goal(f"processor time of a TCP echo beside {IDLE} connections", f"{many_us:.0f} us", many_us,
                 f"{few_us:.0f} us without: {many_us / few_us:.2f}", "<= 1.1 x", many_us <= 1.1 * few_us)]

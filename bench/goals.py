"""What is measured, and what it is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from bench import floor, stack

REPEAT = 3  # medians of so many runs: the machine is noisy
IDLE_S = 5.0
WINDOW_S = 2.0
IN_FLIGHT = 64
MANY_SOCKETS = 10_000
PORT, IDLE_PORT = 5055, 20_000
FULL_OCTETS = 1472  # of payload, at an MTU of 1500
OFFERED_PER_S = 100_000  # datagrams of that size from the kernel, which would send any number


class Goal(NamedTuple):
    """One line of the table. `met` is None where there is no goal, only a figure for scale."""

    name: str
    figure: str
    value: float
    against: str
    goal: str
    met: bool | None


class Floors(NamedTuple):
    """The bare chains, measured in the same run."""

    four: floor.Rate
    eight: floor.Rate


def _median_of(run: Callable[[], dict], key: str) -> tuple[float, dict]:
    results = sorted((run() for _ in range(REPEAT)), key=lambda result: result[key])
    middle = results[REPEAT // 2]
    return middle[key], middle


def _at_most(name: str, value: float, unit: str, limit: float) -> Goal:
    return Goal(name, f"{value:.3g} {unit}", value, "", f"<= {limit:g} {unit}", value <= limit)


def boot() -> Goal:
    """From the command to the first ping answered."""
    value = median(stack.boot_to_first_ping_s() for _ in range(REPEAT))
    return _at_most("boot to the first ping answered", value, "s", 0.6)


def latency(bench: stack.Bench, floors: Floors) -> list[Goal]:
    """Ping, and UDP echoes one at a time."""
    ping, _ = _median_of(lambda: bench.run("ping", stack.ADDRESS, 1000), "p50_us")
    lone, whole = _median_of(lambda: bench.run("lone", stack.ADDRESS, PORT, 64, 2000), "p50_us")
    four, eight = floors
    return [
        _ratio("ping round trip, p50", ping, four.p50_us, "us", "4 hops", 1.6),
        _ratio("UDP echo, 64 octets, one at a time, p50", lone, eight.p50_us, "us", "8 hops", 1.6),
        _ratio("the same, p99", whole["p99_us"], eight.p99_us, "us", "8 hops", 2.0),
    ]


def _ratio(name: str, value: float, base: float, unit: str, what: str, limit: float) -> Goal:
    ratio = value / base
    return Goal(name, f"{value:.0f} {unit}", value, f"{base:.0f} {unit}, {what}: {ratio:.2f}", f"<= {limit:g} x",
                ratio <= limit)


def rate(bench: stack.Bench, floors: Floors) -> list[Goal]:
    """UDP echoes with 64 in flight, short and long."""
    short, _ = _median_of(lambda: bench.run("window", stack.ADDRESS, PORT, 64, IN_FLIGHT, WINDOW_S), "per_s")
    long, _ = _median_of(lambda: bench.run("window", stack.ADDRESS, PORT, 1400, IN_FLIGHT, WINDOW_S), "per_s")
    base = floors.eight.per_s
    return [
        Goal("UDP echo, 64 octets, 64 in flight", f"{short:.0f} /s", short,
             f"{base:.0f} /s, 8 hops: {short / base:.2f}", ">= 0.65 x", short / base >= 0.65),
        Goal("UDP echo, 1400 octets, 64 in flight", f"{long:.0f} /s", long,
             f"{short:.0f} /s, 64 octets: {long / short:.2f}", ">= 0.8 x", long / short >= 0.8),
    ]


def one_way(bench: stack.Bench) -> tuple[float, float]:
    """Mbit/s of datagrams of the MTU's size: from an application to the kernel, and back."""
    out, _ = _median_of(lambda: bench.through(
        ("pour", stack.KERNEL, PORT + 1, FULL_OCTETS, WINDOW_S + 0.5),
        ("kernel-sink", stack.KERNEL, PORT + 1, WINDOW_S), out=True), "mbit_s")
    back, _ = _median_of(lambda: bench.through(
        ("kernel-pour", stack.ADDRESS, PORT + 1, FULL_OCTETS, WINDOW_S + 0.5, OFFERED_PER_S),
        ("sink", stack.ADDRESS, PORT + 1, WINDOW_S), out=False), "mbit_s")
    return out, back


def throughput(offloaded: tuple[float, float], plain: tuple[float, float]) -> list[Goal]:
    """`one_way` of a stack with offload and of one without. The kernel's sender has UDP_SEGMENT in both."""
    names = (f"UDP to the kernel, {FULL_OCTETS} octets",
             f"UDP from the kernel, {FULL_OCTETS} octets, "
             f"{OFFERED_PER_S * FULL_OCTETS * 8e-6:.0f} Mbit/s offered")
    return [Goal(name, f"{on:.0f} Mbit/s", on, f"{off:.0f} Mbit/s without offload: {on / off:.2f}", ">= 1000 Mbit/s",
                 on >= 1000)
            for name, on, off in zip(names, offloaded, plain, strict=True)]


def overload(bench: stack.Bench, best_per_s: float) -> list[Goal]:
    """A flood from the kernel: what comes back, and whether a ping still does."""
    flood, whole = _median_of(lambda: bench.run("flood", stack.ADDRESS, PORT, 64, WINDOW_S), "per_s")
    return [Goal(f"echoes under a flood of {whole['sent_per_s']:.0f}/s", f"{flood:.0f} /s", flood,
                 f"{best_per_s:.0f} /s: {flood / best_per_s:.2f}", ">= 0.8 x", flood / best_per_s >= 0.8)]


def restart(bench: stack.Bench) -> Goal:
    """A planned restart: how long the layer is away."""
    from supervisor import commands
    from usernet.rundir import run_dir

    for layer in ("udp", "ip", "link"):
        stack.launcher("restart", "--name", bench.name, layer)
    with commands.Client(run_dir(bench.name)) as client:
        gaps = [event["gap_ms"] for event in client.stream("events")
                if event["event"] == "serves" and event.get("gap_ms")]
    return _at_most("planned restart of a layer", median(gaps), "ms", 20)


def idle(bench: stack.Bench) -> list[Goal]:
    """Processor time and memory of a stack that nobody uses."""
    before = stack.cpu_s(bench)
    time.sleep(IDLE_S)  # the duration is what is measured
    share = (stack.cpu_s(bench) - before) / IDLE_S
    return [_at_most("idle, processor", share * 100, "% of a core", 1),
            _at_most("idle, memory (PSS)", stack.pss_bytes(bench) / 1e6, "MB", 90)]


def scale(bench: stack.Bench) -> list[Goal]:
    """The cost of a datagram beside many bound sockets, and what a bound socket takes."""
    few, _ = _median_of(lambda: bench.run("window", stack.ADDRESS, PORT, 64, IN_FLIGHT, WINDOW_S), "per_s")
    before = stack.pss_bytes(bench)
    with bench.during("idle-sockets", MANY_SOCKETS, IDLE_PORT):
        each = (stack.pss_bytes(bench) - before) / MANY_SOCKETS
        many, _ = _median_of(lambda: bench.run("window", stack.ADDRESS, PORT, 64, IN_FLIGHT, WINDOW_S), "per_s")
    return [Goal(f"echo beside {MANY_SOCKETS} bound sockets", f"{many:.0f} /s", many,
                 f"{few:.0f} /s beside none: cost {few / many:.2f} x", "<= 1.2 x", few / many <= 1.2),
            _at_most("memory of an idle bound socket", each / 1000, "kB", 4)]

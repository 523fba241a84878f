"""The goals: what is measured, and what it is compared with."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from bench import floor, stack

REPEAT = 5  # runs for a median, because the machine is noisy
FEW = 3  # runs for values that are measured at three times, are far from their goal, or are only for scale
IDLE_S = 5.0
WINDOW_S = 1.0
ECHOES_S = 0.75  # after a second in which the layers may move to another core
IN_FLIGHT = 64
MANY_SOCKETS, MANY_APPLICATIONS, MANY_NEIGHBORS = 10_000, 100, 4_000
WIDE, FIRST_NEIGHBOR = "10.0.0.2/16", "10.0.16.0"  # a network with enough addresses
PORT, IDLE_PORT, APPLICATIONS_PORT = 5055, 20_000, 40_000
FULL_OCTETS = 1472  # octets of payload at an MTU of 1500
OFFERED_PER_S = 100_000  # datagrams of that size from the kernel, which could send more
_PING_MS = re.compile(r"time=([0-9.]+) ms")


class Goal(NamedTuple):
    """One row of the table. `met` is None for a figure that has no goal and is only for scale."""

    name: str
    figure: str
    value: float
    against: str
    goal: str
    met: bool | None


class Limits(NamedTuple):
    """The goals for one kind of pipes, as multiples of the bare chain."""

    ping: float = 1.6
    echo: float = 1.6
    echo_p99: float = 2.0
    in_flight: float = 0.65
    memory_mb: float = 90


LIMITS = {"zmq": Limits(ping=1.7, in_flight=0.6, memory_mb=100), "direct": Limits()}
BULK_OF_DIRECT = 0.85  # the share of the throughput of direct pipes that zmq pipes must reach


class Floors(NamedTuple):
    """The bare chains, measured in the same run."""

    four: floor.Rate
    eight: floor.Rate


def floors() -> Floors:
    """Measure both chains now."""
    return Floors(floor.floor(4), floor.floor(8))


def middle(found: list[Floors]) -> Floors:
    """The median of each figure of `floors` measured at several times."""
    return Floors(*(floor.Rate(*map(median, zip(*rates, strict=True))) for rates in zip(*found, strict=True)))


def median_of(run: Callable[[], dict], key: str, times: int = REPEAT) -> tuple[float, dict]:
    """Run a measurement `count` times; returns the median of `key`, and the complete result that has it."""
    results = sorted((run() for _ in range(times)), key=lambda result: result[key])
    whole = results[times // 2]
    return whole[key], whole


def _at_most(name: str, value: float, unit: str, limit: float) -> Goal:
    return Goal(name, f"{value:.3g} {unit}", value, "", f"<= {limit:g} {unit}", value <= limit)


def boot(options: list[str]) -> Goal:
    """Time from the command to the first answered ping."""
    value = median(stack.boot_to_first_ping_s(*options) for _ in range(REPEAT))
    return _at_most("boot to the first ping answered", value, "s", 0.6)


def lone(bench: stack.Bench) -> list[tuple[float, dict, dict]]:
    """Pings by ping(8) and by a program of ours, and single UDP echoes, in alternation."""
    return [(_ping(bench), bench.run("ping", stack.ADDRESS, 1000), bench.run("lone", stack.ADDRESS, PORT, 64, 2000))
            for _ in range(FEW)]


def _ping(bench: stack.Bench) -> float:
    """The median reported by ping(8), which measures until the reply reaches the kernel's end."""
    printed = bench.command("ping", "-A", "-n", "-c", "1000", stack.ADDRESS)
    return median(float(time_ms) * 1000 for time_ms in _PING_MS.findall(printed))


def latency(runs: list[tuple[float, dict, dict]], bare: Floors, limits: Limits) -> list[Goal]:
    """The results of `lone` at several times, because the time to wake a core changes from minute to minute."""
    pings, woken, echoes = zip(*runs, strict=True)
    ping, awake = median(pings), median(run["p50_us"] for run in woken)
    echo, echo_p99 = (median(run[key] for run in echoes) for key in ("p50_us", "p99_us"))
    four, eight = bare
    return [
        _ratio("ping round trip, p50", ping, four.p50_us, "us", "4 hops", limits.ping),
        Goal("for scale: until a program in Python has woken for the reply", f"{awake:.0f} us", awake,
             f"{four.p50_us:.0f} us, 4 hops: {awake / four.p50_us:.2f}", "", None),
        _ratio("UDP echo, 64 octets, one at a time, p50", echo, eight.p50_us, "us", "8 hops", limits.echo),
        _ratio("the same, p99", echo_p99, eight.p99_us, "us", "8 hops", limits.echo_p99),
    ]


def _ratio(name: str, value: float, base: float, unit: str, what: str, limit: float) -> Goal:
    ratio = value / base
    return Goal(name, f"{value:.0f} {unit}", value, f"{base:.0f} {unit}, {what}: {ratio:.2f}", f"<= {limit:g} x",
                ratio <= limit)


def rates(bench: stack.Bench) -> tuple[float, float]:
    """UDP echoes/s with 64 in flight, short and long ones in alternation."""
    short, long = _by_turns("per_s", lambda: _window(bench), lambda: _window(bench, size=1400))
    return short, long


def rates_many(bench: stack.Bench) -> float:
    """Short ones, with an application that receives and sends many datagrams per call."""
    with bench.during("echo-many", "0.0.0.0", PORT + 2):
        return median_of(lambda: _window(bench, port=PORT + 2), "per_s", FEW)[0]


def rate(short: float, long: float, many: float, bare: Floors, limits: Limits) -> list[Goal]:
    """The results of `rates` and `rates_many`."""
    base = bare.eight.per_s
    return [
        Goal(f"UDP echo, 64 octets, {IN_FLIGHT} in flight", f"{short:.0f} /s", short,
             f"{base:.0f} /s, 8 hops: {short / base:.2f}", f">= {limits.in_flight:g} x",
             short / base >= limits.in_flight),
        Goal(f"UDP echo, 1400 octets, {IN_FLIGHT} in flight", f"{long:.0f} /s", long,
             f"{short:.0f} /s, 64 octets: {long / short:.2f}", ">= 0.8 x", long / short >= 0.8),
        Goal("short ones, application with recvmany and sendmany", f"{many:.0f} /s", many,
             f"{base:.0f} /s, 8 hops: {many / base:.2f}", "", None),
    ]


def chains_at_home() -> list[Goal]:
    """The latency of a chain with its ends on the same core, so that no message wakes another core."""
    return [Goal(f"for scale: {hops} hops, all on one core, p50", f"{value:.0f} us", value, "a bare pyzmq chain", "",
                 None)
            for hops in (4, 8) for value in (floor.at_home(hops).p50_us,)]


def bulk(zmq: list[Goal], direct: list[Goal]) -> list[Goal]:
    """The throughput of zmq pipes relative to direct ones, for the rows that both have."""
    moved = {goal.name: goal.value for goal in direct if "Mbit/s" in goal.figure}
    return [Goal(f"{goal.name}: zmq against direct", goal.figure, goal.value,
                 f"{base:.0f} Mbit/s: {goal.value / base:.2f}", f">= {BULK_OF_DIRECT:g} x",
                 goal.value / base >= BULK_OF_DIRECT)
            for goal in zmq if (base := moved.get(goal.name))]


def kernels_own(bench: stack.Bench) -> list[Goal]:
    """The kernel's UDP through a veth pair with the same load generators, as the limit of what they can measure."""
    if shutil.which("ip") is None:
        return []
    results = [bench.run("veth") for _ in range(FEW)]
    at, per_s = (median(result[key] for result in results) for key in ("p50_us", "per_s"))
    what, how = "for scale: the kernel's echo", "through a veth pair"
    return [Goal(f"{what}, one at a time, p50", f"{at:.0f} us", at, how, "", None),
            Goal(f"{what}, {IN_FLIGHT} in flight", f"{per_s:.0f} /s", per_s, how, "", None)]


def _window(bench: stack.Bench, size: int = 64, port: int = PORT) -> dict:
    return bench.run("window", stack.ADDRESS, port, size, IN_FLIGHT, ECHOES_S)


def _by_turns(key: str, *runs: Callable[[], dict]) -> list[float]:
    """The median of each function, run in alternation, so that a slower machine affects all of them."""
    results = [[run()[key] for run in runs] for _ in range(REPEAT)]
    return [median(column) for column in zip(*results, strict=True)]


def one_way(bench: stack.Bench) -> tuple[float, float]:
    """Mbit/s of datagrams with the size of the MTU: from an application to the kernel, and back."""
    out, _ = median_of(lambda: bench.through(
        ("pour", stack.KERNEL, PORT + 1, FULL_OCTETS, WINDOW_S + 0.5),
        ("kernel-sink", stack.KERNEL, PORT + 1, WINDOW_S), out=True), "mbit_s", FEW)
    back, _ = median_of(lambda: bench.through(
        ("kernel-pour", stack.ADDRESS, PORT + 1, FULL_OCTETS, WINDOW_S + 0.5, OFFERED_PER_S),
        ("sink", stack.ADDRESS, PORT + 1, WINDOW_S), out=False), "mbit_s", FEW)
    return out, back


def throughput(offloaded: tuple[float, float], plain: tuple[float, float]) -> list[Goal]:
    """`one_way` of a stack with offload and of one without. The kernel's sender uses UDP_SEGMENT in both."""
    names = (f"UDP to the kernel, {FULL_OCTETS} octets",
             f"UDP from the kernel, {FULL_OCTETS} octets, "
             f"{OFFERED_PER_S * FULL_OCTETS * 8e-6:.0f} Mbit/s offered")
    return [Goal(name, f"{on:.0f} Mbit/s", on, f"{off:.0f} Mbit/s without offload: {on / off:.2f}",
                 f">= {least} Mbit/s", on >= least)
            for name, on, off, least in zip(names, offloaded, plain, (4000, 1000), strict=True)]


def overload(bench: stack.Bench, best_per_s: float) -> list[Goal]:
    """A flood from the kernel: the rate of answers, and whether a ping is still answered."""
    flood, whole = median_of(lambda: bench.run("flood", stack.ADDRESS, PORT, 64, WINDOW_S), "per_s")
    return [Goal(f"echoes under a flood of {whole['sent_per_s']:.0f}/s", f"{flood:.0f} /s", flood,
                 f"{best_per_s:.0f} /s: {flood / best_per_s:.2f}", ">= 0.8 x", flood / best_per_s >= 0.8)]


def restart(bench: stack.Bench) -> Goal:
    """A planned restart: the time without the layer."""
    from supervisor.control import Client
    from usernet.pipe.run_dir import run_dir

    for layer in ("udp", "ip", "link"):
        stack.launcher("restart", "--name", bench.name, layer)
    with Client(run_dir(bench.name)) as client:
        gaps = [event["gap_ms"] for event in client.stream("events")
                if event["event"] == "serves" and event.get("gap_ms")]
    return _at_most("planned restart of a layer", median(gaps), "ms", 20)


def idle(bench: stack.Bench, limits: Limits) -> list[Goal]:
    """Memory and processor time of an idle stack, once the spare processes have started."""
    memory = stack.pss_bytes(bench)
    before = stack.cpu_s(bench)
    time.sleep(IDLE_S)  # the duration is part of the measurement
    share = (stack.cpu_s(bench) - before) / IDLE_S
    return [_at_most("idle, processor", share * 100, "% of a core", 1),
            _at_most("idle, memory (PSS)", memory / 1e6, "MB", limits.memory_mb)]


def scale(options: list[str]) -> list[Goal]:
    """The cost of an echo beside many bound sockets, applications and neighbours.

    Measured as processor time of the stack, on one core. The rate would also depend on the load generator, which has to
    handle 4,000 addresses, and two cores form larger groups of packets, for a quarter less.
    """
    found = []
    with ExitStack() as running:
        bare, other = (running.enter_context(stack.booted(*options, "--cores", "compact", "--address", WIDE))
                       for _ in range(2))
        for each in (bare, other):
            running.enter_context(each.during("echo", "0.0.0.0", PORT))
        before = stack.pss_bytes(other)
        with other.during("idle-sockets", MANY_SOCKETS, IDLE_PORT):
            each_octets = (stack.pss_bytes(other) - before) / MANY_SOCKETS
            found.append(_cost(f"an echo beside {MANY_SOCKETS} bound sockets", "beside none",
                               lambda: _window(bare), lambda: _window(other)))
        found.append(_at_most("memory of an idle bound socket", each_octets / 1000, "kB", 4))
        with other.during("applications", MANY_APPLICATIONS, APPLICATIONS_PORT):
            found.append(_cost(f"an echo beside {MANY_APPLICATIONS} applications", "beside none",
                               lambda: _window(bare), lambda: _window(other)))
        if shutil.which("ip") is not None:
            found.append(_cost(f"an echo to {MANY_NEIGHBORS} neighbours in turn", "to 10",
                               lambda: _peers(other, 10), lambda: _peers(other, MANY_NEIGHBORS)))
    return found


def _peers(bench: stack.Bench, count: int) -> dict:
    return bench.run("peers", stack.ADDRESS, PORT, 64, IN_FLIGHT, ECHOES_S, count, FIRST_NEIGHBOR)


def _cost(name: str, beside: str, few: Callable[[], dict], many: Callable[[], dict]) -> Goal:
    base, value = _by_turns("cpu_us", few, many)
    return Goal(name, f"{value:.1f} us of processor", value, f"{base:.1f} us {beside}: {value / base:.2f}",
                "<= 1.2 x", value / base <= 1.2)

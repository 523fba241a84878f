"""What it costs to be watched: echoes and streams with nobody watching, during a capture of every pipe, while recorded.

By turns, because a machine changes from minute to minute. `python -m bench.watching` prints these rows alone, in a
minute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from statistics import median

from bench import stack
from bench.goals import PORT, Goal
from supervisor.snapshots import ROOT

TURNS = 3
ECHOES = 1000  # one at a time
WINDOW_S = 0.6
IN_FLIGHT = 64
CAPTURE_MAX = 1.2  # times the cost with nobody watching
TCP_PORT, STREAM_PORT = 5058, 5061

Watcher = Callable[[], AbstractContextManager[None]]


class EndedEarlyError(RuntimeError):
    """A command did not watch until it was told to end."""


@contextmanager
def running(bench: stack.Bench, *words: str) -> Iterator[None]:
    """A command that watches, from when it says so until SIGTERM. EndedEarlyError: not all the time."""
    command = [sys.executable, str(ROOT / "launcher.py"), "--name", bench.name, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as program:
        assert program.stderr is not None
        said = program.stderr.readline()
        if not said.startswith(("capturing", "recording")):
            raise RuntimeError(f"{words[0]} did not start: {said}")
        try:
            yield
        finally:
            program.terminate()
            _, said = program.communicate()
    if program.returncode:
        raise EndedEarlyError(f"{' '.join(words)}: {said}")


def _echoes(bench: stack.Bench) -> tuple[float, float]:
    """(microseconds of an echo alone, echoes/s with 64 in flight)."""
    alone = bench.run("lone", stack.ADDRESS, PORT, 64, ECHOES)["p50_us"]
    return alone, bench.run("window", stack.ADDRESS, PORT, 64, IN_FLIGHT, WINDOW_S)["per_s"]


def goals(options: list[str]) -> list[Goal]:
    """Measure: about a minute."""
    with ExitStack() as stacks:
        plain, recorded = (stacks.enter_context(stack.booted(*options, *more)) for more in ((), ("--record-crashes",)))
        for bench in (plain, recorded):
            stacks.enter_context(bench.during("echo", "0.0.0.0", PORT))
        watchers: dict[str, tuple[stack.Bench, Watcher]] = {
            "nobody watches": (plain, nullcontext),
            "every pipe is captured": (plain, lambda: running(plain, "capture", "-w", "/dev/null")),
            "udp is recorded": (plain, lambda: running(plain, "record", "udp", "-w", "/dev/null")),
            "again nobody, a watcher has left": (plain, nullcontext),
            "up --record-crashes": (recorded, nullcontext)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in watchers}
        for _ in range(TURNS):
            for name, (bench, watcher) in watchers.items():
                with watcher():
                    found[name].append(_echoes(bench))
        tcp = _recorded_tcp(plain)
    rows = []
    alone, per_s = (median(values) for values in zip(*found.pop("nobody watches"), strict=True))
    for name, echoes in found.items():
        slower = median(one for one, _ in echoes) / alone
        fewer = per_s / median(many for _, many in echoes)
        limit = CAPTURE_MAX if name.startswith("every") else None
        rows += [Goal(f"UDP echo, one at a time, p50: {name}", f"{slower * alone:.0f} us", slower * alone,
                      f"{alone:.0f} us, nobody watches: {slower:.2f}", f"<= {limit} x" if limit else "",
                      slower <= limit if limit else None),
                 Goal(f"UDP echo, {IN_FLIGHT} in flight: {name}", f"{per_s / fewer:.0f} /s", per_s / fewer,
                      f"{per_s:.0f} /s, nobody watches: {1 / fewer:.2f}", f">= {1 / limit:.2f} x" if limit else "",
                      fewer <= limit if limit else None)]
    return rows + tcp


def _recorded_tcp(bench: stack.Bench) -> list[Goal]:
    """What a recording of tcp costs a request with its answer, and a stream to the kernel."""
    watchers: list[Watcher] = [nullcontext, lambda: running(bench, "record", "tcp", "-w", "/dev/null")]
    found: list[list[tuple[float, float]]] = [[] for _ in watchers]
    outrun = 0
    with bench.during("tcp-echo", "0.0.0.0", TCP_PORT):
        for _ in range(TURNS):
            for results, watcher in zip(found, watchers, strict=True):
                with watcher():
                    alone = bench.run("tcp-lone", stack.ADDRESS, TCP_PORT)["p50"]
                try:
                    with watcher():
                        moved = bench.through(("stream-source", stack.KERNEL, STREAM_PORT, WINDOW_S),
                                              ("kernel-stream-sink", stack.KERNEL, STREAM_PORT), out=True)["mbit_s"]
                except EndedEarlyError:
                    outrun += 1  # the recorder did not keep up with the stream, and said so
                results.append((alone, moved))
    (alone, moved), (slower, less) = ([median(values) for values in zip(*each, strict=True)] for each in found)
    return [Goal("TCP request and response, p50: tcp is recorded", f"{slower:.0f} us", slower,
                 f"{alone:.0f} us, nobody watches: {slower / alone:.2f}", "", None),
            Goal("TCP to the kernel, one connection: tcp is recorded", f"{less:.0f} Mbit/s", less,
                 f"{moved:.0f} Mbit/s, nobody watches: {less / moved:.2f}"
                 + (f"; {outrun} of {TURNS} recordings ended early" if outrun else ""), "", None)]


if __name__ == "__main__":
    for row in goals(sys.argv[1:]):
        print(f"{row.name:<62} {row.figure:>12}   {row.against}  {row.goal} {'' if row.met is None else row.met}")

"""A stack to measure, and the programs that run against it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import stack as running
from cli import status
from supervisor import sandbox
from supervisor.snapshots import ROOT
from usernet.pipe.run_dir import run_dir

TIMEOUT_S = 60.0
SETTLED_S = 0.5  # without a new process: then the stack has its spares
ADDRESS, KERNEL = "10.0.0.2", "10.0.0.1"
_numbers = itertools.count(1)


class Bench:
    """One running stack."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._keeper = running.query(run_dir(name), "status")["keeper"]
        self._programs: list[subprocess.Popen] = []

    def status(self) -> dict:
        """The object of `status --json`."""
        return status.collect(self.name)

    def _start(self, role: tuple[object, ...], inside: bool) -> subprocess.Popen:
        program = subprocess.Popen(
            [sys.executable, "-m", "bench.load", *map(str, role)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT, env={**os.environ, "USERNET_NAME": self.name, "PYTHONPATH": str(ROOT)},
            preexec_fn=(lambda: sandbox.join(self._keeper)) if inside else None)
        self._programs.append(program)
        return program

    def run(self, *role: object, inside: bool = True) -> dict:
        """Run a role to its end; returns its output."""
        program = self._start(role, inside)
        output, _ = program.communicate(timeout=TIMEOUT_S)
        return json.loads(output)

    def command(self, *command: str) -> str:
        """Run a program at the kernel's end; returns its output."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
                              preexec_fn=lambda: sandbox.join(self._keeper))
        return done.stdout

    @contextmanager
    def during(self, *role: object, inside: bool = False) -> Iterator[subprocess.Popen]:
        """Run a role that serves, from its "ready" on."""
        program = self._start(role, inside)
        assert program.stdout is not None
        if program.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{role[0]} did not start")
        try:
            yield program
        finally:
            end(program)

    def through(self, source: tuple[object, ...], sink: tuple[object, ...], out: bool) -> dict:
        """Run a source at one end and a sink at the other (the kernel's for `out`); returns the output of the sink."""
        with self.during(*sink, inside=out) as program:
            self.run(*source, inside=not out)
            assert program.stdout is not None
            return json.loads(program.stdout.readline())

    def close(self) -> None:
        """End every program."""
        for program in self._programs:
            end(program)


def end(program: subprocess.Popen) -> None:
    """End one program, by its pid."""
    program.kill()
    program.wait()
    for stream in (program.stdin, program.stdout):
        if stream:
            stream.close()


def launcher(*arguments: str) -> None:
    """Run the command line like a user."""
    # With the byte code kept, as a user has it: the first start of a checkout takes a quarter of a second more.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, str(ROOT / "launcher.py"), *arguments], check=True, stdout=subprocess.DEVNULL,
                   env=environment)


@contextmanager
def booted(*options: str) -> Iterator[Bench]:
    """Boot a stack with a name of its own."""
    name = f"bench-{os.getpid()}-{next(_numbers)}"
    launcher("up", "--detach", "--name", name, *options)
    bench = Bench(name)
    try:
        yield bench
    finally:
        bench.close()
        launcher("down", "--name", name)


def boot_to_first_ping_s(*options: str) -> float:
    """From starting the command to the first echo reply at the kernel's end."""
    started = time.monotonic()
    with booted(*options) as bench:
        return bench.run("first-ping", ADDRESS)["at"] - started


def pss_bytes(bench: Bench) -> int:
    """Proportional set size of the keeper, the cleanup process and the layers, in octets.

    Shared pages count once (proc(5), smaps_rollup).
    """
    total = 0
    for pid in _settled_family(bench):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _settled_family(bench: Bench) -> list[str]:
    """The pids of the keeper, the cleanup process, the layers and their spares, when no new process has appeared for a
    while."""
    since, family = time.monotonic(), _family(bench)
    while time.monotonic() < since + SETTLED_S:
        time.sleep(SETTLED_S / 10)
        if (now := _family(bench)) != family:
            since, family = time.monotonic(), now
    return family


def _family(bench: Bench) -> list[str]:
    keeper = bench.status()["keeper"]
    return [str(keeper), *Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]


def cpu_s(bench: Bench) -> float:
    """Processor time of the keeper, the cleanup process and the layers so far."""
    ticks = 0
    for pid in _family(bench):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")

"""Placement: on which cores the layers run.

Waking a process on another, idle core is the most expensive part of a hop, so a stack with little load runs best on one
core. A stack that saturates this core runs better on two, split between ip and the transports. If other processes
saturate the core, the stack moves to another one. docs/decisions/placement.md has the figures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from bus.topology import UPPER_HALF
from supervisor.layer_process import used_s

SAMPLE_S = 0.25
TRAFFIC = 100  # frames per sample, below which the layers cannot saturate a core
SATURATED = 0.9  # busy share of a core
OURS = 0.3  # share of the core that the layers must use, for them to be the ones that keep it busy
FREE = 0.75  # busy share below which another core has room
RELAXED = 0.65  # share of one core that all layers together use, below which one core is enough again
SPLIT_AFTER = 2  # number of such samples in a row
JOIN_AFTER = 4
CROWDED_AFTER = 2
PAUSE_S = 30.0  # after the second core turned out to be too busy
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Balance:
    """Decides between one core, two cores, and another core. Pure: its input are samples."""

    def __init__(self) -> None:
        self.split = False
        self._reason = ""
        self._votes = 0
        self._no_split_before = 0.0

    def sample(self, now: float, home_busy: float, other_busy: float, lower: float, upper: float) -> str:
        """The action for a sample: "split", "join", "move" to the other core, or "" for none.

        `busy`, `other`: busy shares of the layers' core, and of the upper half's core or, if there is none, of the
        least busy other core. `lower`, `upper`: what the layers of the halves used, in cores.
        """
        reason, after = self._wanted(now, home_busy, other_busy, lower, upper)
        self._votes = self._votes + 1 if reason and reason == self._reason else bool(reason)
        self._reason = reason
        if self._votes < after:
            return ""
        self._votes = 0
        if reason == "crowded":
            self._no_split_before = now + PAUSE_S
        self.split = reason == "split"
        return "join" if reason == "crowded" else reason

    def _wanted(self, now: float, home_busy: float, other_busy: float, lower: float, upper: float) -> tuple[str, int]:
        """An action, and the number of samples in a row that must ask for it."""
        if self.split:
            # Other processes fill the core: a starving half would block the whole stack.
            if other_busy >= SATURATED and upper < OURS:
                return "crowded", CROWDED_AFTER
            return ("join", JOIN_AFTER) if lower + upper < RELAXED else ("", 1)
        if home_busy < SATURATED or other_busy >= FREE:
            return "", 1
        if lower + upper < OURS:
            return "move", SPLIT_AFTER
        return ("split", SPLIT_AFTER) if now >= self._no_split_before else ("", 1)


class Placement:
    """Carries out the placement. `mode`: compact, spread, auto, or a list of cores."""

    def __init__(self, mode: str, cores: list[int] | None) -> None:
        self._mode = mode
        self._all = sorted(os.sched_getaffinity(0))
        self._listed = set(cores) if cores else None
        self._home = self._all[os.getpid() % len(self._all)]  # so that several stacks choose different cores
        self._annex = self._home  # the core of the upper half while split
        self._balance = Balance() if mode == "auto" and len(self._all) > 1 else None
        self._sampled_at = 0.0
        self._frames = 0
        self._busy_ticks: dict[int, int] = {}  # of the last sample, if it was read
        self._ran_s: dict[int, float] = {}

    def cores(self, layer: str) -> set[int]:
        """The cores on which a layer runs now."""
        if self._listed:
            return self._listed
        if self._mode == "spread":
            return set(self._all)
        if self._balance and self._balance.split and layer in UPPER_HALF:
            return {self._annex}
        return {self._home}

    def assign(self, pid: int, layer: str) -> None:
        """A layer serves: pin all its threads to its core. While it starts it may run anywhere."""
        cores = self.cores(layer)
        with contextlib.suppress(OSError):  # it has ended, or no descriptor is left: it runs anywhere
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                os.sched_setaffinity(thread, cores)

    def balance(self, now: float, pids: Mapping[str, int], frames: int) -> bool:
        """Take a sample if it is due, and move the layers if the sample asks for it; True: they were moved.

        `frames`: the number that all layers have received so far. Without traffic /proc is not read.
        """
        if self._balance is None or now - self._sampled_at < SAMPLE_S:
            return False
        elapsed_s, self._sampled_at = now - self._sampled_at, now
        arrived, self._frames = frames - self._frames, frames
        if arrived < TRAFFIC:
            self._busy_ticks, self._ran_s = {}, {}
            decision, other = self._balance.sample(now, 0.0, 0.0, 0.0, 0.0), self._home
        else:
            busy = self._busy(elapsed_s)
            if not busy:
                return False
            home_busy = busy.pop(self._home)
            other = self._annex if self._balance.split else min(busy, key=busy.__getitem__)
            decision = self._balance.sample(now, home_busy, busy[other], *self._loops(elapsed_s, pids))
        if decision == "move":
            self._home = other
        elif decision == "split":
            self._annex = other
        if decision:
            for layer, pid in pids.items():
                self.assign(pid, layer)
        return bool(decision)

    def _busy(self, elapsed_s: float) -> dict[int, float]:
        """The share of each core's time that was neither idle nor waiting for a disk (proc(5), /proc/stat).

        Empty if the previous sample was not read, or this one cannot be: no descriptor is left.
        """
        ticks = {}
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._all:
                ticks[int(name[3:])] = sum(map(int, fields[:8])) - int(fields[3]) - int(fields[4])
        before, self._busy_ticks = self._busy_ticks if ticks else {}, ticks
        return {core: (ticks[core] - before[core]) / _TICKS_PER_S / elapsed_s for core in before}

    def _loops(self, elapsed_s: float, pids: Mapping[str, int]) -> tuple[float, float]:
        """What the processes of each half used, with all threads of libzmq, in cores."""
        used = {True: 0.0, False: 0.0}
        ran_s = {}
        for layer, pid in pids.items():
            if ran := used_s(pid):
                ran_s[pid] = ran
                used[layer in UPPER_HALF] += ran - self._ran_s.get(pid, ran)
        self._ran_s = ran_s
        return used[False] / elapsed_s, used[True] / elapsed_s

    def describe(self) -> str:
        """Text for `status`: the mode, and the cores of the lower and the upper half."""
        lower, upper = (",".join(map(str, sorted(self.cores(layer)))) for layer in ("link", "sockets"))
        return f"{self._mode} ({lower}" + (f" | {upper})" if upper != lower else ")")

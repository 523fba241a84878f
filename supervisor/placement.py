"""Where the layers run.

Waking a process on another, idle core is the dearest part of a hop, so a stack with little to do is best kept together
on one core; one that saturates that core is better off on two, cut between ip and the transports; and where others
saturate it, on another. docs/decisions/placement.md has the figures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from bus.topology import UPPER_HALF
from supervisor.layer_process import used_s

SAMPLE_S = 0.25
TRAFFIC = 100  # frames a sample, below which nothing here can be saturated by us
SATURATED = 0.9  # share of the core that is busy
OURS = 0.3  # share of it that the layers' loops there use, for it to be them who keep it busy
FREE = 0.75  # busy share below which another core is worth moving to
RELAXED = 0.65  # share of one core that all loops together use, for one core to be enough again
SPLIT_AFTER = 2  # samples in a row that say so
JOIN_AFTER = 4
CROWDED_AFTER = 2
PAUSE_S = 30.0  # after a second core proved to be no place for us
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Balance:
    """Decides between one core, two, and another one. Pure: fed with samples."""

    def __init__(self) -> None:
        self.split = False
        self._reason = ""
        self._votes = 0
        self._no_split_before = 0.0

    def sample(self, now: float, home_busy: float, other_busy: float, lower: float, upper: float) -> str:
        """What to do: "split", "join", "move" to the other core, or "" for nothing.

        Busy shares of the core that the layers are on and of the other one: the upper half's, while there are two, the
        least busy one else. `lower`, `upper`: what the loops of the halves used, in cores.
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
        """A reason to act, and how many samples in a row must give it."""
        if self.split:
            # Full, and of others: half a stack that starves there holds up the whole.
            if other_busy >= SATURATED and upper < OURS:
                return "crowded", CROWDED_AFTER
            return ("join", JOIN_AFTER) if lower + upper < RELAXED else ("", 1)
        if home_busy < SATURATED or other_busy >= FREE:
            return "", 1
        if lower + upper < OURS:
            return "move", SPLIT_AFTER
        return ("split", SPLIT_AFTER) if now >= self._no_split_before else ("", 1)


class Placement:
    """`mode`: compact, spread, auto, or a list of cores."""

    def __init__(self, mode: str, cores: list[int] | None) -> None:
        self._mode = mode
        self._all = sorted(os.sched_getaffinity(0))
        self._listed = set(cores) if cores else None
        self._home = self._all[os.getpid() % len(self._all)]  # so that several stacks do not crowd one core
        self._annex = self._home  # where the upper half is while split
        self._balance = Balance() if mode == "auto" and len(self._all) > 1 else None
        self._sampled_at = 0.0
        self._frames = 0
        self._busy_ticks: dict[int, int] = {}  # of the last sample, where that was read
        self._ran_s: dict[int, float] = {}

    def cores(self, layer: str) -> set[int]:
        """Where a layer is to run now."""
        if self._listed:
            return self._listed
        if self._mode == "spread":
            return set(self._all)
        if self._balance and self._balance.split and layer in UPPER_HALF:
            return {self._annex}
        return {self._home}

    def settle(self, pid: int, layer: str) -> None:
        """A layer serves: from now on all its threads run where it belongs. While it starts it may run anywhere."""
        cores = self.cores(layer)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                os.sched_setaffinity(thread, cores)

    def balance(self, now: float, pids: Mapping[str, int], frames: int) -> bool:
        """Sample now and then, and move the layers where that says so; True where they were moved.

        `frames`: how many all layers have received so far. Without traffic nothing is read from /proc.
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
                self.settle(pid, layer)
        return bool(decision)

    def _busy(self, elapsed_s: float) -> dict[int, float]:
        """proc(5), /proc/stat: the share of each core's time that was neither idle nor waiting for a disk.

        Nothing where the sample before was not read.
        """
        ticks = {}
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._all:
                ticks[int(name[3:])] = sum(map(int, fields[:8])) - int(fields[3]) - int(fields[4])
        before, self._busy_ticks = self._busy_ticks, ticks
        return {core: (ticks[core] - before[core]) / _TICKS_PER_S / elapsed_s for core in before}

    def _loops(self, elapsed_s: float, pids: Mapping[str, int]) -> tuple[float, float]:
        """What the processes of each half ran, libzmq's threads and all, as shares of one core."""
        used = {True: 0.0, False: 0.0}
        ran_s = {}
        for layer, pid in pids.items():
            if ran := used_s(pid):
                ran_s[pid] = ran
                used[layer in UPPER_HALF] += ran - self._ran_s.get(pid, ran)
        self._ran_s = ran_s
        return used[False] / elapsed_s, used[True] / elapsed_s

    def describe(self) -> str:
        """For `status`: the mode, and the cores of the lower and the upper half."""
        lower, upper = (",".join(map(str, sorted(self.cores(layer)))) for layer in ("link", "sockets"))
        return f"{self._mode} ({lower}" + (f" | {upper})" if upper != lower else ")")

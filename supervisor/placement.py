"""Where the layers run.

Waking a process on another, idle core is the dearest part of a hop, so a stack with little to do is best kept together
on one core; one that saturates that core is better off on two, cut between ip and the transports. docs/decisions/placement.md has the figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

UPPER = frozenset({"udp", "tcp", "raw", "sockets"})  # the half that moves to the second core
SAMPLE_S = 0.25
SATURATED = 0.95  # share of the core that is busy
OURS = 0.3  # share of it that the layers' loops use, for its being busy to concern them
RELAXED = 0.35  # share of one core that all loops together use, for one core to be enough again
SPLIT_AFTER = 2  # samples in a row that say so
JOIN_AFTER = 8
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Balance:
    """Decides between one core and two. Pure: fed with samples."""

    def __init__(self) -> None:
        self.split = False
        self._votes = 0

    def sample(self, core_busy: float, loops: float) -> bool:
        """True where `split` changed. `core_busy`: busy share of the first core; `loops`: what the loops used, in cores."""
        if self.split:
            wanted, after = loops < RELAXED, JOIN_AFTER
        else:
            wanted, after = core_busy >= SATURATED and loops >= OURS, SPLIT_AFTER
        self._votes = self._votes + 1 if wanted else 0
        if self._votes < after:
            return False
        self.split = not self.split
        self._votes = 0
        return True


class Placement:
    """`mode`: compact, spread, auto, or a list of cores."""

    def __init__(self, mode: str, cores: list[int] | None) -> None:
        self._mode = mode
        self._all = sorted(os.sched_getaffinity(0))
        self._listed = set(cores) if cores else None
        self._first, self._second = self._all[-1], self._all[0]
        self._balance = Balance() if mode == "auto" and len(self._all) > 1 else None
        self._sampled_at = 0.0
        self._busy_ticks = 0
        self._ran_ns: dict[int, int] = {}

    def cores(self, layer: str) -> set[int]:
        """Where a layer is to run now."""
        if self._listed:
            return self._listed
        if self._mode == "spread":
            return set(self._all)
        if self._balance and self._balance.split and layer in UPPER:
            return {self._second}
        return {self._first}

    def balance(self, now: float, pids: Mapping[str, int]) -> bool:
        """Sample now and then, and move the layers where that says so; True where they were moved."""
        if self._balance is None or now - self._sampled_at < SAMPLE_S:
            return False
        elapsed_s, self._sampled_at = now - self._sampled_at, now
        core_busy = self._core_busy(elapsed_s)
        if not self._balance.split and core_busy < SATURATED:
            self._ran_ns.clear()
            return False
        if not self._balance.sample(core_busy, self._loops(elapsed_s, pids)):
            return False
        for layer, pid in pids.items():
            move(pid, self.cores(layer))
        return True

    def _core_busy(self, elapsed_s: float) -> float:
        """proc(5), /proc/stat: all but idle and iowait."""
        text = Path("/proc/stat").read_text()
        fields = text[text.index(f"cpu{self._first} ") :].split("\n", 1)[0].split()[1:9]
        busy = sum(map(int, fields)) - int(fields[3]) - int(fields[4])
        share = (busy - self._busy_ticks) / _TICKS_PER_S / elapsed_s
        self._busy_ticks = busy
        return share

    def _loops(self, elapsed_s: float, pids: Mapping[str, int]) -> float:
        """proc(5), schedstat: nanoseconds that the main threads ran, as a share of one core."""
        used = 0
        ran_ns = {}
        for pid in pids.values():
            try:
                ran_ns[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue
            used += ran_ns[pid] - self._ran_ns.get(pid, ran_ns[pid])
        self._ran_ns = ran_ns
        return used / 1e9 / elapsed_s

    def describe(self) -> str:
        """For `status`: the mode, and the cores of the lower and the upper half."""
        lower, upper = (",".join(map(str, sorted(self.cores(layer)))) for layer in ("link", "sockets"))
        return f"{self._mode} ({lower}" + (f" | {upper})" if upper != lower else ")")


def move(pid: int, cores: set[int]) -> None:
    """All threads of a process to `cores`; nothing, where it has ended."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)
    except OSError:
        pass

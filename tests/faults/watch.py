"""What a stack and its applications hold of memory, descriptors, threads and files, over the time of a campaign."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

import psutil

from bus.durable import layout
from tests.faults.lab import LAYERS, Lab, Load

INTERVAL_S = 2.0
SHARED_MEMORY = Path("/dev/shm")
# (factor, plus): beyond it is a leak. Durable memory grows until the journals of link, ip and udp were full once; the
# keeper and the layer hold the code of each layer that was restarted.
ALLOWED_GROWTH = {"durable memory: octets": (1.25, 3 * layout.JOURNAL_OCTETS), "octets": (1.25, 6_000_000),
                  "count": (1.0, 3 + len(LAYERS))}


class Watch:
    """Takes a sample now and then; `growth` compares the first quarter with the last."""

    def __init__(self, lab: Lab, load: Load) -> None:
        self._lab = lab
        self._load = load
        self._next = 0.0
        self.samples: list[dict[str, float]] = []

    def sample(self) -> None:
        """One sample, if it is time for it and all layers are there."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL_S
        try:
            self.samples.append(self._take())
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            pass  # a layer died meanwhile
        except (PermissionError, psutil.AccessDenied):
            pass  # layers show an ordinary user nothing (supervisor.lockdown): only root's campaign watches

    def _take(self) -> dict[str, float]:
        status = self._lab.status()
        layers = [psutil.Process(layer["pid"]) for layer in status["layers"].values()]
        keeper = psutil.Process(status["keeper"])
        found: dict[str, float] = {
            "layers: octets": sum(_private(layer) for layer in layers),
            "layers: descriptors": sum(layer.num_fds() for layer in layers),
            "layers: threads": sum(layer.num_threads() for layer in layers),
            "keeper: octets": _private(keeper),
            "keeper: descriptors": keeper.num_fds(),
            "keeper: threads": keeper.num_threads(),
            "keeper: children": len(keeper.children()),
            "durable memory: octets": _memfds(status["keeper"]),
            "run directory: files": len(os.listdir(status["run_dir"])),
            "/dev/shm: files": len(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.exists() else 0,
        }
        for role in self._load.applications:
            process = psutil.Process(self._load.processes[role].pid)
            found[f"application {role}: octets"] = _private(process)
            found[f"application {role}: descriptors"] = process.num_fds()
            found[f"application {role}: threads"] = process.num_threads()
        return found

    def growth(self) -> dict[str, tuple[float, float]]:
        """By what was watched: the median of the first quarter and of the last."""
        quarter = max(1, len(self.samples) // 4)
        if not self.samples:
            return {}
        return {name: (median(sample[name] for sample in self.samples[:quarter]),
                       median(sample[name] for sample in self.samples[-quarter:])) for name in self.samples[0]}

    def leaks(self) -> list[str]:
        """What grew more than it may."""
        found = []
        for name, (first, last) in self.growth().items():
            factor, plus = ALLOWED_GROWTH.get(name) or ALLOWED_GROWTH["octets" if name.endswith("octets") else "count"]
            if last > first * factor + plus:
                found.append(f"{name}: {first:.0f} -> {last:.0f}")
        return found


def _private(process: psutil.Process) -> int:
    """Octets of private memory; mapped records and durable memory are not included."""
    private = 0
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            private += int(line.split()[1]) * 1024
    return private


def _memfds(pid: int) -> int:
    octets = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith("/memfd:"):
            octets += os.stat(entry).st_blocks * 512
    return octets

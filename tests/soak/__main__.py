"""`python -m tests.soak`: an hour of mixed load. Prints what the stack holds; status 1 where that grows."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil

from bus.durable import layout
from tests.faults.lab import ROOT, Lab

ROLES = {"server": False, "echo": True, "asker": True, "client": False}  # True: on the kernel's end
ROWS = 12
# Not judged, nor is the first half of a shorter run: buffers, caches and free lists reach their size, and pages that a
# layer shares with the keeper become its own.
WARM_UP_S = 600
ALLOWED = {"kB": (1.05, 1024), "": (1.0, 8)}  # by unit: (factor, plus); more in the second half of what is judged


def sample(lab: Lab) -> dict[str, float]:
    """What the stack's processes hold now, by "what unit"."""
    status = lab.status()
    pids = {name: layer["pid"] for name, layer in status["layers"].items()}
    found: dict[str, float] = {f"{name} kB": pss_kib(pid) for name, pid in pids.items()}
    found["keeper kB"] = pss_kib(status["keeper"])
    found["all kB"] = sum(found.values())
    found["anonymous kB"] = sum(anonymous_kib(pid) for pid in (status["keeper"], *pids.values()))
    processes = [psutil.Process(pid) for pid in (status["keeper"], *pids.values())]
    found["descriptors "] = sum(process.num_fds() for process in processes)
    found["threads "] = sum(process.num_threads() for process in processes)
    memfds, journal = durable(status["keeper"])
    found["memfds kB"], found["journal kB"] = memfds, journal
    found["files "] = sum(len(files) for _, _, files in os.walk(lab.run_dir))
    return found


def pss_kib(pid: int) -> int:
    """Proportional set size (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def anonymous_kib(pid: int) -> int:
    """What a process has allocated (RssAnon, proc_pid_status(5)): also pages that it still shares with the keeper.

    The proportional set size grows when such a page becomes the layer's own, and when other programs that had the same
    libraries end. This does not: it grows only by what is not given back.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def durable(keeper: int) -> tuple[int, int]:
    """KiB of all memfds of the keeper, and of the journals in them."""
    octets = journal = 0
    seen = set()
    for entry in Path(f"/proc/{keeper}/fd").iterdir():
        try:
            name, status = os.readlink(entry), os.stat(entry)
        except OSError:
            continue  # closed meanwhile
        if not name.startswith("/memfd:") or status.st_ino in seen:
            continue
        seen.add(status.st_ino)
        octets += status.st_blocks * 512
        if status.st_size == layout.TOTAL_OCTETS + layout.STREAMS_OCTETS:  # a layer's, not the rings of tcp
            with open(entry, "rb") as memory:
                memory.seek(8 * layout.JOURNAL_TAIL)
                tail, head = (int.from_bytes(memory.read(8), sys.byteorder) for _ in range(2))
            journal += head - tail
    return octets >> 10, journal >> 10


def grown(samples: list[dict[str, float]], every_s: float) -> list[str]:
    """What is more in the second half of the judged part of the run than in the first."""
    judged = samples[min(len(samples) // 2, int(WARM_UP_S / every_s)) :]
    half = max(1, len(judged) // 2)
    found = []
    for name in samples[0]:
        before = median(each[name] for each in judged[:half])
        after = median(each[name] for each in judged[-half:])
        factor, plus = ALLOWED[name.rpartition(" ")[2]]
        if after > before * factor + plus:
            found.append(f"{name.strip()}: {before:.0f} -> {after:.0f}")
    return found


def table(samples: list[dict[str, float]], every_s: float) -> str:
    """A column for each thing, some rows over the run."""
    step = max(1, len(samples) // ROWS)
    lines = ["| minutes | " + " | ".join(name.strip() for name in samples[0]) + " |",
             "|---" * (1 + len(samples[0])) + "|"]
    for number in range(0, len(samples), step):
        cells = " | ".join(f"{value:.0f}" for value in samples[number].values())
        lines.append(f"| {number * every_s / 60:.1f} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="default 60")
    parser.add_argument("--pipes", help="as `launcher.py up --pipes`")
    options = parser.parse_args()
    samples: list[dict[str, float]] = []
    every_s = max(1.0, options.minutes * 60 / 240)
    with Lab(options=("--pipes", options.pipes) if options.pipes else ()) as lab:
        load = {}
        for role, inside in ROLES.items():
            command = [sys.executable, "-m", "tests.soak.load", role]
            if inside:
                command = [sys.executable, str(ROOT / "launcher.py"), "exec", "--name", lab.name, "--", *command]
            load[role] = subprocess.Popen(command, env=lab.environment, cwd=ROOT, stdin=subprocess.PIPE, text=True)
            lab.processes.append(load[role])
            time.sleep(1)  # the servers start before the clients
        end = time.monotonic() + options.minutes * 60
        while time.monotonic() < end and not any(process.poll() is not None for process in load.values()):
            samples.append(sample(lab))
            time.sleep(every_s)
        restarts = {name: layer["restarts"] for name, layer in lab.status()["layers"].items() if layer["restarts"]}
        for role in reversed(load):
            load[role].communicate()
        failed = [role for role, process in load.items() if process.returncode]
    print(table(samples, every_s))
    problems = [*grown(samples, every_s), *(f"load {role} failed" for role in failed),
                *(f"{name} was restarted {count} times" for name, count in restarts.items())]
    print("grown, failed or restarted:", "; ".join(problems) or "nothing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Which threads run for one packet, how long, and how long after they were woken: the scheduler's trace, by perf(1).

`python -m bench.wakes [ping|lone] [--pipes zmq|direct]`, as root; the kernel needs tracepoints (Debian: linux-perf).
Tracing takes part of the time itself, some 2 us for each turn.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from bench import stack
from bench.goals import PORT

PACKETS = 2000
EVENTS = "sched:sched_switch,sched:sched_waking"
_EVENT = re.compile(r"([\d.]+): +sched:sched_(switch|waking): (.*)")
_SWITCH = re.compile(r"prev_pid=(\d+) .*next_pid=(\d+)")
_WAKING = re.compile(r"\bpid=(\d+)")


def threads(bench: stack.Bench) -> dict[int, str]:
    """{number: name} of the threads of all layers."""
    found = {}
    for layer, fields in bench.status()["layers"].items():
        pid = fields["pid"]
        for task in Path(f"/proc/{pid}/task").iterdir():
            own = int(task.name) == pid
            found[int(task.name)] = layer if own else f"{layer}, {(task / 'comm').read_text().strip()}"
    return found


def traced(bench: stack.Bench, kind: str) -> str:
    """What the scheduler did during PACKETS pings or echoes."""
    with tempfile.NamedTemporaryFile() as file:
        command = ["perf", "record", "--quiet", "--all-cpus", "-m", "8M", "-e", EVENTS, "-o", file.name]
        with subprocess.Popen(command) as recording:
            if kind == "ping":
                bench.run("ping", stack.ADDRESS, PACKETS)
            else:
                bench.run("lone", stack.ADDRESS, PORT, 64, PACKETS)
            recording.send_signal(signal.SIGINT)
        return subprocess.run(["perf", "script", "-i", file.name, "-F", "time,event,trace"], check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def turns(trace: str, names: dict[int, str]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """({thread: microseconds of each turn}, {thread: microseconds from each wake to its turn})."""
    ran, waited = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    running: dict[int, float] = {}
    woken: dict[int, float] = {}
    for at, event, fields in _EVENT.findall(trace):
        now = 1e6 * float(at)
        if event == "waking" and (found := _WAKING.search(fields)):
            woken.setdefault(int(found[1]), now)
        elif event == "switch" and (found := _SWITCH.search(fields)):
            former, following = map(int, found.groups())
            if former in running:
                ran[names[former]].append(now - running.pop(former))
            if following in names:
                running[following] = now
                if following in woken:
                    waited[names[following]].append(now - woken.pop(following))
    return ran, waited


def main(kind: str = "ping", *options: str) -> None:
    """Print a table."""
    with stack.booted(*options) as bench, bench.during("echo", "0.0.0.0", PORT):
        names = threads(bench)
        ran, waited = turns(traced(bench, kind), names)
    print(f"| thread | turns for a {kind} | a turn, us | from the wake to it, us | in all, us |")
    print("|---|---:|---:|---:|---:|")
    for name in sorted(ran, key=lambda each: -sum(ran[each])):
        if len(ran[name]) > PACKETS / 2:
            print(f"| {name} | {len(ran[name]) / PACKETS:.1f} | {median(ran[name]):.0f} | {median(waited[name]):.0f} "
                  f"| {sum(ran[name]) / PACKETS:.0f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

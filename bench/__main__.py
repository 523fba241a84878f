"""`make bench`: prints one table. `python -m bench --compare OLD.json NEW.json` compares two runs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from datetime import date
from pathlib import Path

from bench import connections, goals, sockperf, stack, streams, watching

RESULTS = Path(__file__).parent / "results"


def measure(pipes: str, options: list[str]) -> list[goals.Goal]:
    """Measure every goal for one kind of pipes; takes about five minutes."""
    options, limits = [*options, "--pipes", pipes], goals.LIMITS[pipes]
    _say(f"{pipes}: floor: bare pyzmq chains")
    bare, at_home = [goals.floors()], goals.chains_at_home()
    _say("boot")
    found = [goals.boot(options[-2:])]
    with stack.booted(*options) as bench:
        _say("idle")
        found += goals.idle(bench, limits)
        with bench.during("echo", "0.0.0.0", goals.PORT):
            _say("latency")
            alone = goals.lone(bench)
            by_sockperf = sockperf.lone(bench)
            _say("rate")
            short, long = goals.rates(bench)
            many = goals.rates_many(bench)
            bare.append(goals.floors())
            alone += goals.lone(bench)
            _say("throughput")
            in_bulk = goals.one_way(bench)
            _say("overload")
            flooded = goals.overload(bench, short)
            alone += goals.lone(bench)
            bare.append(goals.floors())
            floor = goals.middle(bare)
            found += [*goals.latency(alone, floor, limits), *by_sockperf, *at_home]
            found += [*goals.rate(short, long, many, floor, limits), *flooded]
        _say("streams")
        found += streams.bulk(bench)
        found.append(streams.loopback(bench))
        _say("TCP connections")
        found += connections.small(bench, short, floor.eight.p50_us)
        found += connections.http(bench)
        _say("scale")
        found += connections.idle(options[-2:])
        found += goals.scale(options[-2:])
        found.append(goals.restart(bench))
        found += goals.kernels_own(bench)
    _say("wire")
    found.append(streams.wire(options))
    _say("watched")
    found += watching.goals(options)
    _say("throughput without offload")
    with stack.booted(*options, "--no-offload") as plain:
        found += goals.throughput(in_bulk, goals.one_way(plain))
    return found


def _say(what: str) -> None:
    print(f"  ... {what}", file=sys.stderr, flush=True)


def table(found: dict[str, list[goals.Goal]]) -> str:
    """The table in Markdown: one row for each goal, columns for each kind of pipes."""
    rows = [("what", *(f"{title}{pipes}" for pipes in found for title in ("", "against, ", "goal, ", "met, ")))]
    by_name = {pipes: {goal.name: goal for goal in goals_} for pipes, goals_ in found.items()}
    for name in dict.fromkeys(name for each in by_name.values() for name in each):
        row = [name]
        for each in by_name.values():
            goal = each.get(name)
            row += ((goal.figure, goal.against, goal.goal, {True: "yes", False: "NO", None: ""}[goal.met])
                    if goal else ("", "", "", ""))
        rows.append(tuple(row))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def compare(old: Path, new: Path) -> str:
    """Two runs side by side."""
    before = {goal["name"]: goal["value"] for goal in json.loads(old.read_text())["goals"]}
    lines = []
    for goal in json.loads(new.read_text())["goals"]:
        was = before.get(goal["name"])
        change = f"{goal['value'] / was - 1:+.0%}" if was else "new"
        lines.append(f"{goal['name']:<48} {was or 0:>12.4g} -> {goal['value']:>12.4g}  {change}")
    return "\n".join(lines)


def main() -> int:
    """Measure and print, or compare."""
    parser = argparse.ArgumentParser(prog="bench", description="the benchmark of usernet")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--cores", default="auto", help="as `launcher.py up --cores`")
    parser.add_argument("--pipes", default="zmq,direct", help="kinds of pipes to measure (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.compare:
        print(compare(*arguments.compare))
        return 0
    if shutil.which("ping") is None:
        parser.error("ping(8), which measures the round trip of a ping, is not installed (Debian: iputils-ping)")
    kinds = arguments.pipes.split(",")
    if unknown := set(kinds) - goals.LIMITS.keys():
        parser.error(f"--pipes {unknown.pop()}: {' or '.join(goals.LIMITS)}")
    found = {pipes: measure(pipes, ["--cores", arguments.cores]) for pipes in kinds}
    if len(found) > 1:
        found["zmq"] += goals.bulk(found["zmq"], found["direct"])
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, {date.today()}"
    print(f"{machine}, `make bench`\n\n{table(found)}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date.today()}.json"
    path.write_text(json.dumps({"machine": machine, "goals": [
        goal._asdict() | {"name": f"{goal.name}, {pipes}"} for pipes in found for goal in found[pipes]]}, indent=1))
    print(f"\nJSON: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0 if all(goal.met is not False for each in found.values() for goal in each) else 1


if __name__ == "__main__":
    sys.exit(main())

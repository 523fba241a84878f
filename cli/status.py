"""`status`: the keeper's view of the layers, together with the kernel's information about their processes."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any

import msgspec
import psutil

from cli.impair import describe
from cli.main import DEGRADED, OK
from cli.query import query
from cli.up import addresses_of
from supervisor import lockdown, seccomp
from supervisor.control import printable
from usernet.pipe.run_dir import run_dir

COLUMNS = 80  # of the table
TEXT = "show the layers, their processes and counters"


def collect(name: str | None) -> dict[str, Any]:
    """The object that `status --json` prints."""
    status = query(run_dir(name), "status")
    for layer in status["layers"].values():
        layer["rss_bytes"], layer["cpu_s"] = _resources(layer["pid"])
        layer["may"] = _rights(layer["pid"], layer.pop("lock"))
        roles = layer.pop("roles")
        totals = {role: sum(layer["counters"][counter] for counter, its in roles.items() if its == role)
                  for role in ("in", "out", "drop")}
        layer["packets_in"], layer["packets_out"] = totals["in"], totals["out"]
        layer["packets_dropped"] = totals["drop"]
        layer["counters"].update(layer.pop("bus"))
    status["conflicts"] = [
        {field: notice[field] for field in ("address", "mac", "since")}
        for layer in status["layers"].values() for notice in layer["notices"] if notice["event"] == "conflict"]
    return status


def _rights(pid: int | None, told: dict[str, Any] | None) -> dict[str, Any]:
    """The rights of a layer's process: from the kernel, and for root directory and Landlock from the layer itself."""
    rights = lockdown.of_process(pid) if pid else {}
    told = told or {"missing": ["not reported yet"]}
    listed = rights.get("seccomp") and "kind" in told
    rights["calls"] = len(seccomp.rules(told["kind"], told["threads"])) if listed else None
    rights["root"], rights["landlock"] = told.get("root") == "/", told.get("landlock", 0)
    return rights | {"missing": told["missing"]}


def _described(rights: dict[str, Any]) -> str:
    known = {0: "no capability", 1 << lockdown.CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE in it"}
    capabilities = known.get(rights["capabilities"], f"capabilities {rights['capabilities']:#x}")
    files = "its own folder" if rights["root"] else "all files of that user"
    calls = "any" if rights["calls"] is None else rights["calls"]
    return (f"user {rights['uid']}, {files}, {capabilities}, {calls} system calls"
            + "".join(f"; {text}" for text in rights["missing"]))


def _resources(pid: int | None) -> tuple[int, float]:
    try:
        process = psutil.Process(pid) if pid else None
        if process is None:
            return 0, 0.0
        times = process.cpu_times()
        return process.memory_info().rss, round(times.user + times.system, 2)
    except psutil.NoSuchProcess:
        return 0, 0.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print a JSON object with all counters (docs/commands.md)")


def run(given: argparse.Namespace) -> int:
    """Print the status as a table or as JSON; returns DEGRADED if not all layers serve."""
    status = collect(given.name)
    status["addresses"] = addresses_of(status)
    print(msgspec.json.format(msgspec.json.encode(status)).decode() if given.json else printable(table(status)))
    return OK if status["state"] == "up" else DEGRADED


def table(status: dict[str, Any]) -> str:
    """A table for the terminal, 80 columns wide unless a name, the run directory or a notice is long."""
    where = f"wire {status['wire']}" if status["wire"] else f"{status['tap']}, kernel's end {status['kernel_end']}"
    addresses = ", ".join(status.get("addresses", [status["address"]]))
    lines = [f"stack {status['name']}: {status['state']}, {addresses}, {where}",
             f"mac {status['mac']}, mtu {status['mtu']}",
             f"offload {', '.join(status['offload']) or 'none'}",
             f"cores {status['cores']}, pipes {status['pipes']}, keeper {status['keeper']}, {status['run_dir']}",
             "",
             f"{'layer':<7} {'pid':>7} {'state':<9} {'starts':>6} {'uptime':>8} {'memory':>7} {'cpu s':>6} {'in':>8} "
             f"{'out':>8} {'drops':>5}"]
    for name, layer in status["layers"].items():
        lines.append(
            f"{name:<7} {layer['pid'] or '-':>7} {layer['state']:<9} {layer['restarts'] + 1:>6} "
            f"{layer['uptime_s']:>6.0f} s {layer['rss_bytes'] / 1e6:>4.0f} MB {layer['cpu_s']:>6.2f} "
            f"{layer['packets_in']:>8} {layer['packets_out']:>8} {layer['packets_dropped']:>5}")
    lines += ["", *(line for name, layer in status["layers"].items() if "uid" in layer["may"]
                    for line in _wrapped(f"rights of {name}: {_described(layer['may'])}"))]
    if status["impairments"]:
        lines += ["", *(f"impaired: {describe(one)}" for one in status["impairments"])]
    if status.get("trouble"):
        lines += ["", status["trouble"]]
    notices = [(name, notice) for name, layer in status["layers"].items() for notice in layer["notices"]]
    if notices:
        lines.append("")
    for name, notice in notices:
        since = datetime.fromtimestamp(notice["since"]).strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"{name}: {notice['event']} since {since}: {notice['detail']}")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    """The line in lines of 80 columns, broken behind commas."""
    wrapped = [""]
    for part in line.split(", "):
        if len(f"{wrapped[-1]}{part},") > COLUMNS:
            wrapped.append("    ")
        wrapped[-1] += f"{part}, "
    return [each.rstrip() for each in (*wrapped[:-1], wrapped[-1][: -len(", ")])]

"""The data that `top` and the page in the browser show of a stack: totals, and rates between two ticks."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgspec
import psutil

from bus.durable import layout
from bus.runtime import meter
from cli.impair import describe as describe_impairment
from cli.pipes import Pipe
from cli.query import query
from cli.up import addresses_of
from cli.watching import Measured, Meters
from supervisor.control import Client, Refused, printable
from supervisor.events import Event, describe
from usernet.pipe.run_dir import run_dir

EVENTS_KEPT = 50


class LayerRow(msgspec.Struct):
    """One layer; rates are per second."""

    name: str
    state: str
    pid: int
    incarnation: int
    restarts: int
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    records_s: float = 0.0  # processed by its core
    us_record: float = 0.0  # mean time of its core for one record
    drops: int = 0
    drops_s: float = 0.0
    waiting: int = 0  # records that wait for room in its pipes


class PipeRow(msgspec.Struct):
    """One direction between two neighbours."""

    name: str
    producer: str
    consumer: str
    records_s: float = 0.0
    mbit_s: float = 0.0
    records: int = 0
    impaired: str = ""  # in tc's words; empty: not impaired
    waiting: int = 0  # records that wait for room
    drops: int = 0  # records that found no room, or that an impairment dropped
    drops_s: float = 0.0


class Snapshot(msgspec.Struct):
    """The state of a stack at one time."""

    name: str
    address: str
    where: str
    state: str
    uptime_s: float
    cores: str
    layers: list[LayerRow]
    pipes: list[PipeRow]
    applications: int
    sockets: int
    connections: int
    impairments: list[str]
    events: list[str]


class Board:
    """Reads one stack's meters; each `tick` computes the rates since the tick before."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._folder = run_dir(name)
        self._meters: Meters | None = None
        self._refused = False
        self._before: tuple[float, dict[str, Any], Measured | None, dict[int, float]] | None = None
        self._processes: dict[int, psutil.Process] = {}

    def close(self) -> None:
        """End the metering."""
        if self._meters is not None:
            self._meters.close()

    def tick(self) -> Snapshot:
        """The present state of the stack. NotRunning: the stack does not run."""
        if self._meters is None and not self._refused:
            try:
                self._meters = Meters(self._name)
            except Refused:  # the maximum number of watchers is reached: show no rates of pipes
                self._refused = True
        status = query(self._folder, "status")
        now, measured, cpu = time.monotonic(), self._meters.read() if self._meters else None, self._cpu(status)
        then, former, former_measured, former_cpu = self._before or (now - 1e-9, status, measured, cpu)
        self._before = now, status, measured, cpu
        seconds = max(now - then, 1e-9)
        impaired = {one["pipe"]: describe_impairment(one).partition(": ")[2] for one in status["impairments"]}
        return Snapshot(
            status["name"], ", ".join(addresses_of(status)),
            f"wire {status['wire']}" if status["wire"] else f"{status['tap']}, kernel {status['kernel_end']}",
            status["state"], status["uptime_s"], status["cores"],
            [self._layer(name, row, former, seconds, measured, former_measured, cpu, former_cpu)
             for name, row in status["layers"].items()],
            _pipes(measured, former_measured, seconds, impaired, status, former),
            self._applications(),
            _open(status, "sockets", "sockets_opened", "sockets_closed"),
            self._connections(status),
            [describe_impairment(one) for one in status["impairments"]], self._events())

    def _applications(self) -> int:
        try:
            return len(list(self._folder.glob("**/app-*.sock")))
        except FileNotFoundError:  # it is being removed
            return 0

    def _cpu(self, status: dict[str, Any]) -> dict[int, float]:
        used = {}
        for row in status["layers"].values():
            with contextlib.suppress(psutil.Error, TypeError):
                pid = row["pid"]
                process = self._processes.get(pid) or psutil.Process(pid)
                self._processes[pid] = process
                used[pid] = sum(process.cpu_times()[:2])
        return used

    def _layer(self, name: str, row: dict[str, Any], former: dict[str, Any], seconds: float, measured: Measured | None,
               former_measured: Measured | None, cpu: dict[int, float], former_cpu: dict[int, float]) -> LayerRow:
        made = LayerRow(name, row["state"], row["pid"] or 0, row["incarnation"], row["restarts"], drops=_drops(row),
                        waiting=row["waiting"])
        made.drops_s = max(0.0, (made.drops - _drops(former["layers"].get(name, row))) / seconds)
        made.cpu_percent = max(0.0, (cpu.get(made.pid, 0.0) - former_cpu.get(made.pid, cpu.get(made.pid, 0.0)))
                               / seconds * 100)
        with contextlib.suppress(psutil.Error, KeyError):
            made.memory_bytes = self._processes[made.pid].memory_info().rss
        if measured and former_measured:
            reading, then = measured.layers[name], former_measured.layers[name]
            records = sum(reading.times) - sum(then.times)
            made.records_s = records / seconds
            made.us_record = (reading.time_ns - then.time_ns) / records / 1000 if records else 0.0
        return made

    def _connections(self, status: dict[str, Any]) -> int:
        """The number of connections of tcp; 0 while it does not serve."""
        if status["layers"].get("tcp", {"state": ""})["state"] != "up":
            return 0
        with contextlib.suppress(Refused):
            answer = query(self._folder, "manage", layer="tcp", request={"op": "connection_count"})
            return int(answer["connections"])
        return 0

    def _events(self) -> list[str]:
        with Client(self._folder) as client:
            lines = list(client.stream("events"))[-EVENTS_KEPT:]
        return [printable(describe(msgspec.convert(line, Event), date=False).partition("\n")[0]) for line in lines]


def _open(status: dict[str, Any], layer: str, opened: str, closed: str) -> int:
    """The number opened minus the number closed; 0 if the layer does not count them."""
    counters = status["layers"].get(layer, {"counters": {}})["counters"]
    return max(0, counters.get(opened, 0) - counters.get(closed, 0))


def _drops(row: dict[str, Any]) -> int:
    return sum(row["counters"].get(name, 0) for name, role in row["roles"].items() if role == "drop") + sum(
        row["bus"][name] for name in ("bus_pipe_full", "bus_lost", "bus_impaired_lost", "bus_impaired_full"))


def _queue(pipe: Pipe, status: dict[str, Any]) -> tuple[int, int]:
    """(records of a pipe that wait, those that were dropped since the boot)."""
    row = status["layers"].get(pipe.layer, {"pipes": {}})
    waiting, dropped, dropped_in = row["pipes"].get(str(layout.pipe_cell(pipe.peer)), (0, 0, 0))
    return (waiting, dropped) if pipe.sent else (0, dropped_in)


def _pipes(measured: Measured | None, former: Measured | None, seconds: float, impaired: dict[str, str],
           status: dict[str, Any], then: dict[str, Any]) -> list[PipeRow]:
    rows = []
    for pipe, flow in (measured.flows if measured else {}).items():
        before = former.flows.get(pipe, flow) if former else meter.Flow(0, 0)
        waiting, drops = _queue(pipe, status)
        rows.append(PipeRow(pipe.name, pipe.producer, pipe.consumer, (flow.records - before.records) / seconds,
                            (flow.octets - before.octets) * 8 / seconds / 1e6, flow.records,
                            impaired.get(pipe.name, ""), waiting, drops,
                            max(0.0, (drops - _queue(pipe, then)[1]) / seconds)))
    return rows

"""The Prometheus exporter of a stack: counters with their sentences, pipes, layers, and the time per record.

The exporter is a process of its own that listens on 127.0.0.1. It outlives the stack: while the stack does not run,
usernet_up is 0, and so it is while the keeper is stopped or answers too late for a scrape.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psutil
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from bus.runtime.meter import Reading
from cli.counters import counts
from cli.failures import naming
from cli.query import query
from cli.watching import Meters
from supervisor.control import NotRunning, Refused
from usernet.pipe.run_dir import run_dir, stack_name

# for each of the keeper's three answers: together less than Prometheus waits for a scrape (scrape_timeout: 10 s)
ANSWER_S = 3.0


class Exporter:
    """The collector that prometheus_client calls at each scrape."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._stack = stack_name(name)
        self._meters: Meters | None = None

    def describe(self) -> list[Metric]:
        """Nothing is described in advance, because the stack determines which counters exist."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The present values of all metrics."""
        up = GaugeMetricFamily("usernet_up", "1 if the stack runs and all its layers serve, else 0.", labels=["stack"])
        try:
            status = query(run_dir(self._name), "status", timeout_s=ANSWER_S)
            measured = self._measured()
        except (NotRunning, Refused, OSError):
            up.add_metric([self._stack], 0)
            yield up
            return
        up.add_metric([self._stack], status["state"] == "up")
        yield up
        yield from self._counters(status)
        yield from self._layers(status)
        if measured is not None:
            yield from self._pipes(measured)

    def _measured(self):
        if self._meters is not None and self._meters.ended:
            self._meters.close()
            self._meters = None
        if self._meters is None:
            with contextlib.suppress(Refused):  # the maximum number of watchers is reached
                self._meters = Meters(self._name, ANSWER_S)
        return self._meters and self._meters.read()

    def _counters(self, status: dict) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily] = {}
        for count in counts(status):
            name = f"usernet_{count.name}" if count.name.startswith("bus_") else f"usernet_{count.layer}_{count.name}"
            if name not in families:
                families[name] = CounterMetricFamily(name, count.sentence, labels=["stack", "layer"])
            families[name].add_metric([self._stack, count.layer], count.value)
        yield from families.values()

    def _layers(self, status: dict) -> Iterator[Metric]:
        serving = GaugeMetricFamily("usernet_layer_up", "1 if the layer serves, else 0.", labels=["stack", "layer"])
        restarts = CounterMetricFamily("usernet_layer_restarts", "Number of restarts of the layer.",
                                       labels=["stack", "layer"])
        waiting = GaugeMetricFamily("usernet_layer_waiting", "Number of records that wait for room in the layer's "
                                    "pipes.",
                                    labels=["stack", "layer"])
        seconds = CounterMetricFamily("usernet_layer_cpu_seconds", "Processor time of the layer's present process.",
                                      labels=["stack", "layer"])
        memory = GaugeMetricFamily("usernet_layer_memory_bytes", "Resident memory of the layer's process.",
                                   labels=["stack", "layer"])
        for layer, there in status["layers"].items():
            labels = [self._stack, layer]
            serving.add_metric(labels, there["state"] == "up")
            restarts.add_metric(labels, there["restarts"])
            waiting.add_metric(labels, there["waiting"])
            with contextlib.suppress(psutil.Error, TypeError):  # the layer has no process at the moment
                process = psutil.Process(there["pid"])
                seconds.add_metric(labels, sum(process.cpu_times()[:2]))
                memory.add_metric(labels, process.memory_info().rss)
        yield from (serving, restarts, waiting, seconds, memory)

    def _pipes(self, measured) -> Iterator[Metric]:
        records = CounterMetricFamily("usernet_pipe_records", "Records on the pipe while the exporter "
                                      "ran.", labels=["stack", "pipe"])
        octets = CounterMetricFamily("usernet_pipe_octets", "Octets of those records.", labels=["stack", "pipe"])
        for pipe, flow in measured.flows.items():
            records.add_metric([self._stack, pipe.name], flow.records)
            octets.add_metric([self._stack, pipe.name], flow.octets)
        times = HistogramMetricFamily("usernet_layer_record_seconds", "Processing time of the layer's core per record.",
                                      labels=["stack", "layer"])
        for layer, reading in measured.layers.items():
            times.add_metric([self._stack, layer], *_histogram(reading))
        yield from (records, octets, times)


def _histogram(reading: Reading) -> tuple[list[tuple[str, float]], float]:
    """(cumulative buckets, sum in seconds), with buckets from a microsecond to a second."""
    total, buckets = 0, []
    for power, records in enumerate(reading.times):
        total += records
        if 10 <= power <= 30:
            buckets.append((f"{2**power / 1e9:.3g}", float(total)))
    buckets.append(("+Inf", float(total)))
    return buckets, reading.time_ns / 1e9


def serve(name: str | None, port: int) -> None:
    """Serve until Ctrl-C. OSError: the port is not available."""
    registry = CollectorRegistry()
    registry.register(Exporter(name))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # also for the threads
    with naming(f"127.0.0.1:{port} (--port 0 takes any free port)"):
        server, thread = start_http_server(port, "127.0.0.1", registry)
    print(f"metrics at http://127.0.0.1:{server.server_port}/metrics; Ctrl-C ends it", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    server.shutdown()
    thread.join()

"""Watching the pipes of a running stack, for `capture`, `trace` and the page in the browser.

Each watched layer copies records into a ring in its own memory, which this process maps. The layer never waits for the
reader: records that find no room are lost and counted. When this process ends, the keeper stops the copying.
"""

from __future__ import annotations

import importlib
import os
import select
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from bus import topology
from bus.counters import PipeCounters
from bus.durable import layout
from bus.runtime import meter, ring
from bus.runtime.taps import BUS_COUNTER
from cli.pipes import Pipe, all_pipes, pipe_of
from supervisor.control import ANSWER_TIMEOUT_S, Client, NotRunning
from usernet.pipe.run_dir import run_dir

_SETTLED_NS = 5_000_000  # a layer may publish a record this long after its timestamp
_IDLE_S = 0.02


class Seen(NamedTuple):
    """Records of one kind on one pipe at one time."""

    when_ns: int  # nanoseconds since 1970
    pipe: Pipe
    layer: str  # the layer that reports them
    incarnation: int
    direction: int  # for that layer: ring.IN, ring.OUT or ring.DROPPED
    kind: int
    records: list[bytes]
    counter: str  # if dropped: the name of the counter


@cache
def sentence(layer: str, counter: str) -> str:
    """The sentence of a layer's counter."""
    declared = PipeCounters.declared | importlib.import_module(f"layers.{layer}.counters").Counters.declared
    return declared[counter].sentence if counter in declared else ""


def open_taps(client: Client, wanted: Mapping[str, object]) -> dict[str, memoryview]:
    """Ask the keeper for taps; returns the memory of each layer."""
    answer, descriptors = client.request_descriptors("capture", layers=wanted)
    memories = {layer: memoryview(layout.map_tap(descriptor, answer["slot"]))
                for layer, descriptor in zip(wanted, descriptors, strict=True)}
    for descriptor in descriptors:
        os.close(descriptor)
    return memories


class Measured(NamedTuple):
    """The readings of a stack's meters since the metering began."""

    flows: dict[Pipe, meter.Flow]
    layers: dict[str, meter.Reading]


class Meters:
    """Meters for the traffic on each pipe and the processing time of each layer, from now on."""

    def __init__(self, name: str | None, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._client = Client(run_dir(name), timeout_s)
        layers = list(self._client.request("status")["layers"])
        self._pipes = all_pipes(layers)
        self._memories = open_taps(self._client, {layer: {"meter": True} for layer in layers})

    def close(self) -> None:
        """End the metering."""
        self._client.close()

    @property
    def ended(self) -> bool:
        """True if the stack has ended."""
        return bool(select.select([self._client], [], [], 0)[0])

    def read(self) -> Measured:
        """Read the meters."""
        layers = {layer: meter.read(memory) for layer, memory in self._memories.items()}
        return Measured({pipe: layers[pipe.layer].flows[pipe.peer, meter.OUT if pipe.sent else meter.IN]
                         for pipe in self._pipes}, layers)


class Watch:
    """Watches some pipes of one stack."""

    def __init__(self, name: str | None, pipes: Iterable[Pipe], both_ends: bool = False) -> None:
        pipes = list(pipes)
        self._pipes = frozenset(pipes)
        self._client = Client(run_dir(name))
        status = self._client.request("status")
        self._counters = {layer: list(there["counters"]) for layer, there in status["layers"].items()}
        self.with_vnet = bool(status["offload"])
        self.ended = False  # True if the stack has ended
        self._stopped = self._done = False
        wanted: dict[str, dict[str, object]] = {}

        def watch(layer: str, direction: str, peer: int) -> None:
            asked = wanted.setdefault(layer, {"taken": [], "sent": [], "drops": True})
            asked[direction].append(peer)  # type: ignore[attr-defined]

        for pipe in pipes:
            watch(pipe.layer, "sent" if pipe.sent else "taken", pipe.peer)
            if pipe.sent and pipe.consumer in status["layers"]:
                if both_ends:
                    watch(pipe.consumer, "taken", topology.LAYERS[pipe.producer])
                wanted.setdefault(pipe.consumer, {"taken": [], "sent": [], "drops": True})
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._rings = {layer: ring.RingReader(memory) for layer, memory in open_taps(self._client, wanted).items()}
        self._waiting: list[Seen] = []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def lost(self) -> dict[str, int]:
        """{layer: number of records that found no room}."""
        return {layer: each.lost for layer, each in self._rings.items()}

    def poll(self, timeout_s: float = _IDLE_S) -> list[Seen]:
        """The records since the last call, in order of time; waits if there are none.

        `ended` says that none will follow.
        """
        if not self.ended:
            readable, _, _ = select.select([self._client], [], [], 0 if self._waiting else timeout_s)
            self.ended = bool(readable)  # the keeper has closed the connection
        last = self.ended or self._stopped  # evaluated before reading, so that later records are not missed
        settled_ns = time.monotonic_ns() - _SETTLED_NS
        for layer, each in self._rings.items():
            self._waiting += [seen for entry in each.read() if (seen := self._seen(layer, entry)).pipe in self._pipes]
        self._waiting.sort(key=lambda seen: seen.when_ns)
        if last:
            self._done = True
            ready, self._waiting = self._waiting, []
            return ready
        if self._waiting and self._waiting[0].when_ns > settled_ns + self._offset_ns:
            time.sleep(_SETTLED_NS / 1e9)
        count = sum(seen.when_ns <= settled_ns + self._offset_ns for seen in self._waiting)
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return ready

    def __iter__(self) -> Iterator[list[Seen]]:
        """Yield the results of `poll` until the stack ends."""
        while not self._done:
            yield self.poll()

    def now_ns(self) -> int:
        """The present time in the unit of `Seen.when_ns`."""
        return time.monotonic_ns() + self._offset_ns

    def stop(self) -> None:
        """Stop watching after the records that are there by now."""
        self._stopped = True

    def _seen(self, layer: str, entry: ring.Entry) -> Seen:
        counter = ""
        direction = ring.DROPPED if entry.direction == ring.UNSENT else entry.direction
        if direction == ring.DROPPED:
            names = self._counters[layer]
            index = entry.counter - BUS_COUNTER
            counter = list(PipeCounters.declared)[index] if index >= 0 else names[entry.counter]
        pipe = pipe_of(entry.peer, layer, entry.direction in (ring.OUT, ring.UNSENT))
        return Seen(entry.when_ns + self._offset_ns, pipe, layer, entry.incarnation, direction, entry.kind,
                    entry.records, counter)


__all__ = ["NotRunning", "Seen", "Watch", "sentence"]

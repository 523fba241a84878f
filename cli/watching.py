"""Watching the pipes of a running stack, for `capture`, `trace` and the page in the browser.

Each watched layer copies records into a ring in its own memory, which this process maps. The layer never waits for the
reader: records that find no room are lost and counted. When this process ends, the keeper stops the copying.
"""

from __future__ import annotations

import importlib
import os
import select
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
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
# Between two looks into the rings, unless one of them was crowded. Without it, a watcher of steady traffic finds
# something each time that it looks, and takes a whole processor for whatever little that is.
_PERIOD_S = 0.02
_WHEN = itemgetter(0)  # of a Seen
_SENT = (ring.OUT, ring.UNSENT)
_DROPPED = (ring.DROPPED, ring.UNSENT)


class Seen(NamedTuple):
    """Records of one kind on one pipe at one time."""

    when_ns: int  # nanoseconds since 1970
    pipe: Pipe
    layer: str  # the layer that reports them
    incarnation: int
    direction: int  # for that layer: ring.IN, ring.OUT or ring.DROPPED
    kind: int
    counter: str  # if dropped: the name of the counter
    records: list[bytes]

    @property
    def origin(self) -> tuple[Pipe, str, int, int, int, str]:
        """What many of them have in common: all but the time and the records."""
        return self[1:7]


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


class Look(NamedTuple):
    """What several rings contain at one time."""

    at_ns: int  # nanoseconds since 1970
    until_ns: float  # of CLOCK_MONOTONIC: what was seen up to this time is complete
    spans: list[list[memoryview]]  # of each ring
    lost: list[int]  # of each ring: number of records that had found no room


class Merger:
    """What the taps of several layers have copied into their rings, in order of time. `counters`: names, by layer."""

    def __init__(self, rings: Mapping[str, ring.RingReader], pipes: frozenset[Pipe],
                 counters: Mapping[str, Sequence[str]], offset_ns: int) -> None:
        """`offset_ns`: from CLOCK_MONOTONIC to the time since 1970."""
        self._rings = rings
        self._pipes = pipes
        self._counters = counters
        self._offset_ns = offset_ns
        self._waiting: list[Seen] = []
        self.lost = dict.fromkeys(rings, 0)  # {layer: number of records that had found no room at the last `merged`}
        self.at_ns = time.time_ns()  # of the look that was merged last

    @property
    def crowded(self) -> bool:
        """True if it should look again soon."""
        return any(each.crowded for each in self._rings.values())

    def look(self, until_ns: float) -> Look:
        """Look into the rings; what they contain stays there until `release`. `until_ns`: as in Look."""
        rings = self._rings.values()
        return Look(time.time_ns(), until_ns, [each.spans() for each in rings], [each.lost for each in rings])

    def release(self) -> None:
        """Remove from the rings what the last look found there."""
        for each in self._rings.values():
            each.release()

    def merged(self, look: Look) -> list[Seen]:
        """The records that are complete with this look, in order of time. ring.FormError: they cannot be read."""
        waiting, pipes, offset_ns = self._waiting, self._pipes, self._offset_ns
        for layer, spans, lost in zip(self._rings, look.spans, look.lost, strict=True):
            for when_ns, direction, peer, kind, records, number, incarnation in _entries(layer, spans):
                pipe = pipe_of(peer, layer, direction in _SENT)
                if pipe in pipes:
                    counter = ""
                    if direction in _DROPPED:
                        direction, counter = ring.DROPPED, self._counter(layer, number)
                    waiting.append(Seen(when_ns + offset_ns, pipe, layer, incarnation, direction, kind, counter,
                                        records))
            self.lost[layer] = lost
        self.at_ns = look.at_ns
        waiting.sort(key=_WHEN)  # each ring is in order already: a merge
        count = bisect_right(waiting, look.until_ns + offset_ns, key=_WHEN)
        ready = waiting[:count]
        del waiting[:count]
        return ready

    def taken(self, look: Look) -> list[Seen]:
        """`merged` and `release`."""
        ready = self.merged(look)
        self.release()
        return ready

    def _counter(self, layer: str, number: int) -> str:
        index = number - BUS_COUNTER
        return list(PipeCounters.declared)[index] if index >= 0 else self._counters[layer][number]


def _entries(layer: str, spans: Iterable[memoryview]) -> list[ring.Entry]:
    try:
        return [entry for span in spans for entry in ring.entries(span)]
    except ring.FormError as error:
        raise ring.FormError(f"{layer}: {error}") from error


class Watch:
    """Watches some pipes of one stack."""

    def __init__(self, name: str | None, pipes: Iterable[Pipe], both_ends: bool = False) -> None:
        pipes = list(pipes)
        self._client = Client(run_dir(name))
        status = self._client.request("status")
        counters = {layer: list(there["counters"]) for layer, there in status["layers"].items()}
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
        rings = {layer: ring.RingReader(memory) for layer, memory in open_taps(self._client, wanted).items()}
        self.merger = Merger(rings, frozenset(pipes), counters, self._offset_ns)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The layers need not copy anything any more."""
        self._client.close()

    @property
    def lost(self) -> dict[str, int]:
        """{layer: number of records that had found no room when the last records were there that were returned}."""
        return self.merger.lost

    def looks(self, period_s: float = _PERIOD_S) -> Iterator[Look]:
        """Look into the rings until the stack ends, each time after `period_s`, or at once while much waits there.

        What a look finds must be released before the next one.
        """
        while not self._done:
            yield self._look(period_s)

    def _look(self, period_s: float) -> Look:
        if not self.ended:
            readable, _, _ = select.select([self._client], [], [], 0 if self.merger.crowded else period_s)
            self.ended = bool(readable)  # the keeper has closed the connection
        self._done = self.ended or self._stopped  # evaluated before looking, so that later records are not missed
        return self.merger.look(float("inf") if self._done else time.monotonic_ns() - _SETTLED_NS)

    def poll(self, period_s: float = _PERIOD_S) -> list[Seen]:
        """The records since the last call, in order of time. It waits `period_s` for them unless many wait already.

        `ended` says that none will follow. ring.FormError: they cannot be read.
        """
        return self.merger.taken(self._look(period_s))

    def __iter__(self) -> Iterator[list[Seen]]:
        """Yield the results of `poll` until the stack ends."""
        return map(self.merger.taken, self.looks())

    def now_ns(self) -> int:
        """The present time in the unit of `Seen.when_ns`."""
        return time.monotonic_ns() + self._offset_ns

    def stop(self) -> None:
        """Stop watching after the records that are there by now."""
        self._stopped = True


__all__ = ["NotRunning", "Seen", "Watch", "sentence"]

"""The common main function of all layers' processes: from the fork to the running event loop."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable

import msgspec

from bus import messages, topology
from bus.config import StackConfig, encode
from bus.counters import CounterSet
from bus.durable import layout
from bus.durable.held import Holdings
from bus.durable.key_value_log import KeyValueLog
from bus.layer import Core, CounterWords, HoldingCore, State
from bus.runtime.crash_log import CrashLog
from bus.runtime.device import Device
from bus.runtime.event_loop import EventLoop
from bus.runtime.keyed_random import KEY_OCTETS, KeyedRandom
from bus.runtime.recorder import Origin, Start, recorded
from bus.runtime.ring import RECORDING, RingWriter
from bus.runtime.spawn import SpawnArguments as SpawnArguments
from bus.runtime.taps import TapRequests, Taps, decode_requests

ALL_GENERATIONS = 2  # of `gc.collect`
GC_THRESHOLD = 20_000  # number of new objects between collections; hardly any object here is in a cycle

CoreMaker = Callable[[StackConfig, State, CounterWords, random.Random], Core]


def announce_collections(durable: layout.Memory) -> None:
    """A collection of all objects takes 50 ms with 10,000 connections."""
    def collects(phase: str, info: dict[str, int]) -> None:
        if info["generation"] == ALL_GENERATIONS:
            (durable.begin_long_work if phase == "start" else durable.end_long_work)()

    gc.callbacks.append(collects)


class _Ring:
    """The ring of `launcher.py record`, as a sink for the recorder."""

    patience_s = 2.0

    def __init__(self, writer: RingWriter, incarnation: int, every: int) -> None:
        self._writer = writer
        self._incarnation = incarnation
        self.every = every
        self.most = layout.TAP_OCTETS // 4

    def put(self, octets: bytes) -> bool:
        """See `bus.runtime.recorder.Sink`."""
        return self._writer.put(time.monotonic_ns(), RECORDING, 0, 0, [octets], self._incarnation)

    def turn(self) -> None:
        """See `bus.runtime.recorder.Sink`."""


def _recorded(core: Core, spawned: SpawnArguments, durable: layout.Memory, origin: Origin, requests: TapRequests,
              found: list[tuple[int, bytes]]) -> Core:
    """The core with all recordings of it that were asked for."""
    incarnation = origin.start.incarnation
    if spawned.config.record_crashes:
        log = CrashLog(durable.tap(layout.crash_log_of(incarnation), False))
        core = recorded(core, origin, found, log, spawned.held)
    for each in requests.captures:
        if each.record:
            ring = _Ring(RingWriter(durable.tap(each.slot, True), each.number), incarnation, each.every)
            core = recorded(core, origin, found, ring, spawned.held)
    return core


def serve(spawned: SpawnArguments, make_core: CoreMaker, counters: type[CounterSet],
          make_device: Callable[[SpawnArguments], Device] | None = None) -> None:
    """Run a layer: report to the keeper that the code is loaded, wait for its word, serve until it says stop.

    The restrictions of a layer apply before it serves, so all code that it will ever need is imported before.
    """
    spawned.statm_fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    run_dir, report = spawned.lock()
    if run_dir:
        spawned.config = msgspec.structs.replace(spawned.config, run_dir=run_dir)
    spawned.control.tell("loaded", counters={name: c.role for name, c in counters.declared.items()}, lock=report)
    word, _, rest = spawned.control.hear().partition(" ")
    if word != "go":
        return
    incarnation, _, asked = rest.partition(" ")
    has_streams = any(messages.STREAM in kinds for kinds in
                      topology.inputs(spawned.layer, spawned.config.layers).values())
    durable = layout.Memory(spawned.memory_fd, lap_octets=layout.JOURNAL_OCTETS if has_streams else layout.LAP_OCTETS)
    durable.words[layout.INCARNATION] = int(incarnation)
    state = KeyValueLog(durable)
    taps_asked = decode_requests(asked)
    is_recorded = spawned.config.record_crashes or any(each.record for each in taps_asked.captures)
    seed, found = os.urandom(KEY_OCTETS), list(state.items()) if is_recorded else []
    # Ports, identification numbers and so on must not be predictable (RFC 6056, RFC 7739): they come from the kernel. A
    # recorded layer, which is to be replayed, draws from a generator with a key from there.
    rng = KeyedRandom(seed) if is_recorded else random.SystemRandom()
    spawned.held = held = Holdings(spawned.shared_fds, durable.bus_counters)
    spawned.refers = not is_recorded
    core = make_core(spawned.config, state, durable.counters, rng)
    if isinstance(core, HoldingCore):
        core.held = held
    if is_recorded:
        start = Start(spawned.layer, int(incarnation), f"{type(core).__module__}:{type(core).__qualname__}",
                      encode(spawned.config), seed, bool(spawned.config.offload),
                      list(durable.counters[: len(counters.declared)]))
        parts = {"counters": durable.counters, "state": state, "held": held}
        core = _recorded(core, spawned, durable, Origin(start, state, parts), taps_asked, found)
    drops = [index for index, counter in enumerate(counters.declared.values()) if counter.role == "drop"]
    taps = Taps(core, durable, drops, bool(spawned.config.offload), held, time.monotonic)
    taps.apply(taps_asked, time.monotonic())
    device = make_device(spawned) if make_device is not None else None
    # sched(7): a SCHED_BATCH process does not preempt another when it wakes. So a layer (and libzmq's thread in it)
    # finishes its work before the next layer gets the core, and packets travel in groups: a third more echoes/s.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    loop = EventLoop(spawned, core, durable, device, taps)
    gc.freeze()  # existing objects are never collected again
    gc.set_threshold(GC_THRESHOLD)
    announce_collections(durable)
    loop.run()

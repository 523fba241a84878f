"""The common main function of all layers' processes: from the fork to the running event loop."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from functools import partial

import msgspec

from bus.config import StackConfig, encode
from bus.counters import CounterSet
from bus.durable import layout
from bus.durable.held import Holdings
from bus.durable.key_value_log import KeyValueLog
from bus.layer import Core, CounterWords, HoldingCore, State
from bus.runtime.device import Device
from bus.runtime.event_loop import EventLoop
from bus.runtime.recorder import Start, recorded
from bus.runtime.ring import RECORDING, RingWriter
from bus.runtime.spawn import SpawnArguments as SpawnArguments
from bus.runtime.taps import TapRequests, Taps

GC_THRESHOLD = 20_000  # number of new objects between collections; hardly any object here is in a cycle

CoreMaker = Callable[[StackConfig, State, CounterWords, random.Random], Core]


def _put(writer: RingWriter, incarnation: int, octets: bytes) -> bool:
    return writer.put(time.monotonic_ns(), RECORDING, 0, 0, [octets], incarnation)


def serve(spawned: SpawnArguments, make_core: CoreMaker, counters: type[CounterSet],
          make_device: Callable[[SpawnArguments], Device] | None = None) -> None:
    """Run a layer: report to the keeper that the code is loaded, wait for its word, serve until it says stop.

    The restrictions of a layer apply before it serves, so all code that it will ever need is imported before.
    """
    run_dir, report = spawned.lock()
    if run_dir:
        spawned.config = msgspec.structs.replace(spawned.config, run_dir=run_dir)
    spawned.control.tell("loaded", counters={name: c.role for name, c in counters.declared.items()}, lock=report)
    word, _, rest = spawned.control.hear().partition(" ")
    if word != "go":
        return
    incarnation, _, asked = rest.partition(" ")
    durable = layout.Memory(spawned.memory_fd)
    durable.words[layout.INCARNATION] = int(incarnation)
    state = KeyValueLog(durable)
    taps_asked = msgspec.json.decode(asked, type=TapRequests)
    is_recorded = any(each.record for each in taps_asked.captures)
    seed, found = os.urandom(32), list(state.items()) if is_recorded else []
    # SystemRandom uses the kernel's random numbers, because ports, identification numbers and so on must not be
    # predictable (RFC 6056, RFC 7739). A recorded layer uses a seed instead, so that it can be replayed.
    rng = random.Random(seed) if is_recorded else random.SystemRandom()
    spawned.held = held = Holdings(spawned.shared_fds, durable.bus_counters)
    spawned.refers = not is_recorded
    core = make_core(spawned.config, state, durable.counters, rng)
    if isinstance(core, HoldingCore):
        core.held = held
    for each in taps_asked.captures:
        if each.record:
            writer = RingWriter(durable.tap(each.slot, True), each.number)
            start = Start(spawned.layer, int(incarnation), f"{make_core.__module__}:{make_core.__qualname__}",
                          encode(spawned.config), seed, bool(spawned.config.offload))
            core = recorded(core, start, found, partial(_put, writer, int(incarnation)), held)
    drops = [index for index, counter in enumerate(counters.declared.values()) if counter.role == "drop"]
    taps = Taps(core, durable, drops, bool(spawned.config.offload), held)
    taps.apply(taps_asked, time.monotonic())
    device = make_device(spawned) if make_device is not None else None
    # sched(7): a SCHED_BATCH process does not preempt another when it wakes. So a layer (and libzmq's thread in it)
    # finishes its work before the next layer gets the core, and packets travel in groups: a third more echoes/s.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    loop = EventLoop(spawned, core, durable, device, taps)
    gc.freeze()  # existing objects are never collected again
    gc.set_threshold(GC_THRESHOLD)
    loop.run()

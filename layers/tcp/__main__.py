"""The process of tcp, with its connections in durable memory."""

from __future__ import annotations

import random

from bus.config import StackConfig
from bus.durable.stream_memory import StreamMemory
from bus.layer import CounterWords, State
from bus.runtime.process import SpawnArguments, serve
from layers.tcp import congestion_cubic, congestion_reno  # noqa: F401  (by name later, when nothing can be imported)
from layers.tcp.core import Core
from layers.tcp.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""

    def make(config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> Core:
        memory = StreamMemory.of(spawned.memory_fd, spawned.shared_fds, spawned.refers)
        return Core(config, state, counters, rng, memory)

    serve(spawned, make, Counters)

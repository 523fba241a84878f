"""What every layer's `__main__.py` calls: from a fresh fork to a running node."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable

from bus.config import StackConfig
from bus.counters import CounterSet
from bus.durable import layout
from bus.durable.key_value_log import Store
from bus.layer import Core, CounterWords, State
from bus.runtime.control import Control
from bus.runtime.device import Medium
from bus.runtime.event_loop import Node

GC_THRESHOLD = 20_000  # objects that are there and were not the last time; hardly anything here is ever in a cycle

CoreMaker = Callable[[StackConfig, State, CounterWords, random.Random], Core]


class Birth:
    """What the keeper gives a layer at its fork."""

    def __init__(self, layer: str, config: StackConfig, memory_fd: int, listener_fd: int,
                 control: Control, medium_fd: int = -1) -> None:
        self.layer = layer
        self.config = config
        self.memory_fd = memory_fd
        self.listener_fd = listener_fd
        self.control = control
        self.medium_fd = medium_fd


def serve(birth: Birth, make_core: CoreMaker, counters: type[CounterSet],
          make_medium: Callable[[Birth], Medium] | None = None) -> None:
    """Run a layer: tell the keeper that the code is loaded, wait for its word, serve until it says stop."""
    birth.control.tell("loaded", counters={name: c.role for name, c in counters.declared.items()})
    word, _, incarnation = birth.control.hear().partition(" ")
    if word != "go":
        return
    durable = layout.Memory(birth.memory_fd)
    durable.words[layout.INCARNATION] = int(incarnation)
    state = Store(durable)
    core = make_core(birth.config, state, durable.counters, random.Random(os.urandom(16)))
    medium = make_medium(birth) if make_medium is not None else None
    node = Node(birth.layer, core, birth.config, durable, state, birth.listener_fd, birth.control, medium)
    gc.freeze()  # what is here now stays: no collection need look at it again
    gc.set_threshold(GC_THRESHOLD)
    node.run()

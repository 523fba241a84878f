"""Work that takes long and is no hang is announced to the keeper, which then waits longer (supervisor/policy.py)."""

from __future__ import annotations

import gc
import time

from durable import Durable

from bus.durable import layout
from bus.durable.key_value_log import KeyValueLog
from bus.runtime.process import announce_collections


def test_work_is_announced_until_all_of_it_is_done_which_is_a_life_sign(durable: Durable):
    memory, began = durable.map(), time.monotonic()
    memory.begin_long_work()
    memory.begin_long_work()
    memory.end_long_work()
    assert memory.words[layout.LONG_WORK] == 1
    memory.beat[0] = 0.0
    memory.end_long_work()
    assert memory.words[layout.LONG_WORK] == 0
    assert began <= memory.beat[0] <= time.monotonic()


def test_copying_the_store_is_announced(durable: Durable, monkeypatch):
    memory, seen = durable.map(), []
    release = memory.release_arena
    monkeypatch.setattr(memory, "release_arena", lambda arena: (seen.append(memory.words[layout.LONG_WORK]),
                                                                release(arena)))
    store = KeyValueLog(memory)
    for number in range(1000):
        store[number % 2] = number.to_bytes(1000, "big")
    assert set(seen) == {1}
    assert memory.words[layout.LONG_WORK] == 0


def test_only_a_collection_of_all_objects_is_announced(durable: Durable):
    memory, seen = durable.map(), []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            seen.append(memory.words[layout.LONG_WORK])

    announce_collections(memory)
    try:
        for generation in range(3):
            Cycle()
            gc.collect(generation)
    finally:
        gc.callbacks.pop()
    assert seen == [0, 0, 1]
    assert memory.words[layout.LONG_WORK] == 0

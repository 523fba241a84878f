"""A layer's life, written down so that it can be lived again: what its core started from, each call, what came of it.

A core is pure, so this is all there is to it. A recording begins with a process: the durable state as the core found
it, its settings and the seed of its random numbers. What is written goes into a ring whose reader makes a file of it
(`launcher.py record`); where that has no room the recording ends, since a call that is missing would spoil the rest.
Entries are msgpack:

    ["start", Start]            ["call", name, arguments]            ["result", what it returned, next_wake]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

SNAPSHOT_ITEMS = 1000  # of the state, in one entry
CALLS = frozenset({"start", "receive", "wake", "neighbor_started", "manage", "welcome", "client_joined", "client_left",
                   "clients_checked"})

encode = msgspec.msgpack.Encoder().encode


class Start(msgspec.Struct):
    """What a core was made of. `make`: module and name of what made it; more of the state may follow, as "state"."""

    layer: str
    incarnation: int
    make: str
    config: bytes  # bus.config, JSON
    seed: bytes
    offload: bool


class RecordingCore:
    """A core whose calls are written down. It has the calls of the core that it is around, whatever those are."""

    def __init__(self, core: Any, put: Callable[[bytes], bool]) -> None:
        self._core = core
        self._put = put  # False: no room
        self._recording = True

    @property
    def next_wake(self) -> float | None:
        """The core's."""
        return self._core.next_wake

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)  # AttributeError where the core has no such call
        if name not in CALLS:
            return found

        def call(*arguments: Any) -> Any:
            self._write(("call", name, arguments))
            result = found(*arguments)
            self._write(("result", result, self._core.next_wake))
            return result

        return call

    def _write(self, entry: tuple) -> None:
        if self._recording:
            self._recording = self._put(encode(entry))


def recorded(core: Any, start: Start, state: list[tuple[int, bytes]], put: Callable[[bytes], bool]) -> Any:
    """The core, with a recording of it begun; the core itself where there is no room even for what it starts from."""
    written = put(encode(("start", start)))
    for at in range(0, len(state), SNAPSHOT_ITEMS):
        written = written and put(encode(("state", state[at : at + SNAPSHOT_ITEMS])))
    return RecordingCore(core, put) if written else core

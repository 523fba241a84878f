"""The recorder: records the initial state of a core, each call and its result, so that `replay` can repeat them.

Since a core is pure, this is sufficient. A recording begins with a process: it contains the durable state, the
configuration and the seed of the random numbers. It is written into a ring whose reader writes it to a file
(`launcher.py record`). If the ring is full the recording ends, because it is useless after a missing call. Entries are
msgpack:

   ["start", Start]            ["call", name, arguments]            ["result", returned value, next_wake]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

SNAPSHOT_ITEMS = 1000  # items of state per entry
CALLS = frozenset({"start", "receive", "wake", "neighbor_started", "manage", "welcome", "client_joined", "client_left",
                   "clients_checked"})

encode = msgspec.msgpack.Encoder().encode


class Start(msgspec.Struct):
    """The arguments for creating a core.

    `make`: module and name of its factory. More state may follow in "state" entries.
    """

    layer: str
    incarnation: int
    make: str
    config: bytes  # bus.config as JSON
    seed: bytes
    offload: bool


class RecordingCore:
    """A core whose calls are recorded. It has the calls of the core that it wraps."""

    def __init__(self, core: Any, put: Callable[[bytes], bool]) -> None:
        self._core = core
        self._put = put  # returns False if there is no room
        self._recording = True

    @property
    def next_wake(self) -> float | None:
        """That of the wrapped core."""
        return self._core.next_wake

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)  # AttributeError if the wrapped core has no such call
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
    """The core with a recording started; the core itself if there is no room even for its initial state."""
    written = put(encode(("start", start)))
    for at in range(0, len(state), SNAPSHOT_ITEMS):
        written = written and put(encode(("state", state[at : at + SNAPSHOT_ITEMS])))
    return RecordingCore(core, put) if written else core

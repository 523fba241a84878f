"""The recorder: records the initial state of a core, each call and its result, so that `replay` can repeat them.

Since a core is pure, this is sufficient. A recording begins with a process: it contains the durable state, the
configuration and the seed of the random numbers. It is written into a ring whose reader writes it to a file
(`launcher.py record`). If the ring is full the recording ends, because it is useless after a missing call. Entries are
msgpack:

   ["start", Start]            ["call", name, arguments]            ["result", returned value, next_wake]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import msgspec

from bus.durable.held import NO_HOLDINGS, Holdings
from bus.layer import ClientCore, Core, ManagedCore, PoisonCore, Send
from bus.messages import HELD_OF

SNAPSHOT_ITEMS = 1000  # items of state per entry

P = ParamSpec("P")
T = TypeVar("T")

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
    """A core whose calls are recorded."""

    def __init__(self, core: Core, put: Callable[[bytes], bool], held: Holdings = NO_HOLDINGS) -> None:
        self._core = core
        self._held = held
        self._put = put  # returns False if there is no room
        self._recording = True

    @property
    def next_wake(self) -> float | None:
        """That of the wrapped core."""
        return self._core.next_wake

    def start(self, now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        return self._call(self._core.start, now)

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        if kind in HELD_OF:  # a recording contains the octets themselves
            kind, records = self._held.inlined(kind, records)
        return self._call(self._core.receive, sender, kind, records, now)

    def wake(self, now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        return self._call(self._core.wake, now)

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        return self._call(self._core.neighbor_started, sender, now)

    def record_set_aside(self, sender: int, kind: int, record: bytes, now: float) -> list[Send]:
        """See `bus.layer.PoisonCore`."""
        if not isinstance(self._core, PoisonCore):
            return []
        return self._call(self._core.record_set_aside, sender, kind, record, now)

    def _call(self, call: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> T:
        self._write(("call", call.__name__, arguments))
        result = call(*arguments, **named)
        self._write(("result", result, self._core.next_wake))
        return result

    def _write(self, entry: tuple[object, ...]) -> None:
        if self._recording:
            self._recording = self._put(encode(entry))


class RecordingManagedCore(RecordingCore):
    """The same for a core that can be managed."""

    _core: ManagedCore

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """See `bus.layer.ManagedCore`."""
        return self._call(self._core.manage, request, now)


class RecordingClientCore(RecordingCore):
    """The same for a core that serves clients."""

    _core: ClientCore

    @property
    def contested(self) -> bool:
        """That of the wrapped core."""
        return self._core.contested

    def welcome(self, client: int) -> dict[str, object]:
        """See `bus.layer.ClientCore`."""
        return self._call(self._core.welcome, client)

    def client_joined(self, client: int, hello: dict[str, object], now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._call(self._core.client_joined, client, hello, now)

    def client_left(self, client: int, now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._call(self._core.client_left, client, now)

    def frames_lost(self, sender: int, now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._call(self._core.frames_lost, sender, now)

    def clients_checked(self, now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._call(self._core.clients_checked, now)


def recorded(core: Core, start: Start, state: list[tuple[int, bytes]], put: Callable[[bytes], bool],
             held: Holdings = NO_HOLDINGS) -> Core:
    """The core with a recording started; the core itself if there is no room even for its initial state."""
    written = put(encode(("start", start)))
    for at in range(0, len(state), SNAPSHOT_ITEMS):
        written = written and put(encode(("state", state[at : at + SNAPSHOT_ITEMS])))
    if not written:
        return core
    if isinstance(core, ClientCore):
        return RecordingClientCore(core, put, held)
    return RecordingManagedCore(core, put, held) if isinstance(core, ManagedCore) else RecordingCore(core, put, held)

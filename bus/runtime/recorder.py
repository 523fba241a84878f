"""The recorder: records the initial state of a core, each call and its result, so that `replay` can repeat them.

Since a core is pure, this is sufficient. A recording begins with a process: it contains the durable state, the
configuration and the key of the random numbers (`bus.runtime.keyed_random`). So that the beginning of a long recording
can be dropped, it contains *checkpoints*: the core itself, pickled between two calls. Two things take the entries: a
ring whose reader writes them to a file (`launcher.py record`), and the crash log, which keeps the last ones
(`bus.runtime.crash_log`). Entries are msgpack:

   ["start", Start]   ["state", items]   ["memory", number, at, octets] (bus.durable.stream_memory.Piece)
   ["call", name, arguments]   ["result", returned value, next_wake]
   ["checkpoint", Start, the pickled core, True if no call is missing before it]; its state and memory follow
"""

from __future__ import annotations

import ctypes
import io
import pickle
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import msgspec

from bus.durable.held import NO_HOLDINGS, Holdings
from bus.durable.stream_memory import Piece
from bus.layer import ClientCore, Core, ManagedCore, PoisonCore, Send, StreamCore
from bus.messages import HELD_OF

SNAPSHOT_ITEMS = 1000  # items of state per entry
WAIT_S = 0.002  # between two looks for room
CHECKPOINT_ITEMS_MAX = 10_000  # items of state; beyond, a checkpoint would take too long between two calls
_PICKLED = ("bus", "layers", "packets", "usernet")  # packages whose classes may be in a pickled core
_PICKLED_TOO = {("builtins", "getattr"), ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "bytearray"),
                ("builtins", "iter"), ("builtins", "range"), ("builtins", "slice"),
                ("msgspec._utils", "rebuild"), ("collections", "deque"), ("collections", "OrderedDict"),
                ("collections", "defaultdict"), ("collections", "Counter"), ("itertools", "count"),
                ("functools", "partial"), ("ipaddress", "IPv4Address"), ("ipaddress", "IPv4Network"),
                ("ipaddress", "IPv4Interface")}

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
    seed: bytes  # the key of the random numbers
    offload: bool
    counters: list[int] = []  # the layer's own, in their order


class Sink(Protocol):
    """What takes the entries of a recording."""

    every: int  # octets of entries between two checkpoints; 0: none
    patience_s: float  # for which the initial memory may wait for room
    most: int  # octets of a checkpoint

    def put(self, octets: bytes) -> bool:
        """Take an entry; False: there is no room."""

    def turn(self) -> None:
        """A checkpoint follows."""


class Origin(NamedTuple):
    """What a recording says about its core, apart from its calls."""

    start: Start
    state: MutableMapping[int, bytes]
    parts: Mapping[str, object]  # what the core refers to but what is not part of it, by name


def _view(memory: Any, at: int, octets: int, form: str) -> memoryview:
    """A view of a part of a memory."""
    view = memoryview(memory)[at : at + octets]
    return view if form == "B" else view.cast(form)  # type: ignore[call-overload]


def _address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class _Pickler(pickle.Pickler):
    """Pickles a core without the parts that it was given; views of memories among them are their places there."""

    def __init__(self, file: io.BytesIO, parts: Mapping[str, object]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._names = {id(part): name for name, part in parts.items()}

    def persistent_id(self, obj: Any) -> str | None:
        """The name of a part."""
        return self._names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        """Of a view of a memory."""
        if type(obj) is memoryview and id(obj.obj) in self._names:
            return _view, (obj.obj, _address(obj) - _address(obj.obj), obj.nbytes, obj.format)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    """Gives a pickled core other parts; refuses what no core consists of."""

    def __init__(self, octets: bytes, parts: Mapping[str, object]) -> None:
        super().__init__(io.BytesIO(octets))
        self._parts = parts

    def persistent_load(self, pid: Any) -> object:
        """The part with this name."""
        return self._parts[pid]

    def find_class(self, module: str, name: str) -> Any:
        """A class of this project, or one of a few others."""
        found = None
        if module.partition(".")[0] in _PICKLED:
            found = super().find_class(module, name)
            if str(getattr(found, "__module__", "")).partition(".")[0] not in _PICKLED:
                found = None  # what one of our modules has imported
        elif (module, name) in _PICKLED_TOO:
            found = super().find_class(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of a core")
        return found


def pickled(core: Core, parts: Mapping[str, object]) -> bytes:
    """A core, without its parts. TypeError, AttributeError, pickle.PicklingError: it cannot be pickled."""
    file = io.BytesIO()
    _Pickler(file, parts).dump(core)
    return file.getvalue()


def memories_of(core: Core) -> dict[str, object]:
    """The memories of streams, as parts."""
    memories = core.memories() if isinstance(core, StreamCore) else {}
    return {f"memory {number}": each for number, each in memories.items()}


def unpickled(octets: bytes, parts: Mapping[str, object]) -> Core:
    """The core with other parts. pickle.UnpicklingError and others: not a pickled core."""
    core: Core = _Unpickler(octets, parts).load()
    return core


class RecordingCore:
    """A core whose calls are recorded."""

    def __init__(self, core: Core, sink: Sink, origin: Origin, held: Holdings = NO_HOLDINGS) -> None:
        self._core = core
        self._plain: Core = core._plain if isinstance(core, RecordingCore) else core
        self._held = held
        self._sink = sink
        self._origin = origin
        self._recording = True
        self._whole = True  # no call is missing since the last checkpoint
        self._since = 0  # octets since the last checkpoint
        self._streams = self._plain if isinstance(self._plain, StreamCore) else None

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
        if self._streams is None:
            return self._call(self._core.receive, sender, kind, records, now)
        return [send for each in self._streams.with_octets(kind, records)
                for send in self._call(self._core.receive, sender, *each, now)]

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
        if self._sink.every and self._recording and self._since >= self._sink.every:
            self._checkpoint()
        self._write(("call", call.__name__, arguments))
        result = call(*arguments, **named)
        self._write(("result", result, self._core.next_wake))
        return result

    def _write(self, entry: tuple[object, ...]) -> None:
        if not self._recording or not self._whole:
            return
        octets = encode(entry)
        self._since += len(octets)
        if not self._sink.put(octets):
            if self._sink.every:  # go on with a checkpoint before the next call
                self._whole, self._since = False, self._sink.every
            else:
                self._recording = False

    def _checkpoint(self) -> None:
        """Write the core as it is between two calls; the recording ends if it is too large for that."""
        start, state, parts = self._origin
        self._recording = False
        if len(state) > CHECKPOINT_ITEMS_MAX:
            return
        items = list(state.items())
        pieces = [] if self._streams is None else list(self._streams.memory_pieces())
        try:
            octets = pickled(self._plain, {**parts, **memories_of(self._plain)})
        except (TypeError, AttributeError, ValueError, pickle.PicklingError):
            return
        size = len(octets) + sum(len(value) + 16 for _, value in items) + sum(len(each.octets) + 16 for each in pieces)
        if size > self._sink.most:
            return
        counters = list(parts["counters"])[: len(start.counters)]  # type: ignore[call-overload]
        self._sink.turn()
        now = msgspec.structs.replace(start, counters=counters)
        self._recording = _begin(self._sink, ("checkpoint", now, octets, self._whole), items) and all(
            self._sink.put(encode(("memory", *each))) for each in pieces)
        self._whole, self._since = True, 0


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


def _begin(sink: Sink, entry: tuple[object, ...], state: list[tuple[int, bytes]]) -> bool:
    """Write the entry and the state; False: there is no room."""
    written = sink.put(encode(entry))
    for at in range(0, len(state), SNAPSHOT_ITEMS):
        written = written and sink.put(encode(("state", state[at : at + SNAPSHOT_ITEMS])))
    return written


def _add_memory(sink: Sink, pieces: Iterable[Piece]) -> bool:
    """Write the memory of streams; its size may be many times the room, so it waits for the reader."""
    deadline = time.monotonic() + sink.patience_s
    for piece in pieces:
        octets = encode(("memory", *piece))
        while not sink.put(octets):
            if time.monotonic() > deadline:
                return False
            time.sleep(WAIT_S)
    return True


def recorded(core: Core, origin: Origin, state: list[tuple[int, bytes]], sink: Sink,
             held: Holdings = NO_HOLDINGS) -> Core:
    """The core with a recording started; the core itself if there is no room even for its initial `state`."""
    if not _begin(sink, ("start", origin.start), state):
        return core
    if isinstance(core, StreamCore) and not _add_memory(sink, core.memory_pieces()):
        return core
    kind = (RecordingClientCore if isinstance(core, ClientCore)
            else RecordingManagedCore if isinstance(core, ManagedCore) else RecordingCore)
    return kind(core, sink, origin, held)

"""The interface between the bus and the core of a layer.

A core is pure: it has no clock and no socket. The bus calls it with the time and gets what to send as the result.
Between calls `next_wake` is the time at which the core wants `wake` to be called.

Times are seconds of CLOCK_MONOTONIC, which is common to all processes and continues over a restart, so a time may be
stored. `state` is a mapping from integer keys to octets that outlives the process (`bus.durable.key_value_log`; a dict
in tests). Everything that an application can see is stored there before the answer is returned. `counters` is a
sequence of integers indexed by the names of the layer's CounterSet.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from bus.durable.stream_memory import Piece

Send = tuple[int, int, bytes]  # (consumer's id, kind, record); the bus packs consecutive records into frames
# A core reports conditions of interest to the user by NOTICES to topology.KEEPER: all that hold, at every change and at
# the start.
State = MutableMapping[int, bytes]


class CounterWords(Protocol):
    """A list of integers, or cells of durable memory."""

    def __getitem__(self, index: int, /) -> int:
        """The value of a counter."""

    def __setitem__(self, index: int, value: int, /) -> None:
        """Set the value of a counter."""


class Core(Protocol):
    """The calls that the bus makes. All of them return what to send, in order. Times are seconds of CLOCK_MONOTONIC."""

    @property
    def next_wake(self) -> float | None:
        """The time at which `wake` is to be called; None: never."""

    def start(self, now: float) -> list[Send]:
        """Called once, after `state` was restored and before anything is received."""

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process records of one kind from one neighbour, in order. Must not raise for any octets."""

    def wake(self, now: float) -> list[Send]:
        """Called when `next_wake` has come.

        It does a limited amount of work, some milliseconds, so that input is served in between and the layer does not
        look like one that hangs. What is left remains due: `next_wake` is not in the future.
        """

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """A neighbour has started, for the first time or again; the frames that it missed have been repeated already.

        Also called when frames of the neighbour were lost, unless the core has `frames_lost`.
        """


class Octets(Protocol):
    """How a core gets octets that lie in shared memory (`bus.durable.held.Holdings`)."""

    def pieces(self, record: bytes) -> tuple[bytes, tuple[memoryview, ...]] | None:
        """(what precedes the reference, the octets in one or two pieces); None (counted): they are gone."""

    def intact(self, record: bytes) -> bool:
        """True if what `pieces` returned for a record about a frame was not overwritten since."""

    def inline(self, kind: int, record: bytes) -> tuple[int, bytes] | None:
        """The (kind, record) with the octets themselves; None (counted): they are gone."""


@runtime_checkable
class HoldingCore(Core, Protocol):
    """A core that gets records with references to shared memory."""

    held: Octets  # set before `start`


@runtime_checkable
class ManagedCore(Core, Protocol):
    """A core that accepts requests of the command line (`launcher.py route`, `neighbor`, ...)."""

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """Execute a request. The answer is {"error": text} or an object with the result.

        If the layer dies during a request, the request is repeated with the same number, above zero, as its "order". An
        effect that has happened is then not repeated, and it is not an error that nothing is left to do.
        """


@runtime_checkable
class StreamCore(Core, Protocol):
    """A core with streams in memory beside `state` (`bus.durable.stream_memory`), for recordings."""

    def memory_pieces(self) -> Iterable[Piece]:
        """What a core needs to go on from here as from `state`; between two calls."""

    def memories(self) -> dict[int, object]:
        """{number: mapped memory} in which those pieces are."""

    def with_octets(self, kind: int, records: list[bytes]) -> list[tuple[int, list[bytes]]]:
        """(kind, records) that do the same as these, but contain the octets that an application has written into its
        memory, which a recording does not contain."""


@runtime_checkable
class PoisonCore(Core, Protocol):
    """A core that wants to know which of its records were set aside (`bus.runtime.poison`)."""

    def record_set_aside(self, sender: int, kind: int, record: bytes, now: float) -> list[Send]:
        """A record that killed the layer twice was not passed to `receive`. Called each time that it comes."""


@runtime_checkable
class ClientCore(Core, Protocol):
    """A core that also serves clients: processes that are not layers and may come and go (applications)."""

    def welcome(self, client: int) -> dict[str, object]:
        """Fields for the HELLO to a client, in addition to those of the bus."""

    def client_joined(self, client: int, hello: dict[str, object], now: float) -> list[Send]:
        """A client has sent HELLO to this process or to an earlier one; `pid` in `hello` comes from the kernel."""

    def frames_lost(self, sender: int, now: float) -> list[Send]:
        """Frames of a neighbour or client are lost, because it had not stored all that this layer missed."""

    def client_left(self, client: int, now: float) -> list[Send]:
        """The client's process has ended."""

    @property
    def contested(self) -> bool:
        """True if a request was refused because of a client that may have ended: check the clients."""

    def clients_checked(self, now: float) -> list[Send]:
        """All ended clients have left by now; called while `contested`."""

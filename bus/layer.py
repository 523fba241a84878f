"""What a layer's core looks like to the bus.

A core is pure: no clock and no socket. Whatever happens, happens in a call that is told the time and that
returns what to send; between calls the core tells by `next_wake` when it wants `wake` to be called.

Times are seconds of CLOCK_MONOTONIC, which all processes share and which goes on over a restart, so a time may be
stored. `state` is a mapping from an integer key to octets that outlives the process (`bus.durable.key_value_log`; a
dict in tests): what an application can see is stored there before the answer is returned. `counters` is a sequence of
integers indexed by the names of the layer's CounterSet.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Protocol, runtime_checkable

Send = tuple[int, int, bytes]  # (consumer's id, kind, record); the bus packs records that follow each other
# What people should know goes to table.KEEPER, as NOTICES: all that hold, whenever that changes, and at the start.
State = MutableMapping[int, bytes]


class CounterWords(Protocol):
    """A list of integers, or the cells of durable memory."""

    def __getitem__(self, index: int, /) -> int:
        """The counter's value."""

    def __setitem__(self, index: int, value: int, /) -> None:
        """Count."""


class Core(Protocol):
    """The calls that the bus makes. All of them return what to send, in order."""

    next_wake: float | None

    def start(self, now: float) -> list[Send]:
        """Called once, after `state` was read back and before anything is received."""

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Records of one kind from one neighbour, in order. Must not raise for any octets."""

    def wake(self, now: float) -> list[Send]:
        """`next_wake` has come."""

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """A neighbour started, for the first time or again; repetitions of what it missed have been sent already."""


@runtime_checkable
class ManagedCore(Core, Protocol):
    """A core that the command line can ask and change (`launcher.py route`, `neighbor`, ...)."""

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """Answer {"error": text} or anything else.

        If the layer dies over a request it comes again, with the same number, above zero, as its "order": what was done
        is then not done once more, nor is it an error that there is nothing left to do.
        """


@runtime_checkable
class ClientCore(Core, Protocol):
    """A core that also serves clients: processes that are not layers and may come and go (applications)."""

    def welcome(self, client: int) -> dict[str, object]:
        """What the HELLO to a client carries beside the bus's own fields."""

    def client_joined(self, client: int, hello: dict[str, object], now: float) -> list[Send]:
        """A client introduced itself, to this incarnation or a former one; `pid` in `hello` is as the kernel says."""

    def client_left(self, client: int, now: float) -> list[Send]:
        """The client's process ended."""

    contested: bool  # something was refused that a client may hold whose end is not known yet: look who lives

    def clients_checked(self, now: float) -> list[Send]:
        """Who has ended has left by now; called while `contested`."""

"""What joins two processes: a PULL that listens, PUSHes that connect to it, and a poller that tells of both.

Two modules fill this contract, and understand each other: `direct`, plain Unix sockets that speak ZMTP in the process's
own loop, and `libzmq`, the sockets of ZeroMQ by pyzmq (docs/decisions/pipes.md compares them). Each process chooses for
itself, by `open_poller`; nothing outside of this package knows which it has.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import select
from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple, Protocol

IMPLEMENTATIONS = {"zmq": "usernet.pipe.libzmq", "direct": "usernet.pipe.direct"}
WAITING_MAX = 64  # messages that may wait in a PUSH
DESCRIPTORS_RESERVED = 64  # of a process, for what is no connection that came to it
CONNECTIONS_MIN = 16
STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # accept(2): later it may do
HANDSHAKE_S = 3.0  # who has connected and not introduced itself within is hung up on


class Trust(NamedTuple):
    """Who may be at the other end, by user id (`run_dir.peer`); nothing is said to others, and nothing taken."""

    owner: int  # listens where a PUSH connects
    users: Container[int]  # connect to a PULL


class Pull(Protocol):
    """The reading end of all pipes to one process."""

    pid: int  # who sent what `read` returned last, as the kernel says; 0: that cannot be told

    def read(self, descriptor: int) -> list[bytes] | None:
        """The messages that a descriptor has, which the poller told of; None where the descriptor is none of ours."""

    def expire(self, now: float) -> None:
        """To be called now and then, `now` in seconds of CLOCK_MONOTONIC: hang up on who does not introduce itself."""

    def close(self) -> None:
        """Hang up on everybody, and listen no more."""


class Push(Protocol):
    """The writing end of one pipe. One thread at a time. What waits here outlives the connection."""

    open: bool  # a message that is sent now leaves at once, as far as can be told
    waiting: bool  # something that was taken has not left: `flush` should be called now and then

    def send(self, message: bytes) -> bool:
        """Take a message, without waiting; False where too many wait already."""

    def flush(self) -> None:
        """Get out what waits, as far as there is room."""

    def hear(self) -> None:
        """The poller told of a descriptor that is this one's."""

    def await_room(self, timeout_s: float) -> None:
        """Wait until something has happened to the pipe, at most so long."""

    def close(self) -> None:
        """End the connection. What has left can be read."""


class Poller(Protocol):
    """One epoll for all that a process waits for."""

    epoll: select.epoll
    pushes: Mapping[int, Push]  # by the descriptors of which `hear` is to be told

    def pull(self, listener_fd: int, message_octets_max: int, connections_max: int,
             refused: Callable[[int], object]) -> Pull:
        """Read what comes to a listening socket, which becomes this one's.

        `refused` is called with 0 for each connection that is hung up on: of another user, of too many (there are no
        more than the process has descriptors for), of what speaks no ZMTP, or sends a message that is too long; and
        with an errno of STARVED where connections have to wait.
        """

    def push(self, path: str) -> Push:
        """Write to whoever listens on the socket file `path`, now or later."""

    def close(self) -> None:
        """Close its PULL and PUSHes, and the epoll. What has left can be read."""


def bounded(connections_max: int, descriptors_each: int = 1) -> int:
    """So many of them, or fewer where the process may not have the descriptors (getrlimit(2), RLIMIT_NOFILE)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(connections_max, max(CONNECTIONS_MIN, (limit - DESCRIPTORS_RESERVED) // descriptors_each))


def has_enough(pid: int, places: int, taken: int, pids: Iterable[int]) -> bool:
    """Whether a process that connects has to be refused: `taken` of `places` are, by `pids`.

    Once half of the places are taken one process may have a quarter of the rest, so that others find some.
    """
    free = places - taken
    if free > places // 2:
        return False  # as a rule: they need not be counted
    return free <= 0 or sum(each == pid for each in pids) > free // 4


def open_poller(implementation: str, trust: Trust | None = None) -> Poller:
    """A poller of "zmq" or "direct". To be called after a fork, not before. Without `trust`: in our own user only."""
    poller: Poller = importlib.import_module(IMPLEMENTATIONS[implementation]).Poller(
        trust or Trust(os.geteuid(), (os.geteuid(),)))
    return poller


def preload(implementation: str) -> None:
    """Import what `open_poller` needs, so that a fork finds it there."""
    importlib.import_module(IMPLEMENTATIONS[implementation])

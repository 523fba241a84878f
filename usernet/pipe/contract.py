"""The interface of pipes between processes: a PULL that listens, PUSHes that connect to it, and a poller for all.

Two modules implement it and can be combined: `direct`, plain Unix sockets that speak ZMTP in the process's own loop,
and `libzmq`, the sockets of ZeroMQ by pyzmq (docs/decisions/pipes.md compares them). Each process chooses by
`open_poller`; code outside this package does not depend on the choice.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import select
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple, Protocol

IMPLEMENTATIONS = {"zmq": "usernet.pipe.libzmq", "direct": "usernet.pipe.direct"}
WAITING_MAX = 64  # messages that may wait in a PUSH
# Attempts, most of them 5 ms apart, so that the places of processes that have just ended are free by then. A process
# that crashes closes one connection at once.
REFUSALS = 40
DESCRIPTORS_RESERVED = 96  # descriptors of a process that are not for connections to it; ip has most, 76
CONNECTIONS_MIN = 16
ACCEPTED_AT_ONCE = 64  # connections in one turn, so that others are served and the process does not look hung
STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # accept(2): it may work later
HANDSHAKE_S = 3.0  # seconds after which a connection without handshake is closed
INCOMPLETE_OCTETS_ALL = 1 << 25  # of memory for incomplete frames of all connections; beyond, the largest are closed


class Trust(NamedTuple):
    """The users that may be at the other end (`run_dir.peer`); nothing is sent to others or accepted from them."""

    owner: int  # the user that listens where a PUSH connects
    users: Container[int]  # the users that may connect to a PULL


class Pull(Protocol):
    """The reading end of all pipes to one process."""

    pid: int  # the process that sent the messages of the last `read`, from the kernel; 0: unknown

    def read(self, descriptor: int) -> list[bytes] | None:
        """The messages of a descriptor that the poller reported; None: the descriptor does not belong to this PULL."""

    def spare(self, neighbor: int, pid: int) -> None:
        """This is the process of a neighbouring layer now: its connection is not closed for want of memory."""

    def know(self, is_known: Callable[[int], bool]) -> None:
        """How to tell the processes whose only connection is not closed to make room for another's."""

    def drained(self, pid: int) -> bool:
        """False if something that a process sent before its end may not have been returned by `read`.

        Its connections count, also if another process has them, too, as after a fork, and those of all processes that
        have not been accepted.
        """

    def expire(self, now: float) -> None:
        """To be called regularly, `now` in seconds of CLOCK_MONOTONIC: close connections without a handshake."""

    def close(self) -> None:
        """Close all connections and stop listening."""


class Push(Protocol):
    """The writing end of one pipe, for one thread at a time. Waiting messages survive the connection."""

    open: bool  # a message that is sent now will leave at once, as far as is known
    waiting: bool  # an accepted message has not left: call `flush` regularly
    refused: bool  # the other end closed the last REFUSALS connections at once: it has no place for them

    def send(self, message: bytes) -> bool:
        """Accept a message, without waiting. False: too many wait already."""

    def flush(self) -> None:
        """Send waiting messages, as far as there is room."""

    def hear(self) -> None:
        """The poller has reported a descriptor of this PUSH."""

    def await_room(self, timeout_s: float) -> None:
        """Wait until something has happened to the pipe, at most `timeout` seconds."""

    def close(self, linger_ms: int = 0) -> None:
        """Close the connection. Sent messages can still be read; a thread of libzmq sends what waits within
        `linger_ms`."""

    def abandon(self) -> None:
        """In a forked child: close the descriptor of the connection, which belongs to the parent. Nothing else is
        allowed after that."""


class Poller(Protocol):
    """One epoll for all events of a process."""

    epoll: select.epoll
    descriptors_reserved: int  # of this process, that are not for connections to it
    pushes: Mapping[int, Push]  # {descriptor: the PUSH whose `hear` must be called}

    def pull(self, listener_fd: int, message_octets_max: int, connections_max: int,
             refused: Callable[[int], object]) -> Pull:
        """Read from a listening socket, whose ownership passes to the result.

        `refused` is called with 0 for each closed connection: another user, too many connections (there are no more
        than the process has descriptors for), an invalid handshake, a message that is too long, or too much memory for
        what has not been read; and with an errno of STARVED if connections have to wait.
        """

    def push(self, path: str, waiting_max: int = WAITING_MAX) -> Push:
        """Write to the process that listens on the socket file `path`, now or later."""

    def close(self) -> None:
        """Close its PULL and PUSHes, and the epoll. Sent messages can still be read."""


def bounded(connections_max: int, reserved: int, descriptors_each: int = 1) -> int:
    """`connections_max`, or fewer if the process cannot have as many descriptors (getrlimit(2), RLIMIT_NOFILE).

    `reserved` of them are for other purposes (`Poller.descriptors_reserved`).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(connections_max, max(CONNECTIONS_MIN, (limit - reserved) // descriptors_each))


def waits_at(listener_fd: int) -> bool:
    """True if a connection has not been accepted."""
    poll = select.poll()
    poll.register(listener_fd, select.POLLIN)
    return bool(poll.poll(0))


def open_poller(implementation: str, trust: Trust | None = None, statm_fd: int = -1) -> Poller:
    """A poller of kind "zmq" or "direct". To be called after a fork, not before. Without `trust`: only this user.

    `statm_fd`: this process's /proc/self/statm. With it, a PULL of libzmq closes connections before memory runs out.
    """
    poller: Poller = importlib.import_module(IMPLEMENTATIONS[implementation]).Poller(
        trust or Trust(os.geteuid(), (os.geteuid(),)), statm_fd)
    return poller


def preload(implementation: str) -> None:
    """Import the modules that `open_poller` needs, so that a fork has them already."""
    importlib.import_module(IMPLEMENTATIONS[implementation])

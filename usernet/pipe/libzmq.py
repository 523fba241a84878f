"""PULL and PUSH sockets of ZeroMQ, by pyzmq (docs/decisions/pipes.md).

libzmq reads and writes in a thread of its own, one a process. What it holds dies with the process; the journals have
it. Calls into libzmq are what costs time here, so each is there for a reason:

- A descriptor of libzmq's (ZMQ_FD) says that something has happened, once: until there is nothing more to receive, and
  libzmq was told so, it says nothing again. So after one receive, which brings all that there is while little is going
  on, EVENTS is looked at, which is less than half the price of a receive that finds nothing; then it is received until
  there is nothing, or `READ_MESSAGES` are there, and then an eventfd reminds us of the rest.
- A send that finds no room does not look whether there is some by now: EVENTS does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Container, Iterable
from typing import Any, cast

import zmq
from zmq.backend import Socket  # not zmq.Socket, whose `send` is a third slower for what it can do beside

from usernet.pipe.contract import HANDSHAKE_S, WAITING_MAX, Trust, bounded, has_enough
from usernet.pipe.run_dir import peer

READ_MESSAGES = 64  # at a time, so that other descriptors get their turn
SOCKETS_MAX = 4096  # of a process: clients of the socket service, and what stands between layers
RECONNECT_MS = 1  # without a growing pause: who died is back in milliseconds
CLOSE_LINGER_MS = 500  # for what was sent before a poller is closed
_NOBLOCK, _EVENTS, _FD = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.FD)
_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_IN = select.EPOLLIN
_Get = Callable[[int], int]  # of an option that is an integer
_WATCHED = (zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_WENT_BY_ITSELF = (errno.EPIPE, errno.ECONNRESET)  # errno of a handshake that failed; anything else is our refusal
_MONITOR_EVENT = struct.Struct("=HI")  # zmq_socket_monitor(3): event, value (a descriptor or an errno)


class Poller:
    """One epoll for all that a process waits for, and which PUSH a descriptor belongs to."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.epoll = select.epoll()
        self.pushes: dict[int, Push] = {}
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._sockets: set[Pull | Push] = set()

    def pull(self, listener_fd: int, message_octets_max: int, connections_max: int,
             refused: Callable[[int], object]) -> Pull:
        """As the contract says."""
        pull = Pull(self._context, self.epoll, self.trust.users, listener_fd, message_octets_max, connections_max,
                    refused)
        self._sockets.add(pull)
        return pull

    def push(self, path: str) -> Push:
        """As the contract says."""
        push = Push(self._context, self, path)
        self._sockets.add(push)
        return push

    def forget(self, push: Push) -> None:
        """It is closed."""
        self._sockets.discard(push)

    def close(self) -> None:
        """As the contract says."""
        for each in list(self._sockets):
            each.close(CLOSE_LINGER_MS)
        self._context.term()  # waits for what lingers
        self.epoll.close()


class Pull:
    """The reading end of all pipes to one process.

    libzmq has no limit on connections and counts no refusals; its monitor tells of each, and who is one too many is
    hung up on by us. Where the users that may connect can be listed, libzmq itself refuses all others.
    """

    pid = 0  # messages of many are read at once

    __slots__ = ("_again_fd", "_connections", "_connections_max", "_epoll", "_fd", "_get", "_monitor", "_monitor_fd",
                 "_monitor_get", "_recv", "_refused", "_socket", "_users")

    def __init__(self, context: zmq.Context[Any], epoll: select.epoll, users: Container[int], listener_fd: int,
                 message_octets_max: int, connections_max: int, refused: Callable[[int], object]) -> None:
        os.set_blocking(listener_fd, False)
        with socket.socket(fileno=os.dup(listener_fd)) as listener:
            path = listener.getsockname()
        self._socket = pull = Socket(context, int(zmq.PULL))
        for option, value in ((zmq.USE_FD, listener_fd), (zmq.RCVHWM, WAITING_MAX),
                              (zmq.MAXMSGSIZE, message_octets_max), (zmq.HANDSHAKE_IVL, int(HANDSHAKE_S * 1000))):
            pull.set(option, value)
        for user in users if isinstance(users, Iterable) else ():
            pull.set(zmq.IPC_FILTER_UID, user)
        self._users = users
        self._connections: dict[int, int] = {}  # descriptors, as libzmq knows them -> whose process
        # Half of the descriptors are for those that libzmq takes in before we can hang up on them: where accept(2)
        # finds none, libzmq ends the process (ipc_listener.cpp: errno_assert).
        self._connections_max = bounded(connections_max, 2)
        self._refused = refused
        monitor = f"inproc://monitor-{listener_fd}"
        pull.monitor(monitor, _WATCHED)
        self._monitor = Socket(context, int(zmq.PAIR))
        self._monitor.connect(monitor)
        pull.bind(f"ipc://{path}")
        self._recv = pull.recv
        self._get = cast(_Get, pull.get)
        self._fd = self._get(_FD)
        self._monitor_get = cast(_Get, self._monitor.get)
        self._monitor_fd = self._monitor_get(_FD)
        self._monitor_get(_EVENTS)  # a descriptor tells of what comes after it was found that there was nothing
        self._again_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = epoll
        for descriptor in (self._fd, self._monitor_fd, self._again_fd):
            epoll.register(descriptor, _IN)

    def read(self, descriptor: int) -> list[bytes] | None:
        """As the contract says."""
        if descriptor != self._fd:
            if descriptor == self._monitor_fd:
                self._watch()
                return []
            if descriptor != self._again_fd:
                return None
            os.eventfd_read(descriptor)
        recv = self._recv
        messages: list[bytes] = []
        try:
            messages.append(recv(_NOBLOCK))
            if self._get(_EVENTS) & _POLLIN:
                for _ in range(READ_MESSAGES):
                    messages.append(recv(_NOBLOCK))  # noqa: PERF401  (what came before Again counts)
                os.eventfd_write(self._again_fd, 1)
        except zmq.Again:
            pass
        return messages

    def _watch(self) -> None:
        """What has become of connections."""
        monitor = self._monitor
        while self._monitor_get(_EVENTS) & _POLLIN:
            event, value = _MONITOR_EVENT.unpack_from(monitor.recv(_NOBLOCK))
            monitor.recv(_NOBLOCK)  # the address
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._connections.pop(value, None)
            elif event == zmq.EVENT_ACCEPT_FAILED:
                self._refused(value)
            elif value not in _WENT_BY_ITSELF:
                self._refused(0)  # of who was not let in (IPC_FILTER_UID) libzmq tells an errno of something earlier

    def _accepted(self, descriptor: int) -> None:
        """libzmq has taken in a connection; one that it should not have, we end: libzmq sees its end and closes it."""
        try:
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                pid, user = peer(connection)
                connections = self._connections
                if user not in self._users or has_enough(pid, self._connections_max, len(connections),
                                                         connections.values()):
                    connection.shutdown(socket.SHUT_RDWR)
                    self._refused(0)
                connections[descriptor] = pid
        except OSError:
            pass  # it is gone, and so may be the descriptor

    def expire(self, now: float) -> None:
        """As the contract says: libzmq does it by itself (ZMQ_HANDSHAKE_IVL)."""

    def close(self, linger_ms: int = 0) -> None:
        """As the contract says."""
        for descriptor in (self._fd, self._monitor_fd, self._again_fd):
            self._epoll.unregister(descriptor)
        os.close(self._again_fd)
        self._socket.monitor(None)
        self._monitor.close(0)
        self._socket.close(linger_ms)


class Push:
    """The writing end of one pipe. What waits is in libzmq, for whoever it connects to next."""

    __slots__ = ("_fd", "_get", "_poller", "_send", "_socket", "_watched", "open")

    waiting = False  # libzmq looks after what it has taken

    def __init__(self, context: zmq.Context[Any], poller: Poller, path: str) -> None:
        self._socket = push = Socket(context, int(zmq.PUSH))
        for option, value in ((zmq.SNDHWM, WAITING_MAX), (zmq.IMMEDIATE, 0), (zmq.RECONNECT_IVL, RECONNECT_MS),
                              (zmq.RECONNECT_IVL_MAX, 0), (zmq.LINGER, 0)):
            push.set(option, value)
        push.connect(f"ipc://{path}")
        self._poller = poller
        self._send = push.send
        self._get = cast(_Get, push.get)
        self._fd = self._get(_FD)
        self._watched = False
        self.open = True

    def send(self, message: bytes) -> bool:
        """As the contract says."""
        if not self.open:
            self.flush()
            if not self.open:
                return False
        try:
            self._send(message, _NOBLOCK)
            return True
        except zmq.Again:
            pass
        if self._get(_EVENTS) & _POLLOUT:
            self._send(message, _NOBLOCK)
            return True
        self.open = False
        if not self._watched:
            self._watched = True
            self._poller.pushes[self._fd] = self
            self._poller.epoll.register(self._fd, _IN)
        return False

    def flush(self) -> None:
        """As the contract says."""
        if not self.open and self._get(_EVENTS) & _POLLOUT:
            self.open = True
            self._unwatch()

    hear = flush

    def await_room(self, timeout_s: float) -> None:
        """As the contract says."""
        self.flush()
        if not self.open:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.poll(timeout_s * 1000 + 1)
            self.flush()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            del self._poller.pushes[self._fd]
            self._poller.epoll.unregister(self._fd)

    def close(self, linger_ms: int = 0) -> None:
        """As the contract says; what waits here is dropped, but for `linger_ms`."""
        self.open = False
        self._unwatch()
        self._socket.close(linger_ms)
        self._poller.forget(self)

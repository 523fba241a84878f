"""PULL and PUSH sockets of ZeroMQ over ipc, without its thread (docs/decisions/pipes.md).

A PULL listens on a descriptor that may be somebody else's too (a layer's is the keeper's), so who connects while nobody
is there to accept waits for the next one. A PUSH connects at once, sends when the other end has said READY, and
connects anew as soon as its peer is gone. What the kernel has taken dies with the peer: the journals have it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from usernet.pipe import zmtp
from usernet.pipe.contract import HANDSHAKE_S, STARVED, WAITING_MAX, Trust, bounded, has_enough
from usernet.pipe.run_dir import peer

READ_OCTETS = 1 << 16
CONNECT_INTERVAL_S = 0.005  # who waits and has nobody to connect to tries that often
COMMAND_OCTETS_MAX = 1024  # of what a PULL says: READY
MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)  # an Enum costs an operator call
_IN, _IN_OUT = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Poller:
    """One epoll for all that a process waits for, and which PUSH a descriptor belongs to."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.epoll = select.epoll()
        self.pushes: dict[int, Push] = {}
        self._pull: Pull | None = None

    def pull(self, listener_fd: int, message_octets_max: int, connections_max: int,
             refused: Callable[[int], object]) -> Pull:
        """As the contract says."""
        self._pull = Pull(listener_fd, self, message_octets_max, connections_max, refused)
        return self._pull

    def push(self, path: str) -> Push:
        """As the contract says."""
        return Push(path, self)

    def close(self) -> None:
        """As the contract says."""
        for push in list(self.pushes.values()):
            push.close()
        if self._pull is not None:
            self._pull.close()
        self.epoll.close()


class Pull:
    """The reading end of all pipes to one process; `poller` tells of the listener and of every connection."""

    __slots__ = ("_accepted", "_connections_max", "_epoll", "_listener", "_listener_fd", "_message_octets_max",
                 "_opening", "_paused", "_readers", "_refused", "_users", "pid")

    def __init__(self, listener_fd: int, poller: Poller, message_octets_max: int, connections_max: int,
                 refused: Callable[[int], object]) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._listener.setblocking(False)
        self._listener_fd = listener_fd
        self._epoll = poller.epoll
        self._message_octets_max = message_octets_max
        self._connections_max = bounded(connections_max)
        self._readers: dict[int, tuple[socket.socket, zmtp.Reader, int]] = {}
        self.pid = 0
        self._accepted: dict[int, float] = {}  # descriptor -> when; of those that may not have said READY
        self._opening = zmtp.opening(b"PULL")
        self._refused = refused
        self._paused = False  # no connection can be taken in, for want of descriptors or memory
        self._users = poller.trust.users
        self._epoll.register(listener_fd, _IN)

    def read(self, descriptor: int) -> list[bytes] | None:
        """The messages that a descriptor has, which `poller` told of; None where it is none of ours."""
        found = self._readers.get(descriptor)
        if found is None:
            if descriptor != self._listener_fd:
                return None
            self._accept()
            return []
        _, reader, self.pid = found
        try:
            octets = os.read(descriptor, READ_OCTETS)
        except BlockingIOError:
            return []
        except OSError:  # reset: as the end
            octets = b""
        messages = reader.feed(octets)
        if not octets or reader.error:
            self._drop(descriptor)
            if reader.error:
                self._refused(0)
        return messages

    def _accept(self) -> None:
        try:
            while True:
                caller, _ = self._listener.accept()
                caller.setblocking(False)
                pid, user = peer(caller)
                if user not in self._users or has_enough(pid, self._connections_max, len(self._readers),
                                                         (found[2] for found in self._readers.values())):
                    self._refused(0)
                    caller.close()
                    continue
                try:
                    caller.send(self._opening, MSG_NOSIGNAL)
                except OSError:
                    pass  # gone again
                self._readers[caller.fileno()] = caller, zmtp.Reader(self._message_octets_max), pid
                self._epoll.register(caller.fileno(), _IN)
                self._accepted[caller.fileno()] = time.monotonic()
        except OSError as error:  # EAGAIN: that was all
            if error.errno in STARVED:
                self._refused(error.errno)
                if not self._paused:  # the listener stays readable: to be told only of new ones is not to spin
                    self._paused = True
                    self._epoll.modify(self._listener_fd, _IN | select.EPOLLET)

    def expire(self, now: float) -> None:
        """As the contract says."""
        if self._paused:
            self._paused = False
            self._epoll.modify(self._listener_fd, _IN)
        while self._accepted:
            descriptor, accepted = next(iter(self._accepted.items()))
            if self._readers[descriptor][1].ready:
                del self._accepted[descriptor]
            elif accepted + HANDSHAKE_S < now:
                self._drop(descriptor)
                self._refused(0)
            else:
                break

    def close(self) -> None:
        """Hang up on everybody, and listen no more."""
        for descriptor in list(self._readers):
            self._drop(descriptor)
        self._epoll.unregister(self._listener_fd)
        self._listener.close()

    def _drop(self, descriptor: int) -> None:
        caller, _, _ = self._readers.pop(descriptor)
        self._accepted.pop(descriptor, None)
        self._epoll.unregister(descriptor)
        caller.close()


class Push:
    """The writing end of one pipe, to the socket file `path`. One thread at a time.

    A message that finds no room, or nobody who takes it, waits here, and outlives the connection.
    """

    __slots__ = ("_cut", "_full", "_path", "_poller", "_reader", "_socket", "_waiting", "_write", "open")

    def __init__(self, path: str, poller: Poller) -> None:
        self._path = path
        self._poller = poller
        self._socket: socket.socket | None = None
        self._reader = zmtp.Reader(COMMAND_OCTETS_MAX)
        self._waiting: deque[bytes | memoryview] = deque()
        self._cut = False  # the first of those is a rest: its beginning is out
        self._full = False  # there was no room, and the poller has not told of any since
        self.open = False  # the peer has said READY, nothing waits, and there may be room
        self._connect()

    @property
    def waiting(self) -> bool:
        """True while something that was taken is not out: `flush` should be called now and then."""
        return bool(self._waiting)

    @property
    def ready(self) -> bool:
        """True once the peer takes messages."""
        return self._reader.ready

    def await_room(self, timeout_s: float) -> None:
        """As the contract says."""
        if self._socket is None:
            time.sleep(min(timeout_s, CONNECT_INTERVAL_S))
            self.flush()
            return
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self.ready else 0))
        if poll.poll(timeout_s * 1000 + 1):
            self.hear()

    def send(self, message: bytes) -> bool:
        """Take a message, without waiting; False where too many wait already."""
        if not self.open:
            self.flush()
        if self.open:
            octets = zmtp.message(message)
            try:
                sent = self._write(octets, MSG_NOSIGNAL)
                if sent != len(octets):
                    self._waiting.append(memoryview(octets)[sent:])
                    self._cut = True
                    self._block()
                return True
            except BlockingIOError:
                self._block()
            except OSError:  # EPIPE, ECONNRESET
                self._reconnect()
        if len(self._waiting) >= WAITING_MAX:
            return False
        self._waiting.append(zmtp.message(message))
        return True

    def flush(self) -> None:
        """Get out what waits, as far as there is room; connect where nobody was there to connect to."""
        if self.open:
            return
        if self._socket is None:
            self._connect()
        if self._full or not self._reader.ready:
            return
        waiting = self._waiting
        try:
            while waiting:
                first = waiting[0]
                sent = self._write(first, MSG_NOSIGNAL)
                self._cut = sent < len(first)
                if self._cut:
                    waiting[0] = memoryview(first)[sent:]
                else:
                    waiting.popleft()
        except BlockingIOError:
            self._block()
        except OSError:
            self._reconnect()
        else:
            self.open = True
            self._watch(_IN)

    def _block(self) -> None:
        """No room: the poller shall tell when there is some. Trying meanwhile costs more than sending does."""
        self.open = False
        if not self._full:
            self._full = True
            self._watch(_IN_OUT)

    def hear(self) -> None:
        """The poller told of this socket: the peer says READY, or is gone, or has room again."""
        assert self._socket is not None  # else nothing of it is in the poller
        self._full = False
        try:
            octets = self._socket.recv(READ_OCTETS)
        except BlockingIOError:
            self.flush()
            return
        except OSError:  # ECONNRESET
            octets = b""
        self._reader.feed(octets)
        if octets and not self._reader.error:
            self.flush()
        elif self._reader.ready:
            self._reconnect()
        else:
            self.close()  # who hangs up at once is called again when there is something to say

    def _reconnect(self) -> None:
        """To whoever listens there next."""
        self.close()
        self._connect()

    def _connect(self) -> None:
        try:
            connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor: later, as where nobody listens
            return
        try:
            connecting.connect(self._path)
            if peer(connecting)[1] != self._poller.trust.owner:
                raise PermissionError  # nothing is said to a stranger
            connecting.send(zmtp.opening(b"PUSH"), MSG_NOSIGNAL)
        except OSError:  # nobody listens, or too many wait to be accepted
            connecting.close()
            return
        self._socket, self._write = connecting, connecting.send
        self._poller.pushes[connecting.fileno()] = self
        self._poller.epoll.register(connecting.fileno(), _IN)

    def _watch(self, events: int) -> None:
        if self._socket is not None:
            self._poller.epoll.modify(self._socket.fileno(), events)

    def close(self) -> None:
        """End the connection. What the kernel has taken can be read; the rest of a message dies with its reader."""
        self.open = self._full = False
        if self._cut:
            self._waiting.popleft()
            self._cut = False
        self._reader = zmtp.Reader(COMMAND_OCTETS_MAX)
        if self._socket is not None:
            del self._poller.pushes[self._socket.fileno()]
            self._poller.epoll.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None

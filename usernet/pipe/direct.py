"""PULL and PUSH sockets of ZeroMQ over ipc, without libzmq's thread (docs/decisions/pipes.md).

A PULL may listen on a descriptor that another process also holds (a layer's belongs to the keeper), so connections wait
there for the next process. A PUSH connects at once, sends when the other end has sent READY, and reconnects when its
peer ends. Messages in the kernel's buffers are lost with the peer; the journals have them.
"""

from __future__ import annotations

import os
import select
import socket
import time
from _socket import socket as PlainSocket  # noqa: N812  (the class whose methods `usernet.patch` does not replace)
from collections import deque
from collections.abc import Callable

from usernet.pipe import zmtp
from usernet.pipe.contract import (
    ACCEPTED_AT_ONCE,
    DESCRIPTORS_RESERVED,
    HANDSHAKE_S,
    INCOMPLETE_OCTETS_ALL,
    REFUSALS,
    STARVED,
    WAITING_MAX,
    Trust,
    bounded,
    waits_at,
)
from usernet.pipe.places import Places
from usernet.pipe.run_dir import peer

READ_OCTETS = 1 << 16
CONNECT_INTERVAL_S = 0.005  # interval of connection attempts while messages wait and there is no listener
REFUSED_WITHIN_S = 0.1  # after which a connection counts as accepted; libzmq says READY also to one that is refused
COMMAND_OCTETS_MAX = 1024  # maximum length of the READY command from a PULL
MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)  # an int, because an operation on an Enum costs a call
_IN, _IN_OUT = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Poller:
    """One epoll for all events of a process, and the PUSH of each descriptor."""

    descriptors_reserved = DESCRIPTORS_RESERVED

    def __init__(self, trust: Trust, statm_fd: int = -1) -> None:
        """`statm_fd` is not needed here."""
        self.trust = trust
        self.epoll = select.epoll()
        self.pushes: dict[int, Push] = {}
        self._pull: Pull | None = None

    def pull(self, listener_fd: int, message_octets_max: int, connections_max: int,
             refused: Callable[[int], object]) -> Pull:
        """See `contract`."""
        self._pull = Pull(listener_fd, self, message_octets_max, connections_max, refused)
        return self._pull

    def push(self, path: str, waiting_max: int = WAITING_MAX) -> Push:
        """See `contract`."""
        return Push(path, self, waiting_max)

    def close(self) -> None:
        """See `contract`."""
        for push in list(self.pushes.values()):
            push.close()
        if self._pull is not None:
            self._pull.close()
        self.epoll.close()


class Pull:
    """The reading end of all pipes to one process; `poller` reports the listener and every connection."""

    __slots__ = ("_accepted", "_epoll", "_held", "_held_octets", "_listener", "_listener_fd",
                 "_message_octets_max", "_opening", "_paused", "_places", "_readers", "_refused", "_users", "pid")

    def __init__(self, listener_fd: int, poller: Poller, message_octets_max: int, connections_max: int,
                 refused: Callable[[int], object]) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._listener.setblocking(False)
        self._listener_fd = listener_fd
        self._epoll = poller.epoll
        self._message_octets_max = message_octets_max
        self._places = Places(bounded(connections_max, poller.descriptors_reserved))
        self._readers: dict[int, tuple[socket.socket, zmtp.Reader, int]] = {}
        self.pid = 0
        self._held: dict[int, int] = {}  # {descriptor: octets of memory for an incomplete frame}
        self._held_octets = 0  # of all
        self._accepted: dict[int, float] = {}  # {descriptor: time} of those that may not have sent READY
        self._opening = zmtp.opening(b"PULL")
        self._refused = refused
        self._paused = False  # no connection can be accepted, for lack of descriptors or memory
        self._users = poller.trust.users
        self._epoll.register(listener_fd, _IN)

    def read(self, descriptor: int) -> list[bytes] | None:
        """The messages of a descriptor that `poller` reported; None: the descriptor does not belong to this PULL."""
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
        except OSError:  # reset: treated as the end
            octets = b""
        if not octets:  # it went by itself, which is not refused, whatever it had sent
            self._drop(descriptor)
            return []
        messages = reader.feed(octets)
        if reader.error:
            self._drop(descriptor)
            self._refused(0)
        elif reader.parts or descriptor in self._held:
            self._hold(descriptor, reader.held)
        return messages

    def _hold(self, descriptor: int, octets: int) -> None:
        """A connection's incomplete frame has this many octets. If all have too many, one connection is closed: of the
        process with the most the one with the most."""
        self._held_octets += octets - self._held.pop(descriptor, 0)
        if octets:
            self._held[descriptor] = octets
        if self._held_octets > INCOMPLETE_OCTETS_ALL:
            by_pid: dict[int, int] = {}
            for each, held in self._held.items():
                pid = self._readers[each][2]
                by_pid[pid] = by_pid.get(pid, 0) + held
            greediest = max(by_pid, key=by_pid.__getitem__)
            self._drop(max((each for each in self._held if self._readers[each][2] == greediest),
                           key=self._held.__getitem__))
            self._refused(0)

    def _accept(self) -> None:
        try:
            for _ in range(ACCEPTED_AT_ONCE):
                caller, _ = self._listener.accept()
                caller.setblocking(False)
                pid, user = peer(caller)
                if user not in self._users or not self._places.admits(pid, self._close_one_of):
                    self._refused(0)
                    caller.close()
                    continue
                try:
                    caller.send(self._opening, MSG_NOSIGNAL)
                except OSError:
                    pass  # closed again
                self._readers[caller.fileno()] = caller, zmtp.Reader(self._message_octets_max), pid
                self._places.add(pid)
                self._epoll.register(caller.fileno(), _IN)
                self._accepted[caller.fileno()] = time.monotonic()
        except OSError as error:  # EAGAIN: no more connections
            if error.errno in STARVED:
                self._refused(error.errno)
                if not self._paused:  # the listener stays readable; reporting only new connections avoids a busy loop
                    self._paused = True
                    self._epoll.modify(self._listener_fd, _IN | select.EPOLLET)

    def _close_one_of(self, pid: int) -> None:
        """Close the newest connection of a process."""
        self._drop(next(each for each in reversed(self._readers) if self._readers[each][2] == pid))
        self._refused(0)

    def spare(self, neighbor: int, pid: int) -> None:
        """See `contract`: closes connections for what they have sent only."""

    def know(self, is_known: Callable[[int], bool]) -> None:
        """See `contract`."""
        self._places.is_known = is_known

    def drained(self, pid: int) -> bool:
        """See `contract`."""
        return not self._places.has(pid) and not waits_at(self._listener_fd)

    def expire(self, now: float) -> None:
        """See `contract`."""
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
        """Close all connections and stop listening."""
        for descriptor in list(self._readers):
            self._drop(descriptor)
        self._epoll.unregister(self._listener_fd)
        self._listener.close()

    def _drop(self, descriptor: int) -> None:
        caller, _, pid = self._readers.pop(descriptor)
        self._places.remove(pid)
        self._accepted.pop(descriptor, None)
        self._held_octets -= self._held.pop(descriptor, 0)
        self._epoll.unregister(descriptor)
        caller.close()


class Push:
    """The writing end of one pipe, to the socket file `path`. One thread at a time.

    A message without room or without a listener waits here and survives the connection.
    """

    __slots__ = ("_connected", "_cut", "_full", "_path", "_poller", "_reader", "_refusals", "_socket", "_waiting",
                 "_waiting_max", "_write", "open")

    def __init__(self, path: str, poller: Poller, waiting_max: int) -> None:
        self._path = path
        self._waiting_max = waiting_max
        self._poller = poller
        self._socket: PlainSocket | None = None
        self._reader = zmtp.Reader(COMMAND_OCTETS_MAX)
        self._waiting: deque[bytes | memoryview] = deque()
        self._cut = False  # the first of those is the rest of a message whose beginning was sent
        self._full = False  # there was no room, and the poller has not reported any since
        self.open = False  # the peer has sent READY, nothing waits, and there may be room
        self._connected = 0.0  # when the last connection was made
        self._refusals = 0  # connections in a row that the other end has closed at once
        self._connect()

    @property
    def refused(self) -> bool:
        """See `contract`."""
        return self._refusals >= REFUSALS

    @property
    def waiting(self) -> bool:
        """True while an accepted message has not left: call `flush` regularly."""
        return bool(self._waiting)

    @property
    def ready(self) -> bool:
        """True after the peer's READY."""
        return self._reader.ready

    def await_room(self, timeout_s: float) -> None:
        """See `contract`."""
        if self._socket is None:
            time.sleep(min(timeout_s, CONNECT_INTERVAL_S))
            self.flush()
            return
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self.ready else 0))
        if poll.poll(timeout_s * 1000 + 1):
            self.hear()

    def send(self, message: bytes) -> bool:
        """Accept a message, without waiting. False: too many wait already."""
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
        if len(self._waiting) >= self._waiting_max:
            return False
        self._waiting.append(zmtp.message(message))
        return True

    def flush(self) -> None:
        """Send waiting messages, as far as there is room; connect if there was no listener before."""
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
        """No room: let the poller report it. An attempt meanwhile costs more than a send."""
        self.open = False
        if not self._full:
            self._full = True
            self._watch(_IN_OUT)

    def hear(self) -> None:
        """The poller reported this socket: the peer has sent READY, or has closed the connection, or has room again."""
        assert self._socket is not None  # otherwise its descriptor is not in the poller
        self._full = False
        try:
            octets = self._socket.recv(READ_OCTETS)
        except BlockingIOError:
            self.flush()
            return
        except OSError:  # ECONNRESET
            octets = b""
        self._reader.feed(octets)
        if not octets:
            self._refusals = self._refusals + 1 if time.monotonic() < self._connected + REFUSED_WITHIN_S else 0
        if octets and not self._reader.error:
            self.flush()
        elif self._reader.ready:
            self._reconnect()
        else:
            self.close()  # if the peer closes at once, connect again only when there is something to send

    def _reconnect(self) -> None:
        """Connect to the next listener."""
        self.close()
        self._connect()

    def _connect(self) -> None:
        try:
            connecting = PlainSocket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor: try later, as if there were no listener
            return
        try:
            connecting.connect(self._path)
            if peer(connecting)[1] != self._poller.trust.owner:
                raise PermissionError  # send nothing to a foreign process
            connecting.send(zmtp.opening(b"PUSH"), MSG_NOSIGNAL)
        except OSError:  # no listener, or its queue is full
            connecting.close()
            return
        self._socket, self._write, self._connected = connecting, connecting.send, time.monotonic()
        self._poller.pushes[connecting.fileno()] = self
        self._poller.epoll.register(connecting.fileno(), _IN)

    def _watch(self, events: int) -> None:
        if self._socket is not None:
            self._poller.epoll.modify(self._socket.fileno(), events)

    def close(self, linger_ms: int = 0) -> None:
        """Close the connection. Octets in the kernel can be read; the rest of a partially sent message is lost."""
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

    def abandon(self) -> None:
        """See `contract`. The poller is shared with the parent and stays as it is."""
        if self._socket is not None:
            self._socket.close()

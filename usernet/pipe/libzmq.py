"""PULL and PUSH sockets of ZeroMQ, by pyzmq (docs/decisions/pipes.md).

libzmq reads and writes in a thread of its own, one per process. Messages that it holds are lost with the process; the
journals have them. Calls of libzmq are expensive, so each has a reason:

- A descriptor of libzmq (ZMQ_FD) signals only once that something has happened. It signals again only after all
  messages have been received and EVENTS has been read. So after one receive, which usually gets all, EVENTS is read, at
  less than half the price of a receive that finds nothing. If there are more messages, they are received until there is
  none, or up to `READ_MESSAGES` or `READ_OCTETS`; then an eventfd reminds the loop of the rest.
- A send without room does not check whether there is room by now; reading EVENTS does.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterable
from typing import cast

import zmq

# The `send` of zmq.Socket is a third slower because of additional features. The destructor of zmq.Context waits for all
# sockets to be closed, also at the end of the interpreter, where a daemon thread may have one.
from zmq.backend import Context, Socket

from usernet.pipe.contract import (
    ACCEPTED_AT_ONCE,
    DESCRIPTORS_RESERVED,
    HANDSHAKE_S,
    STARVED,
    WAITING_MAX,
    Trust,
    bounded,
    waits_at,
)
from usernet.pipe.places import Places
from usernet.pipe.run_dir import peer

# Of the memory that the process may have (RLIMIT_DATA): beyond this part, connections are closed. What libzmq has
# received of them, complete or not, is in its own memory, up to WAITING_MAX messages for each connection.
MEMORY_PART = 0.75
CONNECTIONS_SPARED = 1  # the connection that an application needs
READ_MESSAGES, READ_OCTETS = 64, 1 << 20  # at a time, so that other descriptors get their turn
# Connections that libzmq has accepted and its monitor has not reported yet: its thread waits once so many events wait
# (the default ZMQ_SNDHWM of the monitor's end, which cannot be set, with ZMQ_RCVHWM 1 of ours), and holds one more.
UNREPORTED_MAX = 1000 + 1 + 1
DESCRIPTORS_A_CONNECTION = 4  # with what is for a client that has it (bus.runtime.clients)
SOCKETS_MAX = 4096  # per process: clients of the socket service, and pipes between layers
RECONNECT_MS = 1  # without back-off: a crashed process is back within milliseconds
CLOSE_LINGER_MS = 500  # for messages sent before a poller is closed
_NOBLOCK, _EVENTS, _FD = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.FD)
_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_IN = select.EPOLLIN
_Get = Callable[[int], int]  # of an option that is an integer
_WATCHED = (zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
# errnos of a handshake that failed by itself; any other is our refusal
_WENT_BY_ITSELF = (errno.EPIPE, errno.ECONNRESET)
LOOK_OCTETS = 1 << 22  # of messages received since the last look, after which the memory is looked at at once
LOOK_S = 0.4  # between two looks at the memory, which cost as much as the rest of an idle turn
STATM_OCTETS, DATA = 256, 5  # proc(5), /proc/PID/statm: pages of data are its sixth number
_MONITOR_EVENT = struct.Struct("=HI")  # zmq_socket_monitor(3): event, value (a descriptor or an errno)


class Poller:
    """One epoll for all events of a process, and the PUSH of each descriptor."""

    # If accept(2) finds no descriptor, libzmq aborts the process (ipc_listener.cpp: errno_assert), so there must be one
    # for each connection that it can accept before it is closed here.
    descriptors_reserved = DESCRIPTORS_RESERVED + UNREPORTED_MAX

    def __init__(self, trust: Trust, statm_fd: int = -1) -> None:
        self.trust = trust
        self.statm_fd = statm_fd
        self.epoll = select.epoll()
        self.pushes: dict[int, Push] = {}
        self.context = Context()
        self.context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._sockets: set[Pull | Push] = set()

    def pull(self, listener_fd: int, message_octets_max: int, connections_max: int,
             refused: Callable[[int], object]) -> Pull:
        """See `contract`."""
        pull = Pull(listener_fd, self, message_octets_max, connections_max, refused)
        self._sockets.add(pull)
        return pull

    def push(self, path: str, waiting_max: int = WAITING_MAX) -> Push:
        """See `contract`."""
        push = Push(path, self, waiting_max)
        self._sockets.add(push)
        return push

    def forget(self, push: Push) -> None:
        """A socket was closed."""
        self._sockets.discard(push)

    def close(self) -> None:
        """See `contract`."""
        for each in list(self._sockets):
            each.close(CLOSE_LINGER_MS)
        self.context.term()  # waits for lingering messages
        self.epoll.close()


class Pull:
    """The reading end of all pipes to one process.

    libzmq has no limit on connections and does not count refusals. Its monitor reports each connection, and connections
    beyond the limit are closed here. If the permitted users can be listed, libzmq refuses all others itself.
    """

    pid = 0  # the messages of one `read` may come from several processes

    __slots__ = ("_again_fd", "_connections", "_epoll", "_fd", "_get", "_listener_fd", "_looked_at", "_memory_max",
                 "_monitor", "_monitor_fd", "_monitor_get", "_more", "_places", "_recv", "_refused", "_socket",
                 "_spared", "_statm_fd", "_unlooked", "_users")

    def __init__(self, listener_fd: int, poller: Poller, message_octets_max: int, connections_max: int,
                 refused: Callable[[int], object]) -> None:
        os.set_blocking(listener_fd, False)
        self._listener_fd = listener_fd
        self._more = False  # the last `read` may have left messages
        with socket.socket(fileno=os.dup(listener_fd)) as listener:
            path = listener.getsockname()
        self._socket = pull = Socket(poller.context, int(zmq.PULL))
        for option, value in ((zmq.USE_FD, listener_fd), (zmq.RCVHWM, WAITING_MAX),
                              (zmq.MAXMSGSIZE, message_octets_max), (zmq.HANDSHAKE_IVL, int(HANDSHAKE_S * 1000))):
            pull.set(option, value)
        self._users = users = poller.trust.users
        for user in users if isinstance(users, Iterable) else ():
            pull.set(zmq.IPC_FILTER_UID, user)
        self._connections: dict[int, int] = {}  # {descriptor in libzmq: pid}, the oldest first
        self._spared: dict[int, int] = {}  # {layer: pid}
        self._places = Places(bounded(connections_max, poller.descriptors_reserved, DESCRIPTORS_A_CONNECTION))
        self._refused = refused
        most, _ = resource.getrlimit(resource.RLIMIT_DATA)
        self._memory_max = most * MEMORY_PART
        self._statm_fd = poller.statm_fd if most != resource.RLIM_INFINITY else -1
        self._looked_at = 0.0
        self._unlooked = 0  # octets of messages received since the last look
        monitor = f"inproc://monitor-{listener_fd}"
        pull.monitor(monitor, _WATCHED)
        self._monitor = Socket(poller.context, int(zmq.PAIR))
        self._monitor.set(zmq.RCVHWM, 1)  # see UNREPORTED_MAX
        self._monitor.connect(monitor)
        pull.bind(f"ipc://{path}")
        self._recv = pull.recv
        self._get = cast(_Get, pull.get)
        self._fd = self._get(_FD)
        self._monitor_get = cast(_Get, self._monitor.get)
        self._monitor_fd = self._monitor_get(_FD)
        self._again_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = poller.epoll
        for descriptor in (self._fd, self._monitor_fd, self._again_fd):
            self._epoll.register(descriptor, _IN)
        # The descriptor of the monitor signals the next event only if there was none when EVENTS was read, and
        # connections may have arrived already.
        self._watch()

    def read(self, descriptor: int) -> list[bytes] | None:
        """See `contract`."""
        if descriptor != self._fd:
            if descriptor == self._monitor_fd:
                self._watch()
                return []
            if descriptor != self._again_fd:
                return None
            os.eventfd_read(descriptor)
            self._watch()
        recv = self._recv
        messages: list[bytes] = []
        self._more = False
        try:
            messages.append(recv(_NOBLOCK))
            if self._get(_EVENTS) & _POLLIN:
                left = READ_OCTETS
                for _ in range(READ_MESSAGES):
                    message = recv(_NOBLOCK)
                    messages.append(message)
                    left -= len(message)
                    if left < 0:
                        break
                self._more = True
                os.eventfd_write(self._again_fd, 1)
        except zmq.Again:
            pass
        if self._statm_fd >= 0:
            self._unlooked += sum(map(len, messages))
            if self._unlooked > LOOK_OCTETS:
                self._look()
        return messages

    def _watch(self) -> None:
        """Process events of the monitor; an eventfd reminds the loop of the rest."""
        monitor, left = self._monitor, ACCEPTED_AT_ONCE
        while self._monitor_get(_EVENTS) & _POLLIN:
            if not left:
                os.eventfd_write(self._again_fd, 1)
                break
            left -= 1
            event, value = _MONITOR_EVENT.unpack_from(monitor.recv(_NOBLOCK))
            monitor.recv(_NOBLOCK)  # the address
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._forget(value)
            elif event == zmq.EVENT_ACCEPT_FAILED:
                # Of a process that is not let in (IPC_FILTER_UID) libzmq tells the errno of something earlier.
                self._refused(value if value in STARVED else 0)
            elif value not in _WENT_BY_ITSELF:
                self._refused(0)

    def _accepted(self, descriptor: int) -> None:
        """libzmq has accepted a connection. If it is not permitted, shut it down here; libzmq then closes it."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(descriptor)) as connection:
                pid, user = peer(connection)
                if user not in self._users or not self._places.admits(pid, self._close_one_of):
                    connection.shutdown(socket.SHUT_RDWR)
                    self._refused(0)
                else:
                    self._forget(descriptor)
                    self._connections[descriptor] = pid
                    self._places.add(pid)
        except OSError:
            pass  # it has ended, and its descriptor may be closed

    def _forget(self, descriptor: int) -> None:
        pid = self._connections.pop(descriptor, None)
        if pid is not None:
            self._places.remove(pid)

    def _close_one_of(self, pid: int) -> None:
        """Close the newest connection of a process."""
        self._shut(next(each for each in reversed(self._connections) if self._connections[each] == pid))

    def spare(self, neighbor: int, pid: int) -> None:
        """See `contract`."""
        self._spared[neighbor] = pid

    def know(self, is_known: Callable[[int], bool]) -> None:
        """See `contract`."""
        self._places.is_known = is_known

    def drained(self, pid: int) -> bool:
        """See `contract`. libzmq's thread reports the end of a connection after it has read everything from it."""
        return not (self._more or self._places.has(pid) or waits_at(self._listener_fd))

    def expire(self, now: float) -> None:
        """See `contract`: libzmq closes connections without a handshake itself (ZMQ_HANDSHAKE_IVL).

        If there is little memory left, connections are closed: of the processes with more than CONNECTIONS_SPARED all
        those of the half with the most, which may suffice. If there are no such processes, the newer half of all
        connections but those of neighbours.
        """
        if self._statm_fd >= 0 and now >= self._looked_at + LOOK_S:
            self._looked_at = now
            self._look()

    def _look(self) -> None:
        """Close connections if there is little memory left."""
        self._unlooked = 0
        os.lseek(self._statm_fd, 0, os.SEEK_SET)
        octets = int(os.read(self._statm_fd, STATM_OCTETS).split()[DATA]) * mmap.PAGESIZE
        if octets <= self._memory_max:
            return
        spared = set(self._spared.values())
        greedy = [pid for pid, connections in self._places.by_number()
                  if connections > CONNECTIONS_SPARED and pid not in spared]
        if greedy:
            chosen = set(greedy[: (len(greedy) + 1) // 2])
            closed = [each for each, pid in self._connections.items() if pid in chosen]
        else:
            closed = [each for each, pid in self._connections.items() if pid not in spared]
            del closed[: len(closed) // 2]
        for descriptor in closed:
            self._shut(descriptor)

    def _shut(self, descriptor: int) -> None:
        self._forget(descriptor)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(descriptor)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
                self._refused(0)
        except OSError:
            pass  # it has ended

    def close(self, linger_ms: int = 0) -> None:
        """See `contract`."""
        while self._monitor_get(_EVENTS) & _POLLIN:  # libzmq's thread must not wait for room in it when it is ended
            self._watch()
        for descriptor in (self._fd, self._monitor_fd, self._again_fd):
            self._epoll.unregister(descriptor)
        os.close(self._again_fd)
        self._socket.monitor(None)
        self._monitor.close(0)
        self._socket.close(linger_ms)


class Push:
    """The writing end of one pipe. Waiting messages are in libzmq, for the next process that it connects to."""

    __slots__ = ("_fd", "_get", "_poller", "_send", "_socket", "_watched", "open")

    waiting = False  # libzmq sends accepted messages by itself
    refused = False  # and connects again by itself

    def __init__(self, path: str, poller: Poller, waiting_max: int) -> None:
        self._socket = push = Socket(poller.context, int(zmq.PUSH))
        for option, value in ((zmq.SNDHWM, waiting_max), (zmq.IMMEDIATE, 0), (zmq.RECONNECT_IVL, RECONNECT_MS),
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
        """See `contract`."""
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
        """See `contract`."""
        if not self.open and self._get(_EVENTS) & _POLLOUT:
            self.open = True
            self._unwatch()

    hear = flush

    def await_room(self, timeout_s: float) -> None:
        """See `contract`."""
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
        """See `contract`; waiting messages are dropped after `linger_ms`."""
        self.open = False
        self._unwatch()
        self._socket.close(linger_ms)
        self._poller.forget(self)

    def abandon(self) -> None:
        """See `contract`. Its descriptor is not known: it stays open."""

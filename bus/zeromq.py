"""PULL and PUSH sockets of ZeroMQ over ipc, without its thread (docs/decisions/pipes.md).

A PULL listens on a descriptor that somebody else holds (the keeper), so who connects while no layer is there to accept
waits for the next one. A PUSH connects at once, sends once the other end has said READY, and connects anew as soon as
its peer is gone. Of what waits between the two a part is in the PUSH, and outlives the peer; what the kernel has taken
dies with it, and is in the journal (`bus.journal`).
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections import deque

from bus import zmtp

READ_OCTETS = 1 << 16
WAITING_MAX = 64  # messages that may wait in a PUSH for room, or for somebody to take them
COMMAND_OCTETS_MAX = 1024  # of what a PULL says: READY
MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)  # an Enum costs an operator call
_CREDENTIALS = struct.Struct("=iII")  # unix(7), SO_PEERCRED: pid, uid, gid
_IN, _IN_OUT = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Poller:
    """One epoll for all that a process waits for, and which PUSH a descriptor belongs to."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.pushes: dict[int, Push] = {}


class Pull:
    """The reading end of all pipes to one process; `poller` tells of the listener and of every connection."""

    def __init__(self, listener_fd: int, poller: Poller, message_octets_max: int, connections_max: int) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._listener.setblocking(False)
        self._listener_fd = listener_fd
        self._epoll = poller.epoll
        self._message_octets_max = message_octets_max
        self._connections_max = connections_max
        self._readers: dict[int, tuple[socket.socket, zmtp.Reader]] = {}
        self._opening = zmtp.opening(b"PULL")
        self.refused = 0  # connections of other users, of too many, or of what does not speak ZMTP
        self._epoll.register(listener_fd, _IN)

    def read(self, descriptor: int) -> list[bytes] | None:
        """The messages that a descriptor has, which `poller` told of; None where it is none of ours."""
        found = self._readers.get(descriptor)
        if found is None:
            if descriptor != self._listener_fd:
                return None
            self._accept()
            return []
        try:
            octets = os.read(descriptor, READ_OCTETS)
            if octets:
                return found[1].feed(octets)
        except BlockingIOError:
            return []
        except OSError:
            pass  # reset: as the end
        except zmtp.ProtocolError:
            self.refused += 1
        self._drop(descriptor)
        return []

    def _accept(self) -> None:
        try:
            while True:
                peer, _ = self._listener.accept()
                peer.setblocking(False)
                credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(credentials)[1] != os.getuid() or len(self._readers) >= self._connections_max:
                    self.refused += 1
                    peer.close()
                    continue
                try:
                    peer.send(self._opening, MSG_NOSIGNAL)
                except OSError:
                    pass  # gone again
                self._readers[peer.fileno()] = peer, zmtp.Reader(self._message_octets_max)
                self._epoll.register(peer.fileno(), _IN)
        except OSError:
            pass  # EAGAIN: that was all

    def close(self) -> None:
        """Hang up on everybody, and listen no more."""
        for descriptor in list(self._readers):
            self._drop(descriptor)
        self._epoll.unregister(self._listener_fd)
        self._listener.close()

    def _drop(self, descriptor: int) -> None:
        peer, _ = self._readers.pop(descriptor)
        self._epoll.unregister(descriptor)
        peer.close()


class Push:
    """The writing end of one pipe, to the socket file `path`."""

    def __init__(self, path: str, poller: Poller) -> None:
        self._path = path
        self._poller = poller
        self._socket: socket.socket | None = None
        self._reader = zmtp.Reader(COMMAND_OCTETS_MAX)
        self._waiting: deque[bytes] = deque()
        self._sent = 0  # octets of the first that waits
        self._direct = False  # READY was said and nothing waits: a message goes to the kernel right away
        self._connect()

    @property
    def waiting(self) -> bool:
        """True while something waits: `flush` should be called when `Poller` tells of this socket, and now and then."""
        return bool(self._waiting)

    def send(self, message: bytes) -> bool:
        """Take a message, without waiting; False where there is no room for it."""
        octets = zmtp.message(message)
        if self._direct:
            sent = 0
            try:
                sent = self._socket.send(octets, MSG_NOSIGNAL)  # type: ignore[union-attr]
                if sent == len(octets):
                    return True
                self._block()
            except BlockingIOError:
                self._block()
            except OSError:  # EPIPE, ECONNRESET
                self._reconnect()
            self._waiting.append(octets)
            self._sent = sent
            return True
        if len(self._waiting) >= WAITING_MAX:
            self.flush()
            if len(self._waiting) >= WAITING_MAX:
                return False
        self._waiting.append(octets)
        self.flush()
        return True

    def flush(self) -> None:
        """Send what waits, as far as there is room; connect where nobody was there to connect to."""
        if self._socket is None:
            self._connect()
        if self._direct or not self._reader.ready:
            return
        waiting = self._waiting
        try:
            while waiting:
                octets = waiting[0]
                self._sent += self._socket.send(octets[self._sent :], MSG_NOSIGNAL)  # type: ignore[union-attr]
                if self._sent < len(octets):
                    break
                waiting.popleft()
                self._sent = 0
        except BlockingIOError:
            pass
        except OSError:
            self._reconnect()
            return
        if waiting:
            self._block()
        else:
            self._direct = True
            self._watch(_IN)

    def _block(self) -> None:
        """No room: the poller shall tell when there is some."""
        self._direct = False
        self._watch(_IN_OUT)

    def hear(self) -> None:
        """The poller told of this socket: the peer says READY, or is gone, or has room again."""
        try:
            octets = self._socket.recv(READ_OCTETS)  # type: ignore[union-attr]
            gone = not octets
            self._reader.feed(octets)
        except BlockingIOError:
            gone = False
        except (OSError, zmtp.ProtocolError):
            gone = True
        if not gone:
            self.flush()
        elif self._reader.ready:
            self._reconnect()
        else:
            self.close()  # who hangs up at once is called again when there is something to say

    def _reconnect(self) -> None:
        """To whoever listens there next. A message that was out in part is sent again, whole."""
        self.close()
        self._connect()

    def _connect(self) -> None:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connecting.connect(self._path)
            connecting.send(zmtp.opening(b"PUSH"), MSG_NOSIGNAL)
        except OSError:  # nobody listens, or too many wait to be accepted
            connecting.close()
            return
        self._socket = connecting
        self._poller.pushes[connecting.fileno()] = self
        self._poller.epoll.register(connecting.fileno(), _IN)

    def _watch(self, events: int) -> None:
        self._poller.epoll.modify(self._socket.fileno(), events)  # type: ignore[union-attr]

    def close(self) -> None:
        """End the connection; what the kernel has taken can still be read, what waits here stays here."""
        self._direct = False
        self._sent = 0
        self._reader = zmtp.Reader(COMMAND_OCTETS_MAX)
        if self._socket is not None:
            del self._poller.pushes[self._socket.fileno()]
            self._poller.epoll.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None

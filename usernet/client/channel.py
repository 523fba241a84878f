"""The two ZeroMQ sockets between an application and a stack's socket service. Frames are not decoded here."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from usernet.client.combining import CombiningLock
from usernet.errors import os_error, timed_out
from usernet.pipe.contract import IMPLEMENTATIONS, STARVED, Trust, open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS
from usernet.pipe.run_dir import INBOXES, SERVICE_SOCKET, Untrusted, check
from usernet.pipe.run_dir import run_dir as default_run_dir

ALIVE_INTERVAL_S = 1.0  # interval of checking that the stack still exists, in a blocked call
CONNECTIONS_MAX = 16  # at the inbox: from the service and its former processes
# time that a non-blocking send waits for room, so that a loop that waits for writability does not spin
NO_ROOM_S = 0.001
WAKE = b""  # the result of `receive` in a thread that was woken
_IMPORTED_BY = os.getpid()


def find(run_dir: Path, name: str) -> int:
    """A descriptor of the run directory of a stack.

    ConnectionRefusedError: no stack runs there. PermissionError: the directory may be another user's. OSError of
    STARVED: this process has no descriptor left.
    """
    directory = -1
    try:
        directory = check(run_dir)
        if stat.S_ISSOCK(os.stat(SERVICE_SOCKET, dir_fd=directory, follow_symlinks=False).st_mode):
            return directory
    except Untrusted:
        raise
    except OSError as error:
        if error.errno in STARVED:
            raise
    if directory >= 0:
        os.close(directory)
    raise ConnectionRefusedError(
        errno.ECONNREFUSED,
        f"no usernet stack {name!r} is running (looked in {run_dir}); start one with: {_start(run_dir, name)}",
    )


def _start(run_dir: Path, name: str) -> str:
    """The command that starts a stack in this directory."""
    with contextlib.suppress(ValueError):  # it is not a name for a stack
        if run_dir == default_run_dir(name):
            return f"launcher.py up --detach --name {name}"
    return f"{'' if run_dir == default_run_dir() else f'USERNET_DIR={run_dir} '}launcher.py up --detach"


def _implementation() -> str:
    """The kind of pipes: $USERNET_PIPES, else direct. ValueError: there is no such kind.

    libzmq's `send` passes a message to libzmq's thread, so a program that ends by `os._exit` in the line after `sendto`
    would lose its datagrams. The usual forked child ends like that (socketserver, multiprocessing): its pipes are
    direct in any case.
    """
    wanted = os.environ.get("USERNET_PIPES", "") or "direct"
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f"USERNET_PIPES={wanted}: {' or '.join(IMPLEMENTATIONS)}")
    return wanted if os.getpid() == _IMPORTED_BY else "direct"


class Line:
    """`inbox_path`: the socket file on which the application listens. One thread at a time receives; one sends, and
    holds `sending`.

    `directory`: descriptor of the run directory, which this object closes.
    """

    def __init__(self, directory: int, inbox_path: Path, sending: CombiningLock[Any]) -> None:
        self.inbox_path = inbox_path
        self._directory = directory
        here = self.directory  # short enough for unix(7)
        self.closed = False
        self.full = False  # the sending thread waits for room in the pipe
        self._sending = sending
        self._received: deque[bytes] = deque()
        try:
            service = os.stat(INBOXES, dir_fd=directory, follow_symlinks=False).st_uid
            self._poller = open_poller(_implementation(), Trust(os.geteuid(), {os.geteuid(), service}))
        except (OSError, ValueError):
            os.close(directory)
            raise
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(f"{here}/{INBOXES}/{inbox_path.name}")
            except OSError as error:
                self._poller.close()
                os.close(directory)
                raise OSError(error.errno, f"{error.strerror}: {inbox_path}") from error
            listener.listen()
            self._inbox = self._poller.pull(listener.detach(), MAX_FRAME_OCTETS, CONNECTIONS_MAX,
                                            lambda _: None)  # refused connections do not concern the program
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.epoll.register(self._wake, select.EPOLLIN)
        self._outbox = self._poller.push(f"{here}/{SERVICE_SOCKET}")

    @property
    def directory(self) -> str:
        """A path of the run directory that is valid even if it is renamed."""
        return f"/proc/self/fd/{self._directory}"

    @property
    def refused(self) -> bool:
        """True if the service has no place for the connection of this process, as far as is known."""
        return self._outbox.refused

    def alive(self) -> bool:
        """False after the stack was stopped: the inbox was removed with its run directory."""
        return not self.closed and self.inbox_path.exists()

    def send(self, frame: bytes, timeout: float | None) -> None:
        """Send, and wait until the pipe has accepted the frame, at most `timeout` seconds; 0: do not wait.

        Does not wait any longer if the service has no place for this process. ENETDOWN: the stack is gone.
        TimeoutError: too much waits already.
        """
        outbox = self._outbox
        taken = outbox.send(frame)
        if taken and (outbox.open or timeout == 0 or not outbox.waiting):
            return
        deadline = None if timeout is None else monotonic() + (timeout or NO_ROOM_S)
        self.full = True
        try:
            while not taken:
                if not self._await_room(deadline):
                    raise timed_out()
                taken = outbox.send(frame)
            while timeout != 0 and outbox.waiting and not outbox.refused and self._await_room(deadline):
                pass
        finally:
            self.full = False

    def _await_room(self, deadline: float | None) -> bool:
        """Wait until something has happened to the pipe. False: nothing until the deadline."""
        left = ALIVE_INTERVAL_S if deadline is None else min(deadline - monotonic(), ALIVE_INTERVAL_S)
        if left <= 0:
            return False
        self._outbox.await_room(left)
        if not self.alive():
            raise os_error(errno.ENETDOWN)
        return True

    def receive(self, timeout: float | None) -> bytes | None:
        """The next frame; None: none in time. A timeout of None: for ever, 0: do not wait."""
        received = self._received
        if received:
            return received.popleft()
        deadline = None if timeout is None else monotonic() + timeout
        while not self.closed:
            heard = self._listen(timeout)
            if received:
                return received.popleft()
            if deadline is not None and (timeout := deadline - monotonic()) <= 0:
                if not heard:
                    return None
                timeout = 0  # perhaps part of a message, whose rest may be there, too
        raise os_error(errno.ENETDOWN)

    def _listen(self, timeout: float | None) -> bool:
        """Wait for one or more events and process them. True: something arrived, perhaps only a part."""
        heard = False
        for descriptor, _ in self._poller.epoll.poll(timeout):
            frames = self._inbox.read(descriptor)
            if frames is not None:
                self._received += frames
                heard = True
            elif descriptor == self._wake:
                os.eventfd_read(self._wake)
                self._received.append(WAKE)
            elif self._sending.acquire(blocking=False):  # otherwise the sending thread processes it
                try:
                    if descriptor in self._poller.pushes:
                        self._outbox.hear()
                finally:
                    self._sending.release()
        return heard

    def waiting(self) -> Iterator[bytes]:
        """The frames that have arrived already."""
        while True:
            while not self._received:
                if not self._listen(0):
                    return
            yield self._received.popleft()

    def put_back(self, frames: list[bytes]) -> None:
        """These are received again, in this order, before all others."""
        self._received.extendleft(reversed(frames))

    def poke(self) -> None:
        """Wake the receiving thread, which gets WAKE. Any thread may call it."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop receiving and wake the receiving thread. `destroy` is due when no thread uses the sockets any more."""
        self.closed = True
        self.poke()

    def abandon(self) -> None:
        """In a forked child: the service must not take this for the connection of a process that goes on."""
        self._outbox.abandon()

    def destroy(self) -> None:
        """Close both sockets, when no thread uses them any more. Frames that were sent can still be read."""
        self._poller.close()
        os.close(self._wake)
        os.close(self._directory)
        self.inbox_path.unlink(missing_ok=True)

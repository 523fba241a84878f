"""The two ZeroMQ sockets between an application and a stack's socket service. No frames are looked into here."""

from __future__ import annotations

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
from usernet.pipe.contract import IMPLEMENTATIONS, Trust, open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS
from usernet.pipe.run_dir import INBOXES, SERVICE_SOCKET, Untrusted, check

ALIVE_INTERVAL_S = 1.0  # who is blocked on the service asks that often whether the stack is still there
CONNECTIONS_MAX = 16  # at our inbox: the service's, those of its former incarnations
NO_ROOM_S = 0.001  # what a send that does not wait waits for room, or a loop that waits for writability would spin
WAKE = b""  # what `receive` returns to who was woken


def find(run_dir: Path, name: str) -> int:
    """A descriptor of the run directory of a stack.

    ConnectionRefusedError where none keeps its sockets there, PermissionError where it may be another user's.
    """
    directory = -1
    try:
        directory = check(run_dir)
        if stat.S_ISSOCK(os.stat(SERVICE_SOCKET, dir_fd=directory, follow_symlinks=False).st_mode):
            return directory
    except Untrusted:
        raise
    except OSError:
        pass
    if directory >= 0:
        os.close(directory)
    raise ConnectionRefusedError(
        errno.ECONNREFUSED,
        f"no usernet stack {name!r} is running (looked in {run_dir}); start one with: "
        f"launcher.py up --detach --name {name}",
    )


def _implementation() -> str:
    """Which of the pipes' implementations: $USERNET_PIPES, else direct.

    A message that libzmq has taken is on its way only when libzmq's own thread has written it. A program that ends
    by `os._exit` in the line after `sendto` would take its datagrams with it.
    """
    wanted = os.environ.get("USERNET_PIPES", "") or "direct"
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f"USERNET_PIPES={wanted}: {' or '.join(IMPLEMENTATIONS)}")
    return wanted


class Line:
    """`inbox_path`: the file on which we listen. One thread at a time receives; one sends, and holds `sending`.

    `directory`: the run directory's descriptor, which is ours to close.
    """

    def __init__(self, directory: int, inbox_path: Path, sending: CombiningLock[Any]) -> None:
        self.inbox_path = inbox_path
        self._directory = directory
        here = f"/proc/self/fd/{directory}"  # leads there whatever becomes of its name; and is short, for unix(7)
        self.closed = False
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
                                            lambda _: None)  # who was refused is nothing to the program
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.epoll.register(self._wake, select.EPOLLIN)
        self._outbox = self._poller.push(f"{here}/{SERVICE_SOCKET}")

    def alive(self) -> bool:
        """False once the stack was taken down: our inbox went with its run directory."""
        return not self.closed and self.inbox_path.exists()

    def send(self, frame: bytes, timeout: float | None) -> None:
        """Send, and wait until the pipe has taken it, at most so long: then it leaves with what comes later.

        ENETDOWN where the stack is gone, TimeoutError where too much waits already. A timeout of 0: do not wait.
        """
        outbox = self._outbox
        taken = outbox.send(frame)
        if taken and (outbox.open or timeout == 0 or not outbox.waiting):
            return
        deadline = None if timeout is None else monotonic() + (timeout or NO_ROOM_S)
        while not taken:
            if not self._await_room(deadline):
                raise timed_out()
            taken = outbox.send(frame)
        while timeout != 0 and outbox.waiting and self._await_room(deadline):
            pass

    def _await_room(self, deadline: float | None) -> bool:
        """Wait until something has happened to the pipe; False where nothing has until the deadline."""
        left = ALIVE_INTERVAL_S if deadline is None else min(deadline - monotonic(), ALIVE_INTERVAL_S)
        if left <= 0:
            return False
        self._outbox.await_room(left)
        if not self.alive():
            raise os_error(errno.ENETDOWN)
        return True

    def receive(self, timeout: float | None) -> bytes | None:
        """The next frame; None where none came in time. A timeout of None: for ever, 0: do not wait."""
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
                timeout = 0  # a part of a message, perhaps: the rest of it may be there, too
        raise os_error(errno.ENETDOWN)

    def _listen(self, timeout: float | None) -> bool:
        """Wait for one event, or several at once, and do what is due. True: something came in, if only a part."""
        heard = False
        for descriptor, _ in self._poller.epoll.poll(timeout):
            frames = self._inbox.read(descriptor)
            if frames is not None:
                self._received += frames
                heard = True
            elif descriptor == self._wake:
                os.eventfd_read(self._wake)
                self._received.append(WAKE)
            elif self._sending.acquire(blocking=False):  # else: who sends looks after it
                try:
                    if descriptor in self._poller.pushes:
                        self._outbox.hear()
                finally:
                    self._sending.release()
        return heard

    def waiting(self) -> Iterator[bytes]:
        """The frames that are there already."""
        while True:
            while not self._received:
                if not self._listen(0):
                    return
            yield self._received.popleft()

    def poke(self) -> None:
        """Wake the thread that is receiving: it gets WAKE. May be called by any thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Nothing is received from here on; who is receiving is woken. `destroy` is due when nobody is left."""
        self.closed = True
        self.poke()

    def destroy(self) -> None:
        """Both sockets, once nobody uses them any more. What was sent can still be read."""
        self._poller.close()
        os.close(self._wake)
        os.close(self._directory)
        self.inbox_path.unlink(missing_ok=True)

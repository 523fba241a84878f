"""The two ZeroMQ sockets between an application and a stack's socket service. No frames are looked into here."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import zmq
from zmq.backend import Socket as BackendSocket

from usernet.names import os_error, timed_out
from usernet.protocol import MAX_FRAME_OCTETS
from usernet.rundir import SERVICE_SOCKET

SEND_HIGH_WATER = 64  # frames that wait in ZeroMQ while the service is away
ALIVE_INTERVAL_S = 1.0  # who is blocked on the service asks that often whether the stack is still there
WAKE = "inproc://wake"


def check_running(run_dir: Path, name: str) -> None:
    """ConnectionRefusedError where no stack keeps its sockets there."""
    try:
        running = stat.S_ISSOCK((run_dir / SERVICE_SOCKET).stat().st_mode)
    except OSError:
        running = False
    if not running:
        raise ConnectionRefusedError(
            errno.ECONNREFUSED,
            f"no usernet stack {name!r} is running (looked in {run_dir}); start one with: launcher.py up --detach",
        )


class Line:
    """`inbox_path`: the file on which we listen. One thread at a time receives, one at a time sends."""

    def __init__(self, run_dir: Path, inbox_path: Path) -> None:
        self.inbox_path = inbox_path
        self.closed = False
        self._context = zmq.Context()
        self._receive_timeout_ms = -1
        try:
            self._inbox = self._socket(zmq.PULL)
            self._inbox.setsockopt(zmq.RCVHWM, 0)  # receive buffers bound it; a bound here would lose replies too
            self._inbox.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
            self._inbox.bind(f"ipc://{inbox_path}")
            self._inbox.bind(WAKE)
            outbox = self._socket(zmq.PUSH)
            outbox.connect(f"ipc://{run_dir / SERVICE_SOCKET}")
        except zmq.ZMQError as error:
            self.destroy(0)
            raise OSError(error.errno, f"{error.strerror}: {inbox_path}") from error
        self._outbox = outbox
        # send(frame, zmq.NOBLOCK); zmq.Again where the pipe is full. Without zmq.Socket's conveniences: twice as fast
        self.send = partial(BackendSocket.send, outbox)

    def _socket(self, kind: int) -> zmq.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_OCTETS)
        socket.setsockopt(zmq.RECONNECT_IVL, 1)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 1000)
        return socket

    def alive(self) -> bool:
        """False once the stack was taken down: our inbox went with its run directory."""
        return not self.closed and self.inbox_path.exists()

    def push(self, frame: bytes, deadline: float | None) -> None:
        """Send, waiting for room in the pipe. ENETDOWN where the stack is gone, TimeoutError at the deadline."""
        while True:
            left = ALIVE_INTERVAL_S if deadline is None else min(deadline - monotonic(), ALIVE_INTERVAL_S)
            if left <= 0:
                raise timed_out()
            self._outbox.setsockopt(zmq.SNDTIMEO, math.ceil(left * 1000))
            try:
                self._outbox.send(frame)
                return
            except zmq.Again:
                if not self.alive():
                    raise os_error(errno.ENETDOWN) from None

    def receive(self, timeout: float | None) -> bytes | None:
        """The next frame; None where none came in time. A timeout of None: for ever, 0: do not wait."""
        if self.closed:
            raise os_error(errno.ENETDOWN)
        milliseconds = -1 if timeout is None else max(0, math.ceil(timeout * 1000))
        if milliseconds != self._receive_timeout_ms:
            self._inbox.setsockopt(zmq.RCVTIMEO, milliseconds)
            self._receive_timeout_ms = milliseconds
        try:
            return self._inbox.recv()
        except zmq.Again:
            return None

    def waiting(self) -> Iterator[bytes]:
        """The frames that are there already."""
        while int(self._inbox.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield self._inbox.recv(zmq.NOBLOCK)

    def poke(self) -> None:
        """Wake the thread that is receiving: it gets an empty frame. May be called by any thread."""
        with self._context.socket(zmq.PUSH) as poke:
            poke.connect(WAKE)
            poke.send(b"", zmq.NOBLOCK)

    def close(self) -> None:
        """Nothing is received from here on; who is receiving is woken. `destroy` is due when nobody is left."""
        self.closed = True
        self.poke()

    def destroy(self, linger_s: float) -> None:
        """Both sockets, once nobody uses them any more; what is on its way out has that long to leave."""
        self._context.destroy(linger=int(linger_s * 1000))
        self.inbox_path.unlink(missing_ok=True)

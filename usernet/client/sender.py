"""The application's end of the pipe to the service: frames are numbered, kept for repetition, and sent in order.

A destructor or a signal handler may call this in the middle of anything. If its own thread is sending at that moment,
its frame waits in the queue of `lock` (`usernet.client.combining`).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from usernet.client.channel import NO_ROOM_S, Line
from usernet.client.combining import CombiningLock
from usernet.client.requests import Unanswered, encode
from usernet.errors import os_error, timed_out, would_block
from usernet.pipe.frame import pack_frame
from usernet.pipe.numbering import ReplayBuffer

# time that a close waits for room in the pipe while the service restarts; after that its frame goes with the next one
CLOSE_ROOM_S = 0.2
INCARNATION = 1  # an application's pipe is never restarted; after a fork there is a new one with a new id


class Frame(NamedTuple):
    """A frame that waits for the lock of sending. `request`: the request in it, if any."""

    kind: int
    records: Sequence[bytes]
    request: Unanswered | None


class Sender:
    """The frames of one connection. `line` is set before anything is sent."""

    line: Line

    def __init__(self) -> None:
        self.id = 0  # assigned by the service: a secret between the two
        self.down = False  # the stack is gone
        self.lock = CombiningLock(self._send_deferred)
        self.sent = ReplayBuffer()

    def send(self, kind: int, records: Sequence[bytes], timeout: float | None,
             request: Unanswered | None = None) -> int:
        """Send one frame with the next number; returns it.

        Blocks while the pipe is full or another thread waits for room in it, at most for `timeout`.
        """
        sending = self.lock
        if sending.mine():  # called by a destructor or a signal handler during a send
            sending.defer(Frame(kind, records, request))
            return self.sent.sequence
        lock = sending.lock
        try:
            try:
                if timeout is not None and not lock.acquire(blocking=False):
                    timeout = self._wait_for_turn(timeout)
            except BaseException:
                if sending.mine():  # a signal handler raised this after the lock was acquired
                    lock.release()
                raise
            # A signal handler runs only after calls, so not here.
            with lock:
                if timeout is not None:
                    lock.release()  # it was acquired twice
                if sending.queue:
                    sending.work()
                return self._append(kind, records, timeout, request)
        except TimeoutError:
            if timeout == 0:
                raise would_block() from None
            raise
        finally:
            if sending.queue:
                sending.attend()

    def _wait_for_turn(self, timeout: float) -> float:
        """Acquire the lock, which another thread holds; returns the rest of `timeout`. TimeoutError.

        0: wait while that thread sends, but not while it waits for room in the pipe.
        """
        lock, deadline = self.lock.lock, monotonic() + timeout
        while True:
            left = NO_ROOM_S if timeout == 0 else max(0.0, min(deadline - monotonic(), threading.TIMEOUT_MAX))
            if lock.acquire(timeout=left):
                return timeout and max(deadline - monotonic(), NO_ROOM_S)
            if timeout != 0 or self.line.full:
                raise timed_out()

    def _append(self, kind: int, records: Sequence[bytes], timeout: float | None, request: Unanswered | None) -> int:
        """While holding `lock`: append and send the next frame."""
        line = self.line
        if self.down or line.closed:
            raise os_error(errno.ENETDOWN)
        sequence = self.sent.sequence + 1
        frame = pack_frame(kind, self.id, INCARNATION, sequence, records)
        line.send(frame, timeout)
        self.sent.append(frame)
        if request is not None:
            request.sequence = sequence
        return sequence

    def _send_deferred(self, frame: Frame) -> bool:
        """False: there is no room now. The frame stays queued and precedes later ones."""
        try:
            self._append(*frame[:2], CLOSE_ROOM_S, frame.request)
        except TimeoutError:
            return False
        except OSError:
            pass  # the stack is gone, with all sockets
        return True

    def unnumbered(self, kind: int, fields: dict[str, object]) -> bytes:
        """A frame without a number: a HELLO or RESUME."""
        return pack_frame(kind, self.id, INCARNATION, 0, [encode(fields)])

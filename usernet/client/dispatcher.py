"""Mailboxes, and the sharing of one inbox by the threads of a process.

There is no thread for it. The first waiting thread becomes the *leader* and reads the inbox for all; the *followers*
sleep until something is in their mailbox or the leader stops. So a program with one thread waits on its pipe directly,
with no switch between a datagram and its reader. Only if a program waits for descriptors, outside of this library, a
thread of the connection becomes the leader for good (`serve`).
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from usernet.client.combining import owned_by_caller
from usernet.client.readiness import Descriptor
from usernet.errors import os_error, timed_out, would_block

SLEEP_S_MAX = 1e6  # a lock cannot be waited for longer than some hundred years; a thread that wakes checks its deadline


class Mailbox:
    """The received data for one socket or one request."""

    __slots__ = ("arrived", "descriptors", "ended", "error", "items", "sleepers")

    def __init__(self, lock: threading.RLock) -> None:
        self.items: deque[bytes] = deque()
        self.arrived = threading.Condition(lock)
        self.sleepers = 0  # number of threads that wait for `arrived`
        self.descriptors: set[Descriptor] = set()
        self.error = 0  # errno to raise once, as Linux's sk_err
        self.ended = False  # no thread should wait any more

    def stirred(self) -> bool:
        """True if something is available."""
        return bool(self.items or self.error or self.ended)

    def ready(self) -> bool:
        """Readable in the sense of poll."""
        return self.stirred()


class Readers:
    """`read(timeout)` takes one frame from the inbox and fills mailboxes; False: none arrived.

    One thread at a time reads.
    """

    def __init__(self, read: Callable[[float | None], bool]) -> None:
        self._read = read
        self.reading = threading.RLock()  # held by the leader; never acquired twice by a thread
        self.leads = owned_by_caller(self.reading)
        # For the conditions of all mailboxes; acquired after `reading`, never before. A destructor may find that its
        # own thread holds it.
        self.lock = threading.RLock()
        self.served = False  # a thread leads for good; set before that thread waits for `reading`
        self._waiting: list[Mailbox] = []

    def new_box(self) -> Mailbox:
        """A mailbox to wait at."""
        return Mailbox(self.lock)

    def wait(self, box: Mailbox, timeout: float | None, until: Callable[[], bool] | None = None) -> None:
        """Return when `box` has something in it, or an error. TimeoutError; BlockingIOError for a timeout of 0.

        `until`: another condition, which changes only together with a `wake` of the box.
        """
        until = until or box.stirred
        deadline = None if timeout is None else monotonic() + timeout
        while not until():
            if not self.served and self.lead():
                try:
                    while not self.served:
                        if until():
                            return
                        if not self._read(_left(deadline)) and deadline is not None and monotonic() >= deadline:
                            raise would_block() if timeout == 0 else timed_out()
                finally:
                    self.leave()
            elif timeout == 0:
                raise would_block()
            elif self.leads():
                raise os_error(errno.EDEADLK)  # a destructor or a signal handler of the leading thread
            else:
                self._follow(box, deadline, until)

    def lead(self) -> bool:
        """Become the leader if there is none; `leave` follows."""
        return not self.leads() and self.reading.acquire(blocking=False)

    def _led(self) -> bool:
        """While holding `lock`: True if there is a leader."""
        if self.served or not self.lead():
            return True
        self.reading.release()
        return False

    def serve(self, goes_on: Callable[[], bool], interval_s: float) -> None:
        """Lead until `goes_on` returns False, which is called when nothing has come for `interval_s`, or until reading
        fails."""
        with self.reading:
            try:
                while self._read(interval_s) or goes_on():
                    pass
            finally:
                self.served = False
        self._pass_on()

    def leave(self) -> None:
        """The leader stops; another thread may have to continue."""
        self.reading.release()
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            with self.lock:
                self._appoint()

    def wake(self, box: Mailbox) -> None:
        """Something was added to `box`."""
        if box.sleepers:
            with self.lock:
                box.arrived.notify_all()
        for descriptor in tuple(box.descriptors):
            descriptor.update()

    @staticmethod
    def taken_from(box: Mailbox) -> None:
        """Something was removed from `box`, which may be empty now."""
        for descriptor in tuple(box.descriptors):
            descriptor.update()

    def _follow(self, box: Mailbox, deadline: float | None, until: Callable[[], bool]) -> None:
        """Sleep until there is something in the mailbox, or no leader."""
        with self.lock:
            box.sleepers += 1
            self._waiting.append(box)
            try:
                # A thread that wakes us fills the box before it reads `sleepers`, and stops leading before it reads
                # `_waiting`; both were set before we check. So no wake-up is missed.
                if not until() and self._led():
                    left = _left(deadline)
                    if left == 0:
                        raise timed_out()
                    box.arrived.wait(left if left is None else min(left, SLEEP_S_MAX))
            finally:
                box.sleepers -= 1
                self._waiting.remove(box)
                if not self._led():
                    self._appoint()  # this thread may have been appointed, and is leaving for good

    def _appoint(self) -> None:
        if self._waiting:
            self._waiting[0].arrived.notify()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())

"""Mailboxes, and how the threads of a process share the reading of one inbox.

There is no thread for it: whoever waits first becomes the *leader* and reads the inbox for all, the *followers* sleep
until something is in their mailbox or the leader leaves. So a program with one thread waits for its pipe itself, with
nothing between a datagram and its reader. Only where a program waits for descriptors, outside of this library, a
thread of the connection's becomes the leader for good (`serve`).
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from usernet.client.combining import is_owned
from usernet.client.readiness import Descriptor
from usernet.errors import os_error, timed_out, would_block

SLEEP_S_MAX = 1e6  # a lock cannot be waited for longer than some hundred years; who wakes sees that it is not over


class Mailbox:
    """What has come in for one socket, or for one request."""

    __slots__ = ("arrived", "descriptors", "ended", "error", "items", "sleepers")

    def __init__(self, lock: threading.RLock) -> None:
        self.items: deque[bytes] = deque()
        self.arrived = threading.Condition(lock)
        self.sleepers = 0  # threads that wait for `arrived`
        self.descriptors: set[Descriptor] = set()
        self.error = 0  # errno to raise once, as Linux's sk_err
        self.ended = False  # nothing is waited for any more

    def stirred(self) -> bool:
        """Whether there is anything to be had without waiting."""
        return bool(self.items or self.error or self.ended)

    def ready(self) -> bool:
        """Readable in the sense of poll."""
        return self.stirred()


class Readers:
    """`read(timeout)` takes one frame from the inbox and fills mailboxes; False: none came. One thread at a time."""

    def __init__(self, read: Callable[[float | None], bool]) -> None:
        self._read = read
        self.reading = threading.RLock()  # held by the leader; never taken twice: it knows its owner
        # Of all mailboxes' conditions; taken after `reading`, never before. A destructor may find its own thread in it.
        self.lock = threading.RLock()
        self.served = False  # a thread leads for good; set before that thread waits for `reading`
        self._waiting: list[Mailbox] = []

    def new_box(self) -> Mailbox:
        """A mailbox to wait at."""
        return Mailbox(self.lock)

    def wait(self, box: Mailbox, timeout: float | None, until: Callable[[], bool] | None = None) -> None:
        """Return once `box` has something in it, or an error; TimeoutError, BlockingIOError for a timeout of 0.

        `until`: another condition, of what changes only together with a `wake` of the box.
        """
        until = until or box.stirred
        deadline = None if timeout is None else monotonic() + timeout
        while not until():
            if not self.served and self.lead():
                try:
                    while not (until() or self.served):
                        if not self._read(_left(deadline)) and deadline is not None and monotonic() >= deadline:
                            raise would_block() if timeout == 0 else timed_out()
                finally:
                    self.leave()
            elif timeout == 0:
                raise would_block()
            elif is_owned(self.reading):
                raise os_error(errno.EDEADLK)  # a destructor or a signal handler of the thread that reads for all
            else:
                self._follow(box, deadline, until)

    def lead(self) -> bool:
        """Become the leader, if there is none; `leave` follows."""
        return not is_owned(self.reading) and self.reading.acquire(blocking=False)

    def _led(self) -> bool:
        """While holding `lock`: whether somebody reads."""
        if self.served or not self.lead():
            return True
        self.reading.release()
        return False

    def serve(self, goes_on: Callable[[], bool], interval_s: float) -> None:
        """Lead until `goes_on`, asked when nothing has come for `interval_s`, says no, or reading fails."""
        with self.reading:
            try:
                while self._read(interval_s) or goes_on():
                    pass
            finally:
                self.served = False
        self._pass_on()

    def leave(self) -> None:
        """The leader goes; someone else may have to go on reading."""
        self.reading.release()
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            with self.lock:
                self._appoint()

    def wake(self, box: Mailbox) -> None:
        """Something was put into `box`."""
        if box.sleepers:
            with self.lock:
                box.arrived.notify_all()
        for descriptor in tuple(box.descriptors):
            descriptor.update()

    @staticmethod
    def taken_from(box: Mailbox) -> None:
        """Something was taken out of `box`: it may have nothing left to say."""
        for descriptor in tuple(box.descriptors):
            descriptor.update()

    def _follow(self, box: Mailbox, deadline: float | None, until: Callable[[], bool]) -> None:
        """Sleep until there is something for us, or no leader."""
        with self.lock:
            box.sleepers += 1
            self._waiting.append(box)
            try:
                # Who would wake us fills the box before it looks at `sleepers`, and stops leading before it looks at
                # `_waiting`; both were set before we look. So no wake-up is missed.
                if not until() and self._led():
                    left = _left(deadline)
                    if left == 0:
                        raise timed_out()
                    box.arrived.wait(left if left is None else min(left, SLEEP_S_MAX))
            finally:
                box.sleepers -= 1
                self._waiting.remove(box)
                if not self._led():
                    self._appoint()  # we may have been appointed, and may be leaving for good

    def _appoint(self) -> None:
        if self._waiting:
            self._waiting[0].arrived.notify()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())

"""Mailboxes, and how the threads of a process share the reading of one inbox.

There is no thread for it: whoever waits first becomes the *leader* and reads the inbox for all, the *followers* sleep
until something is in their mailbox or the leader leaves. So a program with one thread waits in ZeroMQ's receive itself,
with nothing between a datagram and its reader.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from usernet.names import timed_out, would_block
from usernet.protocol import DATAGRAM_HEADER, DATAGRAM_OVERHEAD

DATAGRAM_COST = DATAGRAM_OVERHEAD - DATAGRAM_HEADER.size  # of receive buffer, on top of the record's length
_LARGEST_COST = 65535 + DATAGRAM_OVERHEAD


class Mailbox:
    """What has come in for one socket, or for one request."""

    __slots__ = ("arrived", "consumed", "credit_due", "error", "handle", "items", "stale", "waiters")

    def __init__(self, lock: threading.Lock) -> None:
        self.items: deque[bytes] = deque()
        self.arrived = threading.Condition(lock)
        self.waiters = 0
        self.handle = 0
        self.error = 0  # errno to raise once, as Linux's sk_err
        self.stale = False  # what was found out about destinations may no longer hold
        self.consumed = 0  # octets of receive buffer taken out and not yet given back
        self.credit_due = 0  # give them back from here on

    def set_buffer(self, octets: int) -> None:
        """Give credit back rarely, but before the largest datagram might no longer fit an empty queue."""
        self.credit_due = max(1, min(octets // 2, octets - _LARGEST_COST))

    def queued(self) -> int:
        """Octets of receive buffer that the datagrams in here cost."""
        return sum(len(record) + DATAGRAM_COST for record in list(self.items))


class Readers:
    """`read(timeout)` takes one frame from the inbox and fills mailboxes; False: none came. One thread at a time."""

    def __init__(self, read: Callable[[float | None], bool]) -> None:
        self._read = read
        self.reading = threading.Lock()  # held by the leader
        self._lock = threading.Lock()  # of all mailboxes' conditions; taken after `reading`, never before
        self._waiting: list[Mailbox] = []

    def new_box(self) -> Mailbox:
        """A mailbox to wait at."""
        return Mailbox(self._lock)

    def wait(self, box: Mailbox, timeout: float | None) -> None:
        """Return once `box` has something in it, or an error; TimeoutError, BlockingIOError for a timeout of 0."""
        deadline = None if timeout is None else monotonic() + timeout
        while not box.items and not box.error:
            if self.reading.acquire(blocking=False):
                try:
                    while not box.items and not box.error:
                        if not self._read(_left(deadline)) and deadline is not None and monotonic() >= deadline:
                            raise would_block() if timeout == 0 else timed_out()
                finally:
                    self.leave()
            elif timeout == 0:
                raise would_block()
            else:
                self._follow(box, deadline)

    def leave(self) -> None:
        """The leader goes; someone else may have to go on reading."""
        self.reading.release()
        if self._waiting:
            with self._lock:
                self._appoint()

    def wake(self, box: Mailbox) -> None:
        """Something was put into `box`."""
        if box.waiters:
            with self._lock:
                box.arrived.notify_all()

    def _follow(self, box: Mailbox, deadline: float | None) -> None:
        """Sleep until there is something for us, or no leader."""
        with self._lock:
            box.waiters += 1
            self._waiting.append(box)
            try:
                # Who would wake us fills the box before it looks at `waiters`, and stops leading before it looks at
                # `_waiting`; both were set before we look. So no wake-up is missed.
                if not box.items and not box.error and self.reading.locked():
                    left = _left(deadline)
                    if left == 0:
                        raise timed_out()
                    box.arrived.wait(left)
            finally:
                box.waiters -= 1
                self._waiting.remove(box)
                if not self.reading.locked():
                    self._appoint()  # we may have been appointed, and may be leaving for good

    def _appoint(self) -> None:
        if self._waiting:
            self._waiting[0].arrived.notify()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())

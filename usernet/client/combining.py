"""A lock for what destructors and signal handlers want done, too: they queue it, and whoever holds the lock does it.

Python may run a destructor, and so anybody's `close()`, between any two steps of a thread, also of one that holds our
locks. A lock that a destructor waited for would then never be given back. So a destructor never waits: it puts its work
into the queue and tries the lock; if that is taken, its holder finds the work when it lets go (flat combining: Hendler,
Incze, Shavit and Tzafrir, SPAA 2010).
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from operator import methodcaller
from typing import Generic, TypeVar

from usernet.errors import os_error

Work = TypeVar("Work")

# Whether the calling thread holds it: RLock has told since Python 3.2, and threading.Condition asks it so.
is_owned: Callable[[threading.RLock], bool] = methodcaller("_is_owned")


class CombiningLock(Generic[Work]):
    """`do` is called with each piece of work in turn, by a holder; False: not now, the rest stays queued.

    A thread holds it by `with combining.lock:`, and calls `work` first and `attend` afterwards. (A context manager in
    Python would leave it locked where an interrupt comes between taking it and returning.)
    """

    __slots__ = ("_do", "lock", "queue")

    def __init__(self, do: Callable[[Work], bool]) -> None:
        self._do = do
        self.lock = threading.RLock()  # never taken twice: it knows its owner, from the moment that it is taken
        self.queue: deque[Work] = deque()

    @property
    def mine(self) -> bool:
        """Whether the calling thread holds it: then the caller is a destructor or a signal handler."""
        return is_owned(self.lock)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As of threading.Lock; EDEADLK where the caller would wait for itself."""
        if self.mine:
            if blocking:
                raise os_error(errno.EDEADLK)
            return False
        return self.lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Let go, and do what was queued meanwhile."""
        self.lock.release()
        self.attend()

    def defer(self, work: Work) -> None:
        """Have it done: now, or by the thread that holds the lock. Waits for nobody."""
        self.queue.append(work)
        self.attend()

    def attend(self) -> None:
        """Do what is queued, unless somebody holds the lock."""
        done = True
        while done and self.queue and self.acquire(blocking=False):
            try:
                done = self.work()
            finally:
                self.lock.release()

    def work(self) -> bool:
        """While holding it: do what is queued. False where something of it has to wait."""
        queue = self.queue
        while queue:
            if not self._do(queue[0]):
                return False
            queue.popleft()
        return True

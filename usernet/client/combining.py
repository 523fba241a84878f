"""A lock for destructors and signal handlers: they queue their work, and the holder of the lock executes it.

Python may run a destructor, and so any `close()`, between any two instructions of a thread, including a thread that
holds one of our locks. If a destructor waited for such a lock, it would never be released. So a destructor does not
wait: it queues its work and tries the lock. If the lock is held, its holder executes the work when it releases the lock
(flat combining: Hendler, Incze, Shavit and Tzafrir, SPAA 2010).
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Generic, TypeVar

from usernet.errors import os_error

Work = TypeVar("Work")

# A function that returns True if the calling thread holds the lock: a method of RLock since Python 3.2, which
# threading.Condition uses.
owned_by_caller: Callable[[threading.RLock], Callable[[], bool]] = attrgetter("_is_owned")


class CombiningLock(Generic[Work]):
    """`do` is called with each piece of work in turn, by a holder; False: not now, and the rest stays queued.

    A thread holds it by `with combining.lock:`, and calls `work` first and `attend` afterwards. (If this were a context
    manager in Python, an interrupt between acquiring and returning would leave it locked.)
    """

    __slots__ = ("_do", "lock", "mine", "queue")

    def __init__(self, do: Callable[[Work], bool]) -> None:
        self._do = do
        # never acquired twice by a thread: it knows its owner from the moment it is acquired
        self.lock = threading.RLock()
        # True if the calling thread holds it: then the caller is a destructor or a signal handler
        self.mine = owned_by_caller(self.lock)
        self.queue: deque[Work] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As threading.Lock. EDEADLK: the caller would wait for itself."""
        if self.mine():
            if blocking:
                raise os_error(errno.EDEADLK)
            return False
        return self.lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Release the lock, and execute the work that was queued meanwhile."""
        self.lock.release()
        self.attend()

    def defer(self, work: Work) -> None:
        """Execute the work now, or let the holder of the lock execute it. Never waits."""
        self.queue.append(work)
        self.attend()

    def attend(self) -> None:
        """Execute the queued work, unless another thread holds the lock."""
        done = True
        while done and self.queue and self.acquire(blocking=False):
            try:
                done = self.work()
            finally:
                self.lock.release()

    def work(self) -> bool:
        """While holding the lock: execute the queued work. False: some of it has to wait."""
        queue = self.queue
        while queue:
            if not self._do(queue[0]):
                return False
            queue.popleft()
        return True

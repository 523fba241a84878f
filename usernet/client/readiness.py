"""Descriptors that select, poll, epoll and asyncio accept, for sockets that the kernel knows nothing of.

One eventfd a socket, made when `fileno()` is first called: its counter is above zero, and so it is readable, exactly as
long as the socket has something to say. It is always writable; a send that finds no room says so itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Descriptor:
    """An eventfd that is readable while `ready` says so. `close` waits for nobody: a destructor may call it."""

    __slots__ = ("_busy", "_changed", "_closing", "_ready", "_shown", "number")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready = ready
        self._shown = False
        self._closing = False
        self._changed = False
        self._busy = threading.RLock()  # never taken twice: it knows its owner

    def update(self) -> None:
        """Return once the descriptor is as `ready` says."""
        self._changed = True
        self._look_again(wait=True)

    def _look_again(self, wait: bool) -> None:
        # Who finds it taken and does not wait has set `_changed` before; the holder looks at that after letting go.
        busy = self._busy
        while self._changed and not busy._is_owned() and busy.acquire(wait):  # type: ignore[attr-defined]
            try:
                while self._changed:
                    self._changed = False
                    self._apply()
            finally:
                busy.release()

    def _apply(self) -> None:
        if self.number < 0:
            return
        if self._closing:
            number, self.number = self.number, -1
            os.close(number)
            return
        ready = self._ready()
        if ready is self._shown:
            return
        self._shown = ready
        try:
            if ready:
                os.eventfd_write(self.number, 1)
            else:
                os.eventfd_read(self.number)
        except BlockingIOError:
            pass  # the program has read from it itself

    def forget(self) -> None:
        """The program has closed it itself: the number may stand for something else by now."""
        self.number = -1

    def close(self) -> None:
        """Give the number back."""
        self._closing = self._changed = True
        self._look_again(wait=False)

    def abandon(self) -> None:
        """In a forked child: close this process's number, whatever another thread did with it at the fork."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

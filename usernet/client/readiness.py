"""Descriptors that select, poll, epoll and asyncio accept, for sockets that the kernel knows nothing of.

One eventfd a socket, made when `fileno()` is first called: its counter is above zero, and so it is readable, exactly as
long as the socket has something to say. It is always writable; a send that finds no room says so itself.
"""

from __future__ import annotations

import os


class Descriptor:
    """An eventfd. All calls but `number` are made under the mailboxes' lock."""

    __slots__ = ("_ready", "number")

    def __init__(self) -> None:
        self.number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready = False

    def show(self, ready: bool) -> None:
        """Be readable, or not."""
        if ready is self._ready or self.number < 0:
            return
        self._ready = ready
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
        if self.number >= 0:
            os.close(self.number)

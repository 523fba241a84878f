"""Descriptors for select, poll, epoll and asyncio, for sockets that the kernel does not know.

Each socket has an eventfd, created by the first call of `fileno()`. Its counter is above zero, so it is readable,
exactly while the socket is readable. It is always writable; a send that finds no room reports this itself.

A stream has one end of a pair of Unix sockets, because that can also be unwritable and hang up: an octet from the other
end makes it readable, a message to the other end that fills the send buffer makes it unwritable, and an octet out of
band has EPOLLPRI. That octet also makes it readable, unlike on Linux, until a call has found nothing to read.
"""

from __future__ import annotations

import os
import socket
import threading
from _socket import socketpair  # of sockets whose methods `usernet.patch` does not replace
from collections.abc import Callable
from contextlib import suppress

from usernet.client.combining import owned_by_caller


def identity_of(number: int) -> str:
    """The kernel's identification of a descriptor; empty: not open.

    A stream's is unique, those of all eventfds are equal.
    """
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


# What a descriptor shows.
READABLE, WRITABLE, ENDED, HUNG_UP, URGENT, FAILED = (1 << bit for bit in range(6))


class Descriptor:
    """An eventfd that is readable while `events` returns READABLE. `close` never waits, because a destructor may call
    it."""

    __slots__ = ("_busy", "_changed", "_closing", "_events", "_mine", "_shown", "identity", "number")

    def __init__(self, events: Callable[[], int]) -> None:
        self._begin(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), events)

    def _begin(self, number: int, events: Callable[[], int]) -> None:
        self.number = number
        self.identity = identity_of(number)
        self._events = events
        self._shown = 0
        self._closing = False
        self._changed = False
        self._busy = threading.RLock()  # never acquired twice by a thread: it knows its owner
        self._mine = owned_by_caller(self._busy)

    # A thread that does not wait for `_busy`, or has it already, has set `_changed` before; the holder checks that
    # after releasing.

    def update(self) -> None:
        """Return when the descriptor corresponds to `events`."""
        self._changed = True
        while self._changed and not self._mine():
            with self._busy:
                self._follow()

    def close(self) -> None:
        """Close the descriptor."""
        self._closing = self._changed = True
        while self._changed and not self._mine() and self._busy.acquire(blocking=False):
            try:
                self._follow()
            finally:
                self._busy.release()

    def _follow(self) -> None:
        while self._changed:
            self._changed = False
            if self.number < 0:
                pass
            elif self._closing:
                self._close()
            elif (events := self._events()) != self._shown:
                self._show(events)

    def _close(self) -> None:
        number, self.number = self.number, -1
        os.close(number)

    def _show(self, events: int) -> None:
        self._shown = events
        try:
            if events:
                os.eventfd_write(self.number, 1)
            else:
                os.eventfd_read(self.number)
        except BlockingIOError:
            pass  # the program has read from it

    def forget(self) -> None:
        """The program has closed it: the number may belong to another file by now."""
        self.number = -1

    def abandon(self) -> None:
        """In a forked child: close the descriptor, whatever another thread was doing with it at the fork."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)


FILLING = bytes(4096)  # more than fits into the free part of the smallest send buffer (Linux SOCK_MIN_SNDBUF)


class StreamDescriptor(Descriptor):
    """As Descriptor, for a stream, with all of the events: ENDED (the peer's end was reached), HUNG_UP (in both
    directions), URGENT (an urgent octet can be read), FAILED (an error that no call has reported)."""

    __slots__ = ("_near", "_other")

    def __init__(self, events: Callable[[], int]) -> None:
        self._near, self._other = socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (self._near, self._other):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self._begin(self._near.fileno(), events)
        self._shown = WRITABLE

    def _close(self) -> None:
        self.number = -1
        self._near.close()
        self._other.close()

    def _show(self, events: int) -> None:
        try:
            if events ^ self._shown == READABLE and not events & ENDED:
                self._show_octets(events)  # the usual case
            else:
                self._show_all(events)
        except OSError:
            pass  # hung up already, or the program has used it

    def _show_octets(self, events: int) -> None:
        self._shown ^= READABLE
        if events & READABLE:
            self._other.send(b"r")
        else:
            self._near.recv(1)

    def _show_all(self, events: int) -> None:
        if (events ^ self._shown) & URGENT and not self._shown & ENDED:
            self._show_urgent()
        if self._shown & ENDED:
            pass
        elif events & ENDED:
            self._shown |= ENDED
            self._other.shutdown(socket.SHUT_WR)  # RDHUP, and readable from now on
        elif (events ^ self._shown) & READABLE:
            self._show_octets(events)
        if (events ^ self._shown) & WRITABLE:
            self._shown ^= WRITABLE
            if events & WRITABLE:
                self._other.recv(len(FILLING) * 2)
            else:
                self._near.send(FILLING)
        if events & HUNG_UP:
            self._hang_up(bool(events & FAILED))

    def _hang_up(self, failed: bool) -> None:
        if self._other.fileno() >= 0 and failed:
            self._near.send(b"e")  # a Unix socket has EPOLLERR if its peer was closed with something unread
            self._shown |= FAILED
        self._other.close()
        self._shown |= HUNG_UP
        if self._shown & FAILED and not failed:
            self._shown ^= FAILED
            self._near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _show_urgent(self) -> None:
        """Both octets anew: the one that is readable cannot be read past the urgent one."""
        if self._shown & URGENT:
            with suppress(OSError):
                self._near.recv(1, socket.MSG_OOB)
        with suppress(BlockingIOError):
            self._near.recv(2)
        self._shown = (self._shown ^ URGENT) & ~READABLE
        if self._shown & URGENT:
            self._other.send(b"u", socket.MSG_OOB)

    def forget(self) -> None:
        """The program has closed it."""
        self.number = -1
        self._near.detach()
        self._other.close()

    def abandon(self) -> None:
        """In a forked child."""
        self.number = -1
        self._near.close()
        self._other.close()

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


class Descriptor:
    """An eventfd that is readable while `ready` returns True. `close` never waits, because a destructor may call it."""

    __slots__ = ("_busy", "_changed", "_closing", "_ready", "_shown", "identity", "number")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._begin(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), ready)

    def _begin(self, number: int, ready: Callable[[], bool]) -> None:
        self.number = number
        self.identity = identity_of(number)
        self._ready = ready
        self._shown = False
        self._closing = False
        self._changed = False
        self._busy = threading.RLock()  # never acquired twice by a thread: it knows its owner

    def update(self) -> None:
        """Return when the descriptor corresponds to `ready`."""
        self._changed = True
        self._look_again(wait=True)

    def _look_again(self, wait: bool) -> None:
        # A thread that finds it held and does not wait has set `_changed` before; the holder checks that after
        # releasing.
        busy, mine = self._busy, owned_by_caller(self._busy)
        while self._changed and not mine() and busy.acquire(wait):
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
            pass  # the program has read from it

    def forget(self) -> None:
        """The program has closed it: the number may belong to another file by now."""
        self.number = -1

    def close(self) -> None:
        """Close the descriptor."""
        self._closing = self._changed = True
        self._look_again(wait=False)

    def abandon(self) -> None:
        """In a forked child: close the descriptor, whatever another thread was doing with it at the fork."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)


FILLING = bytes(4096)  # more than fits into the free part of the smallest send buffer (Linux SOCK_MIN_SNDBUF)


class StreamDescriptor(Descriptor):
    """As Descriptor, for a stream: `ready`, `writable`, `ended` (the peer's end was reached), `hung_up` (in both
    directions), `urgent` (an urgent octet can be read), `failed` (an error that no call has reported)."""

    __slots__ = ("_ended", "_failed", "_hung_up", "_near", "_other", "_shown_end", "_shown_error", "_shown_urgent",
                 "_shown_writable", "_urgent", "_writable")

    def __init__(self, ready: Callable[[], bool], writable: Callable[[], bool], ended: Callable[[], bool],
                 hung_up: Callable[[], bool], urgent: Callable[[], bool], failed: Callable[[], bool]) -> None:
        near, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (near, self._other):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self._near = near
        self._writable, self._ended, self._hung_up = writable, ended, hung_up
        self._urgent, self._failed = urgent, failed
        self._shown_writable = True
        self._shown_end = self._shown_urgent = self._shown_error = False
        self._begin(near.fileno(), ready)

    def _apply(self) -> None:
        if self.number < 0:
            return
        if self._closing:
            self.number = -1
            self._near.close()
            self._other.close()
            return
        try:
            self._show()
        except OSError:
            pass  # hung up already, or the program has used it

    def _show(self) -> None:
        if self._urgent() is not self._shown_urgent and not self._shown_end:
            self._show_urgent()
        if self._shown_end:
            pass
        elif self._ended():
            self._shown_end = True
            self._other.shutdown(socket.SHUT_WR)  # RDHUP, and readable from now on
        elif (ready := self._ready()) is not self._shown:
            self._shown = ready
            if ready:
                self._other.send(b"r")
            else:
                self._near.recv(1)
        hung_up = self._hung_up()
        if (writable := self._writable() or hung_up) is not self._shown_writable:
            self._shown_writable = writable
            if writable:
                self._other.recv(len(FILLING) * 2)
            else:
                self._near.send(FILLING)
        if hung_up:
            if self._other.fileno() >= 0 and self._failed():
                self._near.send(b"e")  # a Unix socket has EPOLLERR if its peer was closed with something unread
                self._shown_error = True
            self._other.close()
            if self._shown_error and not self._failed():
                self._shown_error = False
                self._near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _show_urgent(self) -> None:
        """Both octets anew: the one that is readable cannot be read past the urgent one."""
        if self._shown_urgent:
            with suppress(OSError):
                self._near.recv(1, socket.MSG_OOB)
        with suppress(BlockingIOError):
            self._near.recv(2)
        self._shown_urgent, self._shown = not self._shown_urgent, False
        if self._shown_urgent:
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

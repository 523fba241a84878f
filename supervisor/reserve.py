"""Descriptors set aside: a layer that hangs is noticed, and one that has died is started again, even while the keeper
gets no further ones (EMFILE)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

DESCRIPTORS = 16  # a fork needs three and keeps two; so many layers that have no spare may have to be started at once


class Reserve:
    """Keeps descriptors open for nothing, so that their numbers can be had when there are no others."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def fill(self) -> None:
        """Set aside as many as there are, with the lowest numbers: those above a limit that was lowered are no use.

        To be called when descriptors were closed, before others take their numbers.
        """
        self._release()
        with suppress(OSError):
            while len(self._held) < DESCRIPTORS:
                self._held.append(os.eventfd(0, os.EFD_CLOEXEC))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, they can be had."""
        self._release()
        try:
            yield
        finally:
            self.fill()

    def at_need(self, action: Callable[[], T]) -> T:
        """The result of an action, which is repeated with these descriptors if it gets no other."""
        try:
            return action()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        with self.opened():
            return action()

    def _release(self) -> None:
        while self._held:
            os.close(self._held.pop())

"""Errors as the standard socket module raises them."""

from __future__ import annotations

import errno
import os


def os_error(number: int) -> OSError:
    """The OSError, or its subclass, for an errno."""
    return OSError(number, os.strerror(number))


def timed_out() -> TimeoutError:
    """The exception of the standard module after a socket's timeout."""
    return TimeoutError("timed out")


def would_block() -> OSError:
    """BlockingIOError."""
    return os_error(errno.EAGAIN)

"""A descriptor that becomes readable again and again: timerfd_create(2), which Python has from 3.13 on only."""

from __future__ import annotations

import ctypes
import os
import time

TICK_OCTETS = 8  # of what there is to be read once it has expired; it expires again once that was read
TFD_CLOEXEC, TFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def ticker(interval_s: float) -> int:
    """A timer that expires every `interval_s` seconds, without end: its descriptor, close-on-exec. OSError."""
    descriptor = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK))
    interval = _Timespec(*divmod(int(interval_s * 1e9), 10**9))
    _checked(_libc.timerfd_settime(descriptor, 0, ctypes.byref(_Itimerspec(interval, interval)), None))
    return descriptor


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

"""A periodic timer as a descriptor: timerfd_create(2), which Python has only from 3.13 on."""

from __future__ import annotations

import ctypes
import os
import time

TICK_OCTETS = 8  # to be read after it has expired
TFD_CLOEXEC, TFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def ticker(interval_s: float) -> int:
    """The descriptor of a timer that expires every `interval_s` seconds, close-on-exec. OSError: the system refuses."""
    descriptor = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK))
    interval = _Timespec(*divmod(int(interval_s * 1e9), 10**9))
    _checked(_libc.timerfd_settime(descriptor, 0, ctypes.byref(_Itimerspec(interval, interval)), None))
    return descriptor


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

"""A periodic timer as a descriptor: timerfd_create(2), which Python has only from 3.13 on."""

from __future__ import annotations

import ctypes
import os
import time

TICK_OCTETS = 8  # to be read after it has expired
TFD_CLOEXEC, TFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
TFD_TIMER_ABSTIME = 1  # linux/timerfd.h
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def ticker(interval_s: float) -> int:
    """The descriptor of a timer that expires at all multiples of `interval_s` seconds of CLOCK_MONOTONIC, so the timers
    of several processes expire together, close-on-exec. OSError: the system refuses.
    """
    descriptor = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK))
    interval_ns = int(interval_s * 1e9)
    first_ns = (time.monotonic_ns() // interval_ns + 1) * interval_ns
    setting = _Itimerspec(_timespec(interval_ns), _timespec(first_ns))
    _checked(_libc.timerfd_settime(descriptor, TFD_TIMER_ABSTIME, ctypes.byref(setting), None))
    return descriptor


def _timespec(nanoseconds: int) -> _Timespec:
    return _Timespec(*divmod(nanoseconds, 10**9))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

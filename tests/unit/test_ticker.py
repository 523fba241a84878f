"""The timer behind a layer's life signs, against the kernel's own clock."""

from __future__ import annotations

import ctypes
import os
import select
import time

import pytest

from bus.runtime.timerfd import TICK_OCTETS, ticker

INTERVAL_S = 0.02


def test_it_expires_again_and_again():
    started = time.monotonic()  # before the timer: on a busy machine it may have expired by the next line
    descriptor = ticker(INTERVAL_S)
    poll = select.epoll()
    poll.register(descriptor, select.EPOLLIN)
    try:
        assert not os.get_inheritable(descriptor)
        for _ in range(3):
            assert poll.poll(10)
            assert int.from_bytes(os.read(descriptor, TICK_OCTETS), "little") >= 1
        assert time.monotonic() - started >= 2 * INTERVAL_S  # the first comes within an interval
    finally:
        poll.close()
        os.close(descriptor)


def test_it_expires_at_multiples_of_its_interval():
    interval_ns = int(INTERVAL_S * 1e9)
    descriptor = ticker(INTERVAL_S)
    setting = (ctypes.c_long * 4)()  # timerfd_gettime(2): interval and time left, in seconds and nanoseconds
    try:
        for _ in range(20):
            before = time.monotonic_ns()
            assert not ctypes.CDLL(None).timerfd_gettime(descriptor, setting)
            after = time.monotonic_ns()
            left = setting[2] * 10**9 + setting[3]
            assert (before + left - 1) // interval_ns < (after + left) // interval_ns
    finally:
        os.close(descriptor)


def test_an_interval_that_the_kernel_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "CLOCK_MONOTONIC", -99)
    with pytest.raises(OSError, match="Invalid argument"):
        ticker(INTERVAL_S)

"""A layer's process, from the keeper's fork to the layer's own code."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

import msgspec
from setproctitle import setproctitle

from supervisor import lockdown
from supervisor.lockdown import Lock
from supervisor.snapshots import Code

PR_SET_PDEATHSIG = 1
MEMORY_LIMIT_OCTETS = 1 << 28  # data of each layer: beyond it allocation fails and the layer is restarted

_libc = ctypes.CDLL(None)


def become(title: str, keeper_pid: int, keep_fds: Iterable[int]) -> None:
    """Set up this fork of the keeper: its name, its end with the keeper, and only the descriptors that it needs."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper_pid:
        os._exit(0)  # the keeper died before the prctl
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep = {0, 1, 2, *keep_fds}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the listing's own descriptor
    setproctitle(title)


def run_layer(layer: str, code: Code, config_json: bytes, lock: Lock | None, run_dir_fd: int, memory_fd: int,
              listener_fd: int, device_fd: int, shared_fds: tuple[int, ...], line: socket.socket) -> NoReturn:
    """Import the layer from `code` and run it. An exception is reported to the keeper and ends the process."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_OCTETS, MEMORY_LIMIT_OCTETS))
        for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):  # not those that the keeper has for the moment
            _, most = resource.getrlimit(limit)
            resource.setrlimit(limit, (most, most))
        gc.freeze()
        _install(code, line)
        process = importlib.import_module("bus.runtime.process")
        config = importlib.import_module("bus.config").decode(config_json)
        control = importlib.import_module("bus.runtime.control").Control(line)
        try:
            main = importlib.import_module(f"layers.{layer}.__main__").main
            main(process.SpawnArguments(layer, config, memory_fd, listener_fd, control, device_fd,
                                        shared_fds, lock=partial(_lock, lock, run_dir_fd)))
            status = 0
        except Exception:
            control.tell("crashed", traceback=traceback.format_exc(limit=-12)[-3000:])
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def _install(code: Code, line: socket.socket) -> None:
    """Install the code.

    The files on disk may contain anything, so the code that serves reports any error of reading them.
    """
    control = importlib.import_module("bus.runtime.control").Control(line)
    try:
        code.install()
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as error:
        control.tell("crashed", traceback=f"the code on disk does not compile: {type(error).__name__}: {error}"[:3000])
        os._exit(1)


def _lock(lock: Lock | None, run_dir_fd: int) -> tuple[str, dict[str, Any] | None]:
    """Give up the rights that the layer does not need.

    Returns ("/" if it has its own root directory, and the result of each step).
    """
    if lock is None:
        return "", None
    done = lockdown.enter(lock, os.getppid())
    os.close(run_dir_fd)
    return ("/" if done.root == "/" else ""), msgspec.to_builtins(done)

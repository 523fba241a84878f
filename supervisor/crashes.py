"""Recordings of the last calls before a crash, which `up --record-crashes` stores in the user's state directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bus.durable import layout
from bus.runtime.crash_log import MAGIC, entries
from supervisor.poison import state_dir

RECORDINGS_MAX = 16  # per stack, of at most 8 MiB each; the oldest is removed


def write_recording(stack: str, layer: str, incarnation: int, memory_fd: int) -> Path | None:
    """Write what the crash log of an ended process contains; returns the path. None: it contains nothing. OSError."""
    with layout.map_tap(memory_fd, layout.crash_log_of(incarnation)) as log:
        found = entries(memoryview(bytes(log)))
    if not found:
        return None
    folder = state_dir(stack)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # packets are private
    for old in sorted(folder.glob("crash-*.rec"), key=lambda path: path.stat().st_mtime)[: -(RECORDINGS_MAX - 1)]:
        old.unlink(missing_ok=True)
    path = folder / f"crash-{layer}-{incarnation}-{int(time.time() * 1e6)}.rec"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(MAGIC + found)
    return path

"""The janitor: a process that waits for the keeper to end, and then removes what a killed keeper leaves behind.

Layers end with the keeper by themselves (prctl(2), PR_SET_PDEATHSIG), interfaces and namespaces with the last process
in them; files would stay. It starts before the first file is made and touches nothing while the keeper lives. It takes
the lock of the run directory before it removes anything, so one that wakes late leaves a newer stack's files alone.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

LOCK = "lock"  # in the run directory; the keeper holds a flock(2) on it


class Janitor:
    """This process's, which is the keeper: `pidfd` becomes readable when the janitor ends."""

    def __init__(self, stack: str, run_dir: Path) -> None:
        self._stack, self._run_dir = stack, run_dir
        self._fork()

    def _fork(self) -> None:
        keeper = os.pidfd_open(os.getpid())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _clean_up_after(self._stack, self._run_dir, keeper)
        finally:
            os.close(keeper)
        self.pidfd = os.pidfd_open(self.pid)

    def renew(self) -> None:
        """It has ended, and the keeper has not: fork another."""
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self._fork()

    def finish(self) -> None:
        """The keeper, which holds the lock, leaves in order: remove its files, and end the janitor."""
        remove(self._run_dir)
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _clean_up_after(stack: str, run_dir: Path, keeper: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        setproctitle(f"usernet {stack}: janitor")
        os.closerange(3, keeper)
        os.closerange(keeper + 1, os.sysconf("SC_OPEN_MAX"))
        select.select([keeper], [], [])
        if _take_lock(run_dir):
            remove(run_dir)
    finally:
        os._exit(0)


def _take_lock(run_dir: Path) -> bool:
    """Whether no other keeper has taken the run directory; it stays taken until this process ends."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(run_dir / LOCK))
    except FileNotFoundError:
        return run_dir.is_dir() and not any(run_dir.iterdir())  # the keeper died before it made the file
    except OSError:
        return False


def remove(run_dir: Path) -> None:
    """The sockets and the lock of a stack, and its directory where nothing else is in it. For who holds the lock."""
    try:
        for name in os.listdir(run_dir):
            if name.endswith(".sock"):
                os.unlink(run_dir / name)
        (run_dir / LOCK).unlink(missing_ok=True)
        run_dir.rmdir()
    except OSError:
        pass  # somebody else removes it, too, or has put something in it

"""The janitor: a process that waits for the keeper to end, and then removes what a killed keeper leaves behind.

Layers end with the keeper by themselves (prctl(2), PR_SET_PDEATHSIG), interfaces and namespaces with the last process
in them; files would stay. It starts before the first file is made and touches nothing while the keeper lives. It takes
the lock of the run directory before it removes anything, so one that wakes late leaves a newer stack's files alone.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from supervisor.run_dir import Held, clean_up


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
        """Fork another, and end this one if it has not ended by itself.

        Once all modules are loaded, so that the other shares their memory with the keeper: 9 MB less.
        """
        pid, pidfd = self.pid, self.pidfd
        self._fork()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)

    def finish(self, held: Held) -> None:
        """The keeper, which holds the directory, leaves in order: remove its files, and end the janitor."""
        held.remove()
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
        clean_up(run_dir)
    finally:
        os._exit(0)

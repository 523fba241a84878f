"""The cleanup process: waits for the keeper to end, and removes the files that a killed keeper leaves behind.

Layers end with the keeper because of PR_SET_PDEATHSIG (prctl(2)), and interfaces and namespaces end with the last
process in them, but files would stay. The cleanup process starts before the first file is made and touches nothing
while the keeper lives. It takes the lock of the run directory before it removes anything, so if it wakes late it leaves
the files of a newer stack alone.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from supervisor.run_dir import Held, clean_up


class CleanupProcess:
    """The cleanup process as the keeper, its parent, sees it: `pidfd` becomes readable when it ends."""

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

    def replace(self) -> None:
        """Fork another cleanup process, and end this one if it still runs.

        The keeper also does this when all modules are loaded, because the new process shares their memory: 9 MB less.
        """
        pid, pidfd = self.pid, self.pidfd
        self._fork()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)

    def finish(self, held: Held) -> None:
        """When the keeper, which holds the directory, ends by itself: remove its files and end the cleanup process."""
        held.remove()
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _clean_up_after(stack: str, run_dir: Path, keeper: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        setproctitle(f"usernet {stack}: cleanup")
        os.closerange(3, keeper)
        os.closerange(keeper + 1, os.sysconf("SC_OPEN_MAX"))
        select.select([keeper], [], [])
        clean_up(run_dir)
    finally:
        os._exit(0)

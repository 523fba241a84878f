"""The janitor: a process that waits for the keeper to end, and then removes what a killed keeper leaves behind.

Layers end with the keeper by themselves (prctl(2), PR_SET_PDEATHSIG), interfaces and namespaces with the last process
in them; files would stay. It touches nothing while the keeper lives, and an orderly keeper ends it first.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle


def fork(stack: str, run_dir: Path) -> int:
    """Start the janitor of this process, the keeper; returns its pid."""
    keeper = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid == 0:
        _clean_up_after(stack, run_dir, keeper)
    os.close(keeper)
    return pid


def _clean_up_after(stack: str, run_dir: Path, keeper: int) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        setproctitle(f"usernet {stack}: janitor")
        os.closerange(3, keeper)
        os.closerange(keeper + 1, 1024)
        select.select([keeper], [], [])
        shutil.rmtree(run_dir, ignore_errors=True)
    finally:
        os._exit(0)

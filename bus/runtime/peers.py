"""The process that listens on a Unix socket, as reported by the kernel, so that no message can forge it (unix(7),
SO_PEERCRED)."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from usernet.pipe.run_dir import peer

SO_PEERPIDFD = 77  # since Linux 6.5


def listener_pid(path: Path, uid: int) -> int:
    """The pid of the process of user `uid` that listens on the socket at `path`; 0: none."""
    pid, pidfd = listener(path, uid)
    if pidfd >= 0:
        os.close(pidfd)
    return pid


def listener(path: Path, uid: int, busy: int = 0) -> tuple[int, int]:
    """The pid of that process and a pidfd; (0, -1): none. If its queue of connections is full, `busy` is returned."""
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # no descriptor for it
        return 0, -1
    with probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
            pid, its_uid = peer(probe)
            if its_uid != uid:
                return 0, -1
            try:
                return pid, probe.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise  # ESRCH: it has ended
        except BlockingIOError:
            pid = busy
        except OSError:
            return 0, -1
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        return 0, -1

"""Who is at the other end of a Unix socket: the kernel says it, no message can forge it (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_UCRED = struct.Struct("iII")  # pid, uid, gid


def listener_pid(path: Path) -> int:
    """The process that listens on the socket at `path`; 0 where there is none or it is another user's."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(str(path))
        pid, uid, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return 0
    finally:
        probe.close()
    return pid if uid == os.getuid() else 0

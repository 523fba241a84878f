"""The limits of the process that starts a stack (getrlimit(2)), and errors that come of a limit, in words."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from bus.durable.layout import STREAMS_OCTETS, TOTAL_OCTETS
from bus.durable.stream_memory import ARENA_OCTETS
from supervisor.errors import BootError

KIB = 1024
# of one layer's durable memory, and of the memory that tcp shares; most of it is only address space
_MEMORY_OCTETS = TOTAL_OCTETS + STREAMS_OCTETS + ARENA_OCTETS
# {limit: (the shell's option, its unit, what a stack needs, whether the hard limit counts, as the keeper raises to it)}
_NEEDED = {
    resource.RLIMIT_NOFILE: ("-n", 1, 352, True),  # the keeper has 10 for each layer, 3 for each application
    resource.RLIMIT_NPROC: ("-u", 1, 64, False),  # a layer is a process, its spare, and two threads of libzmq
    resource.RLIMIT_AS: ("-v", KIB, _MEMORY_OCTETS + (1 << 28), False),
    resource.RLIMIT_FSIZE: ("-f", KIB, _MEMORY_OCTETS, False),  # a memfd is a file
}
_EXCEEDED = {errno.EMFILE: resource.RLIMIT_NOFILE, errno.EAGAIN: resource.RLIMIT_NPROC,
             errno.ENOMEM: resource.RLIMIT_AS}


def check() -> None:
    """BootError: a limit is too small for a stack."""
    for limit, (option, unit, needed, hard) in _NEEDED.items():
        value = resource.getrlimit(limit)[hard]
        if value != resource.RLIM_INFINITY and value < needed:
            raise BootError(f"`ulimit {option}` is {value // unit}; a stack needs {-(-needed // unit)}")


def explain(error: OSError, run_dir: Path | str = "") -> str:
    """The error with the path or the limit that it is about; `run_dir`: where it was, if the error names no path."""
    text = error.strerror or str(error)
    limit = _EXCEEDED.get(error.errno or 0)
    if limit is not None:
        option, unit, _, hard = _NEEDED[limit]
        value = resource.getrlimit(limit)[hard]
        return f"{text} (`ulimit {option}` is {'unlimited' if value == resource.RLIM_INFINITY else value // unit})"
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if not path.startswith("/") or path.startswith("/proc/self/fd/"):
        path = str(run_dir)  # relative to a descriptor of it
    if error.errno == errno.ENOSPC:
        text += " (or no inode)"
    return f"{text}: {path}" if path else text

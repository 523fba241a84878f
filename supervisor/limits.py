"""The limits of the process that starts a stack (getrlimit(2)), and errors that come of a limit, in words."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from bus.durable.layout import STREAMS_OCTETS, TOTAL_OCTETS
from bus.durable.stream_memory import ARENA_OCTETS
from supervisor.child import MEMORY_LIMIT_OCTETS
from supervisor.errors import BootError

KIB = 1024
# of one layer's durable memory, and of the memory that tcp shares; most of it is only address space
_MEMORY_OCTETS = TOTAL_OCTETS + STREAMS_OCTETS + ARENA_OCTETS
# By the kind of pipes. zmq: usernet.pipe.libzmq reserves 1098; there is room for 29 applications and 8 tools.
# direct: the keeper has 10 for each layer and 3 for each application.
DESCRIPTORS_MIN = {"zmq": 1280, "direct": 352}
# {limit: (the shell's option, its unit, what a stack needs, whether the hard limit counts, as the keeper raises to it)}
_NEEDED = {
    resource.RLIMIT_NOFILE: ("-Hn", 1, DESCRIPTORS_MIN["direct"], True),
    resource.RLIMIT_NPROC: ("-u", 1, 64, False),  # a layer is a process, its spare, and two threads of libzmq
    resource.RLIMIT_DATA: ("-d", KIB, MEMORY_LIMIT_OCTETS, False),
    resource.RLIMIT_AS: ("-v", KIB, _MEMORY_OCTETS + (1 << 28), False),
    resource.RLIMIT_FSIZE: ("-f", KIB, _MEMORY_OCTETS, False),  # a memfd is a file
}
_EXCEEDED = {errno.EMFILE: resource.RLIMIT_NOFILE, errno.EAGAIN: resource.RLIMIT_NPROC,
             errno.ENOMEM: resource.RLIMIT_AS}


def check(pipes: str) -> None:
    """BootError: a limit is too small for a stack with this kind of pipes."""
    for limit, (option, unit, needed, hard) in _NEEDED.items():
        least, otherwise = needed, ""
        if limit == resource.RLIMIT_NOFILE and DESCRIPTORS_MIN[pipes] > needed:
            least, otherwise = DESCRIPTORS_MIN[pipes], f" (with --pipes direct {needed})"
        value = resource.getrlimit(limit)[hard]
        if value != resource.RLIM_INFINITY and value < least:
            raise BootError(f"`ulimit {option}` is {value // unit}; a stack needs {-(-least // unit)}{otherwise}")


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

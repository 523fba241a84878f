"""A capture of what passes between a program and the kernel's end; tests/system/expert.py judges it."""

from __future__ import annotations

import contextlib
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.system import expert
from tests.system.conftest import require_program

from .worlds import World


def findings(capture: Path, only: str = "tcp") -> Counter[str]:
    """How often each kind was found, in the frames of that display filter."""
    return expert.counted(expert.findings(require_program("tshark"), capture, only))


@contextlib.contextmanager
def captured(world: World, capture: Path, octets: int = 0) -> Iterator[None]:
    """What passes the kernel's end of the cable meanwhile, or the first octets of each frame.

    AssertionError where tcpdump could not keep up.
    """
    dump = world.kernel(require_program("tcpdump"), "-i", world.device, "-U", "-B", "65536", "-s", octets, "-w",
                        capture, "tcp")
    for line in dump.stdout:
        if "listening on" in line:
            break
    yield
    world.on_kernel("sleep", "0.3")  # for the last ACK
    dump.send_signal(signal.SIGINT)
    said = dump.communicate(timeout=60)[0]
    assert re.search(r"\b0 packets dropped by kernel", said), said

"""Durable memory that a test maps again, as after a crash; and crashes, at any line of a module."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType, ModuleType

from bus.durable import layout


class Durable:
    """One layer's durable memory. `map` is what each incarnation does at its start."""

    def __init__(self) -> None:
        self._descriptor = layout.create("test")

    def map(self, journal_octets: int = 1 << 20, lap_octets: int = layout.LAP_OCTETS) -> layout.Memory:
        return layout.Memory(self._descriptor, journal_octets, lap_octets)

    @property
    def octets(self) -> int:
        """Of memory that is in use."""
        return os.fstat(self._descriptor).st_blocks * 512

    def close(self) -> None:
        os.close(self._descriptor)


class Killed(BaseException):
    """SIGKILL, as near as a test in one process gets to it: nothing after this line is executed."""


def dies(line: int, modules: tuple[ModuleType, ...], action: Callable[[], object]) -> bool:
    """Do `action`, but die before the line numbered `line` (from 0) of those that it executes in `modules`.

    True: it died; False: it was done before it got that far.
    """
    files = {module.__file__ for module in modules}
    left = line

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False

"""SIGKILLs of a layer at chosen lines, in memory.

Of all lines, few differ: a successor sees only the durable memory, so a death at one line is like a death at the next
one unless something was stored between them. `Deaths` finds the lines that differ.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from bus.durable.slots import Slots

ROOT = Path(__file__).parents[3]
TRACED = (str(ROOT / "layers/tcp"), str(ROOT / "bus/durable"), __file__)


class Death(BaseException):
    """A SIGKILL."""


def write_cells(slots: Slots, number: int, at: int, octets: bytes) -> None:
    """As `Slots.write`, one cell after the other, so that a death can come between two of them."""
    start = number * slots.octets + at
    for place in range(0, len(octets), 8):
        slots.memory[start + place : start + place + 8] = octets[place : place + 8]


class Deaths:
    """Counts the lines of a layer and kills it at some. `differing`: the lines before which something was stored."""

    def __init__(self, *at: int) -> None:
        self._at = deque(at)  # each counted from the death before
        self.seen: Callable[[], object] | None = None  # what a successor would find
        self._last: object = None
        self._line = -1
        self.differing: list[int] = []
        self.places: list[str] = []  # where it died

    def _trace(self, frame: FrameType, event: str, _: object) -> object:
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        if frame.f_code.co_filename == __file__ and frame.f_code.co_name != "write_cells":
            return None
        return self._trace_lines

    def _trace_lines(self, frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            self._line += 1
            if self.seen is not None:
                now = self.seen()
                if now != self._last:
                    self._last = now
                    self.differing.append(self._line)
            if self._at and self._line == self._at[0]:
                self._at.popleft()
                self._line = -1
                sys.settrace(None)
                self.places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                raise Death
        return self._trace_lines

    def turn_begins(self) -> None:
        """What was published before cannot be lost any more: a death here is like none before."""
        self._last = None
        sys.settrace(self._trace)

    @staticmethod
    def turn_ends() -> None:
        sys.settrace(None)


def torn(patch: pytest.MonkeyPatch) -> None:
    """Have slots stored cell by cell."""
    patch.setattr(Slots, "write", write_cells)

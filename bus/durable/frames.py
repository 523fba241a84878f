"""The memory into which link reads frames from its device, and from which tcp takes the text of large segments.

Positions count all octets of this memory that were ever used; the place is the remainder. link reads a batch of frames
into a *window* of it (`bus.durable.rx_log`). The next batch overwrites the same window, which is warm, unless a record
refers to a frame in it; then it uses the next octets. So a frame is overwritten some SIZE octets later, whether it was
taken or not. One cell says up to where link may have written by now. A reader checks it before and after copying, and
so detects that it was too late; then the peer's TCP sends the octets again.
"""

from __future__ import annotations

import mmap

from bus.durable.layout import PAGE

SIZE = 1 << 23
WINDOW = 1 << 19
FRAMES_OCTETS = PAGE + SIZE
_CLAIMED, _BASE, _NEXT = range(3)  # cells: the end of the present window, its start, the start of the next
_LINE = 64  # octets of a cache line


class Frames:
    """The memory as its readers see it."""

    def __init__(self, mapping: mmap.mmap) -> None:
        view = memoryview(mapping)
        self.cells = view[:PAGE].cast("Q")
        self.data = view[PAGE:FRAMES_OCTETS]

    def octets(self, position: int, length: int) -> memoryview | None:
        """These octets; None: they were overwritten, or never existed."""
        at = position % SIZE
        if not self.good(position) or at + length > SIZE or position + length > self.cells[_CLAIMED]:
            return None
        return self.data[at : at + length]

    def good(self, position: int) -> bool:
        """True if nothing from this position on was overwritten: to be checked again after copying."""
        return self.cells[_CLAIMED] <= position + SIZE


class Windows(Frames):
    """The memory as link sees it, which alone writes it."""

    def window(self) -> memoryview:
        """The octets of the present window."""
        at = self.cells[_BASE] % SIZE
        return self.data[at : at + WINDOW]

    def open(self) -> bool:
        """Begin a window; False: it is the same as before."""
        cells = self.cells
        start = cells[_NEXT]
        if start == cells[_BASE] and cells[_CLAIMED]:
            return False
        if SIZE - start % SIZE < WINDOW:
            start += SIZE - start % SIZE
        cells[_CLAIMED] = start + WINDOW  # before anything is written into it
        cells[_NEXT] = start
        cells[_BASE] = start
        return True

    def keep(self, start: int, end: int) -> int:
        """The octets [start, end) of the window are not overwritten by the next one; returns their position."""
        base = self.cells[_BASE]
        self.cells[_NEXT] = base + (end + _LINE - 1) // _LINE * _LINE
        return base + start

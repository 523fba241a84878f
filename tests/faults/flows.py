"""Books: what a load process sent and what came back, in a file that both sides map.

A flow numbers what it sends from 0. `sent[n]` and `answered[n]` are seconds of CLOCK_MONOTONIC, 0 where it did not
happen. Everything odd (an error, a repetition, a change of order) is also a line of the flow's log.
"""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path

CAPACITY = 1 << 20
LOG_LINES_MAX = 2000
CELLS = 64
PROBE_S = 1.0
COUNT, HIGHEST, DUPLICATED, REORDERED, ERRORS, ANSWERS = range(6)
_OCTETS = 8 * (CELLS + 2 * CAPACITY)


class Book:
    """One flow. Cells count; the arrays are indexed by number."""

    def __init__(self, folder: Path, name: str, ordered: bool = True) -> None:
        self.name = name
        self._ordered = ordered  # False: each number goes a way of its own
        path = folder / f"{name}.book"
        with path.open("a+b") as file:
            file.truncate(_OCTETS)
            view = memoryview(mmap.mmap(file.fileno(), _OCTETS))
        self.cells = view[: 8 * CELLS].cast("Q")
        self.sent = view[8 * CELLS : 8 * (CELLS + CAPACITY)].cast("d")
        self.answered = view[8 * (CELLS + CAPACITY) :].cast("d")
        self._log_path = path.with_suffix(".log")
        self._lines = 0

    def next(self, now: float) -> int:
        """The number of what is sent now."""
        number = self.cells[COUNT]
        self.sent[number] = now
        self.cells[COUNT] = number + 1
        return number

    def room(self, now: float, window: int) -> bool:
        """Whether one more may be sent if at most `window` may be under way; 0: any number.

        Where all of those are lost there is room for one more each PROBE_S.
        """
        count = self.cells[COUNT]
        return not window or not count or count - self.cells[HIGHEST] <= window or now > self.sent[count - 1] + PROBE_S

    def answer(self, number: int, now: float) -> None:
        """`number` was answered."""
        cells, answered = self.cells, self.answered
        if number >= cells[COUNT]:
            self.error(f"an answer to number {number}, which was never sent", now)
        elif answered[number]:
            cells[DUPLICATED] += 1
            self.log("duplicated", number, now)
        else:
            answered[number] = now
            cells[ANSWERS] += 1
            if number >= cells[HIGHEST]:
                cells[HIGHEST] = number
            elif self._ordered:
                cells[REORDERED] += 1
                self.log("reordered", number, now)

    def error(self, text: str, now: float) -> None:
        """Something that no application may ever see."""
        self.cells[ERRORS] += 1
        self.log("error", text, now)

    def log(self, kind: str, what: object, now: float) -> None:
        """One line, bounded in number."""
        self._lines += 1
        if self._lines <= LOG_LINES_MAX:
            with self._log_path.open("a") as log:
                log.write(json.dumps([now, kind, what]) + "\n")

    def oddities(self) -> list[tuple[float, str, object]]:
        """What was logged: (time, kind, number or text). The time of a number is when it was sent: what struck it was
        near that, while its second answer may come after the next fault.
        """
        if not self._log_path.exists():
            return []
        lines = [json.loads(line) for line in self._log_path.read_text().splitlines()]
        return [(self.sent[what] if isinstance(what, int) else when, kind, what) for when, kind, what in lines]

    def answers_what_is_sent_after(self, then: float) -> bool:
        """Whether something that was sent after `then` has been answered."""
        newest = self.cells[HIGHEST]
        return bool(self.answered[newest]) and self.sent[newest] > then


class Switchboard:
    """What the campaign tells the load, and whether the load is there: single cells in a file."""

    PAUSE, BURSTS, RESOLUTIONS, STOP, READY, FRAGMENTS, GROUPS, PATHS, WINDOW = range(9)
    ROLES_READY = 16  # the first of the cells of `tests.faults.streams`

    def __init__(self, folder: Path) -> None:
        path = folder / "switchboard"
        with path.open("a+b") as file:
            file.truncate(8 * CELLS)
            self.cells = memoryview(mmap.mmap(file.fileno(), 8 * CELLS)).cast("Q")

    def wait_ready(self, timeout_s: float = 15.0, cell: int = READY) -> None:
        """Until the echo is bound, or another process of the load has set its cell."""
        deadline = time.monotonic() + timeout_s
        while not self.cells[cell]:
            if time.monotonic() > deadline:
                raise TimeoutError("the load did not start")
            time.sleep(0.01)

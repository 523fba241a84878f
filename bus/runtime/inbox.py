"""The consumer's end of one pipe: how far the frames of one sender are taken, and how far they are worked off."""

from __future__ import annotations

from bus.counters import PipeCounters as C
from bus.durable import layout
from usernet.pipe.numbering import Incoming, Verdict

COUNTER_MAX = (1 << 64) - 1
COUNTED = {Verdict.REPEATED: C.bus_repeated, Verdict.EARLY: C.bus_early, Verdict.STALE: C.bus_stale}


class Inbox(Incoming):
    """`done_cell` is where the number of the last frame that is worked off is kept in the durable words.

    `journaled`: the same number, as the journal has it; it is ahead of the cell where the former incarnation died
    between publishing a turn and storing the cell.
    """

    __slots__ = ("_cell", "_counters", "_words", "kinds", "pid", "sender")

    def __init__(self, sender: int, kinds: frozenset[int], durable: layout.Memory, done_cell: int,
                 journaled: int = 0, pid: int = 0) -> None:
        super().__init__(max(durable.words[done_cell], journaled))
        self.sender = sender
        self.kinds = kinds
        self.pid = pid  # the process that alone may send it; 0: any that may connect
        self._words = durable.words
        self._counters = durable.bus_counters
        self._cell = done_cell

    def skip_to(self, done: int) -> None:
        """As `Incoming`; what is lost is counted for `status`."""
        lost = self._counters[C.bus_lost] + done - self.done
        self._counters[C.bus_lost] = min(lost, COUNTER_MAX)  # numbers are the sender's, and may be anything
        self.done = done

    def commit(self) -> None:
        """All that was taken so far has been worked off and what came of it is published."""
        self._words[self._cell] = self.done

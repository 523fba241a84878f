"""The consumer's end of one pipe: which frames of one sender were taken, and which are completely processed."""

from __future__ import annotations

from bus.counters import PipeCounters as C
from bus.durable import layout
from usernet.pipe.numbering import Incoming, Verdict

COUNTER_MAX = (1 << 64) - 1
COUNTED = {Verdict.REPEATED: C.bus_repeated, Verdict.EARLY: C.bus_early, Verdict.STALE: C.bus_stale}


class Inbox(Incoming):
    """`done_cell`: index of the durable word with the number of the last processed frame.

    `journaled`: the same number in the journal. It is ahead of the cell if the former process died between publishing a
    turn and storing the cell.
    """

    __slots__ = ("_cell", "_counters", "_words", "kinds", "pid", "sender")

    def __init__(self, sender: int, kinds: frozenset[int], durable: layout.Memory, done_cell: int,
                 journaled: int = 0, pid: int = 0) -> None:
        super().__init__(max(durable.words[done_cell], journaled))
        self.sender = sender
        self.kinds = kinds
        self.pid = pid  # the only process that may send; 0: any that may connect
        self._words = durable.words
        self._counters = durable.bus_counters
        self._cell = done_cell

    def skip_to(self, done: int) -> None:
        """As in `Incoming`; lost frames are counted for `status`."""
        lost = self._counters[C.bus_lost] + done - self.done
        self._counters[C.bus_lost] = min(lost, COUNTER_MAX)  # the sender may have sent any numbers
        self.done = done

    def commit(self) -> None:
        """All taken frames have been processed, and their results are published."""
        self._words[self._cell] = self.done

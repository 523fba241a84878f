"""The window of a pipe: how much may be under way to a consumer that has not processed it.

A frame that its consumer has not processed must still be in the producer's journal if the consumer dies. How much a
pipe itself holds cannot be seen (libzmq has two queues beside the kernel's), and a successor that is starting drops
what reaches it early. So consumers of the stack report how far they are (PROCESSED, every REPORT_OCTETS), and a
producer keeps data back, as behind a full pipe, while what it has under way to one consumer exceeds what the journal
has left for all. For a new process of the producer everything in its journal is under way, until the consumer answers
its greeting. Applications do not report, and are not waited for.
"""

from __future__ import annotations

from collections import deque

from bus.durable.journal import Journal

REPORT_OCTETS = 1 << 15
FRAME_COST = 512  # octets that a frame counts beside its own: a journal is bounded in frames, too
# One consumer may always have so much under way: an unreported rest, the longest frame, and as much again to work on.
# Else the unreported rests of all consumers together could close every window.
WINDOW_MIN_OCTETS = 3 << 16


class Window:
    """What is under way to `consumer`."""

    __slots__ = ("_consumer", "_frames", "_journal", "_processed", "_written", "reported")

    def __init__(self, journal: Journal, consumer: int) -> None:
        self._journal = journal
        self._consumer = consumer
        self._written = self._processed = 0  # octets since the start
        self._frames: deque[tuple[int, int]] = deque()  # (sequence number, `_written` with it) of those under way
        self.reported = False

    def add(self, sequence: int, octets: int) -> None:
        """A frame was written to the journal."""
        if self.reported:
            octets += FRAME_COST
            self._written += octets
            self._journal.room -= octets
            self._frames.append((sequence, self._written))

    def begin(self, sequence: int) -> None:
        """A new process: all that a former one wrote, up to this frame, may be under way."""
        self.reported = True
        octets = self._journal.stored_octets(self._consumer)
        if octets:
            self.add(sequence, octets)

    @property
    def closed(self) -> bool:
        """True if further data has to wait."""
        under_way = self._written - self._processed
        return under_way > WINDOW_MIN_OCTETS and under_way > self._journal.room

    def report(self, processed: int) -> None:
        """The consumer has processed the frames up to this number."""
        self.reported = True
        journal, frames, written = self._journal, self._frames, self._processed
        journal.processed[self._consumer] = processed
        while frames and frames[0][0] <= processed:
            _, written = frames.popleft()
        journal.room += written - self._processed
        self._processed = written

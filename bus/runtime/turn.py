"""The present turn of a layer's process: which inboxes it took frames from, and which outboxes it added records to.

A turn is a transaction. `end` publishes its output and, by the same store, that its input is done; then it sends the
output (`bus.durable.journal`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bus.durable import layout
from bus.durable.held import NO_HOLDINGS, Holdings
from bus.durable.journal import Journal
from bus.runtime.inbox import Inbox


class Outgoing(Protocol):
    """An outbox, as a turn sees it (`bus.runtime.outbox.Outbox`)."""

    waits: bool

    @property
    def blocked(self) -> bool:
        """True while more waits than the socket accepts."""

    @property
    def fresh(self) -> bool:
        """True if enqueued records are not sealed yet."""

    def send_alone(self, taken: Inbox) -> bool:
        """End a turn with input from one inbox and output to this outbox only; False: the three steps are needed."""

    def seal(self) -> None:
        """Make frames of the enqueued records."""

    def send(self) -> bool:
        """The turn is published: send its frames. Returns True if some of them must wait."""


class Turn:
    """The turns of one process."""

    __slots__ = ("flush", "held", "journal", "memory", "taken", "touched", "words")

    def __init__(self, durable: layout.Memory, held: Holdings = NO_HOLDINGS) -> None:
        """`held`: where octets lie that records refer to. What is not needed any more is given back at the end."""
        self.memory = durable
        self.words = durable.words
        self.journal = Journal(durable)
        self.touched: list[Outgoing] = []  # outboxes with output of this turn, or with output that waits for room
        self.taken: set[Inbox] = set()  # inboxes with a frame that is not committed yet
        self.held = held
        self.flush: Callable[[], None] | None = None  # what the device does at the end of a turn

    @property
    def unpublished(self) -> bool:
        """True if output of this turn is not published yet."""
        return bool(self.touched) and (self.journal.unpublished or any(outbox.fresh for outbox in self.touched))

    @property
    def blocked(self) -> bool:
        """True if a consumer does not read, so that output waits."""
        return any(outbox.blocked for outbox in self.touched)

    def commit(self, inbox: Inbox) -> None:
        """The input from `inbox` is done already, before the turn ends."""
        inbox.commit()
        self.taken.discard(inbox)
        self.words[layout.IN_HAND_SENDER] = 0

    def end(self) -> None:
        """Publish this turn's output and, by the same store, that its input is done; then send."""
        words, touched, taken = self.words, self.touched, self.taken
        if len(touched) == len(taken) == 1:
            inbox = taken.pop()
            if touched[0].send_alone(inbox):
                touched.clear()
                inbox.commit()
                words[layout.IN_HAND_SENDER] = 0
            else:
                taken.add(inbox)
        if touched:
            for outbox in touched:
                outbox.seal()
            self.journal.publish(taken)
            stuck = False
            for outbox in touched:
                stuck |= outbox.send()
            if stuck:
                touched[:] = dict.fromkeys([outbox for outbox in touched if outbox.waits])
            else:
                touched.clear()
        if self.memory.deleted_at == words[layout.JOURNAL_HEAD]:
            self.journal.note(taken)
        if self.flush is not None:
            self.flush()
        if taken:
            for inbox in taken:
                inbox.commit()
            taken.clear()
            words[layout.IN_HAND_SENDER] = 0
        if self.held.spent:
            self.held.settle()

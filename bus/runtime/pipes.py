"""The pipes of one layer's process: its inboxes by sender, its outboxes by consumer, and the turn that joins them."""

from __future__ import annotations

from bus.runtime.backlog import Backlog
from bus.runtime.inbox import Inbox
from bus.runtime.outbox import Outbox
from bus.runtime.turn import Turn
from usernet.pipe.contract import WAITING_MAX, Poller


class Pipes:
    """The pipes of one process, over the sockets of `poller`."""

    def __init__(self, poller: Poller, turn: Turn) -> None:
        self.poller = poller
        self.turn = turn
        self.inboxes: dict[int, Inbox] = {}  # by the number that the sender puts into its frames
        self.outboxes: dict[int, Outbox] = {}  # by the consumer's id

    def inbox(self, sender: int, kinds: frozenset[int], done_cell: int, pid: int = 0) -> Inbox:
        """The inbox for frames of `sender`, with the position in which a former process left it; not added yet."""
        return Inbox(sender, kinds, self.turn.memory, done_cell, self.turn.journal.done.get(sender, 0), pid)

    def connect(self, path: str, sender: int, consumer: int, cell: int, backlog: Backlog | None = None,
                waiting_max: int = WAITING_MAX) -> Outbox:
        """Add the outbox to `consumer`, which listens at `path`. `sender`: the number for its frames."""
        outbox = Outbox(self.poller.push(path, waiting_max), sender, consumer, cell, self.turn, backlog)
        self.outboxes[consumer] = outbox
        return outbox

    def remove(self, number: int) -> None:
        """Close the pipes from and to a client."""
        outbox, turn = self.outboxes.pop(number), self.turn
        turn.touched[:] = [each for each in turn.touched if each is not outbox]
        turn.taken.discard(self.inboxes.pop(number))
        outbox.close()

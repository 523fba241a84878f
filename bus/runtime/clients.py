"""Clients: processes that are not layers and talk to one (applications, to the socket service).

A client has an inbox `app-<id>.sock` where its layer looks for those, and introduces itself by HELLO. Who it is, the
kernel says: the credentials of the process that listens on that inbox, not the message. It goes with BYE; where it does
not, its end is seen on a pidfd. Identity and positions in both pipes are in durable cells, so a client outlives the
layer that serves it.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from bus import topology
from bus.config import StackConfig
from bus.durable import layout
from bus.durable.journal import Journal
from bus.layer import ClientCore
from bus.runtime.inbox import Inbox
from bus.runtime.outbox import Outbox
from bus.runtime.peers import listener
from usernet.pipe.contract import Poller
from usernet.pipe.messages import BYE, CREDIT, REQUEST, SEND, SEND_SEGMENTS, inbox_name
from usernet.pipe.streams import ACCEPT, READ, STREAM, STREAM_INFO

BACKLOG_RECORDS = 1 << 16  # behind a full pipe to a client: what bounds them are the receive buffers of its sockets
OFFENCES_MAX = 2  # one record that the layer dies of is the layer's fault; who sends another is not heard any more
CLIENT_KINDS = frozenset({SEND, SEND_SEGMENTS, REQUEST, CREDIT, BYE, STREAM, READ, ACCEPT, STREAM_INFO})


class Client:
    """One client and the two pipes to it."""

    def __init__(self, number: int, place: int, pid: int, pidfd: int, outbox: Outbox, inbox: Inbox) -> None:
        self.number = number
        self.place = place
        self.pid = pid
        self.pidfd = pidfd
        self.outbox = outbox
        self.inbox = inbox
        self.heard_at_end = -1  # the number of its last frame when its end was seen


class Clients:
    """Clients of one layer. Their pipes stand among the layer's own: `inboxes` by sender, `outboxes` by consumer."""

    def __init__(self, core: ClientCore, config: StackConfig, poller: Poller, layer: int, journal: Journal,
                 durable: layout.Memory, touched: list[Outbox], inboxes: dict[int, Inbox],
                 outboxes: dict[int, Outbox]) -> None:
        self.core = core
        self._folder = Path(config.run_dir)
        self._owner = config.owner
        self._poller = poller
        self._layer = layer
        self._journal = journal
        self._memory = durable
        self._words = durable.words
        self._touched = touched
        self._inboxes = inboxes
        self._outboxes = outboxes
        self._ends = select.epoll()
        self.by_number: dict[int, Client] = {}
        self.departed: list[int] = []  # known to the former incarnation, ended meanwhile
        self.ending = False  # the process of some client has ended, and what it sent may not have been read

    @property
    def is_contested(self) -> bool:
        """Whether the core has to hear that all who have ended have left, and can."""
        return self.core.contested and not self.ending

    def restore(self) -> None:
        """Take up the clients of the former incarnation again; those that ended meanwhile go to `departed`."""
        for place in range(layout.CLIENTS_MAX):
            cell = layout.CLIENTS + layout.CLIENT_WORDS * place
            number = self._words[cell + layout.CLIENT_ID]
            if not number:
                continue
            former = self._words[cell + layout.CLIENT_PID]
            pid, pidfd = listener(self._folder / inbox_name(number), self._owner, busy=former)
            if pid == former:
                self._attach(number, place, pid, pidfd)
                continue
            # Its process has ended, or it took its inbox away while nobody heard its BYE.
            if pidfd >= 0:
                os.close(pidfd)
            self._forget(number, place)
            self.departed.append(number)

    def admit(self, number: int, sender: int) -> Client | None:
        """A stranger said HELLO. None where it has no inbox, is not ours or not the process `sender`, or has enough.

        `sender` 0: unknown.
        """
        if not topology.CLIENT_ID_MIN <= number < topology.CLIENT_ID_END:
            return None
        inbox = self._folder / inbox_name(number)
        if inbox.is_symlink():
            return None
        pid, pidfd = listener(inbox, self._owner)
        if not pid:
            return None
        place = self._free_place()
        if place is None or (sender and pid != sender) or self._has_enough(pid) or self.is_barred(pid):
            os.close(pidfd)
            return None
        cell = layout.CLIENTS + layout.CLIENT_WORDS * place
        words = self._words
        words[cell + layout.CLIENT_PID] = pid
        words[cell + layout.CLIENT_DONE] = words[cell + layout.CLIENT_SENT] = 0
        words[cell + layout.CLIENT_ID] = number
        return self._attach(number, place, pid, pidfd)

    def _free_place(self) -> int | None:
        first, end = layout.CLIENTS + layout.CLIENT_ID, layout.CLIENTS + layout.CLIENT_WORDS * layout.CLIENTS_MAX
        try:
            return self._words[first : end : layout.CLIENT_WORDS].tolist().index(0)
        except ValueError:
            return None

    def _has_enough(self, pid: int) -> bool:
        """Once half of the places are taken one process may have a quarter of the rest, so that others find some."""
        free = layout.CLIENTS_MAX - len(self.by_number)
        return (free < layout.CLIENTS_MAX // 2
                and sum(client.pid == pid for client in self.by_number.values()) > free // 4)

    def _offences(self) -> dict[int, int]:
        cells = self._words[layout.OFFENDERS : layout.OFFENDERS + layout.OFFENDERS_MAX].tolist()
        return {cell >> 8: cell & 0xFF for cell in cells if cell}

    def is_barred(self, pid: int) -> bool:
        """Whether it has sent so much that had to be set aside that it is not heard any more."""
        return self._offences().get(pid, 0) >= OFFENCES_MAX

    def offended(self, pid: int) -> None:
        """What this process sent has killed its layer, time and again, and was set aside."""
        offences = self._offences()
        mine = pid << 8 | min(offences.pop(pid, 0) + 1, 0xFF)
        cells = [mine, *(other << 8 | count for other, count in offences.items())][: layout.OFFENDERS_MAX]
        for place, cell in enumerate(cells):
            self._words[layout.OFFENDERS + place] = cell

    def _forget(self, number: int, place: int) -> None:
        self._words[layout.CLIENTS + layout.CLIENT_WORDS * place + layout.CLIENT_ID] = 0
        (self._folder / inbox_name(number)).unlink(missing_ok=True)

    def _attach(self, number: int, place: int, pid: int, pidfd: int) -> Client:
        cell = layout.CLIENTS + layout.CLIENT_WORDS * place
        push = self._poller.push(str(self._folder / inbox_name(number)))
        outbox = Outbox(
            push,
            self._layer,
            number,
            self._journal,
            self._memory,
            cell + layout.CLIENT_SENT,
            self._touched,
            BACKLOG_RECORDS,
        )
        inbox = Inbox(number, CLIENT_KINDS, self._memory, cell + layout.CLIENT_DONE, self._journal.done.get(number, 0),
                      pid)
        client = Client(number, place, pid, pidfd, outbox, inbox)
        self.by_number[number] = client
        self._inboxes[number], self._outboxes[number] = inbox, outbox
        self._ends.register(pidfd, select.EPOLLIN)
        return client

    def ended(self) -> list[int]:
        """Clients whose process has ended and of whom nothing came since the last call; they are gone from here.

        What a process sent before it ended may still wait in its connection, unread.
        """
        if not self.by_number and not self.departed:
            return []
        numbers, self.departed, self.ending = self.departed, [], False
        finished = {descriptor for descriptor, _ in self._ends.poll(0)}
        for client in [client for client in self.by_number.values() if client.pidfd in finished]:
            if client.heard_at_end != client.inbox.done:
                client.heard_at_end = client.inbox.done
                self.ending = True
                continue
            self.dismiss(client)
            numbers.append(client.number)
        return numbers

    def dismiss(self, client: Client) -> None:
        """Nothing comes from it any more, and nothing goes to it: its place is free."""
        self._ends.unregister(client.pidfd)
        os.close(client.pidfd)
        self._touched[:] = [outbox for outbox in self._touched if outbox is not client.outbox]
        client.outbox.socket.close()
        del self.by_number[client.number], self._inboxes[client.number], self._outboxes[client.number]
        self._forget(client.number, client.place)

"""Clients: processes that are not layers and talk to one (applications, to the socket service).

A client has an inbox `app-<id>.sock` in the run directory and introduces itself by HELLO. Who it is, the kernel says:
the credentials of the process that listens on that inbox, not the message. It goes with BYE; where it does not, its end
is seen on a pidfd. Identity and positions in both pipes are in durable cells, so a client outlives the layer that
serves it.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from bus import topology
from bus.durable import layout
from bus.durable.journal import Journal
from bus.runtime.inbox import Inbox
from bus.runtime.outbox import Outbox
from bus.runtime.peers import listener_pid
from usernet.pipe.contract import Poller
from usernet.pipe.messages import BYE, CREDIT, REQUEST, SEND, SEND_SEGMENTS, inbox_name

BACKLOG_RECORDS = 1 << 16  # behind a full pipe to a client: what bounds them are the receive buffers of its sockets
CLIENT_KINDS = frozenset({SEND, SEND_SEGMENTS, REQUEST, CREDIT, BYE})


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

    def __init__(self, run_dir: str, poller: Poller, layer: int, journal: Journal, durable: layout.Memory,
                 touched: list[Outbox], inboxes: dict[int, Inbox], outboxes: dict[int, Outbox]) -> None:
        self._run_dir = Path(run_dir)
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

    def restore(self) -> None:
        """Take up the clients of the former incarnation again; those that ended meanwhile go to `departed`."""
        for place in range(layout.CLIENTS_MAX):
            cell = layout.CLIENTS + layout.CLIENT_WORDS * place
            number = self._words[cell + layout.CLIENT_ID]
            if not number:
                continue
            pid = self._words[cell + layout.CLIENT_PID]
            if not self._remains(number, cell) or not self._attach(number, place, pid):
                self._forget(number, place)
                self.departed.append(number)

    def _remains(self, number: int, cell: int) -> bool:
        """False where its process has ended, or it took its inbox away while nobody heard its BYE."""
        same = _start_time(self._words[cell + layout.CLIENT_PID]) == self._words[cell + layout.CLIENT_STARTED]
        return same and (self._run_dir / inbox_name(number)).exists()

    def admit(self, number: int) -> Client | None:
        """A stranger said HELLO. None where it has no inbox, is not ours, or no place is left."""
        if not topology.CLIENT_ID_MIN <= number < topology.CLIENT_ID_END:
            return None
        pid = listener_pid(self._run_dir / inbox_name(number))
        started = _start_time(pid) if pid else None
        if not pid or started is None:
            return None
        for place in range(layout.CLIENTS_MAX):
            cell = layout.CLIENTS + layout.CLIENT_WORDS * place
            if self._words[cell + layout.CLIENT_ID] == 0:
                break
        else:
            return None
        words = self._words
        words[cell + layout.CLIENT_PID] = pid
        words[cell + layout.CLIENT_STARTED] = started
        words[cell + layout.CLIENT_DONE] = words[cell + layout.CLIENT_SENT] = 0
        words[cell + layout.CLIENT_ID] = number
        client = self._attach(number, place, pid)
        if client is None:
            self._forget(number, place)
        return client

    def _forget(self, number: int, place: int) -> None:
        self._words[layout.CLIENTS + layout.CLIENT_WORDS * place + layout.CLIENT_ID] = 0
        (self._run_dir / inbox_name(number)).unlink(missing_ok=True)

    def _attach(self, number: int, place: int, pid: int) -> Client | None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        cell = layout.CLIENTS + layout.CLIENT_WORDS * place
        push = self._poller.push(str(self._run_dir / inbox_name(number)))
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
        inbox = Inbox(number, CLIENT_KINDS, self._memory, cell + layout.CLIENT_DONE, self._journal.done.get(number, 0))
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
        numbers, self.departed = self.departed, []
        finished = {descriptor for descriptor, _ in self._ends.poll(0)}
        for client in [client for client in self.by_number.values() if client.pidfd in finished]:
            if client.heard_at_end != client.inbox.done:
                client.heard_at_end = client.inbox.done
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


def _start_time(pid: int) -> int | None:
    """proc(5): field 22 of /proc/PID/stat, clock ticks since boot; tells a process from a later one of the same pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])

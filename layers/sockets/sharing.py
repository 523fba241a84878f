"""Sockets that several processes own, as after fork(2) (docs/decisions/fork.md).

What arrives for a shared socket waits here, and each piece goes to the process that first asks for it (WANT): datagrams
of a datagram socket, connections of a listener. A connection belongs to one of its owners at a time: to the one that
took it last. The durable part is `Socket.client` and `Socket.sharers`; a restart forgets waiting datagrams and which
processes wait, and these ask again.
"""

from __future__ import annotations

import errno

from bus.layer import CounterWords, Send
from layers.sockets.counters import Counters
from layers.sockets.data_path import question
from layers.sockets.entry import Entry, Sharing
from layers.sockets.listeners import Listeners
from layers.sockets.requests import Refused, Share
from layers.sockets.streams import resuming
from layers.sockets.table import Table
from usernet.pipe.messages import (
    SHARED,
    SHARED_RECORD,
    SHARED_RETURNED,
    SHARED_TAKEN,
    WANT_RECORD,
    WANT_TAKEN,
    WANT_WAITS,
)


class SharedSockets:
    """See the module's docstring."""

    def __init__(self, table: Table, listeners: Listeners, counters: CounterWords) -> None:
        self._table = table
        self._listeners = listeners
        self.counters = counters

    def restore(self) -> None:
        """After all sockets were restored: the sharers."""
        for entry in list(self._table.entries.values()):
            for client in entry.kept.sharers if entry.kept is not None else ():
                self._table.enter(entry, client)

    # -- requests -----------------------------------------------------------------------------------------------

    def share(self, client: int, request: Share) -> tuple[list[list[int]], list[Send]]:
        """Make `client` an owner of its parent's sockets: ([handle, receive buffer] of each, what to send).

        Only a process that knows the id of the parent's connection can ask: the parent, and what it has forked.
        """
        table = self._table
        if request.owner not in table.clients or request.owner == client:
            raise Refused(errno.EBADF)
        granted, sends = [], []
        for handle in request.handles:
            entry = table.owned(request.owner, handle)
            if entry is None:
                continue
            if table.owned(client, handle) is None:
                if not table.shares.allows(client):
                    self.counters[Counters.limit] += 1
                    continue
                table.share(entry, client)
                sends += self._announce(entry)
                if entry.socket.is_listener:
                    sends.append(self._listeners.grant(entry))
            granted.append([handle, entry.limit])
        return granted, sends

    def take(self, client: int, entry: Entry) -> list[Send]:
        """A connection now belongs to `client`: tcp repeats what the application has not read."""
        if entry.client == client or not entry.is_connection:
            return []
        former = entry.client
        others = tuple(each for each in entry.sharers if each != client)
        self._table.move(entry, client, (*others, former))
        self._table.clients[former][entry.handle] = 0
        return [_shared(former, entry, SHARED_TAKEN), _shared(client, entry, SHARED_RETURNED), resuming(entry.handle)]

    def want(self, client: int, records: list[bytes]) -> list[Send]:
        """WANT records: a process reads, waits, waits no longer, or its program has what it got."""
        sends: list[Send] = []
        for record in records:
            handle, flags = WANT_RECORD.unpack(record) if len(record) == WANT_RECORD.size else (0, 0)
            entry = self._table.owned(client, handle)
            if entry is None:
                self.counters[Counters.want_foreign] += 1
                continue
            sharing = entry.sharing
            if flags & WANT_TAKEN:
                if entry.client == client and entry.socket.offered:
                    self._listeners.claim(entry)
                elif sharing is not None:
                    sharing.taken(client)
                flags &= ~WANT_TAKEN
                if not flags:
                    continue
            if sharing is None:
                continue  # the only owner: everything is on its way to it
            sharing.readers.pop(client, None)
            if not flags:
                continue
            sharing.readers[client] = None
            if sharing.connections:
                sends += self._listeners.hand_out(entry)
            elif sharing.datagrams:
                sends.append(self._give(entry, sharing, client))
            if not flags & WANT_WAITS:
                sharing.readers.pop(client, None)
        return sends

    def _give(self, entry: Entry, sharing: Sharing, client: int) -> Send:
        """The first datagram that waits is for `client`."""
        datagram = kind, record, cost = sharing.datagrams.popleft()
        entry.outstanding -= cost
        sharing.handed_to(client, datagram)
        self.counters[Counters.delivered] += 1
        return client, kind, record

    # -- the end of an owner ------------------------------------------------------------------------------------------

    def release(self, client: int, entry: Entry) -> list[Send] | None:
        """`client` has closed the socket, or has ended. None: it was the last owner, so the socket is to be closed."""
        if not entry.sharers:
            return self._listeners.take_back(entry)
        sharing = entry.sharing
        assert sharing is not None
        sharing.readers.pop(client, None)
        heir = self._table.depart(entry, client)
        sends: list[Send] = []
        for datagram in reversed(sharing.handed.pop(client, ())):  # its program has not had them
            sharing.datagrams.appendleft(datagram)
            entry.outstanding += datagram[2]
        while sharing.datagrams and sharing.readers:
            sends.append(self._give(entry, sharing, next(iter(sharing.readers))))
        if not entry.sharers:
            sends += self._unshare(entry, sharing)
        sends += self._announce(entry, SHARED_RETURNED if heir and entry.is_connection else 0)
        if heir and entry.is_connection:
            sends.append(resuming(entry.handle))
        return sends

    def _unshare(self, entry: Entry, sharing: Sharing) -> list[Send]:
        """One owner is left, which gets everything that waits."""
        sends: list[Send] = [(entry.client, kind, record) for kind, record, _ in sharing.datagrams]
        while sharing.connections:
            sends += self._listeners.offer(entry, sharing, entry.client)
        entry.sharing = None
        return [*sends, question(entry)] if entry.outstanding else sends

    def _announce(self, entry: Entry, state: int = 0) -> list[Send]:
        """SHARED to all owners; `state` to the one that has the connection."""
        return [_shared(entry.client, entry, state), *(_shared(client, entry) for client in entry.sharers)]


def _shared(client: int, entry: Entry, state: int = 0) -> Send:
    owners = 1 + len(entry.sharers)
    return client, SHARED, SHARED_RECORD.pack(entry.handle, owners, state, entry.accepted)

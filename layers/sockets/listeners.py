"""Connections to listeners: stored first, then passed to an application.

Those of a listener with several owners wait here for the process that asks first (`layers.sockets.sharing`). If that
process ends before it has accepted its connection, the connection waits for the others again.
"""

from __future__ import annotations

import errno
from struct import error as StructError  # noqa: N812

from msgspec.structs import replace

from bus import messages, topology
from bus.layer import CounterWords, Send
from layers.sockets.counters import Counters
from layers.sockets.entry import Entry, Sharing
from layers.sockets.operations import accepted
from layers.sockets.requests import GiveBack, Refused
from layers.sockets.streams import Streams, accepted_ends, accepted_record, closing, resuming
from layers.sockets.table import Table
from usernet.pipe.streams import ACCEPT_RECORD, ACCEPTED_HEADER


class Listeners:
    """The connections of all listeners."""

    def __init__(self, table: Table, streams: Streams, counters: CounterWords) -> None:
        self._table = table
        self._streams = streams
        self.counters = counters

    def restore(self) -> None:
        """After all sockets were restored: the connections that wait for a process."""
        waiting = []
        for handle, entry in self._table.entries.items():
            if entry.waits:
                listener, _, number, *_ = ACCEPTED_HEADER.unpack_from(entry.unclaimed)
                waiting.append((number, handle, listener))
        for _, handle, listener in sorted(waiting):
            at = self._table.entries.get(listener)
            if at is not None:
                at.sharing = at.sharing or Sharing()
                at.sharing.connections.append(handle)

    def accepted(self, sender: int, records: list[bytes]) -> list[Send]:
        """ACCEPTED records of tcp."""
        sends: list[Send] = []
        for record in records:
            try:
                listener, handle, number, ends = accepted_ends(record)
            except StructError:
                self.counters[Counters.answer_garbled] += 1
                continue
            entry = self._table.entries.get(listener)
            known = handle in self._table.entries
            if known and entry is None:
                continue  # repeated after its listener was closed: it belongs to its application already
            beyond = entry is not None and not known and not self._table.shares.allows(entry.client)
            if entry is None or entry.socket.stream is None or beyond:
                self.counters[Counters.limit] += beyond
                sends.append((topology.TCP, messages.SOCKET_CLOSE, closing(handle, reset=True)))
                continue
            if not known:
                if number <= entry.accepted:
                    continue  # repeated after it was accepted and closed
                socket = accepted(entry.socket, entry.socket.stream, handle, ends)
                if entry.sharing is not None:
                    socket = replace(socket, sharers=(), unclaimed=record)
                self._table.open(handle, socket)
                self.counters[Counters.sockets_opened] += 1
            entry.accepted = max(entry.accepted, number)
            if entry.sharing is None:
                self._streams.remember(listener, number, record)
                sends.append((entry.client, messages.ACCEPTED, record))
            elif not known:
                entry.sharing.connections.append(handle)
                sends += self.hand_out(entry)
        return sends

    # -- of listeners with several owners -----------------------------------------------------------------------------

    def give_back(self, client: int, listener: Entry, request: GiveBack) -> list[Send]:
        """Connections that `client` got before the listener was shared, and did not accept, wait for any process."""
        sharing = listener.sharing
        if sharing is None:
            raise Refused(errno.EINVAL)
        records = self._streams.accepted_records(listener.handle)
        for handle in request.connections:
            entry = self._table.entries.get(handle)
            if (entry is None or entry.client != client or entry.sharing is not None or entry.unclaimed
                    or not entry.is_connection or entry.socket.created_by != -handle):
                continue
            record = records.get(handle) or accepted_record(listener.handle, handle, entry.socket)
            self._table.change(entry, replace(entry.socket, unclaimed=record))
            sharing.connections.append(handle)
        return self.hand_out(listener)

    def hand_out(self, listener: Entry) -> list[Send]:
        """Give waiting connections to waiting processes."""
        sends: list[Send] = []
        sharing = listener.sharing
        while sharing is not None and sharing.connections and sharing.readers:
            client = next(iter(sharing.readers))
            del sharing.readers[client]
            sends += self.offer(listener, sharing, client)
        return sends

    def offer(self, listener: Entry, sharing: Sharing, client: int) -> list[Send]:
        """Give the first waiting connection to `client`."""
        entry = self._table.entries[sharing.connections.popleft()]
        record = entry.unclaimed
        self._table.hand_over(entry, client)
        self._table.change(entry, replace(entry.socket, offered=True))
        self._streams.remember(listener.handle, ACCEPTED_HEADER.unpack_from(record)[2], record)
        sends = [(client, messages.ACCEPTED, record), resuming(entry.handle), self.grant(listener)]
        reset = sharing.resets.pop(entry.handle, None)
        return [*sends, (client, messages.STREAM_RESET, reset)] if reset else sends

    def claim(self, entry: Entry) -> None:
        """The process that got the connection has accepted it."""
        self._table.change(entry, replace(entry.socket, unclaimed=b"", offered=False))

    def take_back(self, entry: Entry) -> list[Send] | None:
        """The process of a connection has closed it, or has ended. If it has not accepted it, the connection waits for
        the other owners of its listener; None: there are none."""
        if not entry.unclaimed:
            return None
        listener = self._table.entries.get(ACCEPTED_HEADER.unpack_from(entry.unclaimed)[0])
        if listener is None or listener.sharing is None:
            return None
        heir = next(each for each in (listener.client, *listener.sharers) if each != entry.client)
        self._table.hand_over(entry, heir)
        if entry.socket.offered:
            self._table.change(entry, replace(entry.socket, offered=False))
            listener.sharing.connections.appendleft(entry.handle)
        return self.hand_out(listener)

    @staticmethod
    def grant(listener: Entry) -> Send:
        """ACCEPT: as many connections may wait as the backlog says."""
        stream, sharing = listener.socket.stream, listener.sharing
        assert stream is not None
        handed = listener.accepted - (len(sharing.connections) if sharing is not None else 0)
        record = ACCEPT_RECORD.pack(listener.handle, 0, listener.accepted, handed + stream.listen + 1)
        return topology.TCP, messages.ACCEPT, record

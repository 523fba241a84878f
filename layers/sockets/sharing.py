"""Sockets that several processes own, as after fork(2) (docs/decisions/fork.md).

What arrives for a shared socket waits here, and each piece goes to the process that first asks for it (WANT): datagrams
of a datagram socket, connections of a listener. A connection belongs to one of its owners at a time: to the one that
took it last. The durable part is `Socket.client` and `Socket.sharers`; a restart forgets waiting datagrams and which
processes wait, and these ask again.
"""

from __future__ import annotations

import errno
from collections.abc import MutableMapping

from msgspec.structs import replace

from bus import messages, topology
from bus.layer import CounterWords, Send
from layers.sockets.counters import Counters
from layers.sockets.data_path import question
from layers.sockets.limits import Shares
from layers.sockets.requests import GiveBack, Refused, Share
from layers.sockets.streams import Streams, resuming
from layers.sockets.tables import Entry, Sharing, Socket, encode_socket
from usernet.pipe.messages import SHARED, SHARED_RECORD, SHARED_RETURNED, SHARED_TAKEN, WANT_RECORD, WANT_WAITS
from usernet.pipe.streams import ACCEPT_RECORD, ACCEPTED_HEADER


class SharedSockets:
    """See the module's docstring; the tables are the core's."""

    def __init__(self, entries: dict[int, Entry], clients: dict[int, dict[int, int]],
                 created: dict[tuple[int, int], int], state: MutableMapping[int, bytes], shares: Shares,
                 memberships: Shares, streams: Streams, counters: CounterWords) -> None:
        self._entries = entries
        self._clients = clients
        self._created = created
        self._state = state
        self._shares = shares
        self._memberships = memberships
        self._streams = streams
        self.counters = counters

    def restore(self) -> None:
        """After all sockets were read from the store: the sharers, and the connections that wait for a process."""
        waiting = []
        for handle, entry in self._entries.items():
            for client in entry.socket.sharers:
                entry.sharing = entry.sharing or Sharing()
                self._enter(client, entry)
            if entry.socket.unclaimed:
                listener, _, number, *_ = ACCEPTED_HEADER.unpack_from(entry.socket.unclaimed)
                waiting.append((number, handle, listener))
        for _, handle, listener in sorted(waiting):
            at = self._entries.get(listener)
            if at is not None:
                at.sharing = at.sharing or Sharing()
                at.sharing.connections.append(handle)

    def _enter(self, client: int, entry: Entry) -> None:
        """`client` is another owner. Only the one to which a connection belongs may send on it."""
        self._clients.setdefault(client, {})[entry.handle] = 0 if entry.is_connection else entry.consumer
        self._shares.take(client)

    # -- requests -----------------------------------------------------------------------------------------------

    def share(self, client: int, request: Share) -> tuple[list[list[int]], list[Send]]:
        """Make `client` an owner of its parent's sockets: ([handle, receive buffer] of each, what to send).

        Only who knows the id of the parent's connection can ask: the parent, and what it has forked.
        """
        theirs = self._clients.get(request.owner)
        if theirs is None or request.owner == client:
            raise Refused(errno.EBADF)
        granted, sends = [], []
        for handle in request.handles:
            entry = self._entries.get(handle)
            if handle not in theirs or entry is None:
                continue
            if handle not in self._clients.get(client, ()):
                if not self._shares.allows(client):
                    self.counters[Counters.limit] += 1
                    continue
                self._store(entry, replace(entry.socket, sharers=(*entry.socket.sharers, client)))
                entry.sharing = entry.sharing or Sharing()
                self._enter(client, entry)
                sends += self._announce(entry)
                if entry.socket.is_listener:
                    sends.append(self._grant(entry))
            granted.append([handle, entry.limit])
        return granted, sends

    def take(self, client: int, entry: Entry) -> list[Send]:
        """A connection now belongs to `client`: tcp repeats what the application has not read."""
        if entry.client == client or not entry.is_connection:
            return []
        former = entry.client
        others = tuple(each for each in entry.socket.sharers if each != client)
        self._move(entry, client, (*others, former))
        self._clients[former][entry.handle] = 0
        return [_shared(former, entry, SHARED_TAKEN), _shared(client, entry, SHARED_RETURNED), resuming(entry.handle)]

    def want(self, client: int, records: list[bytes]) -> list[Send]:
        """WANT records: a process reads, waits, or waits no longer."""
        sends: list[Send] = []
        for record in records:
            handle, flags = WANT_RECORD.unpack(record) if len(record) == WANT_RECORD.size else (0, 0)
            entry = self._entries.get(handle)
            if entry is None or handle not in self._clients.get(client, ()):
                self.counters[Counters.want_foreign] += 1
                continue
            sharing = entry.sharing
            if sharing is None:
                continue  # the only owner: everything is on its way to it
            sharing.readers.pop(client, None)
            if not flags:
                continue
            sharing.readers[client] = None
            if sharing.connections:
                sends += self.hand_out(entry)
            elif sharing.datagrams:
                kind, waiting, cost = sharing.datagrams.popleft()
                entry.outstanding -= cost
                del sharing.readers[client]
                self.counters[Counters.delivered] += 1
                sends.append((client, kind, waiting))
            if not flags & WANT_WAITS:
                sharing.readers.pop(client, None)
        return sends

    # -- connections of shared listeners ----------------------------------------------------------------------------

    def give_back(self, client: int, listener: Entry, request: GiveBack) -> list[Send]:
        """Connections that `client` got before the listener was shared, and did not accept, wait for any process."""
        sharing = listener.sharing
        if sharing is None:
            raise Refused(errno.EINVAL)
        for handle in request.connections:
            entry = self._entries.get(handle)
            if (entry is None or entry.client != client or entry.sharing is not None or entry.socket.unclaimed
                    or not entry.is_connection or entry.socket.created_by != -handle):
                continue
            record = self._streams.accepted_record(listener.handle, handle, entry.socket)
            self._store(entry, replace(entry.socket, unclaimed=record))
            sharing.connections.append(handle)
        return self.hand_out(listener)

    def hand_out(self, listener: Entry) -> list[Send]:
        """Give waiting connections to waiting processes."""
        sends: list[Send] = []
        sharing = listener.sharing
        while sharing is not None and sharing.connections and sharing.readers:
            client = next(iter(sharing.readers))
            del sharing.readers[client]
            sends += self._claim(listener, sharing, client)
        return sends

    def _claim(self, listener: Entry, sharing: Sharing, client: int) -> list[Send]:
        """Give the first waiting connection to `client`."""
        entry = self._entries[sharing.connections.popleft()]
        record = entry.socket.unclaimed
        number = ACCEPTED_HEADER.unpack_from(record)[2]
        if client != entry.client:
            self._shares.take(client)
            self._shares.take(entry.client, -1)
            former = self._clients[entry.client]
            self._move(entry, client, ())
            former.pop(entry.handle, None)
        self._store(entry, replace(entry.socket, unclaimed=b""))
        self._streams.remember(listener.handle, number, record)
        sends = [(client, messages.ACCEPTED, record), resuming(entry.handle), self._grant(listener)]
        reset = sharing.resets.pop(entry.handle, None)
        return [*sends, (client, messages.STREAM_RESET, reset)] if reset else sends

    @staticmethod
    def _grant(listener: Entry) -> Send:
        """ACCEPT: as many connections may wait as the backlog says."""
        stream, sharing = listener.socket.stream, listener.sharing
        assert stream is not None
        handed = listener.accepted - (len(sharing.connections) if sharing is not None else 0)
        record = ACCEPT_RECORD.pack(listener.handle, 0, listener.accepted, handed + stream.listen + 1)
        return topology.TCP, messages.ACCEPT, record

    # -- the end of an owner ------------------------------------------------------------------------------------------

    def release(self, client: int, entry: Entry) -> list[Send] | None:
        """`client` has closed the socket, or has ended. None: it was the last owner, so the socket is to be closed."""
        sharers = entry.socket.sharers
        if not sharers:
            return self._return_unclaimed(entry)
        sharing = entry.sharing
        assert sharing is not None
        sharing.readers.pop(client, None)
        if client == entry.client:
            heir, *others = sharers
            self._move(entry, heir, tuple(others))
        else:
            heir = 0
            self._store(entry, replace(entry.socket, sharers=tuple(each for each in sharers if each != client)))
        self._clients[client].pop(entry.handle, None)
        self._shares.take(client, -1)
        sends: list[Send] = []
        if not entry.socket.sharers:
            sends += self._unshare(entry, sharing)
        sends += self._announce(entry, SHARED_RETURNED if heir and entry.is_connection else 0)
        if heir and entry.is_connection:
            sends.append(resuming(entry.handle))
        return sends

    def _unshare(self, entry: Entry, sharing: Sharing) -> list[Send]:
        """One owner is left, which gets everything that waits."""
        sends: list[Send] = [(entry.client, kind, record) for kind, record, _ in sharing.datagrams]
        while sharing.connections:
            sends += self._claim(entry, sharing, entry.client)
        entry.sharing = None
        return [*sends, question(entry)] if entry.outstanding else sends

    def _return_unclaimed(self, entry: Entry) -> list[Send] | None:
        """A connection that no process has accepted stays with the other owners of its listener."""
        if not entry.socket.unclaimed:
            return None
        listener = self._entries.get(ACCEPTED_HEADER.unpack_from(entry.socket.unclaimed)[0])
        if listener is None or listener.client == entry.client:
            return None
        former = entry.client
        self._move(entry, listener.client, ())
        self._clients[former].pop(entry.handle, None)
        self._shares.take(former, -1)
        self._shares.take(listener.client)
        return []

    # -- owners -----------------------------------------------------------------------------------------------------

    def _announce(self, entry: Entry, state: int = 0) -> list[Send]:
        """SHARED to all owners; `state` to the one that has the connection."""
        return [_shared(entry.client, entry, state), *(_shared(client, entry) for client in entry.socket.sharers)]

    def _move(self, entry: Entry, client: int, sharers: tuple[int, ...]) -> None:
        """Make `client` the first owner."""
        socket, handle = entry.socket, entry.handle
        self._created.pop((socket.client, socket.created_by), None)
        members = sum(1 + len(group.sources) for group in socket.groups)
        self._memberships.take(socket.client, -members)
        self._memberships.take(client, members)
        self._store(entry, replace(socket, client=client, created_by=-handle, sharers=sharers))
        self._created[client, -handle] = handle
        self._clients.setdefault(client, {})[handle] = entry.consumer
        entry.client = client

    def _store(self, entry: Entry, changed: Socket) -> None:
        self._state[entry.handle] = encode_socket(changed)
        entry.socket = changed
        if entry.pending is not None:  # the reply of the transport must not undo it
            pending = replace(entry.pending.changed, client=changed.client, created_by=changed.created_by,
                              sharers=changed.sharers, unclaimed=changed.unclaimed)
            entry.pending = entry.pending._replace(changed=pending)


def _shared(client: int, entry: Entry, state: int = 0) -> Send:
    owners = 1 + len(entry.socket.sharers)
    return client, SHARED, SHARED_RECORD.pack(entry.handle, owners, state, entry.accepted)

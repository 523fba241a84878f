"""The table of sockets: which there are, their owners, and what is stored of them."""

from __future__ import annotations

import errno

from msgspec.structs import replace

from bus import topology
from bus.layer import State
from layers.sockets.entry import Entry, Sharing, Socket, decode_socket, encode_socket
from layers.sockets.limits import MEMBERSHIPS_MAX, SOCKETS_MAX, Shares
from layers.sockets.requests import Refused
from usernet.pipe.streams import TCP_HANDLE_MIN

KEY_NEXT_HANDLE = 0xFFFFFFFF  # of the durable state; sockets have their handles as keys, from 1 on
HANDLE_BITS = 32  # of a key above those: the handle of a socket that an owner leaves; the rest is a number
HANDLE_MAX = TCP_HANDLE_MIN - 1  # tcp assigns those above
# reserved by each write of KEY_NEXT_HANDLE, because a handle is never reused, not even after a crash
HANDLES_RESERVED = 256

TRANSPORTS = {row.protocol: row for row in topology.ROWS if row.protocol is not None and row.sockets}


class Table:
    """All sockets. A change is stored in `state` first."""

    def __init__(self, state: State) -> None:
        self.entries: dict[int, Entry] = {}
        self.clients: dict[int, dict[int, int]] = {}  # {client: {handle: its transport; 0: may not send}}
        self.shares = Shares(SOCKETS_MAX)
        self.memberships = Shares(MEMBERSHIPS_MAX)
        self._state = state
        # {(client, request id): the handle that it created}; ids are above 0, other sockets are not found in this way
        self._created: dict[tuple[int, int], int] = {}
        self._next_handle = self._reserved = 1
        self._departures = 0

    def owned(self, client: int, handle: int) -> Entry | None:
        """The socket with this handle if `client` owns it, alone or with others."""
        return self.entries.get(handle) if handle in self.clients.get(client, ()) else None

    def created(self, client: int, request: int) -> Entry | None:
        """The socket that this request has created."""
        handle = self._created.get((client, request))
        return None if handle is None else self.entries[handle]

    # -- sockets come and go --------------------------------------------------------------------------------------

    def undo_departures(self) -> None:
        """Before `restore`: see `depart`. The first departure of a turn is the last that is undone."""
        state = self._state
        for key in sorted((key for key in state if key > KEY_NEXT_HANDLE), reverse=True):
            handle = key & ((1 << HANDLE_BITS) - 1)
            if handle in state:
                state[handle] = state[key]
            del state[key]

    def restore(self, key: int, stored: bytes) -> None:
        """Take an item of the state that a former process stored. ValueError: it cannot be decoded."""
        if key == KEY_NEXT_HANDLE:
            self._next_handle = self._reserved = int(stored)
        else:
            self._add(key, decode_socket(stored))

    def new_handle(self) -> int:
        """A handle for a new socket. Refused: there are no more."""
        handle = self._next_handle
        if handle > HANDLE_MAX:
            raise Refused(errno.ENFILE)
        if handle >= self._reserved:
            self._reserved = handle + HANDLES_RESERVED
            self._state[KEY_NEXT_HANDLE] = b"%d" % self._reserved
        self._next_handle = handle + 1
        return handle

    def open(self, handle: int, socket: Socket) -> Entry:
        """Add a new socket."""
        self._state[handle] = encode_socket(socket)
        return self._add(handle, socket)

    def _add(self, handle: int, socket: Socket) -> Entry:
        consumer = topology.RAW if socket.raw else TRANSPORTS[socket.protocol].id
        entry = self.entries[handle] = Entry(handle, socket, consumer, self._state)
        self.clients.setdefault(socket.client, {})[handle] = consumer
        self.shares.take(socket.client)
        self.memberships.take(socket.client, members(socket))
        if socket.created_by > 0:
            self._created[socket.client, socket.created_by] = handle
        return entry

    def change(self, entry: Entry, changed: Socket) -> None:
        """Store other values of a socket. Those that wait for the transport's reply must not undo its owners."""
        more = members(changed) - members(entry.socket)
        self._state[entry.handle] = encode_socket(changed)
        self.memberships.take(entry.client, more)
        entry.change(changed)
        entry.limit = changed.receive_buffer
        if entry.pending is not None:
            pending = replace(entry.pending.changed, client=changed.client, created_by=changed.created_by,
                              sharers=changed.sharers, unclaimed=changed.unclaimed, offered=changed.offered)
            entry.pending = entry.pending._replace(changed=pending)

    def remove(self, entry: Entry) -> Socket:
        """Remove a socket; returns what was stored of it."""
        socket = entry.socket
        del self.entries[entry.handle], self.clients[entry.client][entry.handle]
        self._created.pop((entry.client, socket.created_by), None)
        del self._state[entry.handle]
        self.shares.take(entry.client, -1)
        self.memberships.take(entry.client, -members(socket))
        return socket

    # -- owners -----------------------------------------------------------------------------------------------------

    def share(self, entry: Entry, client: int) -> None:
        """`client` becomes another owner."""
        self.change(entry, replace(entry.socket, sharers=(*entry.sharers, client)))
        self.enter(entry, client)

    def enter(self, entry: Entry, client: int) -> None:
        """`client` is another owner, as is stored. Only the owner to which a connection belongs may send on it."""
        entry.sharing = entry.sharing or Sharing()
        self.clients.setdefault(client, {})[entry.handle] = 0 if entry.is_connection else entry.consumer
        self.shares.take(client)

    def move(self, entry: Entry, client: int, sharers: tuple[int, ...]) -> None:
        """Make `client` the first owner, and `sharers` the others. The former first owner stays in `clients`."""
        socket, handle = entry.socket, entry.handle
        self._created.pop((socket.client, socket.created_by), None)
        self.memberships.take(socket.client, -members(socket))
        self.memberships.take(client, members(socket))
        entry.client = client
        self.change(entry, replace(socket, client=client, created_by=-handle, sharers=sharers))
        self.clients.setdefault(client, {})[handle] = entry.consumer

    def depart(self, entry: Entry, client: int) -> int:
        """`client`, one of several owners, does not own it any more. Returns the new first owner; 0: it is the same.

        This counts with the turn, like a deletion (`bus.durable.key_value_log`), because what `client` has sent before
        is for this socket. So what was stored before is kept under another key, which is deleted in the same turn.
        """
        self._departures += 1
        key = self._departures << HANDLE_BITS | entry.handle
        self._state[key] = self._state[entry.handle]
        heir = 0
        if client == entry.client:
            heir, *others = entry.sharers
            self.move(entry, heir, tuple(others))
        else:
            self.change(entry, replace(entry.socket, sharers=tuple(each for each in entry.sharers if each != client)))
        self.leave(entry, client)
        del self._state[key]
        return heir

    def leave(self, entry: Entry, client: int) -> None:
        """`client` does not own it any more."""
        self.clients[client].pop(entry.handle, None)
        self.shares.take(client, -1)

    def hand_over(self, entry: Entry, client: int) -> None:
        """`client` becomes the only owner of a connection."""
        former = entry.client
        if client != former:
            self.shares.take(client)
            self.move(entry, client, ())
            self.leave(entry, former)


def members(socket: Socket) -> int:
    """How many groups and sources its memberships are."""
    return sum(1 + len(group.sources) for group in socket.groups)

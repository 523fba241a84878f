"""Stream records between applications and tcp (docs/decisions/streams.md): only their owner is checked.

No octets are kept here: what a restart loses, the ends ask each other for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import error as StructError  # noqa: N812

from bus import messages, topology
from bus.layer import CounterWords, Send
from layers.sockets.counters import Counters
from layers.sockets.entry import Entry, Socket
from layers.sockets.operations import Ends
from layers.sockets.requests import Close
from layers.sockets.table import Table
from packets.addresses import WIDTHS
from usernet.pipe.messages import INTERFACE_INDEX, family_of
from usernet.pipe.streams import (
    ACCEPT_RECORD,
    ACCEPTED_HEADER,
    CLOSE_RECORD,
    READ_RECORD,
    RESUME,
    WRITTEN_UNKNOWN,
    accepted_addresses,
)

ACCEPTED_MAX = 4097  # per listener: the largest backlog (Linux net.core.somaxconn), and one
_READ_ALL = (1 << 63) - 1  # the application's position is unknown, so unread octets do not cause a reset

_from_bytes = int.from_bytes
Handler = Callable[[int, list[bytes]], list[Send]]


class Streams:
    """The stream records between applications and tcp; the table contains the owners."""

    def __init__(self, table: Table, counters: CounterWords) -> None:
        self._entries = table.entries
        self._clients = table.clients
        self._accepted: dict[int, dict[int, bytes]] = {}  # by listener and number: ACCEPTED records
        self.counters = counters

    def from_client(self, kind: int) -> Handler:
        """A handler for records of an application about its stream sockets."""
        return partial(self._from_client, kind)

    def _from_client(self, kind: int, client: int, records: list[bytes]) -> list[Send]:
        consumers = self._clients.get(client, {})
        sends = [(topology.TCP, kind, record) for record in records
                 if consumers.get(_from_bytes(record[:4], "little")) == topology.TCP]
        self.counters[Counters.streamed_down] += len(sends)
        self.counters[Counters.send_foreign] += len(records) - len(sends)
        return sends

    def from_tcp(self, kind: int) -> Handler:
        """A handler for records of tcp."""
        return partial(self._from_tcp, kind)

    def _from_tcp(self, kind: int, sender: int, records: list[bytes]) -> list[Send]:
        entries = self._entries
        sends = []
        for record in records:
            entry = entries.get(_from_bytes(record[:4], "little"))
            if entry is not None and (entry.kept is None or not entry.kept.waits):
                sends.append((entry.client, kind, record))
            elif entry is not None and kind == messages.STREAM_RESET:
                self._reset_unclaimed(entry, record)
        self.counters[Counters.streamed_up] += len(sends)
        self.counters[Counters.closed] += len(records) - len(sends)
        return sends

    def accept(self, client: int, records: list[bytes]) -> list[Send]:
        """ACCEPT: the application determines how many connections may be passed up, the service how many are stored."""
        sends: list[Send] = []
        asked: dict[int, int] = {}  # {listener: number taken}: however often it is asked, what follows is repeated once
        for record in records:
            listener, flags, taken, limit = (
                ACCEPT_RECORD.unpack(record) if len(record) == ACCEPT_RECORD.size else (0, 0, 0, 0))
            entry = self._entries.get(listener)
            if entry is None or listener not in self._clients.get(client, ()) or entry.consumer != topology.TCP:
                self.counters[Counters.send_foreign] += 1
                continue
            if entry.sharing is None:  # otherwise the service itself determines the number
                stored = ACCEPT_RECORD.pack(listener, 0, entry.accepted, limit)
                sends.append((topology.TCP, messages.ACCEPT, stored))
                self._forget_accepted(listener, taken)
            if flags & RESUME:
                asked[listener] = min(taken, asked.get(listener, taken))
        return sends + [send for listener, taken in asked.items()
                        for send in self._accepted_since(listener, taken, client)]

    def _reset_unclaimed(self, entry: Entry, record: bytes) -> None:
        """A connection to a shared listener has ended before a process had it: that process is told."""
        listener = self._entries.get(ACCEPTED_HEADER.unpack_from(entry.unclaimed)[0])
        if listener is not None and listener.sharing is not None:
            listener.sharing.resets[entry.handle] = record

    def remember(self, listener: int, number: int, record: bytes) -> None:
        """An ACCEPTED is passed up; frames on their way to an application may be lost."""
        records = self._accepted.setdefault(listener, {})
        records[number] = record
        if len(records) > ACCEPTED_MAX:  # an application that never says what it has taken
            del records[next(iter(records))]

    def accepted_records(self, listener: int) -> dict[int, bytes]:
        """The ACCEPTED of each connection, by its handle, that the application may not have got."""
        return {ACCEPTED_HEADER.unpack_from(record)[1]: record for record in self._accepted.get(listener, {}).values()}

    def forget(self, listener: int) -> None:
        """The listener is closed."""
        self._accepted.pop(listener, None)

    def _forget_accepted(self, listener: int, taken: int) -> None:
        """The application has those up to this number; they are in the order of their numbers."""
        records = self._accepted.get(listener)
        while records and (number := next(iter(records))) <= taken:
            del records[number]
        if not records:
            self.forget(listener)

    def _accepted_since(self, listener: int, taken: int, client: int) -> list[Send]:
        """Repeat to `client` what it may not have got; of a shared listener, what is its own."""
        theirs = self._clients.get(client, {}) if self._entries[listener].sharing is not None else None
        return [(client, messages.ACCEPTED, record) for number, record in self._accepted.get(listener, {}).items()
                if number > taken and (theirs is None or ACCEPTED_HEADER.unpack_from(record)[1] in theirs)]


def accepted_ends(record: bytes) -> tuple[int, int, int, Ends]:
    """(listener, handle, number, (local address, port, peer's address, port)) of an ACCEPTED."""
    listener, handle, number, port, peer_port, _, _ = ACCEPTED_HEADER.unpack_from(record)
    local, peer = accepted_addresses(record)
    if len(local) not in WIDTHS or len(peer) != len(local):
        raise StructError("addresses of no family")
    return listener, handle, number, (local, port, peer, peer_port)


def accepted_record(listener: int, handle: int, socket: Socket) -> bytes:
    """The ACCEPTED of a connection whose number is not known any more."""
    header = ACCEPTED_HEADER.pack(listener, handle, 0, socket.port, socket.peer_port, family_of(socket.peer),
                                  INTERFACE_INDEX)
    return header + socket.local + socket.peer


def resuming(handle: int) -> Send:
    """READ: tcp is to repeat ROOM and all octets that the application has not read."""
    return topology.TCP, messages.READ, READ_RECORD.pack(handle, RESUME, 0, 0)


def closing(handle: int, request: Close | None = None, reset: bool = False) -> bytes:
    """The SOCKET_CLOSE of a stream socket, as its application asks; without a request, its process has ended."""
    if request is None:
        return CLOSE_RECORD.pack(handle, 0 if reset else -1, WRITTEN_UNKNOWN, _READ_ALL)
    end = WRITTEN_UNKNOWN if request.end < 0 else request.end
    return CLOSE_RECORD.pack(handle, request.linger, end, _READ_ALL if request.read < 0 else request.read)

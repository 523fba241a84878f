"""Changes of sockets: the agreement of the transport first, then the store, then the answer to the application.

A change is declared by SOCKET_SET, one of groups by MEMBERSHIP. Further requests on the socket wait meanwhile, so they
are executed in order. An address that is in use is asked for again when the applications that have ended are gone.

Forgets in a crash: all that waits. As its applications have no answer, they ask again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import msgspec

from bus import messages, topology
from bus.layer import CounterWords, Send
from layers.sockets.counters import Counters
from layers.sockets.entry import Answer, Entry, Pending, Socket
from layers.sockets.limits import WAITING_MAX, Shares
from layers.sockets.replies import membership, refusal, reply
from layers.sockets.requests import Refused, Request
from layers.sockets.table import Table, members

WAITING_AT_A_SOCKET_MAX = 64  # requests that may wait behind one under way on the same socket


class Changes:
    """See the module's docstring. `execute` carries out a request that has waited; `remove` closes a socket."""

    def __init__(self, table: Table, execute: Callable[[int, Request], list[Send]],
                 remove: Callable[[Entry], list[Send]], counters: CounterWords) -> None:
        self._table = table
        self._execute = execute
        self._remove = remove
        self._counters = counters
        self._waiting = Shares(WAITING_MAX)
        self.in_use: dict[int, bool] = {}  # {handle: asked again}: their EADDRINUSE is delayed until then

    def ask_again(self) -> list[Send]:
        """Ask again for addresses that were in use."""
        sends: list[Send] = []
        for handle, asked_again in self.in_use.items():
            pending = self._table.entries[handle].pending
            if not asked_again and pending is not None:
                sends.append((self._table.entries[handle].consumer, messages.SOCKET_SET, pending.record))
            self.in_use[handle] = True
        return sends

    def postpone(self, client: int, entry: Entry, pending: Pending, request: Request) -> list[Send]:
        """Requests on one socket are executed in order; one that is already waiting was only sent again."""
        under_way = {(pending.client, pending.request), *((each, waiting.id) for each, waiting in entry.waiting)}
        if (client, request.id) not in under_way:
            if len(entry.waiting) >= WAITING_AT_A_SOCKET_MAX or not self._waiting.allows(client):
                self._counters[Counters.limit] += 1
                raise Refused(errno.ENOBUFS)
            entry.waiting = (*entry.waiting, (client, request))
            self._waiting.take(client)
        return []

    def begin(self, client: int, entry: Entry, request: Request, changed: Socket, answer: Answer) -> list[Send]:
        """Declare what a socket is to be; `answer`: for its application, once that is stored."""
        before = entry.socket
        more = members(changed) - members(before)
        if more > 0 and not self._table.memberships.allows(entry.client, more):
            self._counters[Counters.limit] += 1
            raise Refused(errno.ENOBUFS)
        wanted = changed.state(entry.handle, request.id)
        if not changed.bound or wanted == before.state(entry.handle, request.id):
            if changed != before:
                self._table.change(entry, changed)
            return self._tell_ip(client, entry, request.id, answer)
        entry.pending = Pending(request.id, client, messages.encode(wanted), changed, answer)
        return [(entry.consumer, messages.SOCKET_SET, entry.pending.record)]

    def _tell_ip(self, client: int, entry: Entry, request: int, answer: Answer) -> list[Send]:
        """The request is stored: answer it; if it was about groups, after ip accepts them."""
        if entry.socket.grouped_by != request:
            return [reply(client, request, answer(entry.socket))]
        record = membership(entry.handle, entry.socket, request)
        entry.pending = Pending(request, client, record, entry.socket, answer, of_ip=True)
        return [(topology.IP, messages.MEMBERSHIP, record)]

    def answered(self, sender: int, records: list[bytes]) -> list[Send]:
        """SOCKET_REPLY: a transport, or ip, agrees or refuses."""
        sends: list[Send] = []
        for record in records:
            try:
                said = messages.decode_socket_reply(record)
            except ValueError:
                self._counters[Counters.answer_garbled] += 1
                continue
            entry = self._table.entries.get(said.handle)
            pending = entry.pending if entry is not None else None
            of_ip = sender == topology.IP
            if entry is None or pending is None or pending.request != said.request or pending.of_ip != of_ip:
                self._counters[Counters.answers_unasked] += 1
                continue
            if said.errno == errno.EADDRINUSE and not self.in_use.get(said.handle):
                self.in_use[said.handle] = False
                continue
            self.in_use.pop(said.handle, None)
            entry.pending = None
            if said.errno:
                sends.append(self._refusal(pending.client, pending.request, said.errno))
                if not entry.socket.bound and entry.socket.raw:  # the application never got it
                    sends += self._remove(entry)
                    continue
            elif of_ip:
                sends.append(reply(pending.client, pending.request, pending.answer(entry.socket)))
            else:
                self._table.change(entry, msgspec.structs.replace(pending.changed, local=said.local, port=said.port))
                sends += self._tell_ip(pending.client, entry, pending.request, pending.answer)
            sends += self._proceed(entry)
        return sends

    def _proceed(self, entry: Entry) -> list[Send]:
        """Execute the requests that waited behind the one just answered."""
        sends: list[Send] = []
        while entry.waiting and entry.pending is None:
            (client, request), *others = entry.waiting
            entry.waiting = tuple(others)
            self._waiting.take(client, -1)
            sends += self._execute(client, request)
        return sends

    def forget(self, entry: Entry) -> list[tuple[int, int]]:
        """A socket is removed: the (client, number) of its requests without an answer."""
        self.in_use.pop(entry.handle, None)
        unanswered = [(client, waiting.id) for client, waiting in entry.waiting]
        for client, _ in unanswered:
            self._waiting.take(client, -1)
        if entry.pending is not None:
            unanswered.insert(0, (entry.pending.client, entry.pending.request))
        return unanswered

    def _refusal(self, client: int, request: int, number: int) -> Send:
        self._counters[Counters.refused] += 1
        return refusal(client, request, number)

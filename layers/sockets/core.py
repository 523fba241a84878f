"""The core of the socket service: the owner of each socket, the free space of receive buffers, requests and replies.

Owns: handles, their options and names, receive-buffer accounting. Talks to: applications (requests, datagrams,
credits), udp, icmp, tcp and raw (desired states of sockets, datagrams), ip (routes). Ports belong to the transports:
the service sends SOCKET_SET, and answers the application only after the transport has agreed and the result is stored.

Forgets in a crash: how much is queued at the applications, which send it when the service is back, and pending
requests. Requests are sent again and executed once: see `Socket.created_by` and `Socket.bound_by`; all others are
idempotent.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from random import Random

import msgspec

from bus import messages, topology
from bus.config import UDP_SEGMENTATION, StackConfig
from bus.layer import CounterWords, Send, State
from bus.sysctl import stream_defaults
from layers.common.portions import Portions
from layers.common.routes import RouteTable, configured
from layers.sockets import requests
from layers.sockets.changes import Changes
from layers.sockets.counters import Counters
from layers.sockets.data_path import Traffic, question
from layers.sockets.entry import (
    Entry,
    Socket,
    StreamOptions,
)
from layers.sockets.listeners import Listeners
from layers.sockets.operations import OPERATIONS, Network, described_by, text_of
from layers.sockets.replies import membership, no_error, refusal, reply, summary
from layers.sockets.requests import LIST_MAX, NUMBER_MAX, Refused, Request
from layers.sockets.sharing import SharedSockets
from layers.sockets.streams import Streams, closing, resuming
from layers.sockets.table import Table
from layers.sockets.waiting import WaitingRequests
from usernet.pipe.messages import WANT

KEY_ROUTES = 0  # of `state`; the other keys are those of `layers.sockets.table`
AT_ONCE = 200  # sockets that are closed and so on in one turn: about 3 ms


class Core:
    """The core of sockets; see bus.layer.ClientCore."""

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: Random) -> None:
        self.next_wake: float | None = None
        self.counters = counters
        self._config = config
        self._streams = StreamOptions(**stream_defaults(config.sysctl))  # type: ignore[arg-type]
        self._state = state
        self._network = Network(RouteTable(configured(config)), config.mtu, config.ttl)  # until ip announces its routes
        self._table = table = Table(state)
        self._changes = Changes(table, self._execute, self._remove, counters)
        self._pids: dict[int, int] = {}
        self._long = WaitingRequests(self._execute, counters)
        # work on many sockets, which goes on in further turns: what is done, with a handle or a client
        self._later: Portions[tuple[Callable[[int], list[Send]], int]] = Portions()
        self._leaving: set[int] = set()  # ended clients with sockets that are not closed yet
        self._transports = [row.id for row in topology.ROWS if row.sockets and row.name in config.layers]
        traffic = Traffic(table, counters)
        self._streams_in_between = streams = Streams(table, counters)
        self._listeners = Listeners(table, streams, counters)
        self._shared = SharedSockets(table, self._listeners, counters)
        self._from_client: dict[int, Callable[[int, list[bytes]], list[Send]]] = {
            messages.SEND: traffic.send,
            messages.SEND_SEGMENTS: traffic.send_segments,
            messages.SEND_SEGMENTS_HELD: traffic.send_segments_held,
            messages.CREDIT: traffic.credit,
            messages.REQUEST: self._request,
            messages.STREAM: streams.from_client(messages.STREAM),
            messages.STREAM_HELD: streams.from_client(messages.STREAM_HELD),
            messages.STREAM_MEMORY: streams.from_client(messages.STREAM_MEMORY),
            messages.READ: streams.from_client(messages.READ),
            messages.STREAM_INFO: streams.from_client(messages.STREAM_INFO),
            messages.ACCEPT: streams.accept,
            WANT: self._shared.want,
        }
        self._from_layer: dict[int, Callable[[int, list[bytes]], list[Send]]] = {
            messages.DATAGRAM: traffic.deliver,
            messages.DATAGRAM_SEGMENTS: traffic.deliver_segments,
            messages.DATAGRAM_OPTIONS: traffic.deliver_options,
            messages.SOCKET_ERROR: traffic.report,
            messages.SOCKET_REPLY: self._changes.answered,
            messages.ROUTES: self._rerouted,
            messages.ACCEPTED: self._listeners.accepted,
            **{kind: streams.from_tcp(kind) for kind in (
                messages.STREAM, messages.STREAM_HELD, messages.ROOM, messages.STREAM_RESET, messages.STREAM_INFO)},
        }

    # -- the bus's calls ----------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Send]:
        """Restore the sockets of the former process."""
        self._table.undo_departures()
        for key in list(self._state):
            try:
                self._restore(key, self._state[key])
            except ValueError:
                self.counters[Counters.state_unreadable] += 1
                del self._state[key]
        self._shared.restore()
        self._listeners.restore()
        if self._table.clients:
            self._add([(self._absent, 0)])
        return []

    def _restore(self, key: int, stored: bytes) -> None:
        if key == KEY_ROUTES:
            self._network = Network(RouteTable(messages.decode_routes(stored)), self._config.mtu, self._config.ttl)
        else:
            self._table.restore(key, stored)

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process records of one kind from an application or a layer below."""
        handlers = self._from_client if sender >= topology.CLIENT_ID_MIN else self._from_layer
        handler = handlers.get(kind)
        if handler is None:
            self.counters[Counters.kind_unknown] += len(records)
            return []
        return handler(sender, records)

    def wake(self, now: float) -> list[Send]:
        """Go on with what concerns many sockets. There is nothing else: applications have their own timeouts."""
        sends = self._long.execute()
        return [*sends, *self._go_on()]

    def _go_on(self) -> list[Send]:
        """The next portion of what concerns many sockets."""
        sends = [send for work, number in self._later.take(0.0, AT_ONCE) for send in work(number)]
        self._set_wake()
        return sends

    def _set_wake(self) -> None:
        self.next_wake = 0.0 if self._long.waiting else self._later.next_due

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Repeat the unanswered declarations to a transport; send ip all groups, because it may have lost some."""
        if sender == topology.IP:
            return [
                (sender, messages.MEMBERSHIP, entry.pending.record if entry.pending and entry.pending.of_ip
                 else membership(entry.handle, entry.socket))
                for entry in self._table.entries.values()
                if (entry.kept and entry.kept.groups) or (entry.pending and entry.pending.of_ip)
            ]
        return [
            (sender, messages.SOCKET_SET, entry.pending.record)
            for entry in self._table.entries.values()
            if entry.pending is not None and entry.consumer == sender and not entry.pending.of_ip
        ]

    def welcome(self, client: int) -> dict[str, object]:
        """What an application may need before its first request."""
        config = self._config
        return {"name": config.name, "address": text_of(config.address), "mtu": config.mtu, "dns": config.dns,
                "segments": True, "buffers": UDP_SEGMENTATION in config.offload}

    def client_joined(self, client: int, hello: dict[str, object], now: float) -> list[Send]:
        """Store the pid, for `list`."""
        pid = hello.get("pid")
        self._pids[client] = pid if isinstance(pid, int) else 0
        return []

    def frames_lost(self, sender: int, now: float) -> list[Send]:
        """Of an application or of tcp: its streams are resumed. Datagrams may be lost, and requests are repeated."""
        self.counters[Counters.streams_resumed] += 1
        if sender != topology.TCP:
            handles = [handle for handle, consumer in self._table.clients.get(sender, {}).items()
                       if consumer == topology.TCP and self._table.entries[handle].client == sender]
        else:
            handles = [handle for handle, entry in self._table.entries.items() if entry.consumer == topology.TCP]
        self._add([(self._resume, handle) for handle in handles])
        return self._go_on()

    def _resume(self, handle: int) -> list[Send]:
        return [resuming(handle)] if handle in self._table.entries else []

    def _add(self, work: list[tuple[Callable[[int], list[Send]], int]]) -> None:
        self._later.add(work)
        self._set_wake()

    def client_left(self, client: int, now: float) -> list[Send]:
        """Close the sockets of the ended process."""
        self._pids.pop(client, None)
        self._long.forget(client)
        self._leave(client)
        return self._go_on()

    def _absent(self, _: int) -> list[Send]:
        """Clients of the former process that have not joined: they have ended meanwhile, or their sockets were being
        closed."""
        for client in [client for client in self._table.clients if client not in self._pids]:
            self._leave(client)
        return []

    def _leave(self, client: int) -> None:
        self._leaving.add(client)
        release = partial(self._release_of, client)
        # Connections before their listener: those that were not accepted stay with its other owners.
        handles = sorted(self._table.clients.get(client, ()), reverse=True)
        self._add([*((release, handle) for handle in handles), (self._left, client)])

    def _release_of(self, client: int, handle: int) -> list[Send]:
        entry = self._table.owned(client, handle)
        return self._release(client, entry) if entry is not None else []

    def _left(self, client: int) -> list[Send]:
        """The sockets of an ended client are closed, but for connections that a listener got meanwhile."""
        if self._table.clients.get(client):
            self._leave(client)
        else:
            self._table.clients.pop(client, None)
            self._leaving.discard(client)
        return []

    @property
    def contested(self) -> bool:
        """True if a requested address is in use by an application that may have ended."""
        return not self._leaving and False in self._changes.in_use.values()

    def clients_checked(self, now: float) -> list[Send]:
        """Ask again for addresses that were in use: on Linux the end of a process frees them at once."""
        return self._changes.ask_again()

    # -- requests -----------------------------------------------------------------------------------------------

    def _request(self, client: int, records: list[bytes]) -> list[Send]:
        sends: list[Send] = []
        for record in records:
            self.counters[Counters.requests] += 1
            number, request, error = requests.decode(record)
            if request is None:
                if not number:
                    self.counters[Counters.request_garbled] += 1
                sends.append(self._refusal(client, number, error))
            else:
                sends += self._long.take(client, request)
        self._set_wake()
        return sends

    def _execute(self, client: int, request: Request) -> list[Send]:
        try:
            if isinstance(request, requests.Open):
                return self._open(client, request)
            if isinstance(request, requests.List):
                return self._list(client, request)
            if isinstance(request, requests.Share):
                granted, sends = self._shared.share(client, request)
                return [*sends, reply(client, request.id, {"shared": granted})]
            assert isinstance(request, requests.OnSocket)
            entry = self._table.entries.get(request.handle)
            if entry is not None and self._table.owned(client, request.handle) is None:
                raise Refused(errno.EBADF)
            if isinstance(request, requests.Close):
                return self._close(client, request, entry)
            if entry is None:
                raise Refused(errno.EBADF)
            if isinstance(request, requests.Take):
                return [*self._shared.take(client, entry), reply(client, request.id, {})]
            if isinstance(request, requests.GiveBack):
                return [*self._listeners.give_back(client, entry, request), reply(client, request.id, {})]
            if entry.pending is not None:
                return self._changes.postpone(client, entry, entry.pending, request)
            changed, answer = OPERATIONS[type(request)](entry.socket, request, self._network)
            return self._changes.begin(client, entry, request, changed, answer)
        except Refused as refused:
            return [self._refusal(client, request.id, refused.errno)]

    def _open(self, client: int, request: requests.Open) -> list[Send]:
        table = self._table
        entry = table.created(client, request.id)
        if entry is None:
            if not table.shares.allows(client):
                self.counters[Counters.limit] += 1
                raise Refused(errno.EMFILE)
            described = described_by(request, self._config.layers, self._streams)
            entry = table.open(table.new_handle(), Socket(
                client=client, pid=self._pids.get(client, 0), created_by=request.id, ttl=self._config.ttl,
                segments=request.segments, **described))
            self.counters[Counters.sockets_opened] += 1
        answer: dict[str, object] = {"handle": entry.handle, "receive_buffer": entry.limit}
        if not entry.socket.raw:
            return [reply(client, request.id, answer)]
        if entry.pending is not None:
            return []  # the request was sent again
        # A raw socket receives from the start, so raw has to know it before the application does.
        changed = msgspec.structs.replace(entry.socket, bound=True)
        return self._changes.begin(client, entry, request, changed, lambda _: answer)

    def _close(self, client: int, request: requests.Close, entry: Entry | None) -> list[Send]:
        if entry is None:
            # Closed already, perhaps by a former process that died before it could tell the transport.
            record = request.handle.to_bytes(4, "little")
            sends = [(consumer, messages.SOCKET_CLOSE, closing(request.handle, request)
                      if consumer == topology.TCP else record) for consumer in self._transports]
            if request.handle:
                sends.append((topology.IP, messages.MEMBERSHIP, membership(request.handle)))
        else:
            sends = self._release(client, entry, request)
        return [*sends, reply(client, request.id, {})]

    def _list(self, client: int, request: requests.List) -> list[Send]:
        """The amounts queued are as the applications last reported them."""
        # The highest number that is possible: the question is whether everything before it was taken.
        handles = sorted(handle for handle in self._table.entries if handle > request.after) if (
            request.after < NUMBER_MAX) else []
        page = [self._table.entries[handle] for handle in handles[:LIST_MAX]]
        answer = {"sockets": [summary(entry) for entry in page], "more": len(handles) > LIST_MAX}
        return [reply(client, request.id, answer), *(question(entry) for entry in page if entry.outstanding)]

    def _rerouted(self, sender: int, records: list[bytes]) -> list[Send]:
        before = self._network.routes.announced.addresses
        for record in records:
            try:
                self._network = Network(RouteTable(messages.decode_routes(record)), self._config.mtu, self._config.ttl)
            except ValueError:
                self.counters[Counters.routes_refused] += 1
            else:
                self._state[KEY_ROUTES] = record
        gone = {address for address, _ in before} - {address for address, _ in self._network.routes.announced.addresses}
        if gone:
            self._add([(self._outdate, handle) for handle in self._table.entries])
        return self._go_on()

    def _outdate(self, handle: int) -> list[Send]:
        """Own addresses were removed: applications must ask again for the sources of destinations."""
        entry = self._table.entries.get(handle)
        if entry is None or not entry.socket.bound:
            return []
        return [(client, messages.SOCKET_ERROR, no_error(handle)) for client in (entry.client, *entry.sharers)]

    # -- closing --------------------------------------------------------------------------------------------------

    def _release(self, client: int, entry: Entry, request: requests.Close | None = None) -> list[Send]:
        """One of its owners has closed it; with the last one it is removed."""
        sends = self._shared.release(client, entry)
        return self._remove(entry, request) if sends is None else sends

    def _remove(self, entry: Entry, request: requests.Close | None = None) -> list[Send]:
        socket = self._table.remove(entry)
        record = entry.handle.to_bytes(4, "little")
        if socket.stream is not None:
            record = closing(entry.handle, request, reset=request is None and socket.stream.linger == 0)
        self._streams_in_between.forget(entry.handle)
        self.counters[Counters.sockets_closed] += 1
        return [
            (entry.consumer, messages.SOCKET_CLOSE, record),
            *([(topology.IP, messages.MEMBERSHIP, membership(entry.handle))] if socket.groups else ()),
            *(self._refusal(client, number, errno.EBADF) for client, number in self._changes.forget(entry)),
        ]

    def _refusal(self, client: int, request: int, number: int) -> Send:
        self.counters[Counters.refused] += 1
        return refusal(client, request, number)

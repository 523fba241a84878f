"""The real core of tcp, which is killed at a chosen line, between a peer and the socket service with its applications.

A turn is one transaction, as in `bus.runtime.turn`: the output of a turn that a SIGKILL cuts short is lost, and its
input comes again. The peer is the engine of another host. Applications ask a question, or answer one, and close.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.slots import SLOT_OCTETS, Slots
from bus.durable.stream_memory import StreamMemory
from bus.layer import Send
from bus.messages import FLAG_CHECKSUM_KNOWN, PACKET_HEAD, TRANSMIT_HEAD, decode_socket_reply, encode
from bus.streams import StreamState
from layers.tcp.closing import TIME_WAIT_S
from layers.tcp.connection import TIME_WAIT, Ends
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from packets.tcp import RST, Segment, parse
from tests.unit.tcp.deaths import Death, Deaths
from tests.unit.tcp.host import A, B, Host
from usernet.pipe.streams import (
    ACCEPT,
    ACCEPT_RECORD,
    ACCEPTED,
    ACCEPTED_HEADER,
    CLOSE_RECORD,
    READ,
    READ_RECORD,
    RESET_RECORD,
    RESUME,
    ROOM,
    ROOM_RECORD,
    STREAM,
    STREAM_END,
    STREAM_HEADER,
    STREAM_RESET,
)

PORT, PEER_LISTENER, LISTENER, BACKLOG = 80, 5, 7, 8
DELAY_S = 0.001  # of the link, each way
RESTART_S = 0.03  # from a death until the successor serves
SLOTS_WATCHED = 16  # more than there are connections
CONFIG = StackConfig(name="t", run_dir="", address=B, prefix=24, gateway=A, mac=bytes(6))


class Socket:
    """What the socket service and an application keep of a stream socket of the layer."""

    def __init__(self, question: bytes, is_server: bool) -> None:
        self.received, self.written = bytearray(), bytearray()
        self.question = question  # that it asks, or that it waits for
        self.is_server = is_server
        self.is_up = self.ended = self.closed = False
        self.error: int | None = None


class Service:
    """The socket service and the applications above the layer, which always live."""

    def __init__(self, tell: Callable[[int, bytes], None], question: bytes, waits_for_end: bool, aborts: bool) -> None:
        self._tell = tell
        self._aborts = aborts
        self._question = question
        self._waits_for_end = waits_for_end
        self.sockets: dict[int, Socket] = {}
        self.numbered = self.accepted = 0
        self.late: list[int] = []  # numbers of connections that came after a later one

    def listens(self) -> None:
        self._tell(messages.SOCKET_SET, encode(StreamState(handle=LISTENER, request=1, port=PORT, bind=True,
                                                          listen=BACKLOG)))

    def connects(self, handle: int) -> None:
        self.sockets[handle] = Socket(self._question, False)
        self._tell(messages.SOCKET_SET, encode(StreamState(handle=handle, request=1, peer=A, peer_port=PORT,
                                                          connect=1)))

    def hears(self, kind: int, record: bytes) -> None:
        if kind == messages.SOCKET_REPLY:
            assert decode_socket_reply(record).errno == 0
        elif kind == ACCEPTED:
            _, handle, number, *_ = ACCEPTED_HEADER.unpack_from(record)
            if number > self.numbered:
                self.numbered = number
                self.sockets[handle] = Socket(self._question, True)
            elif handle not in self.sockets:
                self.late.append(number)  # the service takes it for the repetition of a closed one
        elif kind in (ROOM, STREAM, STREAM_RESET):
            handle = int.from_bytes(record[:4], "little")
            socket = self.sockets.get(handle)
            if socket is None or socket.closed:
                return
            if kind == ROOM:
                self._room(handle, socket, *ROOM_RECORD.unpack(record)[1:])
            elif kind == STREAM:
                self._stream(handle, socket, *STREAM_HEADER.unpack_from(record)[1:], record[STREAM_HEADER.size :])
            else:
                socket.error = RESET_RECORD.unpack(record)[1]

    def _room(self, handle: int, socket: Socket, flags: int, taken: int, acked: int, limit: int) -> None:
        assert acked <= taken <= len(socket.written) <= limit
        first, socket.is_up = not socket.is_up, True
        if flags & RESUME:
            self._tell(READ, READ_RECORD.pack(handle, 0, len(socket.received), len(socket.received)))
            if taken < len(socket.written):
                self._tell(STREAM, STREAM_HEADER.pack(handle, 0, taken) + bytes(socket.written[taken:]))
        if first and socket.is_server:
            self.accepted += 1
            self._tell(ACCEPT, ACCEPT_RECORD.pack(LISTENER, 0, self.numbered, self.accepted + BACKLOG + 1))
        elif first:
            self._write(handle, socket, socket.question)
        self._goes_on(handle, socket)

    def _stream(self, handle: int, socket: Socket, flags: int, offset: int, octets: bytes) -> None:
        have = len(socket.received)
        if offset > have:
            self._tell(READ, READ_RECORD.pack(handle, RESUME, have, have))
            return
        assert socket.received[offset : offset + len(octets)] == octets[: have - offset], "other octets than before"
        socket.received += octets[have - offset :]
        if flags & STREAM_END:
            socket.ended = True
        self._goes_on(handle, socket)

    def _write(self, handle: int, socket: Socket, octets: bytes) -> None:
        self._tell(STREAM, STREAM_HEADER.pack(handle, 0, len(socket.written)) + octets)
        socket.written += octets

    def _goes_on(self, handle: int, socket: Socket) -> None:
        """The application reads, answers and closes."""
        if not socket.is_up or socket.closed or len(socket.received) < len(socket.question):
            return
        if self._aborts:
            socket.closed = True
            self._tell(messages.SOCKET_CLOSE, CLOSE_RECORD.pack(handle, 0, 0, len(socket.received)))
            return
        if socket.is_server and not socket.written:
            self._write(handle, socket, bytes(socket.received))
        if self._waits_for_end and not socket.ended:
            return
        socket.closed = True
        self._tell(messages.SOCKET_CLOSE, CLOSE_RECORD.pack(handle, -1, len(socket.written), len(socket.received)))


class Stage:
    """All of it: `incoming` connections are opened by the peer, `outgoing` ones by an application of the layer.

    `peer_waits`, `service_waits`: applications of this side close when they have seen the end of the other side.
    `service_aborts`: they do not answer, but abort.
    `before`: so many connections have come and gone already; `reused`: the next have the same ports. `one_by_one`: a
    turn for each record.
    """

    def __init__(self, incoming: int = 1, outgoing: int = 0, peer_waits: bool = False, service_waits: bool = False,
                 service_aborts: bool = False, deaths: Deaths | None = None, one_by_one: bool = False, before: int = 0,
                 reused: bool = False) -> None:
        self.now = self._began = 1000.0
        self._tie = count()
        self.deaths, self._died = Deaths(), 0
        self._memory, self._state, self._counters = StreamMemory.volatile(), dict[int, bytes](), Counters.new()
        self._question = random.Random(1).randbytes(64)
        self._one_by_one, self._peer_waits, self._reused = one_by_one, peer_waits, reused
        self._input: deque[tuple[int, int, bytes]] = deque()  # that is not done yet: sender, kind, record
        self._leaving: list[tuple[float, int, Segment]] = []  # to the peer
        self._coming: list[tuple[float, int, bytes]] = []  # from the peer
        self._resets: list[Segment] = []  # of ours, to connections that are not at their end
        self.log: list[str] = []
        self._service = Service(lambda kind, record: self._input.append((topology.SOCKETS, kind, record)),
                                self._question, service_waits, service_aborts)
        self._peer = Host(A, seed=2)
        self._peer.at(self.now)
        self._peer.start()
        self._peer.set(PEER_LISTENER, port=PORT, bind=True, listen=16)
        self._asked: set[int] = set()  # handles of the peer
        self._closed: set[int] = set()
        self._core = self._born()
        self._published(self._core.start(self.now))
        self._service.listens()
        self._turns()
        self._callers: list[int] = []
        if before:
            self._call(50, before)
            assert self.run(rests=not reused) == []
            self._service.sockets.clear()
            self._peer.accepted_handles.clear()
        self._began, self.deaths = self.now, deaths or Deaths()
        self._call(100, incoming)
        for number in range(outgoing):
            self._service.connects(200 + number)
        self._expected = incoming + outgoing

    def _call(self, first: int, number: int) -> None:
        """Applications of the peer connect."""
        self._callers, self._expected = [*range(first, first + number)], number
        self._asked.clear()
        self._closed.clear()
        for handle in self._callers:
            port = {"port": 4000 + handle - first, "bind": True} if self._reused else {}
            assert self._peer.set(handle, peer=B, peer_port=PORT, connect=1, **port) == 0

    def seen(self) -> object:
        """All that a successor would find."""
        return bytes(self._memory.slots[: SLOTS_WATCHED * SLOT_OCTETS]), tuple(sorted(self._state.items()))

    def _born(self) -> Core:
        return Core(CONFIG, self._state, self._counters, random.Random(self._died), self._memory)

    # -- turns

    def _turns(self) -> None:
        """All input that is there."""
        while self._input or (self._core.next_wake is not None and self._core.next_wake <= self.now):
            self._turn()

    def _turn(self) -> None:
        given = list(self._input)[: 1 if self._one_by_one else None]
        sends: list[Send] = []
        self.deaths.turn_begins()
        try:
            at = 0
            while at < len(given):  # a call for the records of one kind, as of one frame
                sender, kind = given[at][:2]
                end = at
                while end < len(given) and given[end][:2] == (sender, kind):
                    end += 1
                sends += self._core.receive(sender, kind, [record for _, _, record in given[at:end]], self.now)
                at = end
            if self._core.next_wake is not None and self._core.next_wake <= self.now:
                sends += self._core.wake(self.now)
        except Death:
            self._dies()
            return
        finally:
            self.deaths.turn_ends()
        for _ in given:
            self._input.popleft()
        self._published(sends)

    def _dies(self) -> None:
        """And a successor serves, which may die as it starts."""
        self._died += 1
        self.log.append(f"{self.now:.3f} died at {self.deaths.places[-1]}")
        self._until(self.now + RESTART_S, alone=True)
        self.deaths.turn_begins()
        try:
            self._core = self._born()
            sends = self._core.start(self.now)
        except Death:
            self._dies()
            return
        finally:
            self.deaths.turn_ends()
        self._published(sends)

    def _published(self, sends: list[Send]) -> None:
        for consumer, kind, record in sends:
            if consumer == topology.SOCKETS:
                self._service.hears(kind, record)
            elif kind == messages.TRANSMIT:
                segment = parse(record[TRANSMIT_HEAD.size :])
                assert segment is not None
                self._note("->", segment)
                heappush(self._leaving, (self.now + DELAY_S, next(self._tie), segment))

    def _note(self, way: str, segment: Segment) -> None:
        self.log.append(f"{self.now:.3f} {way} {segment.source_port}>{segment.destination_port} flags "
                        f"{segment.flags:#x} seq {segment.sequence} ack {segment.acknowledgment} "
                        f"{len(segment.payload)}")
        if segment.flags & RST and way == "->":
            flow = Ends(A, segment.destination_port, B, segment.source_port).flow
            conn = self._peer.engine.lookup.connections.get(flow)
            if conn is not None and conn.state != TIME_WAIT:
                self._resets.append(segment)

    # -- the peer

    def _peer_goes_on(self) -> None:
        peer = self._peer
        for _, handle in peer.accepted_handles:
            if handle not in self._asked and bytes(peer.applications[handle].received) == self._question:
                self._asked.add(handle)
                peer.take(handle)
                peer.write(handle, self._question)
        for handle in self._callers:
            if handle not in self._asked and peer.applications[handle].established:
                self._asked.add(handle)
                peer.write(handle, self._question)
        for handle in self._peer_handles:
            application = peer.applications[handle]
            is_complete = handle in self._asked and len(application.received) >= len(self._question)
            if is_complete and handle not in self._closed and (application.ended or not self._peer_waits):
                self._closed.add(handle)
                peer.take(handle)
                peer.close(handle)
        for _, _, segment, *_ in peer.sent:
            self._note("<-", segment)
            head = PACKET_HEAD.pack(1, 4, FLAG_CHECKSUM_KNOWN, 20, 0, 6, 64, 0, A, B)
            heappush(self._coming, (self.now + DELAY_S, next(self._tie), head + bytes(20) + segment.pack()))
        peer.sent.clear()

    # -- time

    def _until(self, end: float, done: Callable[[], bool] | None = None, alone: bool = False) -> bool:
        """`alone`: without the layer. False: it was not `done` by then."""
        while True:
            self._peer_goes_on()
            if not alone:
                self._turns()
                if done is not None and done():
                    return True
            times = [each[0][0] for each in (self._leaving, self._coming) if each]
            times += [due for due in (self._peer.engine.next_due, None if alone else self._core.next_wake)
                      if due is not None]
            if not times or min(times) > end:
                self.now = end
                self._peer.at(end)
                return False
            self.now = max(self.now, min(times))
            self._peer.at(self.now)
            while self._leaving and self._leaving[0][0] <= self.now:
                self._peer.arrive(B, heappop(self._leaving)[2])
                self._peer_goes_on()
            self._peer.expire()
            self._peer_goes_on()
            while self._coming and self._coming[0][0] <= self.now:
                self._input.append((topology.IP, messages.PACKET, heappop(self._coming)[2]))

    @property
    def _peer_handles(self) -> list[int]:
        return [*self._callers, *(handle for _, handle in self._peer.accepted_handles)]

    def _is_done(self) -> bool:
        """All have carried question and answer, and were closed by both ends."""
        sockets = self._service.sockets.values()
        return len(sockets) == len(self._closed) == self._expected and all(socket.closed for socket in sockets)

    @property
    def peer_errors(self) -> list[int | None]:
        """Of its applications."""
        return [self._peer.applications[handle].error for handle in self._peer_handles]

    @property
    def slots_left(self) -> list[int]:
        """Those that are in use."""
        return Slots(self._memory.slots).used

    def another_turn(self) -> None:
        """A turn that has nothing to do with any connection."""
        self._service.listens()
        self._turns()

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self._until(self.now + seconds)

    def run(self, rests: bool = True) -> list[str]:
        """Until all is done, and, if it `rests`, everything has ended. Returns what is wrong."""
        wrong = [] if self._until(self.now + 20.0, self._is_done) else ["not done"]
        wrong += [f"took {self.now - self._began:.1f} s"] if self.now > self._began + 1.0 else []
        self._until(self.now + 1.0)
        ends = [(f"socket {handle}", each) for handle, each in self._service.sockets.items()]
        ends += [(f"peer's {handle}", self._peer.applications[handle]) for handle in self._peer_handles]
        for name, each in ends:
            wrong += [f"{name}: error {each.error}"] if each.error is not None else []
            wrong += [f"{name}: {len(each.received)} octets"] if bytes(each.received) != self._question else []
        wrong += [f"{len(ends)} sockets"] if len(ends) != 2 * self._expected else []
        wrong += [f"numbers came late: {self._service.late}"] if self._service.late else []
        wrong += [f"{len(self._resets)} resets"] if self._resets else []
        if rests:
            self._until(self.now + 2 * TIME_WAIT_S)
            wrong += ["something is left"] if self._core.manage({"op": "connection_count"}, self.now)[0] != {
                "connections": 0} else []
            wrong += ["slots are left"] if self.slots_left else []
            wrong += ["something is left at the peer"] if self._peer.engine.lookup.connections else []
        return wrong

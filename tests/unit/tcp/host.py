"""A TCP host in memory: engine and calls, with an application that does as told; two of them on a link that may be
hostile."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from heapq import heappop, heappush
from itertools import count

import msgspec

from bus.durable.stream_memory import StreamMemory
from bus.streams import StreamState
from layers.tcp import connection as tcb
from layers.tcp.calls import Calls
from layers.tcp.connection import Connection
from layers.tcp.counters import Counters
from layers.tcp.durable import Durable
from layers.tcp.ecn import CE, ECT_0, NOT_ECT
from layers.tcp.engine import Engine
from layers.tcp.interfaces import Arrival
from layers.tcp.successor import Successor
from packets.tcp import Segment, parse
from usernet.pipe.streams import STREAM_END, WRITTEN_UNKNOWN

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
KEY_SECRET = 1 << 32
KEY_HANDLES = KEY_SECRET + 1
SECRET = bytes(range(32))


class Application:
    """What the socket service and a program would keep of one handle."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = False
        self.error: int | None = None
        self.established = False
        self.taken = self.acked = self.limit = 0
        self.finished = False
        self.written = bytearray()
        self.end: int | None = None
        self.read = 0
        self.mark = 0


class Host:
    """Owns a core's collaborators; `sent` collects what goes below."""

    def __init__(self, address: bytes, peer_mtu: int = 1500, seed: int = 1, memory: StreamMemory | None = None,
                 state: dict[int, bytes] | None = None, applications: dict[int, Application] | None = None,
                 super_octets: int = 0) -> None:
        self.address = address
        self.world: World | None = None
        self.path_mtu = peer_mtu
        self.super = super_octets
        self.state = {} if state is None else state
        self.sent: list[tuple[bytes, bytes, Segment, int, bool]] = []  # the last: routers may mark it
        self._turn: list[tuple] = []  # what this turn brings: it counts when the turn is over
        self.advised: list[bytes] = []
        self.applications = defaultdict(Application) if applications is None else applications
        self.accepted_handles: list[tuple[int, int]] = []
        self.again: list[int] = []
        self.counters = Counters.new()
        self.memory = memory or StreamMemory.volatile()
        durable = Durable(self.memory, self.state, KEY_HANDLES)
        self.durable = durable
        self.engine = Engine(self.counters, self, self, durable, durable, SECRET)
        self.calls = Calls(self.engine, self.state, random.Random(seed), self)

    def start(self) -> None:
        """Take up what a predecessor has stored."""
        Successor(self.durable, self.engine, self.calls).restore()

    def at(self, now: float) -> Host:
        self.engine.now = now
        return self

    # Paths
    def is_local(self, address: bytes) -> bool:
        return address == self.address

    def source_for(self, destination: bytes) -> bytes | None:
        return self.address

    def is_group(self, address: bytes) -> bool:
        return address[0] >= 224

    def leaks(self, source: bytes, destination: bytes) -> bool:
        return source[0] == 127 and not self.is_local(destination)

    # Below
    def mtu(self, destination: bytes) -> int:
        return self.path_mtu

    def super_octets(self, mss: int) -> int:
        return max(self.super, mss)

    def transmit(self, source: bytes, destination: bytes, segment: Segment, size: int, options: object,
                 capable: bool) -> None:
        self._turn.append((self.sent.append, (source, destination, segment, size, capable)))

    def advise(self, destination: bytes) -> None:
        self.advised.append(destination)

    # Above
    def stream(self, *record: object) -> None:
        self._turn.append((self._stream, *record))

    def room(self, *record: object) -> None:
        self._turn.append((self._room, *record))

    def accepted(self, *record: object) -> None:
        self._turn.append((self._accepted, *record))

    def reset(self, *record: object) -> None:
        self._turn.append((self._reset, *record))

    def _stream(self, handle: int, flags: int, offset: int, octets: bytes) -> None:
        application = self.applications[handle]
        if flags & 4:
            application.mark = offset + len(octets)
            if not octets:
                return
        have = len(application.received)
        assert offset <= have, f"a gap: {offset} after {have}"
        fresh = octets[have - offset :]
        again = application.received[offset : offset + len(octets)]
        assert again == octets[: have - offset], "other octets than before"
        assert not (application.ended and fresh)
        application.received += fresh
        if flags & STREAM_END:
            assert offset + len(octets) == len(application.received)
            application.ended = True

    def _room(self, handle: int, flags: int, taken: int, acked: int, limit: int) -> None:
        application = self.applications[handle]
        assert acked <= taken <= len(application.written)
        assert limit >= application.limit
        application.established = True
        application.taken, application.acked, application.limit = taken, acked, limit
        application.finished |= bool(flags & 2)
        if flags & 1:
            self.again.append(handle)  # the application's side sends again from `taken`

    def _accepted(self, listener: int, handle: int, number: int, ends: tcb.Ends) -> None:
        if (listener, handle) not in self.accepted_handles:
            self.accepted_handles.append((listener, handle))

    def _reset(self, handle: int, number: int) -> None:
        self.applications[handle].error = number

    def done(self) -> None:
        """The turn is over: what it brought is published."""
        self.engine.flush()
        turn, self._turn = self._turn, []
        for publish, *record in turn:
            publish(*record)

    def successor(self, seed: int) -> Host:
        """A host that takes over after this one's death: same memory, same applications."""
        heir = type(self)(self.address, self.path_mtu, seed, self.memory, self.state, self.applications, self.super)
        heir.sent, heir.accepted_handles, heir.again = self.sent, self.accepted_handles, self.again
        heir.engine.now = self.engine.now
        for handle, stored in [(key, value) for key, value in self.state.items() if key < KEY_SECRET]:
            heir.calls.load(handle, stored)
        heir.start()
        heir.calls.repeat()
        heir.done()
        return heir

    def do(self, action: Callable[[Host], object]) -> object:
        """One turn: an input, and what it brings."""
        if self.world is not None:
            return self.world.do(self.address, action)
        result = action(self)
        self.done()
        return result

    # What an application does
    def set(self, handle: int, request: int = 1, **fields: object) -> int:
        return self.do(lambda host: host.calls.set(StreamState(handle=handle, request=request, **fields))).errno

    def write(self, handle: int, octets: bytes, end: bool = False, flags: int = 0) -> None:
        application = self.applications[handle]
        offset = len(application.written)
        application.written += octets
        if end:
            application.end = len(application.written)
        for start in range(0, max(len(octets), 1), 16384):
            part = octets[start : start + 16384]
            last = start + 16384 >= len(octets)
            what = handle, (STREAM_END if end and last else 0) | flags, offset + start, part
            self.do(lambda host, what=what: host.calls.stream(*what))

    def rewrite(self, handle: int) -> None:
        """Everything that tcp has not taken, and how much was read: as the library answers a ROOM with RESUME."""
        application = self.applications[handle]
        self.do(lambda host: host.calls.read(handle, 0, application.read, len(application.received)))
        if application.taken == len(application.written) and application.end is None:
            return
        what = (handle, STREAM_END if application.end is not None else 0, application.taken,
                bytes(application.written[application.taken :]))
        self.do(lambda host: host.calls.stream(*what))

    def take(self, handle: int, octets: int | None = None) -> None:
        application = self.applications[handle]
        there = len(application.received)
        application.read = there if octets is None else min(there, application.read + octets)
        self.do(lambda host: host.calls.read(handle, 0, application.read, there))

    def close(self, handle: int, linger: int = -1) -> None:
        self.do(lambda host: host.calls.close(handle, linger, WRITTEN_UNKNOWN, host.applications[handle].read))

    def conn(self, handle: int) -> Connection:
        return self.engine.lookup.by_handle[handle]

    def state_of(self, handle: int) -> str:
        conn = self.engine.lookup.by_handle.get(handle)
        return tcb.STATE_NAMES[conn.state] if conn is not None else "CLOSED"

    def arrive(self, source: bytes, segment: Segment, ecn: int = 0) -> None:
        self.arrive_together(source, [segment], ecn)

    def arrive_together(self, source: bytes, segments: Iterable[Segment], ecn: int = 0) -> None:
        """In one turn."""
        def arrives(host: Host) -> None:
            for segment in segments:
                parsed = parse(segment.pack())
                assert parsed is not None
                host.engine.arrives(Arrival(source, host.address, parsed, ecn))

        self.do(arrives)

    def expire(self) -> None:
        due = self.engine.next_due
        if due is not None and due <= self.engine.now:
            self.do(lambda host: host.engine.expire())

    def out(self) -> list[Segment]:
        sent, self.sent = self.sent, []
        return [segment for _, _, segment, _, _ in sent]


def split(segment: Segment, size: int) -> list[Segment]:
    """A super-segment as the medium cuts it."""
    if not size or len(segment.payload) <= size:
        return [segment]
    parts = []
    for start in range(0, len(segment.payload), size):
        last = start + size >= len(segment.payload)
        flags = segment.flags if last else segment.flags & ~9
        parts.append(segment._replace(sequence=(segment.sequence + start) & 0xFFFFFFFF, flags=flags,
                                      payload=segment.payload[start : start + size]))
    return parts


class Death(BaseException):
    """A SIGKILL, at a line."""


class World:
    """Two hosts, a clock, and a link with a one-way delay; `fate(segment)` says when a segment arrives: a list of
    delays."""

    def __init__(self, a: Host, b: Host, delay: float = 0.01, fate=None) -> None:
        self.hosts = {a.address: a, b.address: b}
        self.now = 1000.0
        self.delay = delay
        self.fate = fate
        self._wire: list[tuple[float, int, bytes, bytes, Segment, int]] = []
        self.marks: Callable[[Segment], bool] = lambda segment: False  # a router marks it, if it may
        self._tie = count()
        self.log: list[tuple[float, bytes, Segment]] = []
        self.mortal: AbstractContextManager[object] | None = None
        self.deaths = 0
        for host in self.hosts.values():
            host.at(self.now)
            host.world = self
            if host.engine.dormant is None:
                host.start()

    def do(self, address: bytes, action: Callable[[Host], object]) -> object:
        """One turn of a host; with `mortal` it may die in it, and its successor gets the input again."""
        while True:
            host = self.hosts[address]
            try:
                with self.mortal or nullcontext():
                    result = action(host)
                    host.done()
            except Death:
                heir = self.hosts[address] = host.successor(self.deaths)
                heir.world = self
                self.deaths += 1
            else:
                return result

    def collect(self) -> None:
        for host in self.hosts.values():
            sent, host.sent = host.sent, []
            for source, destination, whole, size, capable in sent:
                for segment in split(whole, size):
                    self.log.append((self.now, source, segment))
                    delays = [self.delay] if self.fate is None else self.fate(source, segment)
                    field = ECT_0 if capable else NOT_ECT
                    if capable and self.marks(segment):
                        field = CE
                    for delay in delays:
                        heappush(self._wire, (self.now + delay, next(self._tie), source, destination, segment, field))

    def step(self, until: float) -> bool:
        """The next thing that happens; False: nothing before `until`."""
        self.collect()
        times = [self._wire[0][0]] if self._wire else []
        times += [host.engine.next_due for host in self.hosts.values()
                  if host.engine.next_due is not None]
        if not times or min(times) > until:
            self.now = until
            for host in self.hosts.values():
                host.at(until)
            return False
        self.now = max(self.now, min(times))
        for host in self.hosts.values():
            host.at(self.now)
        while self._wire and self._wire[0][0] <= self.now:
            _, _, source, destination, segment, field = heappop(self._wire)
            if destination in self.hosts:
                self.hosts[destination].arrive(source, segment, field)
        for host in list(self.hosts.values()):
            host.expire()
        return True

    def run(self, seconds: float, until=None, reading: bool = True) -> bool:
        """Until the time is over or `until()` holds; applications read what comes, if `reading`."""
        end = self.now + seconds
        while True:
            if until is not None and until():
                return True
            if not self.step(end):
                self.collect()
                if not self._wire:
                    return until() if until is not None else True
                if self._wire[0][0] > end:
                    return until() if until is not None else True
            for host in list(self.hosts.values()):
                while host.again:
                    host.rewrite(host.again.pop())
            if reading:
                for host in list(self.hosts.values()):
                    for handle in list(host.engine.lookup.by_handle):
                        application = host.applications[handle]
                        if application.read < len(application.received):
                            host.take(handle)


def pair(delay: float = 0.01, fate=None, port: int = 80, a_options: dict | None = None, b_options: dict | None = None,
         connect: bool = True, super_octets: int = 0) -> tuple[World, Host, Host, int, int]:
    """A connects (handle 1) to B's listener (handle 5): (world, a, b, a's handle, b's handle of the connection)."""
    a, b = Host(A, seed=1, super_octets=super_octets), Host(B, seed=2, super_octets=super_octets)
    world = World(a, b, delay, fate)
    assert b.set(5, port=port, bind=True, listen=16, **(b_options or {})) == 0
    assert a.set(1, peer=B, peer_port=port, connect=1, **(a_options or {})) == 0
    if not connect:
        return world, a, b, 1, 0
    assert world.run(60, lambda: a.applications[1].established and bool(b.accepted_handles))
    return world, a, b, 1, b.accepted_handles[0][1]


def changed(state: StreamState, **fields: object) -> StreamState:
    return msgspec.structs.replace(state, **fields)

"""The two ends of a pipe.

`Outlet`: the producer's. Packs records, numbers and journals frames, never blocks, is bounded; sends again what a
neighbour that restarted has missed.
`Inlet`: the consumer's. Decides for each frame whether it is next, a repetition, ahead of its turn, or stale.

The rule, the same on every pipe and for applications (docs/app-protocol.md): frames are numbered from 1. Who starts
says HELLO with the number that it processed last; the other end answers RESUME and repeats from there. Who starts also
repeats the end of its own journal, because the last frames may have died inside its process.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

import msgspec
import zmq

from bus import memory, table
from bus.counters import PipeCounters as C
from bus.journal import Journal
from usernet.protocol import MAX_FRAME_OCTETS, MAX_RECORDS, VERSION, pack_frame, with_incarnation

SEND_HIGH_WATER = 64  # frames that may wait in ZeroMQ at either end of a pipe
PACK_RECORDS = 64  # records that go into one frame
PACK_OCTETS = 1 << 16
BACKLOG_RECORDS = 256  # data records that wait here once ZeroMQ is full; beyond that the newest are dropped
REPEAT_AT_START = 64  # frames of the journal that a starting producer repeats unasked

assert PACK_RECORDS <= MAX_RECORDS


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """First frame after a start: how far the sender has processed the receiver's frames."""

    done: int
    version: int = VERSION


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The next frame is number `first`; `done`: as in Hello."""

    first: int
    done: int = 0


encode = msgspec.json.Encoder().encode
decode_hello = msgspec.json.Decoder(Hello).decode
decode_resume = msgspec.json.Decoder(Resume).decode


def set_defaults(socket: zmq.Socket) -> None:
    """The options that every ZeroMQ socket of the stack has; set before bind or connect."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_OCTETS)
    socket.setsockopt(zmq.RECONNECT_IVL, 1)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 8)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 1000)


class Outlet:
    """The producer's end of one pipe. `cell` is where the last number sent is kept in the durable words.

    Whoever puts the first record of a turn finds the outlet in `touched`, the list of outlets to flush.
    """

    def __init__(self, socket: zmq.Socket, sender: int, consumer: int, journal: Journal, durable: memory.Memory,
                 cell: int, touched: list[Outlet]) -> None:
        self.socket = socket
        self.consumer = consumer
        self._send = socket.send
        self._sender = sender
        self._journal = journal
        self._words = durable.words
        self._counters = durable.bus_counters
        self._cell = cell
        self._touched = touched
        self._incarnation = self._words[memory.INCARNATION]
        self.sequence = max(self._words[cell], journal.last_sequence(consumer))
        self._frames: deque[bytes] = deque()  # packed, waiting for room in ZeroMQ
        self._backlog: list[tuple[int, bytes]] = []  # records that wait behind those
        self._kind = 0
        self._records: list[bytes] = []
        self._octets = 0

    @property
    def blocked(self) -> bool:
        """True while something waits for room: `flush` should be called again soon."""
        return bool(self._frames or self._backlog)

    def put(self, kind: int, record: bytes) -> None:
        """Queue one record; it leaves at the next `flush`, or earlier with a full pack."""
        records = self._records
        if not records:
            self._touched.append(self)
            self._kind = kind
        elif kind != self._kind or len(records) >= PACK_RECORDS or self._octets + len(record) > PACK_OCTETS:
            self.flush()
            self._touched.append(self)
            self._kind = kind
            records = self._records
        records.append(record)
        self._octets += len(record)

    def flush(self) -> None:
        """Hand what was put to ZeroMQ; what does not fit waits in the backlog, what does not fit there is dropped."""
        if self._frames or self._backlog:
            self._drain()
        records = self._records
        if not records:
            return
        self._records = []
        self._octets = 0
        if not self._frames:
            self._transmit(self._kind, records)
            return
        room = BACKLOG_RECORDS - len(self._backlog)
        if self._kind >= table.CONTROL_KIND_MIN:
            room = len(records)  # never dropped: bounded by what applications may have under way
        self._backlog.extend((self._kind, record) for record in records[: max(0, room)])
        self._counters[C.bus_pipe_full] += len(records[max(0, room) :])

    def _transmit(self, kind: int, records: list[bytes]) -> None:
        sequence = self.sequence + 1
        frame = pack_frame(kind, self._sender, self._incarnation, sequence, records)
        self._journal.append(self.consumer, sequence, frame)
        self._words[self._cell] = self.sequence = sequence
        try:
            self._send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._frames.append(frame)
            return
        self._counters[C.bus_frames_out] += 1

    def _drain(self) -> None:
        frames, backlog = self._frames, self._backlog
        try:
            while frames:
                self._send(frames[0], zmq.NOBLOCK)
                frames.popleft()
                self._counters[C.bus_frames_out] += 1
        except zmq.Again:
            return
        at = 0
        while at < len(backlog) and not frames:
            kind, end, octets = backlog[at][0], at, 0
            while end < len(backlog) and end - at < PACK_RECORDS and backlog[end][0] == kind and octets < PACK_OCTETS:
                octets += len(backlog[end][1])
                end += 1
            self._transmit(kind, [record for _, record in backlog[at:end]])
            at = end
        del backlog[:at]

    def greet(self, fields: dict[str, object]) -> None:
        """Say HELLO, and repeat the end of the journal: what this process's predecessor may not have got out."""
        self._frames.append(self._unnumbered(table.HELLO, encode(fields)))
        self._repeat(self._journal.frames(self.consumer, 0, REPEAT_AT_START), 0)

    def resume(self, after: int, done: int) -> None:
        """Answer a HELLO: repeat everything that is kept beyond number `after`."""
        self.flush()
        self._frames.clear()  # all of it is in the journal
        self._repeat(self._journal.frames(self.consumer, after), done)

    def _repeat(self, kept: list[tuple[int, bytes]], done: int) -> None:
        first = kept[0][0] if kept else self.sequence + 1
        self._frames.append(self._unnumbered(table.RESUME, encode(Resume(first=first, done=done))))
        self._frames.extend(with_incarnation(frame, self._incarnation) for _, frame in kept)
        self._counters[C.bus_replayed] += len(kept)
        self._drain()
        if self._frames:
            self._touched.append(self)

    def _unnumbered(self, kind: int, record: bytes) -> bytes:
        return pack_frame(kind, self._sender, self._incarnation, 0, [record])


class Verdict(Enum):
    """What an Inlet says of a frame."""

    NEXT = 0
    REPEATED = C.bus_repeated
    EARLY = C.bus_early
    STALE = C.bus_stale


class Inlet:
    """The consumer's end of one pipe. `done_cell` is where the last number worked off is kept in the durable words."""

    __slots__ = ("sender", "kinds", "done", "incarnation", "awaiting", "_words", "_cell", "_counters")

    def __init__(self, sender: int, kinds: frozenset[int], durable: memory.Memory, done_cell: int) -> None:
        self.sender = sender
        self.kinds = kinds
        self._words = durable.words
        self._counters = durable.bus_counters
        self._cell = done_cell
        self.done: int = durable.words[done_cell]
        self.incarnation = 0
        self.awaiting = True

    def judge(self, incarnation: int, sequence: int) -> Verdict:
        """Whether the frame is to be processed now; if so it counts as taken (`commit` makes that durable)."""
        if incarnation != self.incarnation:
            if incarnation < self.incarnation:
                return Verdict.STALE
            self.incarnation = incarnation
        if sequence == self.done + 1:
            self.done = sequence
            return Verdict.NEXT
        if sequence <= self.done:
            return Verdict.REPEATED
        if self.awaiting:
            return Verdict.EARLY
        self._counters[C.bus_lost] += sequence - self.done - 1
        self.done = sequence
        return Verdict.NEXT

    def resumed(self, first: int) -> None:
        """The sender repeats from `first`: whatever is missing below is lost."""
        self.awaiting = False
        if first > self.done + 1:
            self._counters[C.bus_lost] += first - 1 - self.done
            self.done = first - 1

    def commit(self) -> None:
        """All that was taken so far has been worked off and what came of it was sent."""
        self._words[self._cell] = self.done

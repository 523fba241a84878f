"""The two ends of a pipe.

`Outlet`: the producer's. Packs records, numbers and journals frames, never blocks, is bounded; sends again what a
neighbour that restarted has missed.
`Inlet`: the consumer's. Decides for each frame whether it is next, a repetition, ahead of its turn, or stale.

The rule, the same on every pipe and for applications (docs/app-protocol.md): frames are numbered from 1. Who starts
says HELLO with the number that it processed last; the other end answers RESUME with its own, and repeats from there.
Who starts also repeats the end of its own journal at once, because the last frames may have died inside its process;
whether that was far enough the answer tells, and if not it repeats more.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Annotated

import msgspec

from bus import messages
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.durable.journal import Journal
from bus.messages import decoder
from usernet.pipe.direct import Push
from usernet.pipe.frame import MAX_RECORDS, VERSION, pack_frame, with_incarnation

PACK_RECORDS = 64  # records that go into one frame
PACK_OCTETS = 1 << 16
BACKLOG_RECORDS = 1024  # of data, that wait behind a full pipe; a third of a second of steady traffic: a hung layer's
BACKLOG_OCTETS = 1 << 22  # successor is there by then. Beyond either the newest is dropped
COUNTER_MAX = (1 << 64) - 1
REPEAT_AT_START = 16  # frames of the journal that a starting producer repeats unasked; more, once the consumer answers

assert PACK_RECORDS <= MAX_RECORDS


SequenceNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # as msgspec has it; no pipe ever gets there


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """First frame after a start: how far the sender has processed the receiver's frames."""

    done: SequenceNumber
    version: int = VERSION


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The next frame is number `first`; `done`: as in Hello."""

    first: SequenceNumber
    done: SequenceNumber = 0


encode = msgspec.json.Encoder().encode
decode_hello = decoder(Hello)
decode_resume = decoder(Resume)


def inherit(durable: layout.Memory) -> None:
    """At a start: count the data that died in the backlogs of the former incarnation."""
    durable.bus_counters[C.bus_pipe_full] += durable.words[layout.WAITING]
    durable.words[layout.WAITING] = 0


class Outlet:
    """The producer's end of one pipe. `cell` is where the last number sent is kept in the durable words.

    Whoever puts the first record of a turn finds the outlet in `touched`, the list of those that a turn ends with:
    `pack`, then the journal is published, then `send`. Where all of it is one frame, `relay` does the three in one.
    """

    __slots__ = ("_backlog", "_backlog_octets", "_backlog_records", "_cell", "_counters", "_frames", "_fresh",
                 "_incarnation", "_journal", "_kind", "_octets", "_records", "_repeated_from", "_send", "_sender",
                 "_touched", "_words", "consumer", "sequence", "socket", "waits")

    def __init__(self, socket: Push, sender: int, consumer: int, journal: Journal, durable: layout.Memory,
                 cell: int, touched: list[Outlet], backlog_records: int | None = None) -> None:
        self._backlog_records = BACKLOG_RECORDS if backlog_records is None else backlog_records
        self.socket = socket
        self.consumer = consumer
        self._send = socket.send
        self._sender = sender
        self._journal = journal
        self._words = durable.words
        self._counters = durable.bus_counters
        self._cell = cell
        self._touched = touched
        self._incarnation = self._words[layout.INCARNATION]
        self.sequence = max(self._words[cell], journal.last_sequence(consumer))
        self.waits = False  # True while something is not out
        self._frames: deque[bytes] = deque()  # packed and published, waiting for room in the socket
        self._fresh: list[bytes] = []  # packed in this turn: follow those, once the turn is published
        self._backlog: deque[tuple[int, bytes]] = deque()  # data that waits behind those, to leave in larger packs
        self._backlog_octets = 0
        self._repeated_from: int | None = None  # where the repetition at the start began, until the consumer answers
        self._kind = 0
        self._records: list[bytes] = []
        self._octets = 0

    @property
    def blocked(self) -> bool:
        """True while more waits than the socket takes in."""
        return bool(self._frames or self._backlog)

    @property
    def fresh(self) -> bool:
        """True where records were put that are not packed yet."""
        return bool(self._records)

    def put(self, kind: int, record: bytes) -> None:
        """Queue one record; it leaves when the turn ends, in as few frames as it can."""
        records = self._records
        if not records:
            self._touched.append(self)
            self._kind = kind
        elif kind != self._kind or len(records) >= PACK_RECORDS or self._octets + len(record) > PACK_OCTETS:
            self.pack()
            self._touched.append(self)
            self._kind = kind
            records = self._records
        records.append(record)
        self._octets += len(record)

    def pack(self) -> None:
        """Pack what was put; where older frames wait for room data waits here, or is dropped."""
        if self.waits:
            self._drain()
            while self._backlog and not self._frames:
                self._pack_backlog()
        records = self._records
        if not records:
            return
        self._records = []
        self._octets = 0
        if self._frames:
            self._pack_behind(self._kind, records)
        else:
            self._transmit(self._kind, records)

    def _pack_behind(self, kind: int, records: list[bytes]) -> None:
        if kind >= messages.CONTROL_KIND_MIN:
            # Never dropped, nor lost with this process: into the journal now, and in order, so all that waits goes too.
            while self._backlog:
                self._pack_backlog()
            self._transmit(kind, records)
            return
        backlog, waiting = self._backlog, len(self._backlog)
        for record in records:
            if len(backlog) >= self._backlog_records or self._backlog_octets + len(record) > BACKLOG_OCTETS:
                break
            backlog.append((kind, record))
            self._backlog_octets += len(record)
        kept = len(backlog) - waiting
        self._words[layout.WAITING] += kept
        self._counters[C.bus_pipe_full] += len(records) - kept

    def relay(self, taken: Inlet) -> bool:
        """End a turn that took from one inlet and put into this outlet only; False where the three steps remain.

        They do the same; this is for speed: a twentieth of a ping's and of an echo's time.
        """
        records = self._records
        if self.waits or self._fresh or not records or not self.socket.open:
            return False
        self._records = []
        self._octets = 0
        self.sequence = sequence = self.sequence + 1
        frame = pack_frame(self._kind, self._sender, self._incarnation, sequence, records)
        self._journal.write(self.consumer, sequence, frame, taken.sender, taken.done)
        self._journal.publish(())
        self._words[self._cell] = sequence
        if not self._send(frame):
            self._fresh.append(frame)
            return False
        self._counters[C.bus_frames_out] += 1
        return self.socket.open

    def send(self) -> bool:
        """The turn is published: hand what was packed to the socket. True where some of it waits."""
        self._words[self._cell] = self.sequence
        fresh, socket = self._fresh, self.socket
        if not self.waits and socket.open:  # as a rule: all of it leaves now
            sent = 0
            for frame in fresh:
                if not self._send(frame):
                    break
                sent += 1
            self._counters[C.bus_frames_out] += sent
            if sent == len(fresh) and socket.open:
                fresh.clear()
                return False
            del fresh[:sent]
        self._frames += fresh
        fresh.clear()
        self._drain()
        return self.waits

    def _transmit(self, kind: int, records: list[bytes]) -> None:
        self.sequence = sequence = self.sequence + 1
        frame = pack_frame(kind, self._sender, self._incarnation, sequence, records)
        self._journal.write(self.consumer, sequence, frame)
        self._fresh.append(frame)

    def _drain(self) -> None:
        frames, send, socket = self._frames, self._send, self.socket
        while frames and send(frames[0]):
            frames.popleft()
            self._counters[C.bus_frames_out] += 1
        if not socket.open:
            socket.flush()
        self.waits = bool(frames or self._backlog) or (not socket.open and socket.waiting)

    def _pack_backlog(self) -> None:
        """Make the first of the backlog a frame."""
        backlog = self._backlog
        kind, octets = backlog[0][0], 0
        records: list[bytes] = []
        while backlog and len(records) < PACK_RECORDS and backlog[0][0] == kind and octets < PACK_OCTETS:
            records.append(backlog.popleft()[1])
            octets += len(records[-1])
        self._backlog_octets -= octets
        self._words[layout.WAITING] -= len(records)
        self._transmit(kind, records)

    def greet(self, fields: dict[str, object]) -> None:
        """First of all: say HELLO, and repeat what this process's predecessor may not have got out.

        No RESUME yet: it would say that all before is lost, and the consumer may need more than this. Meanwhile it
        takes what comes in order.
        """
        self._say(messages.HELLO, encode(fields))
        kept = self._journal.frames(self.consumer, 0, REPEAT_AT_START)
        self._repeated_from = kept[0][0] if kept else self.sequence + 1
        self._repeat(kept)

    def answered(self, done: int, own_done: int) -> None:
        """The consumer has processed up to `done`: repeat more where the repetition at the start began beyond that."""
        first = self._repeated_from
        if first is None:
            return
        if done + 1 < first:
            self.resume(done, own_done)
            return
        self._repeated_from = None
        self._say(messages.RESUME, encode(Resume(first=first, done=own_done)))

    def resume(self, after: int, done: int) -> None:
        """Answer a HELLO: repeat everything that is kept beyond number `after`."""
        self.pack()
        self._frames.clear()  # all of it is in the journal
        self._fresh.clear()
        self._repeated_from = None
        kept = self._journal.frames(self.consumer, after)
        first = kept[0][0] if kept else self.sequence + 1
        self._say(messages.RESUME, encode(Resume(first=first, done=done)))
        self._repeat(kept)

    def _repeat(self, kept: list[tuple[int, bytes]]) -> None:
        self._fresh.extend(with_incarnation(frame, self._incarnation) for _, frame in kept)
        self._counters[C.bus_replayed] += len(kept)
        self._touched.append(self)

    def _say(self, kind: int, record: bytes) -> None:
        """A greeting: it has no number, and waits for nothing but room."""
        self._frames.append(pack_frame(kind, self._sender, self._incarnation, 0, [record]))
        self._drain()
        if self.waits:
            self._touched.append(self)


class Verdict(Enum):
    """What an Inlet says of a frame."""

    NEXT = 0
    REPEATED = C.bus_repeated
    EARLY = C.bus_early
    STALE = C.bus_stale


_NEXT = Verdict.NEXT  # an attribute of an Enum is slow to reach


class Inlet:
    """The consumer's end of one pipe. `done_cell` is where the last number worked off is kept in the durable words."""

    __slots__ = ("_cell", "_counters", "_words", "awaiting", "done", "incarnation", "kinds", "sender")

    def __init__(self, sender: int, kinds: frozenset[int], durable: layout.Memory, done_cell: int,
                 journaled: int = 0) -> None:
        self.sender = sender
        self.kinds = kinds
        self._words = durable.words
        self._counters = durable.bus_counters
        self._cell = done_cell
        # The journal is ahead where the former incarnation died between publishing a turn and storing the cell.
        self.done: int = max(durable.words[done_cell], journaled)
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
            return _NEXT
        if sequence <= self.done:
            return Verdict.REPEATED
        if self.awaiting:
            return Verdict.EARLY
        self._skip_to(sequence - 1)
        self.done = sequence
        return Verdict.NEXT

    def resumed(self, first: int) -> None:
        """The sender repeats from `first`: whatever is missing below is lost."""
        self.awaiting = False
        if first > self.done + 1:
            self._skip_to(first - 1)

    def _skip_to(self, done: int) -> None:
        lost = self._counters[C.bus_lost] + done - self.done
        self._counters[C.bus_lost] = min(lost, COUNTER_MAX)  # numbers are the sender's, and may be anything
        self.done = done

    def commit(self) -> None:
        """All that was taken so far has been worked off and what came of it is published."""
        self._words[self._cell] = self.done

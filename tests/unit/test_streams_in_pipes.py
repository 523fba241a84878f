"""What waits behind a full pipe: streams are never dropped and merge, and a tap stands at the one door."""

from __future__ import annotations

import struct
from collections import deque

import lengths
import pytest
from durable import Durable
from hypothesis import given
from hypothesis import strategies as st

from bus import messages, topology
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.runtime.backlog import AHEAD_FLOW_OCTETS, ENTRY_OCTETS
from bus.runtime.outbox import BACKLOG_RECORDS, Outbox
from bus.runtime.turn import Turn
from usernet.pipe import streams
from usernet.pipe.frame import unpack_frame
from usernet.pipe.streams import READ, READ_RECORD, RESUME, ROOM, ROOM_RECORD, STREAM, STREAM_HEADER, STREAM_HELD

HELD = struct.Struct("<IIQI4s")


class Queue:
    """Stands for a PUSH socket: takes frames until it is full."""

    waiting, open = False, True

    def __init__(self, room: int) -> None:
        self.room = room
        self.frames: deque[bytes] = deque()

    def send(self, frame: bytes) -> bool:
        if len(self.frames) >= self.room:
            return False
        self.frames.append(frame)
        return True


class Producer:
    def __init__(self, durable: Durable) -> None:
        self.memory = durable.map()
        self.memory.words[layout.INCARNATION] = 1
        self.queue, turn = Queue(0), Turn(self.memory)
        self.journal = turn.journal
        self.outbox = Outbox(self.queue, topology.UDP, topology.SOCKETS, layout.SENT + topology.SOCKETS, turn)
        self.says((messages.PACKET, b"first"), (messages.PACKET, b"second"))  # fills the pipe

    def says(self, *records: tuple[int, bytes]) -> None:
        for kind, record in records:
            self.outbox.enqueue(kind, record)
        self.ends_turn()

    def ends_turn(self) -> None:
        self.outbox.seal()
        self.journal.publish(())
        self.outbox.send()

    def sent(self) -> list[tuple[int, bytes]]:
        """All that arrives once there is room, but for what filled the pipe."""
        self.queue.room = 1 << 30
        self.ends_turn()
        self.ends_turn()
        return [(kind, record) for kind, _, _, _, records in map(unpack_frame, self.queue.frames)
                for record in records][2:]


@pytest.fixture
def producer():
    durable = Durable()
    yield Producer(durable)
    durable.close()


def read(handle: int, total: int, flags: int = 0) -> tuple[int, bytes]:
    return READ, READ_RECORD.pack(handle, flags, total, total)


def held(handle: int, offset: int, length: int, flags: int = 0, where: bytes = b"ring") -> tuple[int, bytes]:
    return STREAM_HELD, HELD.pack(handle, flags, offset, length, where)


def test_behind_a_full_pipe_the_latest_total_of_each_handle_takes_the_place_of_the_older(producer):
    for total in range(10_000):
        producer.says(read(1, total), read(2, 2 * total))
    assert producer.sent() == [read(1, 9_999), read(2, 19_998)]


def test_a_merged_record_keeps_the_flags_of_the_older_one(producer):
    producer.says(read(1, 5, RESUME))
    producer.says(read(1, 6))
    producer.says((ROOM, ROOM_RECORD.pack(1, streams.FINISHED, 1, 1, 9)), (ROOM, ROOM_RECORD.pack(1, RESUME, 2, 2, 9)))
    room = ROOM_RECORD.pack(1, streams.FINISHED | RESUME, 2, 2, 9)
    assert producer.sent() == [read(1, 6, RESUME), (ROOM, room)]


def test_descriptors_that_follow_each_other_become_one(producer):
    producer.says(held(1, 0, 10), held(1, 10, 5), held(2, 0, 7), held(1, 15, 1, streams.STREAM_END))
    producer.says(held(2, 8, 1), held(2, 9, 1, where=b"else"))  # a gap; another memory
    assert producer.sent() == [held(1, 0, 16, streams.STREAM_END), held(2, 0, 7), held(2, 8, 1),
                               held(2, 9, 1, where=b"else")]


def test_octets_of_streams_are_never_dropped_and_stay_in_order_with_control(producer):
    octets = [(STREAM, STREAM_HEADER.pack(1, 0, number) + b"x") for number in range(2 * BACKLOG_RECORDS)]
    producer.says(*octets)
    producer.says((messages.SOCKET_REPLY, b"control"))
    assert producer.sent() == [*octets, (messages.SOCKET_REPLY, b"control")]


def test_streams_take_no_room_from_data_and_are_not_counted_as_waiting_data(producer):
    producer.says(*[(STREAM, STREAM_HEADER.pack(1, 0, number)) for number in range(2 * BACKLOG_RECORDS)])
    ahead = AHEAD_FLOW_OCTETS // (8 + ENTRY_OCTETS)
    producer.says(*[(messages.PACKET, b"flow%4d" % number) for number in range(ahead + BACKLOG_RECORDS + 3)])
    assert producer.memory.words[layout.WAITING] == BACKLOG_RECORDS
    assert producer.memory.bus_counters[C.bus_pipe_full] == 3
    assert len(producer.sent()) == ahead + 3 * BACKLOG_RECORDS
    assert producer.memory.words[layout.WAITING] == 0


@given(lengths.lists(st.tuples(st.integers(1, 3), st.integers(1, 50), st.booleans()), 60))
def test_whatever_merges_says_the_same_in_the_end(steps):
    """Descriptors cover the same octets, in order, wherever the pipe was full."""
    durable = Durable()
    producer, offsets = Producer(durable), {1: 0, 2: 0, 3: 0}
    for handle, length, room in steps:
        producer.queue.room += room
        producer.says(held(handle, offsets[handle], length))
        offsets[handle] += length
    covered = dict.fromkeys(offsets, 0)
    for _, record in producer.sent():
        handle, _, offset, length, _ = HELD.unpack(record)
        assert offset == covered[handle]
        covered[handle] += length
    assert covered == offsets
    durable.close()

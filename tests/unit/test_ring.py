"""bus.runtime.ring: nothing torn, nothing invented, and what is lost is counted."""

from __future__ import annotations

import mmap
import os
import signal
from typing import NoReturn

import lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.runtime import ring


def pair(octets: int = 4096) -> tuple[ring.RingWriter, ring.RingReader]:
    memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE + octets))  # shared with forked processes
    return ring.RingWriter(memory, 1), ring.RingReader(memory)


def put(writer: ring.RingWriter, number: int, octets: bytes) -> None:
    writer.put(number, ring.OUT, 3, 11, [octets, octets[:1]], 1)


@settings(max_examples=60)
@given(lengths.lists(st.integers(-1, 900) | st.sampled_from([-1, 0]), 60))
def test_entries_are_read_in_order_or_counted_as_lost(steps):
    """A step is a record's size, or -1: the reader reads."""
    writer, reader = pair()
    read, written = [], 0
    for number, size in enumerate(steps):
        if size < 0:
            read += reader.read()
        else:
            put(writer, number, bytes([number]) * size)
            written += 1
    read += reader.read()
    assert 2 * len(read) + reader.lost == 2 * written
    assert [entry.when_ns for entry in read] == sorted(entry.when_ns for entry in read)
    for entry in read:
        whole = bytes([entry.when_ns]) * steps[entry.when_ns]
        assert entry.records == [whole, whole[:1]]
        assert entry[1:4] == (ring.OUT, 3, 11)


def test_a_full_ring_loses_the_newest_and_goes_on():
    writer, reader = pair()
    for number in range(100):
        put(writer, number, bytes(100))
    kept = reader.read()
    assert [entry.when_ns for entry in kept] == list(range(len(kept)))
    assert reader.lost == 2 * (100 - len(kept)) > 0
    put(writer, 200, b"again")
    assert [entry.when_ns for entry in reader.read()] == [200]


def test_a_larger_record_than_the_ring_is_lost():
    writer, reader = pair()
    put(writer, 1, bytes(5000))
    assert reader.read() == []
    assert reader.lost == 2


def _write_on(memory: memoryview, number: int) -> NoReturn:
    try:
        writer = ring.RingWriter(memory, 7)
        while True:
            put(writer, number, number.to_bytes(8, "little") * 40)
            number += 1
    finally:
        os._exit(1)


def test_a_writer_that_is_killed_leaves_whole_entries_and_a_successor_goes_on():
    memory = memoryview(mmap.mmap(-1, 1 << 16))
    reader = ring.RingReader(memory)
    last = -1
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            _write_on(memory, last + 1)
        try:
            seen = 0
            while seen < 200:
                for entry in reader.read():
                    assert entry.records[0] == entry.when_ns.to_bytes(8, "little") * 40
                    seen += 1
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for entry in reader.read():
            assert entry.records[0] == entry.when_ns.to_bytes(8, "little") * 40
            last = entry.when_ns


def test_another_owner_begins_anew():
    memory = memoryview(mmap.mmap(-1, 1 << 16))
    put(ring.RingWriter(memory, 1), 5, b"old")
    put(ring.RingWriter(memory, 2), 6, b"new")
    put(ring.RingWriter(memory, 2), 7, b"new")
    assert [entry.when_ns for entry in ring.RingReader(memory).read()] == [6, 7]

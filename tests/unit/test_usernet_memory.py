"""What an application reads of a stream whose octets lie partly in a ring of shared memory."""

from __future__ import annotations

import mmap
import threading

import pytest

from usernet.client.memory import Memory
from usernet.client.streams import StreamDescription
from usernet.pipe.rings import APPLICATION_OCTETS, ApplicationRings
from usernet.pipe.streams import HELD_RECORD, STREAM_HEADER

RING = 1 << 24 | 1  # the first block, for the first time
TEXT = bytes(range(256)) * 8


@pytest.fixture
def stream() -> StreamDescription:
    """With 2,048 octets in a ring, of which tcp has told."""
    rings = ApplicationRings(mmap.mmap(-1, APPLICATION_OCTETS))
    rings.cells[0] = RING
    found = rings.ring(RING)
    assert found is not None
    found.write(0, TEXT)
    made = StreamDescription(threading.RLock(), 7, 65536)
    made.memory = Memory.__new__(Memory)
    made.memory._rings = rings
    made.take_held(HELD_RECORD.pack(7, 0, 0, len(TEXT), RING))
    return made


def free(stream: StreamDescription) -> None:
    """tcp gives the ring to another stream."""
    stream.memory._rings.cells[0] = RING + (1 << 24)


def test_octets_of_a_record_are_read_though_the_ring_of_earlier_ones_was_freed(stream):
    """tcp frees a ring of which everything was read for a larger one, and names that with the next large segment."""
    assert stream.take(len(TEXT), peek=False) == TEXT
    free(stream)
    stream.take_stream(STREAM_HEADER.pack(7, 0, len(TEXT)) + b"small")
    assert stream.take(100, peek=False) == b"small"
    assert not stream.moved


def test_octets_of_a_ring_that_was_freed_are_not_read(stream):
    free(stream)
    assert stream.take(len(TEXT), peek=False) == b""
    assert stream.moved

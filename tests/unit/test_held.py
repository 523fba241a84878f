"""References to octets in shared memory: what is refused, and that all code that must see the octets gets them."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import pytest

from bus import messages
from bus.counters import PipeCounters
from bus.durable.arena import Arena, octets_for
from bus.durable.held import REFERENCE, Held, Holdings, held_octets

HEAD = b"the head of a record"
TEXT = random.Random(7).randbytes(60_000)


class Owner:
    """A memory with one ring, and another process's view of it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("test")
        os.ftruncate(self.descriptor, octets_for(1 << 24))
        self.arena = Arena(mmap.mmap(self.descriptor, 0))
        self.reference = self.arena.allocate(1 << 16)
        self.ring = self.arena.ring(self.reference)
        self.counters = PipeCounters.new()
        self.readable = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY)
        self.holdings = Holdings((self.readable,), self.counters)

    @property
    def gone(self) -> int:
        return self.counters[PipeCounters.bus_held_gone]


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    os.close(made.descriptor)
    os.close(made.readable)


@pytest.mark.parametrize("offset", [0, 5, (1 << 16) - 100, (1 << 40) + 65_000])
def test_the_octets_are_found_also_where_the_ring_begins_again(owner: Owner, offset: int) -> None:
    owner.ring.write(offset, TEXT)
    record = HEAD + Held(owner.reference, offset, len(TEXT), 0).pack()
    assert held_octets(record) == len(TEXT)
    assert owner.holdings.inline(messages.TRANSMIT_HELD, record) == (messages.TRANSMIT, HEAD + TEXT)
    assert owner.holdings.inline(messages.PACKET_OUT_HELD, record) == (messages.PACKET_OUT, HEAD + TEXT)
    head, pieces = owner.holdings.pieces(record)
    assert head == HEAD
    assert b"".join(pieces) == TEXT
    assert not owner.gone


def test_a_record_of_another_kind_stays_as_it_is(owner: Owner) -> None:
    assert owner.holdings.inline(messages.TRANSMIT, HEAD) == (messages.TRANSMIT, HEAD)


@pytest.mark.parametrize("change", [
    {"length": 0}, {"length": (1 << 16) + 1}, {"length": 0xFFFFFFFF}, {"memory": 1}, {"memory": 0xFFFFFFFF},
    {"ring": 0}, {"ring": (1 << 64) - 1}])
def test_a_reference_to_nothing_is_counted(owner: Owner, change: dict[str, int]) -> None:
    good = Held(owner.reference, 0, 5000, 0)
    assert owner.holdings.inline(messages.TRANSMIT_HELD, HEAD + good.pack()) is not None
    assert owner.holdings.inline(messages.TRANSMIT_HELD, HEAD + good._replace(**change).pack()) is None
    assert owner.gone == 1


def test_a_ring_that_was_given_to_another_stream_is_found_out(owner: Owner) -> None:
    record = HEAD + Held(owner.reference, 0, 5000, 0).pack()
    owner.arena.free(owner.reference, 0.0)
    assert owner.holdings.inline(messages.TRANSMIT_HELD, record) is None
    again = owner.arena.allocate(1 << 16)  # the same memory, as it is warm
    assert again & 0xFFFFFF == owner.reference & 0xFFFFFF
    assert owner.holdings.inline(messages.TRANSMIT_HELD, record) is None
    assert owner.gone == 2


@pytest.mark.parametrize("octets", range(REFERENCE.size))
def test_a_record_without_a_reference_is_counted(owner: Owner, octets: int) -> None:
    assert held_octets(bytes(octets)) == 0
    assert owner.holdings.inline(messages.TRANSMIT_HELD, bytes(octets)) is None
    assert owner.gone == 1


def test_a_reader_cannot_write(owner: Owner) -> None:
    record = HEAD + Held(owner.reference, 0, 5000, 0).pack()
    found = owner.holdings.pieces(record)
    assert found is not None
    assert found[1][0].readonly
    with pytest.raises(PermissionError):
        mmap.mmap(owner.readable, 0)


def test_random_references_never_raise(owner: Owner) -> None:
    rng = random.Random(1)
    for _ in range(2000):
        owner.holdings.inline(messages.TRANSMIT_HELD, rng.randbytes(rng.randrange(64)))

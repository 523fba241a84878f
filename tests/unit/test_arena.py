"""The arena: rings that outlive their owner, and references that find out when memory was reused."""

from __future__ import annotations

import mmap

import lengths
import pytest
from durable import dies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.durable import arena as arena_module
from bus.durable.arena import BLOCK_OCTETS, IDLE_S, POISON, Arena, Ring, Rings, octets_for, order_for, ring_octets

KB64, KB256, MB, MB4 = (BLOCK_OCTETS * 4**order for order in range(4))


def mapping(octets: int = MB4) -> mmap.mmap:
    return mmap.mmap(-1, octets_for(octets))


@pytest.mark.parametrize(("octets", "size"), [(0, KB64), (1, KB64), (KB64, KB64), (KB64 + 1, KB256), (MB - 1, MB),
                                              (MB + 1, MB4), (MB4, MB4), (2 * MB4, MB4)])
def test_a_ring_is_the_smallest_that_holds_it_and_never_above_4_mib(octets: int, size: int):
    assert BLOCK_OCTETS << 2 * order_for(octets) == size
    arena = Arena(mapping())
    reference = arena.allocate(octets)
    assert (ring_octets(reference), arena.ring(reference).size, arena.used) == (size, size, size)


@given(st.integers(0, 2**40), lengths.octets(100), st.integers(0, 30))
@example(512 * 7 - 3, b"to the end and on", 4)  # of either ring
def test_a_ring_gives_back_what_was_written_at_any_offset(offset, octets, skip):
    ring = Ring(memoryview(bytearray(128)))
    ring.write(offset, octets)
    assert ring.read(offset, len(octets)) == b"".join(ring.pieces(offset, len(octets))) == octets
    assert ring.read(offset + skip, max(0, len(octets) - skip)) == octets[skip:]
    larger = Ring(memoryview(bytearray(512)))
    ring.copy_to(larger, offset, offset + len(octets))
    assert larger.read(offset, len(octets)) == octets


def test_the_ring_freed_last_is_the_next():
    arena = Arena(mapping())
    first, second = arena.allocate(1), arena.allocate(1)
    arena.free(first, 0.0)
    arena.free(second, 0.0)
    third = arena.allocate(1)
    assert (third & 0xFFFFFF, third) == (second & 0xFFFFFF, second + (1 << 24))
    assert arena.allocate(1) & 0xFFFFFF == first & 0xFFFFFF


def test_all_of_it_can_be_used_in_any_size_again_and_again():
    arena = Arena(mapping(2 * MB4))
    for size, count in ((KB64, 128), (MB4, 2), (KB256, 32), (KB64, 128), (MB, 8)):
        references = [arena.allocate(size) for _ in range(count)]
        assert all(references)
        assert arena.allocate(1) == 0
        assert arena.used == 2 * MB4
        for reference in references:
            arena.free(reference, 0.0)
    assert arena.used == 0


def test_the_limit_holds():
    arena = Arena(mapping(), limit=3 * KB64)
    references = [arena.allocate(1) for _ in range(4)]
    assert references[3] == 0
    assert arena.crowded
    arena.free(references[0], 0.0)
    assert not arena.crowded
    assert arena.allocate(KB256) == 0
    assert arena.allocate(1)


def test_a_reference_to_reused_memory_is_found_out_by_owner_and_reader():
    mapped = mapping()
    arena, reader = Arena(mapped), Rings(mapped)
    old = arena.allocate(1)
    ring = reader.ring(old)
    arena.ring(old).write(0, b"stream")
    assert ring.read(0, 6) == b"stream"
    arena.free(old, 0.0)
    assert not reader.good(old)
    new = arena.allocate(1)
    assert new & 0xFFFFFF == old & 0xFFFFFF
    assert (reader.ring(old), arena.ring(old), reader.good(new)) == (None, None, True)
    with pytest.raises(KeyError):
        arena.free(old, 0.0)


@given(st.integers(0, 2**64 - 1))
def test_no_number_is_an_exception(number):
    arena = Arena(mapping())
    assert (arena.ring(number), arena.good(number)) == (None, False)


def test_freed_memory_is_poisoned_where_a_test_asks_for_it():
    arena = Arena(mapping(), poison=True)
    reference = arena.allocate(1)
    ring = arena.ring(reference)
    ring.write(0, b"x" * KB64)
    arena.free(reference, 0.0)
    assert set(ring.memory) == {POISON}


def test_growing_moves_the_octets_to_their_new_place():
    arena = Arena(mapping())
    small = arena.allocate(1)
    start, octets = 10 * KB64 - 1000, bytes(range(250)) * 200
    arena.ring(small).write(start, octets)
    large = arena.grow(small, KB64 + 1, start, start + len(octets))
    arena.free(small, 0.0)
    assert arena.ring(large).read(start, len(octets)) == octets
    assert (arena.used, arena.grow(large, MB4, 0, 0)) == (KB256, 0)


def test_memory_that_was_free_for_seconds_is_returned_to_the_system():
    arena = Arena(mapping())
    kept, idle = arena.allocate(1), arena.allocate(1)
    for reference in (kept, idle):
        arena.ring(reference).write(0, b"z" * KB64)
    memory = arena.ring(idle).memory
    arena.free(idle, 10.0)
    assert arena.trim(10.0) == arena.trim(10.0 + IDLE_S / 2) == 10.0 + IDLE_S
    assert memory[0] == ord("z")
    assert arena.trim(10.0 + IDLE_S) is None
    assert set(memory) == {0}
    assert set(arena.ring(kept).memory) == {ord("z")}
    assert arena.allocate(1) & 0xFFFFFF == idle & 0xFFFFFF


def test_many_pieces_are_returned_in_portions(monkeypatch):
    monkeypatch.setattr(arena_module, "TRIMMED_AT_ONCE", 3)
    arena = Arena(mapping())
    references = [arena.allocate(1) for _ in range(8)]
    memories = [arena.ring(reference).memory for reference in references]
    for memory in memories:
        memory[0] = 1
    for reference in references:
        arena.free(reference, 10.0)
    for returned in (3, 6):
        assert arena.trim(20.0) == 10.0 + IDLE_S  # the rest is due at once
        assert sum(not memory[0] for memory in memories) == returned
    assert arena.trim(20.0) is None
    assert not any(memory[0] for memory in memories)


def test_a_successor_has_what_is_named_and_gives_back_the_rest():
    mapped = mapping()
    arena = Arena(mapped)
    named, forgotten = arena.allocate(1), arena.allocate(MB)
    arena.ring(named).write(5, b"kept")
    successor = Arena(mapped, [named], now=100.0)
    assert (successor.used, successor.good(forgotten), successor.refused) == (KB64, False, [])
    assert successor.ring(named).read(5, 4) == b"kept"
    assert successor.trim(100.0) == 100.0 + IDLE_S
    assert len([1 for _ in range(63) if successor.allocate(1)]) == 63
    assert successor.allocate(1) == 0


def test_foreign_octets_in_the_table_do_not_matter_to_the_owner():
    mapped = mapping()
    arena = Arena(mapped)
    named = arena.allocate(KB256)
    mapped[: 8 * arena.blocks] = b"\xff" * 8 * arena.blocks
    successor = Arena(mapped, [named])
    assert (successor.good(named), successor.used) == (True, KB256)
    others = [successor.allocate(1) for _ in range(61)]
    assert others.count(0) == 1
    assert others[-1] == 0


def blocks_of(reference: int) -> range:
    """Those of the ring with this reference in 4 MiB; none: there can be no such ring."""
    first, order = reference >> 8 & 0xFFFF, (reference & 0xFF) - 1
    possible = 0 <= order <= 3 and not first % 4**order and first + 4**order <= MB4 // KB64
    return range(first, first + 4**order) if possible else range(0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.builds(lambda g, b, o: g << 24 | b << 8 | o, st.integers(0, 3),
                                                      st.integers(0, 70), st.integers(0, 5)), max_size=12))
def test_references_that_cannot_be_are_refused(named):
    arena = Arena(mapping(), named)
    good = [reference for reference in named if arena.good(reference)]
    assert sorted([*set(good), *arena.refused]) == sorted(named)
    taken = [block for reference in set(good) for block in blocks_of(reference)]
    assert len(set(taken)) == len(taken)
    assert all(blocks_of(reference) for reference in good)
    assert all(not blocks_of(reference) or set(blocks_of(reference)) & set(taken) for reference in arena.refused)
    assert arena.used == sum(map(ring_octets, set(good)))
    spare = 0
    while arena.allocate(1):
        spare += KB64
    assert spare + sum(map(ring_octets, set(good))) == MB4


ENDS_OF_RINGS = st.builds(lambda rings, before: rings * MB - before, st.integers(1, 2**30), st.integers(1, 200))


class ArenaAgainstAModel(RuleBasedStateMachine):
    """Streams in slots (a dict of cells), each with a ring; the owner may die before any line."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped = mapping(MB)  # so that it is full now and then, and pieces have to be merged
        self.arena = Arena(self.mapped, poison=True)
        self.cells: dict[int, int] = {}  # durable: what the slots name
        self.content: dict[int, tuple[int, bytes]] = {}  # stream -> offset, octets
        self.gone: list[int] = []  # references that no process may read any more
        self.streams = 0
        self.now = 0.0

    def life(self, line, action):
        """An action of the owner, which may die in it; True: it did."""
        died = dies(line, (arena_module,), action)
        if died:
            self.arena = Arena(self.mapped, self.cells.values(), now=self.now, poison=True)
            assert self.arena.refused == []
        return died

    @rule(size=st.sampled_from([1, KB64, KB256, MB]), offset=st.integers(0, 2**50) | ENDS_OF_RINGS,
          octets=lengths.octets(200), line=st.integers(0, 60))
    def open_a_stream(self, size, offset, octets, line):
        self.streams += 1
        stream = self.streams

        def action():
            reference = self.arena.allocate(size)
            if reference:
                self.arena.ring(reference).write(offset, octets)
                self.cells[stream] = reference

        died = self.life(line, action)
        if stream in self.cells:
            self.content[stream] = (offset, octets)
        elif not died:  # there is no free piece of this size
            blocks = 4 ** order_for(size)
            taken = {block for reference in self.cells.values() for block in blocks_of(reference)}
            assert all(taken.intersection(range(at, at + blocks)) for at in range(0, MB // KB64, blocks))

    @precondition(lambda self: self.cells)
    @rule(data=st.data(), line=st.integers(0, 14))
    def close_a_stream(self, data, line):
        stream = data.draw(st.sampled_from(sorted(self.cells)))
        reference = self.cells.pop(stream)
        self.life(line, lambda: self.arena.free(reference, self.now))
        self.gone.append(reference)
        del self.content[stream]

    @precondition(lambda self: self.cells)
    @rule(data=st.data(), size=st.sampled_from([KB256, MB]), line=st.integers(0, 80))
    def grow_a_ring(self, data, size, line):
        stream = data.draw(st.sampled_from(sorted(self.cells)))
        offset, octets = self.content[stream]
        old = self.cells[stream]

        def action():
            larger = self.arena.grow(old, size, offset, offset + len(octets))
            if larger:
                self.cells[stream] = larger
                self.arena.free(old, self.now)

        if ring_octets(old) < size:
            self.life(line, action)
            if self.cells[stream] != old:
                self.gone.append(old)

    @rule(seconds=st.floats(0, 5), line=st.integers(0, 40))
    def time_passes(self, seconds, line):
        self.now += seconds
        self.life(line, lambda: self.arena.trim(self.now))

    @rule()
    def the_owner_dies(self):
        self.life(0, lambda: self.arena.crowded)

    @invariant()
    def streams_have_their_octets_and_nobody_reads_what_is_gone(self):
        reader = Rings(self.mapped)
        taken: set[int] = set()
        for stream, reference in self.cells.items():
            offset, octets = self.content[stream]
            assert reader.ring(reference).read(offset, len(octets)) == octets
            blocks = set(range(reference >> 8 & 0xFFFF, (reference >> 8 & 0xFFFF) + ring_octets(reference) // KB64))
            assert not blocks & taken
            taken |= blocks
        assert self.arena.used == sum(map(ring_octets, self.cells.values())) == len(taken) * KB64
        assert not any(reader.good(reference) for reference in self.gone)


TestArenaAgainstAModel = ArenaAgainstAModel.TestCase
TestArenaAgainstAModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

"""The journal: the newest frames, in order, whatever the crash."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from durable import Durable, dies
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.durable import journal as journal_module
from bus.durable import layout
from bus.durable.journal import ENTRIES_AT_ONCE, ENTRIES_MAX, Journal

RING = layout.JOURNAL_OCTETS
ENTRY = 40  # octets that the ring spends on a frame beside it
LARGEST = RING // 4 - ENTRY  # with the octets of its entry
A, B = 5, 1 << 40  # a layer and a client


class Took(NamedTuple):
    sender: int
    done: int


def frame(number: int, octets: int) -> bytes:
    return number.to_bytes(4, "big") * (octets // 4 + 1)


def append(journal: Journal, consumer: int, sequence: int, octets: bytes) -> None:
    """A turn that makes one frame."""
    journal.write(consumer, sequence, octets)
    journal.publish(())


def kept(journal: Journal, consumer: int = A) -> list[int]:
    return [sequence for sequence, _ in journal.frames(consumer, 0)]


def test_frames_come_back_by_consumer_and_number(durable: Durable):
    journal = Journal(durable.map())
    for sequence in range(1, 6):
        append(journal, A, sequence, b"a%d" % sequence)
        append(journal, B, sequence, b"b%d" % sequence)
    for reader in (journal, Journal(durable.map())):
        assert reader.frames(A, 3) == [(4, b"a4"), (5, b"a5")]
        assert reader.frames(B, 0, at_most=2) == [(4, b"b4"), (5, b"b5")]
        assert reader.frames(A, 5) == reader.frames(7, 0) == []
        assert (reader.last_sequence(A), reader.last_sequence(7)) == (5, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, LARGEST)), min_size=1, max_size=40))
def test_what_is_kept_is_the_newest_and_as_much_as_fits(appended):
    durable = Durable()
    try:
        journal = Journal(durable.map())
        expected: list[tuple[int, int, bytes]] = []
        for sequence, (consumer, octets) in enumerate(appended, 1):
            octets_there = frame(sequence, octets)[:octets]
            append(journal, consumer, sequence, octets_there)
            expected.append((consumer, sequence, octets_there))
            for reader in (journal, Journal(durable.map())):
                found = [(to, *entry) for to in (A, B) for entry in reader.frames(to, 0)]
                found.sort(key=lambda entry: entry[1])
                assert found == expected[len(expected) - len(found) :]
                room = RING - sum(ENTRY + len(octets) for _, _, octets in found)
                if len(found) < len(expected):  # nothing that would fit was thrown away, but for the end of the ring
                    assert room < 2 * (ENTRY + LARGEST)
    finally:
        durable.close()


def test_the_ring_is_filled_to_its_last_octet_and_wraps(durable: Durable):
    journal = Journal(durable.map())
    for sequence in range(1, 9):  # 4 fill it exactly
        append(journal, A, sequence, frame(sequence, LARGEST)[:LARGEST])
        expected = list(range(max(1, sequence - 3), sequence + 1))
        assert kept(journal) == kept(Journal(durable.map())) == expected


@pytest.mark.parametrize("room", range(2 * ENTRY))
def test_an_end_of_the_ring_too_short_for_an_entry_is_skipped(durable: Durable, room: int):
    journal = Journal(durable.map())
    for sequence in (1, 2, 3):
        append(journal, A, sequence, bytes(LARGEST))
    if room < LARGEST:
        append(journal, A, 4, bytes(LARGEST - room))
    append(journal, A, 5, b"x" * 40)
    assert Journal(durable.map()).frames(A, 4) == [(5, b"x" * 40)]
    assert kept(Journal(durable.map())) == kept(journal)


@pytest.mark.parametrize(("octets", "oldest"), [(9, 2), (10, 2), (11, 3), (10 + ENTRY + 10, 3), (10 + ENTRY + 11, 4)])
def test_a_frame_makes_the_room_that_it_takes_and_no_more(durable: Durable, octets: int, oldest: int):
    journal = Journal(durable.map())
    for sequence in (1, 2):
        append(journal, A, sequence, bytes([sequence]) * 10)
    for sequence in (3, 4, 5):
        append(journal, A, sequence, bytes([sequence]) * LARGEST)
    append(journal, A, 6, b"\6" * (LARGEST - 2 * (ENTRY + 10)))  # to the last octet
    append(journal, A, 7, b"\7" * octets)
    for reader in (journal, Journal(durable.map())):
        assert kept(reader) == list(range(oldest, 8))
        assert all(set(octets) == {sequence} for sequence, octets in reader.frames(A, 0))


def test_a_frame_larger_than_a_quarter_of_the_ring_is_not_kept(durable: Durable):
    journal = Journal(durable.map())
    append(journal, A, 1, b"small")
    append(journal, A, 2, bytes(LARGEST + 1))
    assert kept(journal) == kept(Journal(durable.map())) == [1]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4), st.integers(1, LARGEST), st.integers(0, 40))
def test_a_crash_at_any_line_of_a_turn_leaves_the_frame_whole_or_absent(before, octets, line):
    durable = Durable()
    try:
        journal = Journal(durable.map())
        for sequence in range(1, before + 1):
            append(journal, A, sequence, frame(sequence, LARGEST)[:LARGEST])
        new = frame(99, octets)[:octets]
        dies(line, (journal_module,), lambda: append(journal, A, 99, new))
        found = Journal(durable.map()).frames(A, 0)
        if found and found[-1][0] == 99:
            assert found.pop()[1] == new
        assert found == [(number, frame(number, LARGEST)[:LARGEST])
                         for number in range(before - len(found) + 1, before + 1)]
        assert len(found) >= before - 2
    finally:
        durable.close()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8), st.data())
def test_foreign_octets_in_the_ring_are_never_an_exception(frames, data):
    durable = Durable()
    try:
        mapped = durable.map()
        journal = Journal(mapped)
        for sequence, octets in enumerate(frames, 1):
            append(journal, A, sequence, octets)
        head = mapped.words[layout.JOURNAL_HEAD]
        at = data.draw(st.integers(0, head - 1))
        junk = data.draw(st.binary(min_size=1, max_size=40))
        mapped.journal[at : at + len(junk)] = junk
        reader = Journal(durable.map())
        assert len(kept(reader)) <= len(frames)
        append(reader, A, 100, b"goes on")
        assert Journal(durable.map()).frames(A, 0)[-1] == (100, b"goes on")
    finally:
        durable.close()


@pytest.mark.parametrize("length", [0, 4, 1 << 20, 0xFFFFFFFF])
def test_an_entry_that_reaches_beyond_the_published_part_empties_the_journal(durable: Durable, length: int):
    mapped = durable.map()
    append(Journal(mapped), A, 1, b"abc")
    mapped.journal[4:8] = length.to_bytes(4, "little")
    assert kept(Journal(durable.map())) == []


@pytest.mark.parametrize(("tail", "head"), [(0, 1 << 60), (5, 3), ((1 << 64) - 1, (1 << 64) - 1)])
def test_positions_that_cannot_be_give_an_empty_journal(durable: Durable, tail: int, head: int):
    mapped = durable.map()
    mapped.words[layout.JOURNAL_TAIL], mapped.words[layout.JOURNAL_HEAD] = tail, head
    assert kept(Journal(mapped)) == []


def test_a_turn_counts_whole_or_not_at_all(durable: Durable):
    journal = Journal(durable.map())
    append(journal, A, 1, b"before")
    journal.write(A, 2, b"x")
    journal.write(B, 7, b"y")
    died = Journal(durable.map())
    assert (kept(died), kept(died, B), died.done) == ([1], [], {})
    journal.publish([Took(3, 40), Took(4, 50)])
    after = Journal(durable.map())
    assert (kept(after), kept(after, B), after.done) == ([1, 2], [7], {3: 40, 4: 50})


def test_a_turn_that_sends_nothing_leaves_no_note(durable: Durable):
    journal = Journal(durable.map())
    journal.publish([Took(3, 40)])  # its cell alone says so: nothing else has to agree with it
    assert durable.map().words[layout.JOURNAL_HEAD] == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60_000), st.booleans()), min_size=1, max_size=60))
def test_what_a_turn_took_and_what_it_sent_are_known_together(turns):
    durable = Durable()
    try:
        journal = Journal(durable.map())
        published = 0
        for number, (octets, ends) in enumerate(turns, 1):
            journal.write(A, number, bytes(octets))
            if ends or journal.crowded:
                journal.publish([Took(9, number)])
                published = number
            reader = Journal(durable.map())
            assert reader.last_sequence(A) == reader.done.get(9, 0) == published
    finally:
        durable.close()


def test_no_more_frames_are_kept_than_a_restarted_layer_reads_back_at_once(durable: Durable):
    journal = Journal(durable.map())
    for sequence in range(1, ENTRIES_MAX + 4):
        append(journal, A, sequence, b"x")
    assert kept(journal) == kept(Journal(durable.map())) == list(range(ENTRIES_AT_ONCE + 1, ENTRIES_MAX + 4))

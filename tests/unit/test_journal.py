"""The journal: the newest frames, in order, whatever the crash."""

from __future__ import annotations

from typing import NamedTuple

import lengths
import pytest
from durable import Durable, dies
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bus.durable import journal as journal_module
from bus.durable import layout
from bus.durable.journal import CARRIED_PART, CARRIES_MAX, ENTRIES_AT_ONCE, ENTRIES_MAX, Journal

RING = 1 << 20  # a short one, but for the tests of its memory
ENTRY = 40  # octets that the ring spends on a frame beside it
LARGEST = RING // 4 - ENTRY  # with the octets of its entry
A, B = 5, 1 << 40  # a layer and a client
SPARE = 1 << 17  # octets of memory for the words


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
    assert reader.sent == {A: 5, B: 5}


@settings(max_examples=60, deadline=None)
@given(lengths.lists(st.tuples(st.sampled_from([A, B]),
                               st.integers(0, LARGEST) | st.sampled_from([LARGEST, LARGEST // 2])), 24, 1))
@example([(A, LARGEST)] * 9)
@example([(A, LARGEST), (B, LARGEST // 2)] * 6)
def test_the_journal_keeps_the_newest_frames_that_fit(appended):
    durable = Durable()
    try:
        journal = Journal(durable.map())
        expected: dict[int, list[tuple[int, bytes]]] = {A: [], B: []}
        for number, (consumer, octets) in enumerate(appended, 1):
            sequence, octets_there = len(expected[consumer]) + 1, frame(number, octets)[:octets]
            append(journal, consumer, sequence, octets_there)
            expected[consumer].append((sequence, octets_there))
            for reader in (journal, Journal(durable.map())):
                found = {to: reader.frames(to, 0) for to in (A, B)}
                for to in (A, B):
                    assert found[to] == expected[to][len(expected[to]) - len(found[to]) :]
                every = [octets for to in (A, B) for _, octets in found[to]]
                room = RING - sum(ENTRY + len(octets) for octets in every)
                if len(every) < number:  # nothing that would fit was thrown away, but for the end of the ring
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
        dies(line, (journal_module,), lambda: append(journal, A, before + 1, new))
        found = Journal(durable.map()).frames(A, 0)
        if found and found[-1][0] == before + 1:
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
        number = reader.sent.get(A, 0) + 1
        append(reader, A, number, b"goes on")
        assert Journal(durable.map()).frames(A, 0)[-1] == (number, b"goes on")
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
@given(lengths.lists(st.tuples(st.integers(0, 60_000) | st.just(60_000), st.sampled_from([True] + [False] * 9),
                               st.sets(st.sampled_from([7, 8, 9]), min_size=1)), 40, 1))
@example([(60_000, True, {9}), *[(60_000, False, {9})] * 40])  # more than the ring holds, if the turn never ended
@example([(5, True, {7, 8, 9})])
def test_input_and_output_of_a_turn_are_published_together(turns):
    durable = Durable()
    try:
        journal = Journal(durable.map())
        published, done = 0, dict[int, int]()
        for number, (octets, ends, senders) in enumerate(turns, 1):
            journal.write(A, number, bytes(octets))
            if ends or journal.crowded:
                journal.publish([Took(sender, number) for sender in sorted(senders)])
                published = number
                done |= dict.fromkeys(senders, number)
            reader = Journal(durable.map())
            assert reader.sent.get(A, 0) == published
            assert all(reader.done.get(sender) == last for sender, last in done.items() if last == published)
            assert all(done[sender] >= last for sender, last in reader.done.items())
    finally:
        durable.close()


def test_no_more_frames_are_kept_than_a_restarted_layer_reads_back_at_once(durable: Durable):
    journal = Journal(durable.map())
    for sequence in range(1, ENTRIES_MAX + 4):
        append(journal, A, sequence, b"x")
    assert kept(journal) == kept(Journal(durable.map())) == list(range(ENTRIES_AT_ONCE + 1, ENTRIES_MAX + 4))


@pytest.mark.parametrize("octets", [60, 1500, 1 << 16])
def test_much_traffic_to_one_does_not_push_out_the_few_frames_to_others(durable: Durable, octets: int):
    """As many rounds of the ring as a layer that hangs is away; the order of what is kept stays the same."""
    journal = Journal(durable.map())
    quiet = range(B + 1, B + 9)
    for sequence in range(1, 11):
        for consumer in quiet:
            append(journal, consumer, sequence, b"%d to %d" % (sequence, consumer))
    a_round = min(ENTRIES_MAX, RING // (ENTRY + octets))
    for sequence in range(1, 4 * a_round):
        append(journal, B, sequence, bytes(octets))
    for reader in (journal, Journal(durable.map())):
        for consumer in quiet:
            assert reader.frames(consumer, 4) == [
                (sequence, b"%d to %d" % (sequence, consumer)) for sequence in range(5, 11)]
        assert kept(reader, B)[-1] == 4 * a_round - 1
        assert len(kept(reader, B)) > a_round // 2


def test_frames_without_a_reader_are_not_carried_for_ever_and_take_no_more_than_their_part(durable: Durable):
    journal = Journal(durable.map())
    many = range(B + 1, B + 2001)
    for consumer in many:
        append(journal, consumer, 1, bytes(1000))
    for sequence in range(1, 3 * ENTRIES_MAX):
        append(journal, B, sequence, bytes(60))
    carried = [consumer for consumer in many if kept(journal, consumer)]
    assert 0 < len(carried) * 1040 <= RING // CARRIED_PART
    for sequence in range(3 * ENTRIES_MAX, (CARRIES_MAX + 5) * ENTRIES_MAX):
        append(journal, B, sequence, bytes(60))
    for reader in (journal, Journal(durable.map())):
        assert [consumer for consumer in many if kept(reader, consumer)] == []
    assert reader.sent.keys() == {B}
    assert len(kept(journal, B)) > ENTRIES_MAX // 2


@pytest.mark.parametrize("octets", [60, 600, 1500, 3000])
def test_small_frames_need_little_memory_and_as_many_are_kept(durable: Durable, octets: int):
    journal = Journal(durable.map(layout.JOURNAL_OCTETS))
    for sequence in range(1, 5 * ENTRIES_MAX):
        append(journal, A, sequence, bytes(octets))
    for reader in (journal, Journal(durable.map(layout.JOURNAL_OCTETS))):
        assert len(kept(reader)) >= ENTRIES_MAX - ENTRIES_AT_ONCE
        assert kept(reader)[-1] == 5 * ENTRIES_MAX - 1
    assert durable.octets < 1.1 * max(layout.LAP_OCTETS, ENTRIES_MAX * (ENTRY + octets)) + SPARE


def test_memory_that_large_frames_needed_is_given_back(durable: Durable):
    journal = Journal(durable.map(layout.JOURNAL_OCTETS))
    for sequence in range(1, 300):
        append(journal, A, sequence, bytes(60_000))
        before = durable.octets
    assert len(kept(journal)) > 130
    assert before > layout.JOURNAL_OCTETS * 0.9
    for sequence in range(300, 300 + 40_000):
        append(journal, A, sequence, b"%d" % sequence)
    assert durable.octets < 2 * layout.LAP_OCTETS  # of 16 MiB
    for reader in (journal, Journal(durable.map(layout.JOURNAL_OCTETS))):
        assert all(octets == b"%d" % sequence for sequence, octets in reader.frames(A, 0))
        assert len(kept(reader)) >= ENTRIES_MAX - ENTRIES_AT_ONCE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(0, 70_000)), min_size=1, max_size=25), st.integers(0, 30))
def test_the_newest_frames_are_kept_whole_whatever_their_lengths_and_the_crash(runs, line):
    """Runs of frames of one length, so that the ring begins again early and late; then a crash in the next turn."""
    durable = Durable()
    try:
        journal = Journal(durable.map(layout.JOURNAL_OCTETS))
        lengths: list[int] = []
        for count, octets in runs:
            for _ in range(count):
                lengths.append(octets)
                append(journal, A, len(lengths), frame(len(lengths), octets)[:octets])
        dies(line, (journal_module,), lambda: append(journal, A, len(lengths) + 1, b"dies"))
        found = Journal(durable.map(layout.JOURNAL_OCTETS)).frames(A, 0)
        if found and found[-1] == (len(lengths) + 1, b"dies"):
            found.pop()
        assert [sequence for sequence, _ in found] == list(range(len(lengths) - len(found) + 1, len(lengths) + 1))
        assert all(octets == frame(sequence, lengths[sequence - 1])[: lengths[sequence - 1]]
                   for sequence, octets in found)
        if len(found) < min(len(lengths), ENTRIES_MAX - ENTRIES_AT_ONCE - 1):
            assert sum(ENTRY + len(octets) for _, octets in found) > layout.LAP_OCTETS - 2 * 70_000
    finally:
        durable.close()


@pytest.mark.parametrize(("lap", "kept_of_small"), [(layout.LAP_OCTETS, 0), (layout.JOURNAL_OCTETS, ENTRIES_MAX // 2)])
def test_small_frames_before_large_ones_are_kept_if_streams_pass_the_layer(durable: Durable, lap, kept_of_small):
    """Then there may be closes among them. If not, as many large ones are kept as before, and all that follow."""
    mapped = durable.map(layout.JOURNAL_OCTETS, lap)
    journal = Journal(mapped)
    sequence = 0
    while sequence < ENTRIES_MAX or mapped.words[layout.JOURNAL_HEAD] % layout.JOURNAL_OCTETS > 40_000:
        sequence += 1
        append(journal, A, sequence, bytes(600))
    for large in range(1, 100):
        append(journal, A, sequence + large, bytes(60_000))
        assert len(kept(journal)) >= large
    assert len(kept(journal)) >= 99 + kept_of_small

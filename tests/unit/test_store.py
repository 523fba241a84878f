"""The store: a dict that outlives its process, at whatever line that dies; what a turn deletes counts with the turn."""

from __future__ import annotations

import struct
import zlib

import pytest
from durable import Durable, dies
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from bus.counters import PipeCounters
from bus.durable import key_value_log as store_module
from bus.durable import layout
from bus.durable.key_value_log import KeyValueLog, StoreFull

KEYS = st.sampled_from([0, 1, 2, 7, (1 << 64) - 1])
VALUES = st.binary(max_size=80)
ARENA = layout.STORE_ARENA_OCTETS


def damaged(durable: Durable) -> int:
    return durable.map().bus_counters[PipeCounters.bus_state_damaged]


class StoreAndDict(RuleBasedStateMachine):
    """The same done to both; a crash in the middle leaves one of them as it was, or done.

    A crash also undoes what was deleted since the turn before was published.
    """

    def __init__(self) -> None:
        super().__init__()
        self.durable = Durable()
        self.durable.map().words[layout.BLAMELESS] = 1
        self.store = KeyValueLog(self.durable.map())
        self.model: dict[int, bytes] = {}
        self.deleted: dict[int, bytes] = {}

    @rule(key=KEYS, value=VALUES)
    def set(self, key, value):
        self.store[key] = self.model[key] = value

    @rule(key=KEYS)
    def delete(self, key):
        if key in self.model:
            self.deleted[key] = self.model.pop(key)
            del self.store[key]
        else:
            with pytest.raises(KeyError):
                del self.store[key]

    @rule()
    def publish(self):
        self.durable.map().words[layout.JOURNAL_HEAD] += 48
        self.deleted.clear()

    @rule()
    def crash(self):
        self.store = KeyValueLog(self.durable.map())
        self.model = {**self.deleted, **self.model}
        self.deleted = {}

    @rule(key=KEYS, value=st.none() | VALUES, line=st.integers(0, 90))
    def crash_within(self, key, value, line):
        before = {**self.deleted, **self.model}
        if value is None:
            after = before
            dies(line, (store_module,), lambda: self.store.pop(key, None))
        else:
            after = {**before, key: value}
            if not dies(line, (store_module,), lambda: self.store.__setitem__(key, value)):
                before = after
        again = dies(line, (store_module,), lambda: KeyValueLog(self.durable.map()))  # this one may die, too
        found = dict(KeyValueLog(self.durable.map()))
        assert found in (before, after), again
        self.store, self.model, self.deleted = KeyValueLog(self.durable.map()), found, {}

    @invariant()
    def they_agree(self):
        assert dict(self.store) == self.model
        assert len(self.store) == len(self.model)
        assert all(key in self.store for key in self.model)
        assert 3 not in self.store

    def teardown(self):
        assert damaged(self.durable) == 0
        self.durable.close()


def test_a_store_is_a_dict_over_any_crash(monkeypatch):
    monkeypatch.setattr(store_module, "_COMPACT_ABOVE", 128)
    run_state_machine_as_test(
        StoreAndDict, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=10), st.data())
def test_damaged_octets_are_seen_and_end_the_reading_there(values, data):
    durable = Durable()
    try:
        mapped = durable.map()
        store = KeyValueLog(mapped)
        ends = [0]
        for key, value in enumerate(values):
            store[key] = value
            ends.append(mapped.words[layout.STORE_STATE] >> 1)
        at = data.draw(st.integers(0, ends[-1] - 1))
        mapped.arenas[0][at] ^= data.draw(st.integers(1, 255))
        intact = next(number for number, end in enumerate(ends[1:]) if end > at)
        again = KeyValueLog(durable.map())
        assert dict(again) == dict(enumerate(values[:intact]))
        assert damaged(durable) == 1
        again[99] = b"goes on"
        assert KeyValueLog(durable.map())[99] == b"goes on"
        assert damaged(durable) == 1
    finally:
        durable.close()


@given(st.binary(min_size=1, max_size=64))
@settings(max_examples=30, deadline=None)
def test_octets_beyond_the_published_part_do_not_count(junk):
    durable = Durable()
    try:
        mapped = durable.map()
        store = KeyValueLog(mapped)
        store[1] = b"one"
        end = mapped.words[layout.STORE_STATE] >> 1
        mapped.arenas[0][end : end + len(junk)] = junk
        assert dict(KeyValueLog(durable.map())) == {1: b"one"}
        assert damaged(durable) == 0
    finally:
        durable.close()


@pytest.mark.parametrize("end", [1, 15, 17, 200, ARENA - 5, ARENA, ARENA + 1, 1 << 62])
@pytest.mark.parametrize("arena", [0, 1])
def test_a_length_that_cannot_be_is_seen(durable: Durable, end: int, arena: int):
    mapped = durable.map()
    mapped.words[layout.STORE_STATE] = end << 1 | arena
    assert dict(KeyValueLog(durable.map())) == {}
    assert damaged(durable) == 1


def test_the_same_value_again_is_not_written(durable: Durable):
    mapped = durable.map()
    store = KeyValueLog(mapped)
    store[1] = b"same"
    before = mapped.words[layout.STORE_STATE]
    store[1] = b"same"
    assert mapped.words[layout.STORE_STATE] == before


def test_a_log_that_is_mostly_dead_is_copied_and_its_memory_given_back(durable: Durable):
    mapped = durable.map()
    store = KeyValueLog(mapped)
    store[0] = b"stays"
    for number in range(200):
        store[1] = bytes([number]) * 1024
    state = mapped.words[layout.STORE_STATE]
    assert state >> 1 <= store_module._COMPACT_ABOVE + 2048
    assert not any(mapped.arenas[1 - (state & 1)][: 1 << 17])
    assert dict(KeyValueLog(durable.map())) == dict(store) == {0: b"stays", 1: bytes([199]) * 1024}


def test_a_store_is_full_only_when_its_live_records_are(durable: Durable):
    store = KeyValueLog(durable.map())
    share = ARENA // 64 - 16
    for key in range(62):  # 62 of 64 parts live
        store[key] = bytes([key]) * share
    store[100] = b"x" * share
    del store[100]
    with pytest.raises(StoreFull):
        store[101] = b"y" * share  # a crash now would undo the deletion
    durable.map().words[layout.JOURNAL_HEAD] += 1
    store[101] = b"y" * share  # there is room once what is dead is gone
    with pytest.raises(StoreFull):
        store[102] = bytes(3 * share)
    again = KeyValueLog(durable.map())
    assert len(again) == 63
    assert again[101] == b"y" * share
    assert again[61] == bytes([61]) * share


def test_a_full_store_starts_though_what_was_deleted_last_comes_back(durable: Durable):
    store = KeyValueLog(durable.map())
    share = ARENA // 64 - 16 - 2  # 128 octets are free
    for key in range(64):
        store[key] = bytes([key]) * share
    del store[0], store[1], store[2]
    durable.map().words[layout.BLAMELESS] = 1
    for _ in range(2):  # so often it dies before that turn is published
        again = KeyValueLog(durable.map())
        assert len(again) == 64
        assert again[1] == bytes([1]) * share
    durable.map().words[layout.JOURNAL_HEAD] += 1
    assert len(KeyValueLog(durable.map())) == 64


@pytest.mark.parametrize("compact", [False, True])
def test_what_comes_back_is_behind_what_was_stored_in_its_place(durable: Durable, compact: bool):
    store = KeyValueLog(durable.map())
    store[1], store[2], store[3] = b"closed", b"moved", b"stays"
    durable.map().words[layout.JOURNAL_HEAD] += 1
    durable.map().words[layout.BLAMELESS] = 1
    del store[1], store[2]
    store[2] = b"in place of 1"
    if compact:
        store._compact()
    assert list(KeyValueLog(durable.map()).items())[-2:] == [(2, b"in place of 1"), (1, b"closed")]
    assert list(KeyValueLog(durable.map()).items())[-2:] == [(2, b"in place of 1"), (1, b"closed")]


def test_a_store_of_former_code_is_read(durable: Durable):
    """It stored a deletion as the bare head of a record, which counts at once."""
    mapped = durable.map()
    store = KeyValueLog(mapped)
    store[1], store[2] = b"one", b"two"
    start, gone = mapped.words[layout.STORE_STATE] >> 1, 0xFFFFFFFF
    check = zlib.crc32(struct.pack("=IQ", gone, 1))
    mapped.arenas[0][start : start + 16] = struct.pack("=IIQ", check, gone, 1)
    mapped.words[layout.STORE_STATE] += 16 << 1
    again = KeyValueLog(durable.map())
    again[3] = b"three"
    assert dict(KeyValueLog(durable.map())) == {2: b"two", 3: b"three"}
    assert damaged(durable) == 0


@pytest.mark.parametrize("blameless", [False, True])
def test_a_turn_that_kills_the_layer_again_does_not_delete_for_ever(durable: Durable, blameless: bool):
    words = durable.map().words
    words[layout.BLAMELESS] = blameless
    for first in (1, 11):
        store = KeyValueLog(durable.map())
        store[first], store[first + 1] = b"one", b"two"
        words[layout.JOURNAL_HEAD] += 48
        for death in range(1, 5):
            assert sorted(store) == ([first, first + 1] if blameless or death < 3 else []), death
            for key in store:
                del store[key]
            store = KeyValueLog(durable.map())
            words[layout.JOURNAL_HEAD] += 48 * (death % 2)  # by its start
        for key in (first, first + 1):  # now it deletes, and lives
            store[key] = b"again"
            del store[key]
            words[layout.JOURNAL_HEAD] += 48

"""Records by octets in a state that has integers for keys, against a dict, with restarts in between."""

from __future__ import annotations

import lengths
from durable import Durable
from hypothesis import example, given
from hypothesis import strategies as st

from bus.durable import layout
from bus.durable.key_value_log import KeyValueLog
from layers.common.keyed_state import KeyedState

BASE = 2 << 32
KEYS = st.sampled_from([b"\1\x0a\0\0" + bytes((n,)) for n in range(6)] + [b"\1" + bytes(15) + b"\1", b"\2\x0a\0\0\0"])
PUT = st.tuples(st.just("put"), KEYS, st.binary(max_size=3))


@given(lengths.lists(PUT | st.tuples(st.just("discard"), KEYS, st.none()) | st.just(("restart", b"", None)), 40))
def test_the_last_stored_value_is_there_after_a_restart(steps):
    state, model = {7: b"of others", BASE + (1 << 32): b"too"}, {}
    kept = KeyedState(state, BASE)
    for step, key, value in steps:
        if step == "put":
            kept.put(key, value)
            model[key] = value
        elif step == "discard":
            kept.discard(key)
            model.pop(key, None)
        else:
            kept = KeyedState(state, BASE)
            assert kept.load() == model
        assert len(state) == 2 + len(model)
    assert KeyedState(state, BASE).load() == model
    assert (state[7], state[BASE + (1 << 32)]) == (b"of others", b"too")


RECORDS = st.builds(lambda key, value: bytes((len(key),)) + key + value, KEYS, st.binary(max_size=3))


@given(st.dictionaries(st.integers(BASE, BASE + 9), RECORDS | RECORDS | st.binary(max_size=6), max_size=9))
@example({BASE + 3: b"\1kone", BASE: b"\1ktwo", BASE + 2: b"\4k"})
def test_an_item_that_is_no_record_is_deleted_and_of_two_with_one_key_the_second(state):
    expected: dict[bytes, bytes] = {}
    for record in state.values():
        if record and 0 < record[0] < len(record):
            expected.setdefault(record[1 : 1 + record[0]], record[1 + record[0] :])
    kept = KeyedState(state, BASE)
    assert kept.load() == expected
    assert len(state) == len(expected)
    for number in range(10):  # those that follow take places that are free
        kept.put(b"new %d" % number, b"value")
        expected[b"new %d" % number] = b"value"
    assert KeyedState(state, BASE).load() == expected


def test_of_two_numbers_of_a_key_the_later_counts_if_a_turn_was_cut_short(durable: Durable):
    durable.map().words[layout.BLAMELESS] = 1
    kept = KeyedState(KeyValueLog(durable.map()), BASE)
    kept.put(b"\1", b"old")
    kept.put(b"\2", b"other")
    kept.discard(b"\1")
    kept.discard(b"\2")
    kept.put(b"\1", b"new")  # it has the number of the other
    for _ in range(2):
        state = KeyValueLog(durable.map())
        assert KeyedState(state, BASE).load() == {b"\1": b"new"}

"""The random numbers of a recorded layer: those of its key, evenly spread, and not to be told from others."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import pytest

from bus.runtime.keyed_random import KeyedRandom

KEY = bytes(range(32))
# Outputs of 32 bits that tell all later ones of the Mersenne Twister, by its tempering, which can be undone.
STATE_WORDS = 624


def untempered(word: int) -> int:
    """The word of the Mersenne Twister's state of which `word` is the output."""
    word ^= word >> 18
    word ^= word << 15 & 0xEFC60000
    found = word
    for _ in range(5):
        found = word ^ (found << 7 & 0x9D2C5680)
    word = found
    for _ in range(3):
        found = word ^ found >> 11
    return found


def predicted(outputs: list[int]) -> random.Random:
    """A Mersenne Twister that goes on after these outputs of one."""
    twister = random.Random()
    twister.setstate((3, (*map(untempered, outputs), STATE_WORDS), None))
    return twister


@pytest.mark.parametrize(("rng", "is_predicted"), [(random.Random(5), True), (KeyedRandom(KEY), False)])
def test_who_has_seen_many_numbers_cannot_tell_the_next(rng, is_predicted):
    attacker = predicted([rng.getrandbits(32) for _ in range(STATE_WORDS)])
    following = [rng.getrandbits(32) for _ in range(10)]
    assert ([attacker.getrandbits(32) for _ in range(10)] == following) == is_predicted


def draws(rng: random.Random) -> list[object]:
    return [rng.randrange(16384), rng.getrandbits(3), rng.random(), rng.randbytes(100), rng.uniform(0, 2),
            rng.choice("abc"), rng.getrandbits(0), rng.gauss(0, 1), rng.sample(range(100), 3)]


def test_the_same_key_gives_the_same_numbers_and_no_other_does():
    assert draws(KeyedRandom(KEY)) == draws(KeyedRandom(KEY)) != draws(KeyedRandom(KEY[:31] + b"x"))


def test_a_checkpoint_goes_on_where_it_was():
    rng = KeyedRandom(KEY)
    draws(rng)
    copy = pickle.loads(pickle.dumps(rng))
    for _ in range(20):
        assert draws(copy) == draws(rng)


def test_no_number_is_preferred():
    rng = KeyedRandom(KEY)
    counts = Counter(rng.randrange(10) for _ in range(20_000))
    assert set(counts) == set(range(10))
    assert all(1800 < count < 2200 for count in counts.values())  # five standard deviations
    assert all(0 <= rng.random() < 1 for _ in range(1000))
    assert {rng.getrandbits(9).bit_length() for _ in range(2000)} >= {9, 8, 7, 6}


def test_arguments_that_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        KeyedRandom(KEY).getrandbits(-1)
    with pytest.raises(ValueError, match="no secret"):
        KeyedRandom(b"")

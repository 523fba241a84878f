"""Identification numbers: unique per source, destination and protocol while a packet may live, whatever crashes."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers.ip.identification import (
    BLOCK,
    BLUR_INTERVAL_S,
    BLUR_PER_SECOND,
    LIFETIME_S,
    SECRET_KEY,
    SERIES,
    Identifications,
    Series,
)

ME, PEER, OTHER = (IPv4Address(address).packed for address in ("10.0.0.2", "10.0.0.7", "10.0.0.8"))
UDP, ICMP = 17, 1


def table(state: dict[int, bytes] | None = None, seed: int = 1) -> Identifications:
    made = Identifications({} if state is None else state, random.Random(seed))
    made.start()
    return made


def series(state: dict[int, bytes] | None = None, seed: int = 1) -> Series:
    return table(state, seed).series(ME, PEER, UDP)


def test_rfc6864_4_2_what_goes_to_others_uses_up_no_number_of_ours():
    made = table()
    ours, *others = [made.series(*three) for three in ((ME, PEER, UDP), (ME, OTHER, UDP), (ME, PEER, ICMP),
                                                       (OTHER, PEER, UDP))]
    assert len({id(each) for each in (ours, *others)}) == 4
    before = ours.next(0.0)
    for other in others:
        other.run(5000, 0.0)
    assert ours.next(0.0) == (before + 1) & 0xFFFF


def test_the_same_three_have_the_same_series_also_after_a_crash():
    state: dict[int, bytes] = {}
    made = table(state)
    assert made.series(ME, PEER, UDP) is made.series(ME, PEER, UDP)
    last = made.series(ME, PEER, UDP).run(3, 0.0) + 2
    again = table(state, seed=2).series(ME, PEER, UDP).next(0.0)
    assert 0 < (again - last) & 0xFFFF <= BLOCK


def test_which_series_it_is_hangs_on_a_secret():
    def shared(seed: int) -> set[int]:
        """Of many destinations those that share their series with the first."""
        made = table(seed=seed)
        first = made.series(ME, bytes(4), UDP)
        return {n for n in range(1, 20000) if made.series(ME, n.to_bytes(4, "big"), UDP) is first}

    assert shared(1)
    assert shared(1) != shared(2)


def test_the_table_is_bounded_and_full_of_series_that_begin_anywhere():
    state: dict[int, bytes] = {}
    made = table(state)
    firsts = [made.series(ME, n.to_bytes(4, "big"), UDP).next(0.0) for n in range(4 * SERIES)]
    assert len(state) <= SERIES + 1
    assert len(set(firsts)) > SERIES


def test_rfc791_3_2_numbers_repeat_after_65536_and_not_before():
    numbers = series()
    seen = [numbers.next(0.0) for _ in range(65537)]
    assert len(set(seen)) == 65536
    assert seen[0] == seen[-1]


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1]),
                          st.sampled_from([0.0, 0.01, BLUR_INTERVAL_S, 1.0, 11.0])), max_size=10), st.randoms())
def test_rfc6864_4_2_no_number_comes_twice_within_a_lifetime_whatever_dies_when(lives, chance):
    """After each life the process dies and a successor goes on with what was stored."""
    state: dict[int, bytes] = {}
    seen: list[int] = []
    now = 1000.0
    for packets, pause in lives:
        numbers = series(state, seed=chance.randrange(1 << 30))
        for _ in range(packets):
            seen.append(numbers.next(now))
            now += pause / max(1, packets)
    assert len(set(seen)) == len(seen)


def test_rfc6864_4_2_a_sender_of_as_many_as_fit_into_a_lifetime_never_repeats_one():
    numbers = series()
    rate = 65536 / LIFETIME_S - BLUR_PER_SECOND
    used: dict[int, float] = {}
    for n in range(200_000):
        now = n / rate
        number = numbers.next(now)
        assert now - used.get(number, -LIFETIME_S) >= LIFETIME_S
        used[number] = now


def test_numbers_do_not_tell_how_many_packets_were_sent_meanwhile():
    steps = set()
    for seed in range(200):
        numbers = series(seed=seed)
        first = numbers.next(0.0)
        steps.add((numbers.next(1.0) - first) & 0xFFFF)
    assert min(steps) >= 1
    assert max(steps) <= 1 + BLUR_PER_SECOND
    assert len(steps) > 50


def test_after_a_lifetime_of_silence_a_series_begins_anywhere():
    steps = []
    for seed in range(50):
        numbers = series(seed=seed)
        first = numbers.next(0.0)
        steps.append((numbers.next(2 * LIFETIME_S) - first) & 0xFFFF)
    assert max(steps) > 32768


def test_a_run_has_no_gaps():
    numbers = series()
    numbers.next(0.0)
    firsts = [numbers.run(10, at) for at in (50.0, 50.0, 50.0)]
    assert [(after - before) & 0xFFFF for before, after in pairwise(firsts)] == [10, 10]


@pytest.mark.parametrize("stored", [b"", b"xy", bytes(17)])
def test_an_invalid_secret_is_drawn_anew(stored):
    state = {SECRET_KEY: stored}
    table(state)
    assert len(state[SECRET_KEY]) == 16

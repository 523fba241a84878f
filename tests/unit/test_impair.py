"""bus.runtime.impair: each of netem's effects, its order of steps, and that it can be had again."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from statistics import quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.runtime.impair import Impairment, Settings

N = 20_000


class Bench:
    """An impairment of 100-octet items that are numbers, with a clock that the test moves."""

    def __init__(self, **fields) -> None:
        self.noted: list[tuple[int, str]] = []
        self.model: Impairment[int] = Impairment(
            Settings(**fields), lambda item: 100, lambda item, rng: -item, lambda *note: self.noted.append(note))
        self.left: list[tuple[float, int]] = []

    @property
    def dropped(self) -> list[tuple[int, str]]:
        return [note for note in self.noted if note[1] in ("loss", "nth", "limit")]

    def run(self, count: int, every: float = 0.001) -> list[int]:
        """Offer 1 to `count`, then let all leave; what left, in order."""
        for number in range(1, count + 1):
            at = number * every
            self.until(at)
            self.left += [(at, item) for item in self.model.offered(number, at)]
        self.until(float("inf"))
        return [item for _, item in self.left]

    def until(self, now: float) -> None:
        while (wake := self.model.next_wake) is not None and wake <= now:
            self.left += [(wake, item) for item in self.model.due(wake)]


def test_nothing_set_nothing_done():
    assert Settings().idle
    assert Settings(seed=4).idle
    assert not Settings(delay=1).idle
    assert Bench().run(100) == list(range(1, 101))


@pytest.mark.parametrize("correlation", [0.0, 0.25])
def test_loss_is_the_share_that_was_asked_for(correlation):
    bench = Bench(loss=0.05, loss_correlation=correlation, seed=1)
    left = bench.run(N)
    lost = N - len(left)
    if correlation:  # tc-netem(8) warns that correlation bends the share: extremes get rarer
        assert 0 < lost < 0.05 * N
    else:
        assert lost == pytest.approx(0.05 * N, rel=0.1)
    assert len(bench.dropped) == lost
    assert {why for _, why in bench.dropped} == {"loss"}


def test_gilbert_elliott_loses_in_bursts():
    bench = Bench(gemodel=(0.01, 0.25, 1.0, 0.0), seed=2)
    left = set(bench.run(N))
    assert N - len(left) == pytest.approx(N * 0.01 / 0.26, rel=0.15)  # share of time in the bad state
    bursts, length = [], 0
    for number in range(1, N + 1):
        if number in left:
            bursts += [length] if length else []
            length = 0
        else:
            length += 1
    assert sum(bursts) / len(bursts) == pytest.approx(4, rel=0.15)  # 1 / 0.25


def test_delay_is_constant_and_keeps_the_order():
    bench = Bench(delay=0.02)
    assert bench.run(100) == list(range(1, 101))
    assert all(at == pytest.approx(item * 0.001 + 0.02) for at, item in bench.left)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_jitter_spreads_around_the_delay_and_reorders(distribution):
    bench = Bench(delay=0.1, jitter=0.01, distribution=distribution, limit=N, seed=3)
    left = bench.run(N, every=0.0001)
    waited = [at - item * 0.0001 for at, item in bench.left]
    assert sum(waited) / N == pytest.approx(0.1, rel=0.02)
    assert left != sorted(left)
    assert sorted(left) == list(range(1, N + 1))
    if distribution == "uniform":
        assert 0.09 - 1e-9 <= min(waited) < max(waited) <= 0.11 + 1e-9
    else:
        assert sum(abs(wait - 0.1) < 0.01 for wait in waited) == pytest.approx(0.68 * N, rel=0.05)


def test_correlation_does_not_narrow_jitter():
    """As measured with tc-netem: with 10 ms and 50 % the quartiles of a ping were 28.8, 33.4 and 38.9 ms, without 28.2,
    33.6 and 38.2 (tests/netem)."""
    bench = Bench(delay=0.1, jitter=0.01, delay_correlation=0.5, seed=4)
    bench.run(4000, every=1.0)
    found = quantiles(at - item for at, item in bench.left)
    assert found == pytest.approx([0.095, 0.1, 0.105], abs=0.0006)


def test_duplicates_come_twice_and_next_to_each_other():
    bench = Bench(duplicate=0.1, seed=5)
    left = bench.run(N)
    twice = [number for number, count in Counter(left).items() if count == 2]
    assert bench.noted == [(number, "duplicate") for number in twice]
    assert len(twice) == pytest.approx(0.1 * N, rel=0.1)
    assert left == sorted(left)


def test_loss_takes_one_of_two():
    """netem: duplication and loss of the same packet leave one."""
    assert Bench(duplicate=1.0, loss=1.0).run(50) == list(range(1, 51))


def test_reorder_sends_a_share_at_once():
    bench = Bench(delay=0.01, reorder=0.25, seed=6)
    bench.run(N)
    early = sum(at - item * 0.001 < 0.005 for at, item in bench.left)
    assert early == pytest.approx(0.25 * N, rel=0.1)


def test_gap_reorders_every_nth():
    bench = Bench(delay=0.0105, reorder=1.0, gap=5)
    bench.run(100)
    assert [item for at, item in bench.left if at - item * 0.001 < 0.005] == list(range(5, 101, 5))


def test_reorder_without_delay_is_refused():
    with pytest.raises(ValueError, match="needs a delay"):
        Settings(reorder=0.5)


def test_corruption_hands_the_item_to_the_corruptor():
    left = Bench(corrupt=0.01, seed=7).run(N)
    assert sum(item < 0 for item in left) == pytest.approx(0.01 * N, rel=0.25)
    assert [abs(item) for item in left] == list(range(1, N + 1))


def test_rate_spaces_packets_by_their_length():
    bench = Bench(rate=800_000, limit=100_000)  # 100 octets in 1 ms
    bench.run(1000, every=0.0001)
    times = [at for at, _ in bench.left]
    assert all(b - a == pytest.approx(0.001) for a, b in itertools.pairwise(times))


def test_rate_with_delay_is_delay_then_the_line():
    """netem: what waits behind another has waited its delay meanwhile."""
    bench = Bench(rate=800_000, delay=0.05)
    bench.run(20, every=0.0001)
    times = [at for at, _ in bench.left]
    assert times[0] == pytest.approx(0.0001 + 0.05 + 0.001)
    assert all(b - a == pytest.approx(0.001) for a, b in itertools.pairwise(times))


def test_queue_limit_drops_the_newest():
    bench = Bench(delay=1.0, limit=10)
    left = bench.run(25)
    assert left == list(range(1, 11))
    assert bench.dropped == [(n, "limit") for n in range(11, 26)]


def test_drop_nth_is_exact():
    bench = Bench(drop_nth=4)
    assert bench.run(12) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert bench.dropped == [(4, "nth"), (8, "nth"), (12, "nth")]


def test_flush_gives_all_back_in_order():
    bench = Bench(delay=5.0)
    for number in (1, 2, 3):
        bench.model.offered(number, float(number))
    assert len(bench.model) == 3
    assert bench.model.flush() == [1, 2, 3]
    assert bench.model.next_wake is None


shares = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@settings(max_examples=100)
@given(st.builds(dict, loss=shares, duplicate=shares, corrupt=shares, reorder=shares,
                 delay=st.sampled_from([0.01, 0.5]), jitter=st.sampled_from([0.0, 0.02]),
                 rate=st.sampled_from([0.0, 1e5]),
                 seed=st.integers(0, 99), limit=st.sampled_from([3, 1000]), drop_nth=st.sampled_from([0, 3])),
       st.lists(st.floats(0, 0.1), max_size=40))
def test_books_balance_and_a_seed_repeats(fields, pauses):
    def run():
        bench, now = Bench(**fields), 0.0
        for number, pause in enumerate(pauses, 1):
            now += pause
            bench.until(now)
            bench.left += [(now, item) for item in bench.model.offered(number, now)]
        bench.until(float("inf"))
        return bench

    first, second = run(), run()
    assert first.left == second.left
    assert first.dropped == second.dropped
    left, dropped = Counter(abs(item) for _, item in first.left), Counter(item for item, _ in first.dropped)
    for number in range(1, len(pauses) + 1):
        copies = left[number] + sum(count for item, count in dropped.items() if abs(item) == number)
        assert copies in ((1, 2) if fields["duplicate"] else (1,))
    assert [at for at, _ in first.left] == sorted(at for at, _ in first.left)


def test_without_a_seed_it_differs():
    random.seed(0)
    assert Bench(loss=0.5).run(200) != Bench(loss=0.5).run(200)

"""When a dead layer starts again, and when a silent one is called hung; with a clock that the test moves."""

from __future__ import annotations

import pytest

from supervisor.policy import (
    AT_ONCE,
    FIRST_PAUSE_S,
    GIVE_UP_AFTER,
    HUNG_AFTER_S,
    LAST_PAUSE_S,
    STABLE_S,
    SUSPECT_AFTER_S,
    Restarts,
    Sample,
    Watch,
)

QUICK = STABLE_S / 2
TICK_S = 0.05


# -- restarts --------------------------------------------------------------------------------------------------------


def test_the_first_quick_deaths_are_answered_at_once_then_pauses_double_up_to_a_limit_then_it_is_given_up():
    restarts = Restarts()
    pauses = [restarts.pause_s(QUICK) for _ in range(GIVE_UP_AFTER + 2)]
    growing = pauses[AT_ONCE:GIVE_UP_AFTER]
    assert pauses[:AT_ONCE] == [0.0] * AT_ONCE
    assert growing[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert growing == sorted(growing)
    assert growing[-1] == LAST_PAUSE_S
    assert pauses[GIVE_UP_AFTER:] == [None, None]


def test_a_layer_that_served_long_enough_is_started_at_once_for_ever():
    restarts = Restarts()
    assert [restarts.pause_s(STABLE_S) for _ in range(100)] == [0.0] * 100


@pytest.mark.parametrize("deaths", [1, AT_ONCE, GIVE_UP_AFTER])
def test_serving_long_enough_forgives_what_was_before(deaths):
    restarts = Restarts()
    for _ in range(deaths):
        restarts.pause_s(QUICK)
    assert restarts.pause_s(STABLE_S) == 0.0
    # that death counts as the first of a new row
    assert [restarts.pause_s(QUICK) for _ in range(AT_ONCE)] == [0.0] * (AT_ONCE - 1) + [FIRST_PAUSE_S]


def test_a_restart_that_was_asked_for_starts_counting_anew():
    restarts = Restarts()
    while restarts.pause_s(QUICK) is not None:
        pass
    restarts.forgive()
    assert [restarts.pause_s(QUICK) for _ in range(AT_ONCE)] == [0.0] * AT_ONCE


# -- hung or not -----------------------------------------------------------------------------------------------------


class Process:
    """What the kernel would say of a process that lives as the test has it live."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.beat = 1000.0
        self.ran_s = 5.0
        self.waited_s = 2.0
        self.watch = Watch()

    def passes(self, seconds: float, state: str, ran: float = 0.0, waited: float = 0.0, beats: bool = False) -> bool:
        """Let time pass in the keeper's ticks; `ran` and `waited` are shares of it. True: it was called hung."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            step = min(TICK_S, end - self.now)
            self.now += step
            self.ran_s += ran * step
            self.waited_s += waited * step
            if beats:
                self.beat = self.now
            if self.watch.suspicious(self.now, self.beat) \
                    and self.watch.hung(self.now, Sample(state, self.ran_s, self.waited_s)):
                return True
        return False


PROMISE_S = 0.5  # noticed and replaced


def test_a_layer_that_gives_signs_of_life_is_never_suspected():
    process = Process()
    assert not process.passes(10, "R", ran=1.0, beats=True)
    assert not process.passes(10, "S", beats=True)
    assert not process.watch.suspicious(process.beat + SUSPECT_AFTER_S * 0.99, process.beat)


@pytest.mark.parametrize("state", ["T", "S", "D"], ids=["stopped", "asleep", "in the kernel"])
def test_a_layer_that_does_nothing_is_hung_within_the_promise(state):
    process = Process()
    assert process.passes(PROMISE_S, state)
    assert process.now - process.beat >= SUSPECT_AFTER_S + HUNG_AFTER_S - TICK_S


def test_an_endless_loop_is_hung_within_the_promise():
    assert Process().passes(PROMISE_S, "R", ran=1.0)


def test_an_endless_loop_on_half_a_processor_is_hung_a_little_later():
    process = Process()
    assert not process.passes(SUSPECT_AFTER_S + HUNG_AFTER_S, "R", ran=0.5, waited=0.5)
    assert process.passes(0.3, "R", ran=0.5, waited=0.5)


def test_a_layer_that_gets_no_processor_is_starved_not_hung():
    assert not Process().passes(30, "R", ran=0.0, waited=1.0)


def test_a_sleeper_is_not_blamed_for_what_it_waited_for_a_processor():
    process = Process()
    assert not process.passes(10, "S", waited=1.0)
    assert process.passes(0.3, "S")


def test_what_it_did_before_it_was_suspected_does_not_count():
    process = Process()
    process.passes(100, "R", ran=1.0, beats=True)
    assert not process.passes(SUSPECT_AFTER_S + TICK_S, "R", ran=1.0)


def test_a_sign_of_life_clears_the_suspicion():
    process = Process()
    assert not process.passes(0.3, "T")
    assert not process.passes(TICK_S, "S", beats=True)
    assert not process.passes(0.3, "T")
    assert process.passes(0.2, "T")


def test_a_layer_that_reads_back_its_state_may_take_longer_unless_it_is_stopped():
    for state, verdict in (("R", False), ("S", False), ("T", True)):
        watch = Watch()
        assert not watch.hung(0.0, Sample(state, 0.0, 0.0), serving=False)
        assert watch.hung(1.0, Sample(state, 1.0, 0.0), serving=False) is verdict
        assert watch.hung(2.5, Sample(state, 2.5, 0.0), serving=False)

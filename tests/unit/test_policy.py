"""When a dead layer starts again, and when a silent one is called hung; with a clock that the test moves."""

from __future__ import annotations

import pytest

from supervisor.policy import (
    AT_ONCE,
    FIRST_PAUSE_S,
    GIVE_UP_AFTER,
    HUNG_AFTER_S,
    KILLS_AT_ONCE,
    KILLS_PER_S,
    LAST_PAUSE_S,
    LOOP_S,
    RETRY_MAX_S,
    RETRY_S,
    STABLE_S,
    STARTING_S,
    SUSPECT_AFTER_S,
    Restarts,
    Sample,
    Watch,
)

QUICK = STABLE_S / 2
TICK_S = 0.05


# -- restarts --------------------------------------------------------------------------------------------------------


def pauses(restarts: Restarts, count: int, served_s: float = QUICK) -> list[float]:
    return [restarts.pause_s(served_s, 0.0) for _ in range(count)]


def test_the_first_quick_deaths_are_answered_at_once_then_pauses_double_up_to_a_limit_then_it_is_tried_now_and_then():
    restarts = Restarts()
    told = pauses(restarts, GIVE_UP_AFTER)
    growing = told[AT_ONCE:]
    assert told[:AT_ONCE] == [0.0] * AT_ONCE
    assert growing[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert growing == sorted(growing)
    assert growing[-1] == LAST_PAUSE_S
    assert not restarts.given_up
    assert pauses(restarts, 6) == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S, 8 * RETRY_S, RETRY_MAX_S, RETRY_MAX_S]
    assert restarts.given_up


def test_a_layer_that_served_long_enough_is_started_at_once_for_ever():
    assert pauses(Restarts(), 100, STABLE_S) == [0.0] * 100


@pytest.mark.parametrize("deaths", [1, AT_ONCE, GIVE_UP_AFTER, GIVE_UP_AFTER + 3])
def test_serving_long_enough_forgives_what_was_before(deaths):
    restarts = Restarts()
    pauses(restarts, deaths)
    assert pauses(restarts, 1, STABLE_S) == [0.0]
    assert not restarts.given_up
    # that death counts as the first of a new row
    assert pauses(restarts, AT_ONCE) == [0.0] * (AT_ONCE - 1) + [FIRST_PAUSE_S]


def test_a_restart_that_was_asked_for_starts_counting_anew():
    restarts = Restarts()
    pauses(restarts, GIVE_UP_AFTER + 1)
    restarts.forgive()
    assert pauses(restarts, AT_ONCE) == [0.0] * AT_ONCE


def test_sigkills_from_outside_do_not_count_and_are_answered_at_once_up_to_what_protects_the_machine():
    restarts = Restarts()
    every_s = 1 / KILLS_PER_S
    assert [restarts.pause_s(QUICK, 100 + every_s * n, from_outside=True) for n in range(1000)] == [0.0] * 1000
    assert pauses(restarts, AT_ONCE) == [0.0] * AT_ONCE
    restarts = Restarts()
    told = [restarts.pause_s(QUICK, 100.0, from_outside=True) for _ in range(KILLS_AT_ONCE + 3)]
    assert told[:KILLS_AT_ONCE] == [0.0] * KILLS_AT_ONCE
    assert told[KILLS_AT_ONCE:] == pytest.approx([every_s, 2 * every_s, 3 * every_s])


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


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_an_endless_loop_is_hung_within_the_promise_on_a_share_of_a_processor_too(share):
    process = Process()
    process.passes(10, "R", ran=share, waited=1 - share, beats=True)
    assert not process.passes(SUSPECT_AFTER_S + max(HUNG_AFTER_S, LOOP_S / share) - TICK_S, "R", ran=share,
                              waited=1 - share)
    assert process.passes(2 * TICK_S + 1e-6, "R", ran=share, waited=1 - share)
    assert process.now - process.beat < PROMISE_S


@pytest.mark.parametrize("frames", [1, 100])
def test_a_long_turn_is_no_endless_loop_while_frame_after_frame_is_taken_up(frames):
    watch, now = Watch(), 1000.0
    for number in range(frames):
        assert watch.suspicious(now, 1000.0, (1, number, 0)) == (now >= 1000.0 + SUSPECT_AFTER_S)
        assert not watch.hung(now, Sample("R", now, 0.0))
        now += 2 * LOOP_S
    # the last one never ends
    while not (watch.suspicious(now, 1000.0, (1, frames - 1, 0)) and watch.hung(now, Sample("R", now, 0.0))):
        now += TICK_S / 5
    assert now - (1000.0 + 2 * LOOP_S * (frames - 1)) < PROMISE_S


def test_a_layer_repeatedly_killed_for_an_endless_loop_gets_more_time_until_it_has_served():
    restarts = Restarts()
    allowed = []
    for _ in range(8):
        allowed.append(restarts.patience(QUICK))
        restarts.looped(QUICK)
    assert allowed == [1, 2, 4, 8, 16, 32, 32, 32]
    assert restarts.patience(STABLE_S) == 1
    restarts.looped(STABLE_S)
    assert restarts.patience(QUICK) == 2


def test_patience_is_for_the_successor_of_an_endless_loop_only():
    restarts = Restarts()
    for _ in range(3):  # the same work, time and again
        restarts.looped(QUICK)
        restarts.pause_s(QUICK, 0.0)
    assert restarts.patience(QUICK) == 8
    restarts.pause_s(QUICK, 0.0)  # one that got past it, and died of something else
    assert restarts.patience(QUICK) == 1


@pytest.mark.parametrize(("patience", "hung"), [(1, True), (8, False)])
def test_patience_is_with_processor_time(patience, hung):
    watch = Watch()
    watch.suspicious(0.0, 0.0)
    late = SUSPECT_AFTER_S + HUNG_AFTER_S + TICK_S
    assert watch.suspicious(SUSPECT_AFTER_S, 0.0)
    assert not watch.hung(SUSPECT_AFTER_S, Sample("R", 1.0, 0.0), patience=patience)
    assert watch.hung(late, Sample("R", 1.0 + 4 * LOOP_S, 0.0), patience=patience) is hung
    assert watch.hung(late, Sample("R", 1.0 + 9 * LOOP_S, 0.0), patience=patience)


def test_a_layer_that_gets_no_processor_is_starved_not_hung():
    assert not Process().passes(30, "R", ran=0.0, waited=1.0)


def test_a_sleeper_is_not_blamed_for_what_it_waited_for_a_processor():
    process = Process()
    assert not process.passes(10, "S", waited=1.0)
    assert process.passes(0.3, "S")


def test_processor_time_before_the_suspicion_does_not_count():
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
        assert watch.hung(0.5 + STARTING_S, Sample(state, 0.5 + STARTING_S, 0.0), serving=False)

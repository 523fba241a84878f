"""Congestion windows: the contract, NewReno, CUBIC, HyStart++, PRR."""

from __future__ import annotations

import lengths
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layers.tcp import congestion
from layers.tcp.congestion import (
    ECN,
    LOSS,
    TIMEOUT,
    UNLIMITED,
    CongestionControl,
    find,
    initial_window,
)
from layers.tcp.congestion_cubic import ALPHA, BETA, C
from layers.tcp.congestion_cubic import Control as Cubic
from layers.tcp.congestion_reno import Control as Reno
from layers.tcp.hystart import CSS_ROUNDS, SAMPLES, HyStart
from layers.tcp.prr import ProportionalRateReduction

MSS = 1000
BOTH = pytest.mark.parametrize("control", [Reno, Cubic])


def in_avoidance(control: type[CongestionControl], segments: float) -> CongestionControl:
    made = control(MSS)
    made.cwnd = made.ssthresh = segments * MSS
    return made


def a_round(control: CongestionControl, now: float, rtt_s: float) -> None:
    """One window is acknowledged, two segments at a time."""
    left = int(control.cwnd)
    while left > 0:
        control.acknowledged(min(left, 2 * MSS), now, rtt_s, limited=False)
        left -= 2 * MSS


@pytest.mark.parametrize(("mss", "window"), [(1460, 14600), (536, 5360), (2920, 14600), (8960, 17920)])
def test_rfc6928_2_the_initial_window(mss: int, window: int):
    assert initial_window(mss) == window == Reno(mss).cwnd


def test_an_algorithm_is_found_by_its_name_and_nothing_else_is():
    assert (find("reno"), find("cubic")) == (Reno, Cubic)
    assert find(congestion.DEFAULT) is Cubic
    for name in ("", "bbr", "../os", "os.path", "Cubic", "cubic.x", "x" * 16, "é"):
        assert find(name) is None


@BOTH
def test_rfc5681_3_1_slow_start_doubles_in_a_round_trip(control):
    made = control(MSS)
    a_round(made, 1.0, 0.1)
    assert made.cwnd == 20 * MSS


@BOTH
def test_rfc5681_3_1_slow_start_ends_at_the_threshold(control):
    made = control(MSS)
    made.ssthresh = 15.0 * MSS
    a_round(made, 1.0, 0.1)
    assert 15 * MSS <= made.cwnd < 15.5 * MSS


def test_rfc5681_3_1_equation_3_a_segment_more_in_a_round_trip():
    made = in_avoidance(Reno, 20)
    a_round(made, 1.0, 0.1)
    assert made.cwnd == pytest.approx(21 * MSS, rel=0.005)


def test_rfc5681_3_1_equation_4_half_of_what_was_used_and_at_least_two_segments():
    made = in_avoidance(Reno, 20)
    made.reduce(16 * MSS, LOSS, 1.0)
    assert made.ssthresh == 8 * MSS
    made.cwnd = 2.0 * MSS
    made.reduce(2 * MSS, LOSS, 1.0)
    assert made.ssthresh == 2 * MSS
    made.timed_out()
    assert made.cwnd == MSS


@BOTH
def test_rfc7661_4_2_a_window_that_is_not_used_does_not_grow(control):
    made = control(MSS)
    for turn in range(1000):
        made.acknowledged(2 * MSS, turn / 100, 0.1, limited=True)
    assert made.cwnd == initial_window(MSS)
    made = in_avoidance(control, 50)
    for turn in range(1000):
        made.acknowledged(2 * MSS, turn / 100, 0.1, limited=True)
    assert made.cwnd == 50 * MSS


@BOTH
def test_rfc5681_4_1_an_idle_window_decays_to_the_initial_one_and_remembers(control):
    made = in_avoidance(control, 100)
    made.idle(0.19, 0.2)
    assert made.cwnd == 100 * MSS
    made.idle(0.45, 0.2)
    assert (made.cwnd, made.ssthresh) == (25 * MSS, 100 * MSS)
    made.idle(1000.0, 0.2)
    assert made.cwnd == 10 * MSS


@BOTH
def test_rfc8511_3_a_mark_costs_less_than_a_loss(control):
    lost, marked = in_avoidance(control, 100), in_avoidance(control, 100)
    lost.reduce(UNLIMITED, LOSS, 1.0)
    marked.reduce(UNLIMITED, ECN, 1.0)
    assert marked.ssthresh > lost.ssthresh


@BOTH
def test_an_undone_reduction_never_was_one(control):
    made = in_avoidance(control, 100)
    made.reduce(UNLIMITED, TIMEOUT, 1.0)
    made.timed_out()
    made.undo()
    assert (made.cwnd, made.ssthresh) == (100 * MSS, 100 * MSS)
    made.cwnd = 7.0 * MSS
    made.undo()  # once
    assert made.cwnd == 7 * MSS


@BOTH
@given(st.lists(st.floats(), min_size=4, max_size=6))
def test_no_number_that_is_restored_gives_a_window_that_cannot_be(control, numbers):
    made = control(MSS)
    made.restore(tuple(numbers))
    for turn in range(5):
        made.acknowledged(2 * MSS, 1.0 + turn, 0.1, limited=False)
        assert MSS <= made.cwnd <= UNLIMITED
        assert 2 * MSS <= made.ssthresh <= UNLIMITED
    made.reduce(UNLIMITED, LOSS, 9.0)
    assert 2 * MSS <= made.ssthresh <= UNLIMITED


@BOTH
@settings(deadline=None)
@given(lengths.lists(st.tuples(
    st.sampled_from(["ack", "ack", "limited", "loss", "timeout", "mark", "undo", "idle", "recovered", "rtt"]),
    st.integers(1, 100_000) | st.sampled_from([MSS, 2 * MSS]),
    st.floats(0, 10) | st.sampled_from([0.0, 0.001, 0.1, 0.12, 0.15])), 60))
@example([("loss", 40 * MSS, 0.0), ("recovered", 1, 0.0), *[("ack", 2 * MSS, 0.001)] * 900, ("idle", 1, 10.0),
          *[("ack", 2 * MSS, 0.001)] * 100])
def test_whatever_happens_the_window_is_one(control, events):
    made, now, recovering = control(MSS), 1.0, False
    for event, octets, seconds in events:
        now += seconds
        before = made.cwnd
        if event in ("ack", "limited"):
            if not recovering:  # else it is not asked
                made.acknowledged(octets, now, seconds, limited=event == "limited")
            assert before <= made.cwnd <= before + octets + 1
        elif event == "rtt":
            made.round_trip(seconds, octets, octets + 1000)
        elif event == "idle":
            made.idle(seconds, 0.2)
        elif event == "undo":
            made.undo()
            recovering = False
        elif event == "recovered":
            if recovering:
                made.recovered()
            recovering = False
        else:
            made.reduce(octets, {"loss": LOSS, "timeout": TIMEOUT, "mark": ECN}[event], now)
            recovering = event != "timeout"
            if event == "timeout":
                made.timed_out()
        assert MSS <= made.cwnd <= UNLIMITED
        assert made.ssthresh >= 2 * MSS


# -- CUBIC ---------------------------------------------------------------------------------------------------------


def after_loss(segments: float, now: float = 0.0) -> CongestionControl:
    made = in_avoidance(Cubic, segments)
    made.reduce(UNLIMITED, LOSS, now)
    made.recovered()
    return made


def test_rfc9438_4_6_seven_tenths_are_left():
    assert after_loss(1000).cwnd == pytest.approx(700 * MSS)


def test_rfc9438_4_2_the_window_is_back_at_w_max_after_k_seconds():
    made, rtt_s, now = after_loss(1000), 0.1, 0.0
    k_s = (1000 * (1 - BETA) / C) ** (1 / 3)
    plateau = []
    while now < 2 * k_s:
        a_round(made, now, rtt_s)
        now += rtt_s
        expected = C * (now - k_s) ** 3 + 1000
        if now > 1:
            assert made.cwnd / MSS == pytest.approx(expected, rel=0.02)
        if abs(now - k_s) < 0.5:
            plateau.append(made.cwnd)
    assert max(plateau) / min(plateau) < 1.01  # it lingers where the loss was
    assert made.cwnd > 1250 * MSS


def test_rfc9438_4_3_on_short_round_trips_it_is_as_fast_as_reno_would_be():
    made, now, rtt_s = after_loss(20), 0.0, 0.001
    for _ in range(10):
        a_round(made, now, rtt_s)
        now += rtt_s
    assert made.cwnd / MSS == pytest.approx(14 + 10 * ALPHA, rel=0.02)
    for _ in range(20):
        a_round(made, now, rtt_s)
        now += rtt_s
    # Beyond where the window was: a segment in a round trip
    assert made.cwnd / MSS == pytest.approx(20 + (30 - 6 / ALPHA), rel=0.02)


def test_rfc9438_4_7_fast_convergence_gives_up_more_where_the_window_shrinks():
    made = after_loss(1000)
    made.reduce(UNLIMITED, LOSS, 1.0)
    assert made.saved()[2] == pytest.approx(700 * MSS * (1 + BETA) / 2)
    made.recovered()
    made.cwnd = 800.0 * MSS
    made.reduce(UNLIMITED, LOSS, 2.0)
    assert made.saved()[2] == 800 * MSS


def test_rfc9438_4_8_after_a_time_out_the_curve_begins_where_avoidance_does():
    made = in_avoidance(Cubic, 1000)
    made.reduce(UNLIMITED, TIMEOUT, 0.0)
    made.timed_out()
    now = 0.0
    while made.in_slow_start:
        a_round(made, now, 0.1)
        now += 0.1
    assert made.cwnd == pytest.approx(700 * MSS, rel=0.01)
    began = now
    while now < began + 2:
        a_round(made, now, 0.1)
        now += 0.1
    assert made.cwnd / MSS == pytest.approx(700 + C * 2.1**3, rel=0.02)


def test_rfc9438_4_9_2_a_spurious_reduction_goes_on_towards_the_former_w_max():
    made = after_loss(1000)
    for turn in range(10):
        a_round(made, turn / 10, 0.1)
    before = made.cwnd
    made.reduce(UNLIMITED, LOSS, 1.0)
    made.undo()
    assert made.cwnd == before
    assert made.saved()[2] == 1000 * MSS


def test_rfc9438_5_8_idle_time_does_not_count_in_the_curve():
    used, rested = after_loss(1000), after_loss(1000)
    for turn in range(10):
        a_round(used, turn / 10, 0.1)
        a_round(rested, turn / 10, 0.1)
    for turn in range(10, 110):
        rested.acknowledged(2 * MSS, turn / 10, 0.1, limited=True)
    a_round(used, 1.0, 0.1)
    a_round(rested, 11.0, 0.1)
    assert rested.cwnd == pytest.approx(used.cwnd, rel=0.02)
    rested.idle(100.0, 200.0)
    a_round(used, 1.1, 0.1)
    a_round(rested, 111.1, 0.1)
    assert rested.cwnd == pytest.approx(used.cwnd, rel=0.02)


# -- HyStart++ -----------------------------------------------------------------------------------------------------


def rounds(hystart: HyStart, *delays_s: float, samples: int = SAMPLES) -> list[bool]:
    """Round trips in which each sample has the same delay."""
    over = []
    for delay_s in delays_s:
        una = hystart._window_end + 1
        over += [hystart.sample(delay_s, una, una + 9_000) for _ in range(samples)]
    return over


def test_rfc9406_4_2_a_delay_that_rises_slows_down_and_five_rounds_later_slow_start_is_over():
    hystart = HyStart()
    assert not any(rounds(hystart, 0.1, 0.1, 0.1))
    assert hystart.divisor == 1
    assert not any(rounds(hystart, 0.1 + 0.1 / 8))
    assert hystart.divisor == 4
    assert not any(rounds(hystart, *[0.12] * (CSS_ROUNDS - 1)))
    assert any(rounds(hystart, 0.12))
    assert hystart.divisor == 1


def test_rfc9406_4_2_a_delay_that_falls_again_was_jitter():
    hystart = HyStart()
    rounds(hystart, 0.1, 0.1, 0.15, 0.15)
    assert hystart.divisor == 4
    rounds(hystart, 0.1)
    assert hystart.divisor == 1


@pytest.mark.parametrize(("delay_s", "rise_s", "slows"), [
    (0.001, 0.0039, False), (0.001, 0.0041, True),  # at least 4 ms
    (1.0, 0.0159, False), (1.0, 0.0161, True),  # at most 16 ms
])
def test_rfc9406_4_3_the_threshold_has_bounds(delay_s, rise_s, slows):
    hystart = HyStart()
    rounds(hystart, delay_s, delay_s + rise_s)
    assert (hystart.divisor > 1) is slows


def test_rfc9406_4_2_fewer_than_eight_samples_say_nothing():
    hystart = HyStart()
    rounds(hystart, 0.1, 0.2, 0.3, samples=SAMPLES - 1)
    assert hystart.divisor == 1


def test_rfc9406_4_3_only_the_first_slow_start():
    hystart = HyStart()
    hystart.end()
    rounds(hystart, 0.1, 0.2)
    assert hystart.divisor == 1


# -- PRR -----------------------------------------------------------------------------------------------------------


def test_rfc6937_3_1_the_window_shrinks_in_proportion_to_what_arrives():
    prr = ProportionalRateReduction(100 * MSS)
    pipe, sent = 99 * MSS, 0
    for _ in range(98):
        pipe -= MSS
        window = prr.acknowledged(MSS, pipe, 70 * MSS, MSS, safe=False)
        while window - pipe >= MSS:
            pipe += MSS
            sent += MSS
            prr.sent(MSS)
    assert sent == pytest.approx(0.7 * 98 * MSS, abs=2 * MSS)
    assert pipe == pytest.approx(70 * MSS, abs=2 * MSS)


def test_rfc9937_the_first_retransmission_leaves_at_once():
    assert ProportionalRateReduction(100 * MSS).acknowledged(MSS, 98 * MSS, 50 * MSS, MSS, safe=False) == 99 * MSS


def test_rfc6937_3_1_below_the_threshold_it_is_refilled_as_fast_as_is_safe():
    slow, fast = ProportionalRateReduction(100 * MSS), ProportionalRateReduction(100 * MSS)
    for prr in (slow, fast):
        prr.sent(MSS)
    assert slow.acknowledged(MSS, 10 * MSS, 50 * MSS, MSS, safe=False) == 11 * MSS
    assert fast.acknowledged(MSS, 10 * MSS, 50 * MSS, MSS, safe=True) == 12 * MSS
    assert fast.acknowledged(100 * MSS, 10 * MSS, 50 * MSS, MSS, safe=True) == 50 * MSS


@given(lengths.lists(st.tuples(st.integers(0, 20), st.integers(0, 200), st.booleans(), st.integers(0, 30)), 50))
def test_it_is_never_less_than_what_is_in_the_network_and_bounded_by_the_threshold(acknowledgments):
    prr = ProportionalRateReduction(100 * MSS)
    for delivered, pipe, safe, sent in acknowledgments:
        window = prr.acknowledged(delivered * MSS, pipe * MSS, 50 * MSS, MSS, safe)
        assert window >= pipe * MSS
        if pipe < 50:
            assert window <= max(50, pipe + 1) * MSS
        prr.sent(sent * MSS)

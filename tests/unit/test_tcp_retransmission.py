"""Round trips, the retransmission timer, F-RTO."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers.tcp.retransmission import (
    LOSS,
    R1,
    R2,
    RTO_MAX_S,
    RTO_MIN_S,
    SPURIOUS,
    UNDECIDED,
    Frto,
    RetransmissionTimer,
    gives_up_after_s,
)


def timer(*samples: float) -> RetransmissionTimer:
    made = RetransmissionTimer()
    for number, sample in enumerate(samples):
        made.sample(sample, 1.0 + number)
    return made


def test_rfc6298_2_1_before_a_sample_the_time_out_is_one_second():
    assert RetransmissionTimer().rto_s == 1.0


def test_rfc6298_2_2_the_first_sample():
    made = timer(0.3)
    assert (made.rtt_s, made.rtt_variance_s) == (0.3, 0.15)
    assert made.rto_s == pytest.approx(0.3 + 4 * 0.15)


def test_rfc6298_2_3_later_samples():
    made = timer(0.3, 0.5)
    assert made.rtt_variance_s == pytest.approx(0.75 * 0.15 + 0.25 * 0.2)
    assert made.rtt_s == pytest.approx(7 / 8 * 0.3 + 0.5 / 8)


def test_rfc6298_2_3_the_variance_is_not_below_the_floor():
    made = timer(*[0.05] * 100)
    assert made.rto_s == pytest.approx(0.05 + RTO_MIN_S)


def test_rfc6298_5_5_each_expiry_doubles_it_up_to_the_maximum():
    made = timer(0.5)
    timeouts = []
    for _ in range(12):
        timeouts.append(made.rto_s)
        made.expired()
    assert timeouts[:4] == [1.5, 3.0, 6.0, 12.0]
    assert timeouts[-1] == RTO_MAX_S
    made.progress()
    assert made.rto_s == 1.5


def test_rfc6298_5_7_data_start_at_three_seconds_where_the_syn_was_lost_and_nothing_measured():
    made = RetransmissionTimer()
    made.expired()
    made.established(syn_sent_again=True)
    assert made.rto_s == 3.0
    made = timer(0.1)
    made.established(syn_sent_again=True)
    assert made.rto_s == pytest.approx(0.3)


def test_rfc7323_g_many_samples_in_a_round_trip_weigh_as_one():
    one, many = timer(0.1), timer(0.1)
    one.sample(0.2, 2.0)
    for _ in range(10):
        many.sample(0.2, 2.0, per_round=10)
    assert many.rtt_s == pytest.approx(one.rtt_s, rel=0.02)
    assert many.rtt_variance_s == pytest.approx(one.rtt_variance_s, rel=0.2)


def test_the_least_round_trip_is_forgotten_after_minutes():
    made = timer(0.1, 0.05, 0.2)
    assert made.min_rtt_s == 0.05
    made.sample(0.2, 400.0)
    assert made.min_rtt_s == 0.2


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50), st.integers(0, 40))
def test_the_time_out_stays_within_its_bounds(samples, expiries):
    made = timer(*samples)
    for _ in range(expiries):
        made.expired()
    assert min(made.rtt_s + RTO_MIN_S, RTO_MAX_S) <= made.rto_s <= RTO_MAX_S
    assert min(samples) - 1e-6 <= made.rtt_s <= max(samples) + 1e-6


def test_rfc9293_3_8_3_how_long_until_the_connection_is_given_up():
    assert gives_up_after_s(R2) == pytest.approx(924.6)  # Linux, ip-sysctl: tcp_retries2
    assert gives_up_after_s(6, 1.0) == 127.0  # of a SYN
    assert gives_up_after_s(R1) == pytest.approx(3.0)


def expired() -> Frto:
    frto = Frto()
    frto.expired(1000, 5000, 10.0)
    return frto


def test_rfc5682_3_1_step_2a_a_duplicate_first_says_loss():
    frto = expired()
    assert frto.acknowledged(1000, False, True, None) == LOSS
    assert not frto.wants_new_data


def test_rfc5682_3_1_step_2b_an_advance_asks_for_new_data_and_a_second_decides():
    frto = expired()
    assert frto.acknowledged(2000, False, False, None) == UNDECIDED
    assert frto.wants_new_data
    assert frto.acknowledged(3000, True, False, None) == SPURIOUS
    assert not frto.wants_new_data


def test_rfc5682_3_1_step_3a_a_duplicate_second_says_loss():
    frto = expired()
    frto.acknowledged(2000, False, False, None)
    assert frto.acknowledged(2000, False, True, None) == LOSS


def test_rfc5682_3_1_step_3b_what_is_acknowledged_second_was_sent_again():
    frto = expired()
    frto.acknowledged(2000, False, False, None)
    assert frto.acknowledged(3000, False, False, None) == LOSS


def test_rfc5682_3_1_step_2b_all_acknowledged_by_the_retransmission_is_a_loss():
    assert expired().acknowledged(5000, True, False, None) == LOSS


def test_rfc5682_2_1_step_2b_without_new_data_there_is_no_verdict():
    frto = expired()
    frto.nothing_new_to_send()
    assert frto.acknowledged(2000, True, False, None) == UNDECIDED
    assert not frto.wants_new_data


def test_rfc3522_3_2_an_echo_older_than_the_retransmission_says_spurious():
    assert expired().acknowledged(2000, False, False, 9.7) == SPURIOUS
    assert expired().acknowledged(2000, False, False, 10.0) == UNDECIDED


def test_without_an_expiry_there_is_no_question():
    assert Frto().acknowledged(1, True, False, 0.0) == UNDECIDED

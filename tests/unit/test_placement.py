"""supervisor/placement.py: one core or two."""

from __future__ import annotations

import os

from supervisor.placement import JOIN_AFTER, SPLIT_AFTER, Balance, Placement


def test_a_saturated_core_is_split_only_when_it_stays_saturated():
    balance = Balance()
    for _ in range(SPLIT_AFTER - 1):
        assert not balance.sample(1.0, 0.8)
    assert not balance.sample(0.5, 0.4)
    for _ in range(SPLIT_AFTER - 1):
        assert not balance.sample(1.0, 0.8)
    assert balance.sample(1.0, 0.8)
    assert balance.split


def test_a_core_that_others_keep_busy_is_not_our_concern():
    balance = Balance()
    assert not any(balance.sample(1.0, 0.1) for _ in range(20))


def test_two_cores_are_joined_again_after_a_while_with_little_to_do():
    balance = Balance()
    while not balance.sample(1.0, 0.9):
        pass
    assert not any(balance.sample(0.2, 0.2) for _ in range(JOIN_AFTER - 1))
    assert balance.sample(0.2, 0.2)
    assert not balance.split


def test_hysteresis_a_load_between_the_two_thresholds_changes_nothing():
    balance = Balance()
    assert not any(balance.sample(0.9, 0.5) for _ in range(50))
    while not balance.sample(1.0, 0.9):
        pass
    assert not any(balance.sample(0.9, 0.5) for _ in range(50))


def test_the_modes():
    everything = os.sched_getaffinity(0)
    assert Placement("spread", None).cores("udp") == everything
    assert len(Placement("compact", None).cores("udp")) == 1
    assert Placement("auto", None).cores("udp") == Placement("auto", None).cores("link")
    assert Placement("0", [0]).cores("ip") == {0}
    assert Placement("spread", None).describe() == f"spread ({','.join(map(str, sorted(everything)))})"

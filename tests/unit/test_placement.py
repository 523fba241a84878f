"""supervisor/placement.py: one core or two."""

from __future__ import annotations

import os

from supervisor.placement import CROWDED_AFTER, JOIN_AFTER, PAUSE_S, SPLIT_AFTER, Balance, Placement

# Busy shares of the core of the layers and of the other, and what the lower and the upper half of the stack used.
FULL = (1.0, 0.6, 0.5, 0.4)
OURS_ON_BOTH = (0.8, 0.9, 0.4, 0.4)


def decisions(balance: Balance, times: int, *sample: float, now: float = 0.0) -> list[str]:
    return [balance.sample(now, *sample) for _ in range(times)]


def splits() -> Balance:
    balance = Balance()
    decisions(balance, SPLIT_AFTER, *FULL)
    assert balance.split
    return balance


def test_a_saturated_core_is_split_only_when_it_stays_saturated():
    balance = Balance()
    assert not any(decisions(balance, SPLIT_AFTER - 1, *FULL))
    assert balance.sample(0.0, 0.5, 0.2, 0.2, 0.2) == ""
    assert decisions(balance, SPLIT_AFTER, *FULL) == [""] * (SPLIT_AFTER - 1) + ["split"]
    assert balance.split


def test_a_core_that_others_keep_busy_is_left_for_one_that_is_free():
    balance = Balance()
    assert decisions(balance, SPLIT_AFTER, 1.0, 0.2, 0.05, 0.05)[-1] == "move"
    assert not balance.split
    assert not any(decisions(balance, 20, 1.0, 0.9, 0.05, 0.05))


def test_a_core_that_others_use_is_no_place_for_half_a_stack():
    assert not any(decisions(Balance(), 20, 1.0, 0.8, 0.5, 0.4))


def test_two_cores_are_joined_again_after_a_while_with_little_to_do():
    balance = splits()
    assert decisions(balance, JOIN_AFTER, 0.2, 0.2, 0.1, 0.1) == [""] * (JOIN_AFTER - 1) + ["join"]
    assert not balance.split


def test_half_a_stack_comes_back_from_a_core_that_others_fill_and_stays_for_a_while():
    balance = splits()
    assert decisions(balance, CROWDED_AFTER, 0.9, 1.0, 0.8, 0.1) == [""] * (CROWDED_AFTER - 1) + ["join"]
    assert not balance.split
    assert not any(decisions(balance, 20, *FULL, now=PAUSE_S - 1))
    assert decisions(balance, SPLIT_AFTER, *FULL, now=PAUSE_S)[-1] == "split"


def test_half_a_stack_stays_on_a_core_that_it_fills_itself():
    assert not any(decisions(splits(), 20, 0.8, 1.0, 0.4, 0.5))


def test_samples_in_a_row_have_to_give_the_same_reason():
    balance = splits()
    assert not any(decisions(balance, JOIN_AFTER - 1, 0.2, 0.2, 0.1, 0.1))
    assert balance.sample(0.0, 0.5, 1.0, 0.5, 0.1) == ""


def test_hysteresis_a_load_between_the_two_thresholds_changes_nothing():
    balance = Balance()
    assert not any(decisions(balance, 50, 0.85, 0.1, 0.3, 0.3))
    decisions(balance, SPLIT_AFTER, *FULL)
    assert not any(decisions(balance, 50, 0.6, 0.6, 0.35, 0.35))
    assert not any(decisions(balance, 50, *OURS_ON_BOTH))


def test_the_modes():
    everything = os.sched_getaffinity(0)
    assert Placement("spread", None).cores("udp") == everything
    assert len(Placement("compact", None).cores("udp")) == 1
    assert Placement("auto", None).cores("udp") == Placement("auto", None).cores("link")
    assert Placement("0", [0]).cores("ip") == {0}
    assert Placement("spread", None).describe() == f"spread ({','.join(map(str, sorted(everything)))})"

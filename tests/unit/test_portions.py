"""Work in portions (layers/common/portions.py)."""

from __future__ import annotations

from layers.common.portions import Portions


def test_portions_follow_each_other_in_order_and_not_sooner_than_they_may():
    portions = Portions[int](every_s=0.5)
    assert (portions.next_due, portions.take(100.0, 2)) == (None, [])
    portions.add(range(3), 10.0)
    portions.add([3], 20.0)
    assert (portions.next_due, portions.take(9.9, 2)) == (10.0, [])
    assert (portions.take(10.0, 2), portions.next_due) == ([0, 1], 10.5)
    assert portions.take(10.4, 2) == []
    assert (portions.take(11.0, 2), portions.next_due) == ([2, 3], None)


def test_others_may_take_the_place_of_what_waits():
    portions = Portions[int](every_s=0.5)
    portions.add(range(5), 10.0)
    assert portions.take(10.0, 1) == [0]
    portions.replace([7, 8], 10.1)
    assert (portions.take(10.1, 5), portions.next_due) == ([7, 8], None)
    portions.replace([], 11.0)
    assert portions.next_due is None

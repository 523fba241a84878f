"""Places: what one process gets, and what is left for those that come later."""

from __future__ import annotations

import lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from usernet.pipe.places import Places


def takes(places: Places, pid: int, at_most: int) -> int:
    """The process takes what it may have."""
    taken = 0
    while taken < at_most and places.has_one_for(pid):
        places.add(pid)
        taken += 1
    return taken


def test_one_process_gets_a_little_more_than_half():
    places = Places(1000)
    assert takes(places, 1, 1000) == 500
    assert 50 < takes(places, 2, 1000) < 130


def test_eight_hundred_processes_that_take_all_they_can_get_leave_one_for_each():
    places = Places(1984)
    assert all(takes(places, pid, 24) >= 1 for pid in range(1, 201))
    assert all(takes(places, pid, 4) >= 1 for pid in range(201, 801))


def test_when_all_are_taken_the_process_with_the_most_gives_one():
    places = Places(8)
    for pid in (1, 1, 1, 2, 2, 3, 4):
        places.add(pid)
    assert places.gives_way_to(5) == 0  # there is one
    places.add(1)
    assert not places.has_one_for(5)
    assert (places.gives_way_to(5), places.gives_way_to(2), places.gives_way_to(1)) == (1, 1, 0)
    places.remove(1)
    places.remove(1)
    assert places.taken == 6
    places.add(5)
    places.add(6)
    assert [places.gives_way_to(pid) for pid in (1, 3, 7)] == [0, 0, 1]


def test_only_who_is_not_known_gives_its_only_one_and_the_oldest_first():
    places, known = Places(3), {1}
    places.is_known = known.__contains__
    for pid in (1, 2, 3):
        places.add(pid)
    assert not places.has_one_for(4)
    assert [places.gives_way_to(pid) for pid in (4, 2)] == [2, 0]
    lost: list[int] = []
    assert places.admits(4, lambda pid: (lost.append(pid), places.remove(pid)))
    places.add(4)
    assert lost == [2]
    known |= {3, 4}
    assert places.gives_way_to(5) == 0
    assert not places.admits(5, lost.append)
    assert lost == [2]


@settings(max_examples=100, deadline=None)
@given(lengths.lists(st.tuples(st.integers(1, 5), st.sampled_from([True, True, True, False])), 60),
       st.integers(1, 5) | st.integers(6, 20), st.sets(st.integers(1, 5)))
def test_no_more_are_taken_than_there_are_and_each_process_is_known_by_what_it_has(wishes, most, known):
    places, held = Places(most), dict.fromkeys(range(1, 6), 0)
    places.is_known = known.__contains__

    def loses(pid):
        assert held[pid] > 1 or pid not in known
        places.remove(pid)
        held[pid] -= 1

    for pid, takes_one in wishes:
        if not takes_one:
            if held[pid]:
                places.remove(pid)
                held[pid] -= 1
        elif places.admits(pid, loses):
            places.add(pid)
            held[pid] += 1
        else:
            assert held[pid] or all(other in known for other, count in held.items() if count)
        assert places.taken == sum(held.values()) <= most
        assert dict(places.by_number()) == {each: count for each, count in held.items() if count}

"""Octets and lists of any length, each length as likely as the others; and octets that something happened to.

`st.binary` and `st.lists` draw few elements, however many are permitted: half of what `st.binary(max_size=200)` makes
has no more than two octets, hardly anything has twenty. What is refused below some length is hardly ever more than
refused.
"""

from __future__ import annotations

import random
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

DRAWN_MAX = 100  # octets that are drawn one by one


def octets(most: int, least: int = 0) -> st.SearchStrategy[bytes]:
    drawn = st.integers(least, min(most, DRAWN_MAX)).flatmap(lambda length: st.binary(min_size=length, max_size=length))
    if most <= DRAWN_MAX:
        return drawn
    return drawn | st.builds(lambda length, seed: random.Random(seed).randbytes(length), st.integers(DRAWN_MAX, most),
                             st.integers(0, 255))


def lists(elements: st.SearchStrategy[T], most: int, least: int = 0) -> st.SearchStrategy[list[T]]:
    return st.integers(least, most).flatmap(lambda length: st.lists(elements, min_size=length, max_size=length))


def runs(elements: st.SearchStrategy[T], most: int, *lengths: int) -> st.SearchStrategy[list[T]]:
    """So many elements at most, each of them repeated as often as one of `lengths` says."""
    drawn = lists(st.tuples(elements, st.sampled_from(lengths)), most)
    return drawn.map(lambda several: [element for element, count in several for _ in range(count)])


def damaged(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """As it is, or with another octet in some place, or cut short, or with octets after it."""
    def damage(given: bytes, how: str, place: int, others: bytes) -> bytes:
        at = place % (len(given) + 1)
        return {"whole": given, "changed": given[:at] + others[:1] + given[at + 1 :], "cut": given[:at],
                "longer": given + others}[how]

    return st.builds(damage, whole, st.sampled_from(["whole", "changed", "changed", "cut", "longer"]),
                     st.integers(0, 40) | st.integers(0, 1 << 16), st.binary(min_size=1, max_size=20))


def mostly(usual: st.SearchStrategy[T], other: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """In three of four cases the usual. (Of `usual | other` each alternative of either would be as likely.)"""
    return st.sampled_from([usual, usual, usual, other]).flatmap(lambda chosen: chosen)

"""A model: two hosts joined by a link that loses, repeats, reorders. The stream in is the stream out, and it ends."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.tcp import quiet
from tests.unit.tcp.host import pair
from tests.unit.tcp.test_streams import octets

OPTIONS = st.fixed_dictionaries({
    **{name: st.booleans() for name in ("window_scaling", "timestamps", "sack", "nodelay")}, "ecn": st.integers(0, 5)})


def hostile(seed: int, loss: float, repeat: float, jitter: float, delay: float):
    rng = random.Random(seed)

    def fate(source, segment):
        if rng.random() < loss:
            return []
        delays = [delay + rng.random() * jitter]
        if rng.random() < repeat:
            delays.append(delay + rng.random() * jitter * 4)
        return delays

    return fate


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32), loss=st.sampled_from([0, 0.01, 0.1, 0.2]), repeat=st.sampled_from([0, 0.2]),
       jitter=st.sampled_from([0, 0.001, 0.1]), delay=st.sampled_from([0.0001, 0.02]), there=st.integers(0, 120_000),
       back=st.integers(0, 60_000), a_options=OPTIONS, b_options=OPTIONS,
       super_octets=st.sampled_from([0, 64_000]), marked=st.sampled_from([0, 0.1, 1]), drowsy=st.booleans())
def test_the_stream_in_is_the_stream_out(seed, loss, repeat, jitter, delay, there, back, a_options, b_options,
                                         super_octets, marked, drowsy):
    with pytest.MonkeyPatch.context() as patch:
        if drowsy:  # connections go to sleep at every opportunity
            patch.setattr(quiet, "QUIET_S", 0.0)
            patch.setattr(quiet, "SLEEP_S", 0.0)
        transfer(seed, loss, repeat, jitter, delay, there, back, a_options, b_options, super_octets, marked)


def transfer(seed, loss, repeat, jitter, delay, there, back, a_options, b_options, super_octets, marked):
    world, a, b, left, right = pair(delay, hostile(seed, loss, repeat, jitter, delay), a_options=a_options,
                                    b_options=b_options, super_octets=super_octets)
    rng = random.Random(seed)
    world.marks = lambda segment: rng.random() < marked
    a.write(left, octets(there // 2))
    b.write(right, octets(back // 2, 3))
    world.run(rng.choice([0, 0.05, 3]))
    a.write(left, octets(there)[there // 2 :], end=True)
    b.write(right, octets(back, 3)[back // 2 :], end=True)

    def done() -> bool:
        return a.applications[left].ended and b.applications[right].ended

    assert world.run(20_000, done), (a.state_of(left), b.state_of(right))
    assert bytes(b.applications[right].received) == octets(there)
    assert bytes(a.applications[left].received) == octets(back, 3)
    a.close(left)
    b.close(right)
    world.run(4000)
    assert not a.engine.lookup.connections
    assert not b.engine.lookup.connections


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32), loss=st.sampled_from([0, 0.02, 0.1]), delay=st.sampled_from([0.0001, 0.02]),
       pause=st.sampled_from([0.3, 3, 20]), portion=st.sampled_from([1, 3000, 100_000]), a_options=OPTIONS,
       b_options=OPTIONS)
def test_two_ends_that_both_wait_for_room_go_on_when_either_reads(seed, loss, delay, pause, portion, a_options,
                                                                  b_options):
    """Both windows close, both ends probe, and what says that there is room may be lost."""
    world, a, b, left, right = pair(delay, hostile(seed, loss, 0, 0, delay), a_options=a_options, b_options=b_options)
    rng = random.Random(seed)
    a.write(left, octets(200_000), end=True)
    b.write(right, octets(200_000, 3), end=True)
    for _ in range(30):  # slow readers
        world.run(rng.random() * pause, reading=False)
        for host, handle in rng.sample([(a, left), (b, right)], rng.randint(0, 2)):
            host.take(handle, portion)
    began = world.now
    assert world.run(600, lambda: a.applications[left].ended and b.applications[right].ended), world.now - began
    assert bytes(b.applications[right].received) == octets(200_000)
    assert bytes(a.applications[left].received) == octets(200_000, 3)

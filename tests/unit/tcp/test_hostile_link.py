"""A model: two hosts joined by a link that loses, repeats, reorders. The stream in is the stream out, and it ends."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), loss=st.sampled_from([0, 0.01, 0.1, 0.2]), repeat=st.sampled_from([0, 0.2]),
       jitter=st.sampled_from([0, 0.001, 0.1]), delay=st.sampled_from([0.0001, 0.02]), there=st.integers(0, 120_000),
       back=st.integers(0, 60_000), a_options=OPTIONS, b_options=OPTIONS,
       super_octets=st.sampled_from([0, 64_000]), marked=st.sampled_from([0, 0.1, 1]))
def test_the_stream_in_is_the_stream_out(seed, loss, repeat, jitter, delay, there, back, a_options, b_options,
                                         super_octets, marked):
    world, a, b, left, right = pair(delay, hostile(seed, loss, repeat, jitter, delay), a_options=a_options,
                                    b_options=b_options, super_octets=super_octets)
    rng = random.Random(seed)
    world.marks = lambda segment: rng.random() < marked
    a.write(left, octets(there), end=True)
    b.write(right, octets(back, 3), end=True)

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

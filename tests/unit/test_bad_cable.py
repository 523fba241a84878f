"""The bad cable of tests/badnet does what it says, and the same again with the same seed."""

from __future__ import annotations

import pytest

from tests.badnet.conditions import jain
from tests.badnet.impairment import HEADERS_OCTETS, Impairment, Path

FRAME = bytes(range(250)) * 4


def sent(path: Path, frames: int = 2000, gap_s: float = 0.001, seed: int = 1) -> list[list[tuple[float, bytes]]]:
    """What becomes of each of some equal frames; times from when each was sent."""
    impairment = Impairment(path, seed)
    return [[(due - at, frame) for due, frame in impairment.take(FRAME, at)]
            for at in (number * gap_s for number in range(frames))]


def test_delay_and_serialization():
    (((due, frame),),) = sent(Path(rate_mbit=8, delay_ms=10), frames=1)
    assert due == pytest.approx(0.011)  # 1000 octets at a megaoctet per second
    assert frame == FRAME


def test_rate_and_queue():
    """Twice the rate: the queue fills, then half is dropped, and what arrives has waited for all of it."""
    outcomes = sent(Path(rate_mbit=8, delay_ms=0, queue_octets=50_000), gap_s=0.0005)
    assert sum(map(len, outcomes[1000:])) == pytest.approx(500, abs=2)
    assert max(due for outcome in outcomes for due, _ in outcome) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(("field", "arriving"), [("loss", 0.9), ("duplicate", 1.1)])
def test_shares(field: str, arriving: float):
    outcomes = sent(Path(**{field: 0.1}))
    assert sum(map(len, outcomes)) / 2000 == pytest.approx(arriving, abs=0.02)
    assert outcomes == sent(Path(**{field: 0.1}))
    assert outcomes != sent(Path(**{field: 0.1}), seed=2)


def test_corruption_is_one_bit_behind_the_headers():
    damaged = [frame for ((_, frame),) in sent(Path(corrupt=0.1)) if frame != FRAME]
    assert len(damaged) == pytest.approx(200, abs=40)
    for frame in damaged:
        assert frame[:HEADERS_OCTETS] == FRAME[:HEADERS_OCTETS]
        assert sum((a ^ b).bit_count() for a, b in zip(frame, FRAME, strict=True)) == 1


def test_jitter_keeps_the_order_and_reordering_does_not():
    for path, ordered in ((Path(jitter_ms=5), True), (Path(reorder=0.1), False)):
        arrivals = [round(number * 0.001 + due, 9) for number, ((due, _),) in enumerate(sent(path))]
        assert (arrivals == sorted(arrivals)) is ordered


def test_long_frames_vanish():
    assert sent(Path(frame_octets_max=999), frames=1) == [[]]


def test_jain():
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 0

"""Goodput over simulated paths: against theory, and against what it was."""

from __future__ import annotations

from math import sqrt
from pathlib import Path as File

import pytest
from netsim import MSS, Flow, Path, table

SNAPSHOT = File(__file__).with_name("netsim.txt")
RTT_S = 0.2
LOSE_EVERY = 2000


def average_window(congestion: str, rtt_s: float, lose_every: int, epochs: int, top: float) -> float:
    """Segments in a round trip, between losses so far apart. It begins as after a loss at a window of `top`."""
    flow = Flow(Path(rtt_s=rtt_s, rate_bits=1e9, lose_every=lose_every), lose_every * MSS, congestion, window=1 << 30)
    control = flow.recovery.control
    control.restore((control.beta * top * MSS, control.beta * top * MSS, top * MSS, top * MSS))
    before = flow.run()
    flow.write(epochs * lose_every * MSS)
    return epochs * lose_every / ((flow.run() - before) / rtt_s)


def test_rfc5681_the_response_function_of_reno():
    """Mathis et al. (1997): sqrt(3 / 2p) segments, three quarters of the largest window."""
    theory = sqrt(1.5 * LOSE_EVERY)
    assert average_window("reno", RTT_S, LOSE_EVERY, 8, theory / 0.75) == pytest.approx(theory, rel=0.06)


def test_rfc9438_5_1_the_response_function_of_cubic():
    """Equation 5: 1.054 (RTT / p) ** 0.75 segments, C = 0.4, beta = 0.7; (3 + beta) / 4 of the largest window."""
    theory = (0.4 * 3.7 / 1.2) ** 0.25 * (RTT_S * LOSE_EVERY) ** 0.75
    assert theory > 1.5 * sqrt(1.5 * LOSE_EVERY)
    assert average_window("cubic", RTT_S, LOSE_EVERY, 8, theory / 0.925) == pytest.approx(theory, rel=0.06)


def test_rfc9438_4_3_on_short_round_trips_cubic_is_fair_to_reno():
    reno, cubic = (average_window(congestion, 0.01, 400, 10, 30.0) for congestion in ("reno", "cubic"))
    assert cubic == pytest.approx(reno, rel=0.15)


def test_a_full_pipe_without_loss_carries_nearly_what_it_can():
    flow = Flow(Path(rtt_s=0.02, rate_bits=2e7, queue=60), 20_000_000)
    assert 20_000_000 * 8 / flow.run() > 0.9 * 2e7 * MSS / (MSS + 66)


def test_the_table_is_what_it_was():
    """Where a change is meant: python tests/unit/netsim.py > tests/unit/netsim.txt, and say why in the commit."""
    assert table() == SNAPSHOT.read_text()

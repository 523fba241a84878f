"""The cables that are tried, and how even flows share one."""

from __future__ import annotations

from collections.abc import Sequence

from .impairment import Path

CONDITIONS = {
    "clean": Path(),
    "loss 0.1 %": Path(loss=0.001),
    "loss 1 %": Path(loss=0.01),
    "loss 5 %": Path(loss=0.05),
    "loss 20 %": Path(loss=0.2, rate_mbit=20),
    "delay 1 ms": Path(delay_ms=0.5),
    "delay 200 ms": Path(delay_ms=100, rate_mbit=20),
    "jitter 5 to 15 ms": Path(jitter_ms=5),
    "reordering 2 %": Path(reorder=0.02),
    "duplicates 2 %": Path(duplicate=0.02),
    "corruption 1 %": Path(corrupt=0.01),
    "10 Mbit/s, short queue": Path(rate_mbit=10, queue_octets=15_000),
    "10 Mbit/s, bloated queue": Path(rate_mbit=10, queue_octets=1_000_000),
    "MTU 1200, no ICMP": Path(frame_octets_max=1214, rate_mbit=20),
}
SHARED = Path(rate_mbit=40, queue_octets=200_000)  # by several flows


def jain(rates: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has all."""
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)) if any(rates) else 0.0

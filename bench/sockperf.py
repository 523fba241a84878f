"""The same echo, measured by sockperf (in C, Debian's package), to check that our own load generators are fast
enough."""

from __future__ import annotations

import re
import shutil

from bench import stack
from bench.goals import FEW, PORT, Goal, median_of

SECONDS = 1
_P50 = re.compile(r"percentile 50\.000 =\s+([0-9.]+)")


def lone(bench: stack.Bench) -> list[Goal]:
    """Single echoes. sockperf reports half of the round trip. No row if sockperf is not installed."""
    if shutil.which("sockperf") is None:
        return []
    command = ("sockperf", "ping-pong", "-i", stack.ADDRESS, "-p", str(PORT + 3), "-m", "64", "-t", str(SECONDS))
    with bench.during("sockperf-echo", "0.0.0.0", PORT + 3):
        value, _ = median_of(lambda: {"p50_us": 2 * _half(bench.command(*command))}, "p50_us", FEW)
    return [Goal("for scale: the same as sockperf (C) measures it", f"{value:.0f} us", value, f"median of {FEW}", "",
                 None)]


def _half(printed: str) -> float:
    found = _P50.search(printed)
    if found is None:
        raise RuntimeError(f"sockperf measured nothing:\n{printed}")
    return float(found[1])

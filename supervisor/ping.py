"""`launcher.py ping`: echo requests out of the stack, as an application of it."""

from __future__ import annotations

import contextlib
from statistics import mean

from supervisor.control import NotRunning
from supervisor.options import UsageError
from usernet.ping import Result, ping
from usernet.rundir import run_dir
from usernet.stack import Stack


def run(name: str | None, address: str, count: int, interval_s: float, size: int, timeout_s: float) -> int:
    """Print a line a request, as ping(8), and a summary; 0 where any reply came, else 1."""
    if count < 0 or interval_s < 0 or size < 0 or timeout_s <= 0:
        raise UsageError("ping: count, interval and size are not negative, the timeout is above 0")
    times_ms: list[float] = []
    sent = 0
    with _running(name) as stack:
        print(f"PING {address} from {stack.address}: {size} octets of data", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for result in ping(stack, address, count or None, interval_s, size, timeout_s):
                sent += 1
                if result.round_trip_s is not None:
                    times_ms.append(result.round_trip_s * 1000)
                print(line(result), flush=True)
    print(summary(address, sent, times_ms))
    return 0 if times_ms else 1


def _running(name: str | None) -> Stack:
    try:
        return Stack(name)
    except ConnectionRefusedError as error:
        raise NotRunning(str(run_dir(name))) from error


def line(result: Result) -> str:
    """One reply, or the lack of it."""
    if result.round_trip_s is None:
        return f"icmp_seq={result.sequence} {result.error}"
    return (f"{result.octets} octets from {result.source}: icmp_seq={result.sequence} ttl={result.ttl} "
            f"time={result.round_trip_s * 1000:.3f} ms")


def summary(address: str, sent: int, times_ms: list[float]) -> str:
    """Counts and times."""
    lost = 100 * (sent - len(times_ms)) / sent if sent else 0
    text = f"--- {address}: {sent} sent, {len(times_ms)} received, {lost:.0f}% lost"
    if times_ms:
        text += f", min/avg/max {min(times_ms):.3f}/{mean(times_ms):.3f}/{max(times_ms):.3f} ms"
    return text

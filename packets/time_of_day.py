"""The time of day in IP and ICMP."""

from __future__ import annotations

MILLISECONDS_PER_DAY = 86_400_000


def time_of_day(epoch_s: float) -> bytes:
    """RFC 791 section 3.1, RFC 792: milliseconds since midnight UT, 4 octets; `epoch_s`: seconds since 1970."""
    return (int(epoch_s * 1000) % MILLISECONDS_PER_DAY).to_bytes(4, "big")

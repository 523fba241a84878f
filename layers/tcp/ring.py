"""Sizes of rings; the rings themselves are in `bus.durable.arena`."""

from __future__ import annotations

from functools import lru_cache

from bus.durable.arena import BLOCK_OCTETS, RING_OCTETS_MAX, Ring, order_for

RING_OCTETS_MIN = BLOCK_OCTETS


@lru_cache(256)  # of the limits of receive buffers, of which there are few
def size_for(octets: int) -> int:
    """The size of the smallest ring for this many octets; at most the largest."""
    return BLOCK_OCTETS << 2 * order_for(octets)


__all__ = ["RING_OCTETS_MAX", "RING_OCTETS_MIN", "Ring", "size_for"]

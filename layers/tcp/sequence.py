"""Sequence numbers (RFC 9293 section 3.4): 32 bits on the wire, relative and unbounded inside.

Inside, the SYN has number 0 and the first octet behind it 1, as Wireshark shows them; they go on beyond 2**32, so that
comparisons are Python's own, and a stream's offset is a number less 1. What an ISN of 32 bits adds is added here.
"""

from __future__ import annotations

MODULUS_MASK = 0xFFFFFFFF
_HALF = 1 << 31


def to_wire(isn: int, number: int) -> int:
    """The 32 bits that stand in a header for a relative number."""
    return (isn + number) & MODULUS_MASK


def from_wire(isn: int, wire: int, near: int) -> int:
    """The relative number nearest to `near` that stands as `wire`; negative where it lies before the ISN."""
    return near - _HALF + ((wire - isn - near + _HALF) & MODULUS_MASK)

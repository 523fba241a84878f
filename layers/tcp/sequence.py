"""Sequence numbers (RFC 9293 section 3.4): 32 bits on the wire, relative and unbounded inside.

Inside, the SYN has number 0 and the first octet after it 1, as in Wireshark. They continue beyond 2**32, so that
Python's comparisons apply, and a stream's offset is a number minus 1. This module adds and subtracts the ISN of 32
bits.
"""

from __future__ import annotations

MODULUS_MASK = 0xFFFFFFFF
_HALF = 1 << 31


def to_wire(isn: int, number: int) -> int:
    """The 32 bits in a header for a relative number."""
    return (isn + number) & MODULUS_MASK


def from_wire(isn: int, wire: int, near: int) -> int:
    """The relative number nearest to `near` with the header field `wire`; negative if it is before the ISN."""
    return near - _HALF + ((wire - isn - near + _HALF) & MODULUS_MASK)

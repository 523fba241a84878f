"""Initial sequence numbers and timestamp offsets (RFC 6528, RFC 7323 section 5.4).

ISN = M + F(addresses, ports, secret). M counts 4 us ticks of CLOCK_MONOTONIC, which continue over a restart of the
layer. F is keyed BLAKE2s, with its key in durable state. So a connection's numbers cannot be derived from those of
another, and a connection with the same ends as an earlier one starts beyond it.
"""

from __future__ import annotations

from hashlib import blake2s

TICKS_PER_S = 250_000  # RFC 9293 section 3.4.1: roughly every 4 us
KEY_OCTETS = 32


def initial(secret: bytes, ends: bytes, now: float) -> int:
    """The ISN of a connection, `ends` its addresses and ports in octets, at `now` seconds."""
    return (_keyed(secret, ends, b"isn") + int(now * TICKS_PER_S)) & 0xFFFFFFFF


def timestamp_offset(secret: bytes, ends: bytes) -> int:
    """An offset for the clock in a connection's timestamps, so that they do not reveal the host's uptime."""
    return _keyed(secret, ends, b"timestamp")


def _keyed(secret: bytes, ends: bytes, purpose: bytes) -> int:
    return int.from_bytes(blake2s(ends, digest_size=4, key=secret, person=purpose.ljust(8)[:8]).digest(), "big")

"""Identification numbers: unique for source, destination and protocol during the lifetime of a packet (RFC 6864 section
4.2).

Owns a table of series. A keyed hash maps each (source, destination, protocol) to a series, as in Linux (`ip_idents`):
memory is bounded, and the numbers sent to one host reveal nothing about those sent to others. A block of numbers is
reserved in durable state before the first of it is used; a restart continues after it.
"""

from __future__ import annotations

import random
from hashlib import blake2s

from bus.layer import State

SECRET_KEY = 1  # in durable state, because the hash must give the same series after a restart
SERIES_KEYS = 3 << 32  # + number of a series: the last number of its reserved block
SERIES = 2048  # Linux: the minimum of ip_idents
BLOCK = 1024  # numbers reserved by one write to durable state; at most this many are skipped by a restart
LIFETIME_S = 120.0  # RFC 791 section 3.2, RFC 1122 section 3.3.2: the maximum lifetime of a packet
BLUR_INTERVAL_S = 0.1
BLUR_PER_SECOND = 100  # maximum of skipped numbers, which hide how many were used: 12,000 in a lifetime
SECRET_OCTETS = 16


class Series:
    """One sequence of numbers."""

    __slots__ = ("_blur_at", "_key", "_left", "_number", "_rng", "_state")

    def __init__(self, number: int, key: int, state: State, rng: random.Random) -> None:
        self._number = number  # the last used number
        self._left = 0  # left in the reserved block
        self._blur_at = float("inf")
        self._key = key
        self._state = state
        self._rng = rng

    def next(self, now: float) -> int:
        """The next number."""
        if not self._left or now >= self._blur_at:
            self._renew(now)
        self._left -= 1
        self._number = number = (self._number + 1) & 0xFFFF
        return number

    def run(self, count: int, now: float) -> int:
        """The first of `count` consecutive numbers, below 65536."""
        first = self.next(now)
        for _ in range(count - 1):
            self.next(now)  # no number is skipped within one moment
        return first

    def _renew(self, now: float) -> None:
        """Skip a random number of numbers in proportion to the elapsed time, and reserve a block if necessary."""
        silent_s = now - self._blur_at
        skipped = 0
        if silent_s >= LIFETIME_S:
            skipped = self._rng.randrange(1 << 16)  # all used numbers have expired
        elif silent_s >= 0:
            skipped = self._rng.randrange(int((silent_s + BLUR_INTERVAL_S) * BLUR_PER_SECOND) + 1)
        self._number = (self._number + skipped) & 0xFFFF
        self._left -= skipped
        if self._left <= 0:
            self._left = BLOCK
            self._state[self._key] = ((self._number + BLOCK) & 0xFFFF).to_bytes(2, "little")
        self._blur_at = now + BLUR_INTERVAL_S


class Identifications:
    """The table of series; a series is created when it is first used."""

    def __init__(self, state: State, rng: random.Random) -> None:
        self._state = state
        self._rng = rng
        self._secret = b""
        self._series: dict[int, Series] = {}

    def start(self) -> None:
        """Restore the secret, or create one."""
        self._secret = self._state.get(SECRET_KEY, b"")
        if len(self._secret) != SECRET_OCTETS:
            self._secret = self._state[SECRET_KEY] = self._rng.randbytes(SECRET_OCTETS)

    def series(self, source: bytes, destination: bytes, protocol: int) -> Series:
        """The series for packets with these addresses and this protocol."""
        key = source + destination + bytes((protocol,))
        place = int.from_bytes(blake2s(key, key=self._secret, digest_size=2).digest(), "big") % SERIES
        series = self._series.get(place)
        if series is None:
            stored = self._state.get(SERIES_KEYS + place)
            number = int.from_bytes(stored, "little") if stored else self._rng.randrange(1 << 16)
            series = self._series[place] = Series(number, SERIES_KEYS + place, self._state, self._rng)
        return series

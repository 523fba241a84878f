"""Random numbers of a recorded layer: unpredictable for who does not have the key, and the same again with it.

Ports, identification numbers, secrets and the like must not be guessed from others that were seen (RFC 6056, RFC 7739).
An unrecorded layer takes them from the kernel. A recorded one must draw the same numbers when it is replayed, and the
Mersenne Twister of `random.Random` does not serve: 624 of its outputs tell all others. So the numbers are keyed BLAKE2b
of a counter. The key is from the kernel and exists only in the process and in its recording (mode 0600).
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

KEY_OCTETS = 32
_COUNTER_OCTETS = 8
_FLOAT_BITS = 53  # of the significand of a double


class KeyedRandom(random.Random):
    """See the module's docstring. `key`: 1 to 64 octets."""

    def __init__(self, key: bytes) -> None:
        if not key:
            raise ValueError("the numbers of an empty key are no secret")
        self._key = key
        self._blocks = 0  # blocks made so far
        self._left = b""  # octets of the last of them that were not drawn
        self.gauss_next: float | None = None  # of random.Random

    def getrandbits(self, k: int, /) -> int:
        """An integer of `k` bits. ValueError: a negative number of bits."""
        if k < 0:
            raise ValueError("number of bits must be non-negative")
        octets = (k + 7) // 8
        pieces = [self._left]
        have = len(self._left)
        while have < octets:
            number = self._blocks.to_bytes(_COUNTER_OCTETS, "little")
            pieces.append(blake2b(number, key=self._key).digest())
            have += len(pieces[-1])
            self._blocks += 1
        drawn = b"".join(pieces)
        self._left = drawn[octets:]
        return int.from_bytes(drawn[:octets], "big") >> (8 * octets - k)

    def random(self) -> float:
        """A number from 0 up to, but not including, 1."""
        return self.getrandbits(_FLOAT_BITS) * 2.0**-_FLOAT_BITS

    def seed(self, *_arguments: Any, **_named: Any) -> None:
        """Does nothing, as with random.SystemRandom: the key decides."""

    def getstate(self) -> tuple[Any, ...]:
        """What `setstate` of one with the same key needs to go on from here."""
        return self._blocks, self._left, self.gauss_next

    def setstate(self, state: tuple[Any, ...]) -> None:
        """See `getstate`."""
        self._blocks, self._left, self.gauss_next = state

    def __reduce__(self) -> tuple[Any, ...]:
        """To be pickled: a checkpoint of a recording contains it."""
        return KeyedRandom, (self._key,), self.getstate()

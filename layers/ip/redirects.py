"""Redirects (RFC 1122 section 3.2.2.2): destinations for which the gateway named another gateway.

Owns the table of them, in durable state. `Routing` decides whether to accept one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bus.layer import State
from bus.messages import decoder, encode

AGE_LIMIT_S = 300.0  # Linux: net.ipv4.route.gc_timeout, the lifetime of redirects
REDIRECTS_MAX = 256  # each is a route that is announced to all layers above


class Redirect(msgspec.Struct, array_like=True, frozen=True):
    """A destination, and the gateway to it."""

    destination: bytes
    gateway: bytes
    expires: float


_decode = decoder(list[Redirect])
_NOTHING = encode([])


class Redirects:
    """Redirects by destination; the first to expire is the first."""

    def __init__(self, state: State, key: int) -> None:
        self._state = state
        self._key = key
        self._by_destination: dict[bytes, Redirect] = {}

    def load(self) -> None:
        """Restore the stored ones. ValueError: not valid."""
        self._by_destination = {each.destination: each for each in _decode(self._state.get(self._key, _NOTHING))}

    def all(self) -> list[Redirect]:
        """All valid redirects."""
        return list(self._by_destination.values())

    @property
    def next_expiry(self) -> float | None:
        """The time at which `expire` has something to do."""
        return next(iter(self._by_destination.values())).expires if self._by_destination else None

    def learn(self, destination: bytes, gateway: bytes, now: float) -> None:
        """Add a redirect; if there are too many, the oldest is deleted."""
        self._by_destination.pop(destination, None)
        if len(self._by_destination) >= REDIRECTS_MAX:
            del self._by_destination[next(iter(self._by_destination))]
        self._by_destination[destination] = Redirect(destination, gateway, now + AGE_LIMIT_S)
        self._store()

    def expire(self, now: float) -> int:
        """Delete expired ones; returns their number."""
        return self._drop(lambda each: each.expires <= now)

    def forget(self, gateway: bytes | None = None) -> int:
        """Delete those to a gateway, or all; returns their number."""
        return self._drop(lambda each: gateway in (None, each.gateway))

    def _drop(self, doomed: Callable[[Redirect], bool]) -> int:
        kept = {each.destination: each for each in self.all() if not doomed(each)}
        dropped = len(self._by_destination) - len(kept)
        if dropped:
            self._by_destination = kept
            self._store()
        return dropped

    def _store(self) -> None:
        self._state[self._key] = encode(self.all())

"""Redirects (RFC 1122 section 3.2.2.2): to which other gateway ours sent us for a destination.

Owns the table of them; in durable state, so that a restart need not be told again. Whether one is to be believed is for
`Routing` to say.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bus.layer import State
from bus.messages import decoder, encode

AGE_LIMIT_S = 300.0  # Linux: net.ipv4.route.gc_timeout, which redirects live
REDIRECTS_MAX = 256  # each is a route that all layers above are told of


class Redirect(msgspec.Struct, array_like=True, frozen=True):
    """A destination, and the gateway to it."""

    destination: bytes
    gateway: bytes
    expires: float


_decode = decoder(list[Redirect])
_NOTHING = encode([])


class Redirects:
    """Redirects by destination; the first to expire first."""

    def __init__(self, state: State, key: int) -> None:
        self._state = state
        self._key = key
        self._by_destination: dict[bytes, Redirect] = {}

    def load(self) -> None:
        """Read back what is stored; ValueError for what cannot be read."""
        self._by_destination = {each.destination: each for each in _decode(self._state.get(self._key, _NOTHING))}

    def all(self) -> list[Redirect]:
        """All that hold."""
        return list(self._by_destination.values())

    @property
    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        return next(iter(self._by_destination.values())).expires if self._by_destination else None

    def learn(self, destination: bytes, gateway: bytes, now: float) -> None:
        """Believe a redirect; the oldest gives way where there are too many."""
        self._by_destination.pop(destination, None)
        if len(self._by_destination) >= REDIRECTS_MAX:
            del self._by_destination[next(iter(self._by_destination))]
        self._by_destination[destination] = Redirect(destination, gateway, now + AGE_LIMIT_S)
        self._store()

    def expire(self, now: float) -> int:
        """Forget what is too old; how many those were."""
        return self._drop(lambda each: each.expires <= now)

    def forget(self, gateway: bytes | None = None) -> int:
        """Forget those to a gateway, or all; how many those were."""
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

"""Gateways that do not answer (RFC 1122 section 3.3.1.4), so that others take their place until they are back.

Owns which those are; in durable state, so that a restart need not find out anew. Nothing here has a timer: a gateway is
asked for again when something is sent at all, and is back with the first sign of life that arp has of it.
"""

from __future__ import annotations

from collections.abc import Container

from bus.layer import State
from bus.messages import decoder, encode

RETRY_S = 30.0  # between two questions for a dead gateway; as for one in use: neighbors.ASK_AGAIN_AFTER_S

_decode = decoder(list[bytes])
_NOTHING = encode([])


class Gateways:
    """Dead gateways, by address."""

    def __init__(self, state: State, key: int) -> None:
        self._state = state
        self._key = key
        self._dead: dict[bytes, float] = {}  # and when to ask again

    def load(self) -> None:
        """Read back what is stored; ValueError for what cannot be read."""
        self._dead = dict.fromkeys(_decode(self._state.get(self._key, _NOTHING)), 0.0)

    def __contains__(self, gateway: object) -> bool:
        return gateway in self._dead

    def failed(self, gateway: bytes, now: float) -> bool:
        """It does not answer; True where this is news."""
        news = gateway not in self._dead
        self._dead[gateway] = now + RETRY_S
        if news:
            self._store()
        return news

    def lives(self, gateway: bytes) -> bool:
        """It was heard of; True where this is news."""
        if self._dead.pop(gateway, None) is None:
            return False
        self._store()
        return True

    def keep(self, gateways: Container[bytes]) -> None:
        """Forget those that are gateways no longer."""
        kept = {gateway: at for gateway, at in self._dead.items() if gateway in gateways}
        if len(kept) < len(self._dead):
            self._dead = kept
            self._store()

    def due(self, now: float) -> list[bytes]:
        """Those to be asked for again now."""
        due = [gateway for gateway, at in self._dead.items() if now >= at]
        for gateway in due:
            self._dead[gateway] = now + RETRY_S
        return due

    def _store(self) -> None:
        self._state[self._key] = encode(list(self._dead))

"""Dead gateways (RFC 1122 section 3.3.1.4): others are used until they are back.

Owns the set of dead gateways, in durable state. It has no timer: a dead gateway is resolved again while packets are
sent, and is alive again when arp sees a packet from it.
"""

from __future__ import annotations

from collections.abc import Container

from bus.layer import State
from bus.messages import decoder, encode

RETRY_S = 30.0  # between two requests for a dead gateway; the same as neighbors.ASK_AGAIN_AFTER_S

_decode = decoder(list[bytes])
_NOTHING = encode([])


class Gateways:
    """The dead gateways, by address."""

    def __init__(self, state: State, key: int) -> None:
        self._state = state
        self._key = key
        self._dead: dict[bytes, float] = {}  # {gateway: time of the next request}

    def load(self) -> None:
        """Restore the stored gateways. ValueError: not valid."""
        self._dead = dict.fromkeys(_decode(self._state.get(self._key, _NOTHING)), 0.0)

    def __contains__(self, gateway: object) -> bool:
        return gateway in self._dead

    def failed(self, gateway: bytes, now: float) -> bool:
        """The gateway does not answer; True: it was alive before."""
        news = gateway not in self._dead
        self._dead[gateway] = now + RETRY_S
        if news:
            self._store()
        return news

    def lives(self, gateway: bytes) -> bool:
        """A packet of the gateway arrived; True: it was dead before."""
        if self._dead.pop(gateway, None) is None:
            return False
        self._store()
        return True

    def keep(self, gateways: Container[bytes]) -> None:
        """Remove those that are no longer gateways."""
        kept = {gateway: at for gateway, at in self._dead.items() if gateway in gateways}
        if len(kept) < len(self._dead):
            self._dead = kept
            self._store()

    def due(self, now: float) -> list[bytes]:
        """The gateways for which a request is due."""
        due = [gateway for gateway, at in self._dead.items() if now >= at]
        for gateway in due:
            self._dead[gateway] = now + RETRY_S
        return due

    def _store(self) -> None:
        self._state[self._key] = encode(list(self._dead))

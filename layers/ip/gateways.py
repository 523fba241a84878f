"""Gateways that do not answer (RFC 1122 section 3.3.1.4), so that others take their place until they are back.

Owns which those are; in durable state, so that a restart need not find out anew. Nothing here has a timer: a gateway is
asked for again when something is sent at all, and is back with the first sign of life that arp has of it.
"""

from __future__ import annotations

from collections.abc import Container

from bus.layer import State

RETRY_S = 30.0  # between two questions for a dead gateway; as for one in use: neighbors.ASK_AGAIN_AFTER_S


class Gateways:
    """Dead gateways, by address (32-bit integer)."""

    def __init__(self, state: State, key: int) -> None:
        self._state = state
        self._key = key
        self._dead: dict[int, float] = {}  # and when to ask again

    def load(self) -> None:
        """Read back what is stored."""
        stored = self._state.get(self._key, b"")
        self._dead = {int.from_bytes(stored[at : at + 4], "big"): 0.0 for at in range(0, len(stored) - 3, 4)}

    def __contains__(self, gateway: object) -> bool:
        return gateway in self._dead

    def failed(self, gateway: int, now: float) -> bool:
        """It does not answer; True where this is news."""
        news = gateway not in self._dead
        self._dead[gateway] = now + RETRY_S
        if news:
            self._store()
        return news

    def lives(self, gateway: int) -> bool:
        """It was heard of; True where this is news."""
        if self._dead.pop(gateway, None) is None:
            return False
        self._store()
        return True

    def keep(self, gateways: Container[int]) -> None:
        """Forget those that are gateways no longer."""
        kept = {gateway: at for gateway, at in self._dead.items() if gateway in gateways}
        if len(kept) < len(self._dead):
            self._dead = kept
            self._store()

    def due(self, now: float) -> list[int]:
        """Those to be asked for again now."""
        due = [gateway for gateway, at in self._dead.items() if now >= at]
        for gateway in due:
            self._dead[gateway] = now + RETRY_S
        return due

    def _store(self) -> None:
        self._state[self._key] = b"".join(gateway.to_bytes(4, "big") for gateway in self._dead)

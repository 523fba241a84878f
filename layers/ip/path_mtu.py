"""Path MTUs: the maximum packet size on the path to a destination, as routers report it (RFC 1191).

Owns the table of them, in durable state.
"""

from __future__ import annotations

import msgspec

from bus.layer import State
from bus.messages import decoder, encode

AGE_LIMIT_S = 600.0  # RFC 1191 section 6.3: ten minutes
MTU_MIN = 552  # Linux: net.ipv4.route.min_pmtu. A forged ICMP error cannot reduce it further
PATHS_MAX = 256  # each is a route that is announced to all layers above
PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)  # RFC 1191 section 7, below the first


class Path(msgspec.Struct, array_like=True, frozen=True):
    """`capped`: the reported MTU is below MTU_MIN, so packets of MTU_MIN must not have DF."""

    destination: bytes
    mtu: int
    expires: float
    capped: bool


_decode = decoder(list[Path])
_NOTHING = encode([])


class Paths:
    """Path MTUs by destination; the first to expire is the first."""

    def __init__(self, state: State, key: int) -> None:
        self._state = state
        self._key = key
        self._by_destination: dict[bytes, Path] = {}

    def load(self) -> None:
        """Restore the stored ones. ValueError: not valid."""
        self._by_destination = {path.destination: path for path in _decode(self._state.get(self._key, _NOTHING))}

    def get(self, destination: bytes) -> Path | None:
        """The path to `destination`; None: nothing is known."""
        return self._by_destination.get(destination)

    def all(self) -> list[Path]:
        """All known paths."""
        return list(self._by_destination.values())

    @property
    def next_expiry(self) -> float | None:
        """The time at which `expire` has something to do."""
        return next(iter(self._by_destination.values())).expires if self._by_destination else None

    def lower(self, destination: bytes, told: int, quoted_octets: int, present: int, now: float) -> bool:
        """A router could forward at most `told` octets of a packet of `quoted_octets`; `present`: the assumed MTU.

        Returns False if nothing changes. An MTU is never raised this way.
        """
        if not told:
            # RFC 1191 section 5: an old router does not report the MTU; use the next plateau below the refused length
            refused = min(quoted_octets, present)
            told = next((plateau for plateau in PLATEAUS if plateau < refused), MTU_MIN)
        known = self._by_destination.get(destination)
        if told > present or (told == present and known is None):
            return False
        path = Path(destination, min(present, max(told, MTU_MIN)), now + AGE_LIMIT_S,
                    told < MTU_MIN or (known is not None and known.capped))
        news = known is None or (path.mtu, path.capped) != (known.mtu, known.capped)
        # otherwise the change is too small to store
        if known is None or news or path.expires - known.expires > AGE_LIMIT_S / 2:
            self._by_destination.pop(destination, None)
            if len(self._by_destination) >= PATHS_MAX:
                del self._by_destination[next(iter(self._by_destination))]
            self._by_destination[destination] = path
            self._store()
        return news

    def expire(self, now: float) -> int:
        """Delete expired ones; returns their number."""
        old = [path.destination for path in self._by_destination.values() if path.expires <= now]
        for destination in old:
            del self._by_destination[destination]
        if old:
            self._store()
        return len(old)

    def _store(self) -> None:
        self._state[self._key] = encode(self.all())

"""The port manager: which socket holds which local port, and which sockets may share one.

Linux's rules for UDP (udp_lib_lport_inuse, inet_rcv_saddr_equal): two sockets with the same port conflict if their
addresses overlap (they are equal, or one is any), unless both set SO_REUSEADDR or both set SO_REUSEPORT. All sockets of
a stack belong to one user, so the rule that the owners must be equal is always met.

Owns only the claims; layers.udp.tables decides which socket gets a datagram.
"""

from __future__ import annotations

import random
from typing import NamedTuple

EPHEMERAL_PORT_MIN = 32768  # Linux net.ipv4.ip_local_port_range
EPHEMERAL_PORT_MAX = 60999
EPHEMERAL_PORTS = EPHEMERAL_PORT_MAX - EPHEMERAL_PORT_MIN + 1

SHARE_NOT = 0
SHARE_ADDRESS = 1  # SO_REUSEADDR
SHARE_PORT = 2  # SO_REUSEPORT


class Claim(NamedTuple):
    """A local address (ANY: all), a port, and a set of SHARE_ bits."""

    address: bytes
    port: int
    sharing: int


class Ports:
    """All claims, by holder and by port."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held: dict[int, Claim] = {}
        # Holders are counted, not listed, so that the check takes as long for 10,000 sharers of a port as for two.
        self._counts: dict[int, dict[Claim, int]] = {}

    def clashes(self, holder: int, wanted: Claim) -> bool:
        """True if `wanted` conflicts with a claim of another holder than `holder`."""
        own = self._held.get(holder)
        address, port, sharing = wanted
        for claim, count in self._counts.get(port, {}).items():
            overlap = not address or not claim.address or address == claim.address
            if overlap and not sharing & claim.sharing and count > (claim == own):
                return True
        return False

    def choose(self, holder: int, address: bytes) -> int | None:
        """A free ephemeral port; None: there is none. Unlike on Linux it is never one that is shared."""
        # RFC 6056 section 3.3.1, algorithm 1: a random start, then the next free port.
        start = self._rng.randrange(EPHEMERAL_PORTS)
        for step in range(EPHEMERAL_PORTS):
            port = EPHEMERAL_PORT_MIN + (start + step) % EPHEMERAL_PORTS
            if port not in self._counts or not self.clashes(holder, Claim(address, port, SHARE_NOT)):
                return port
        return None

    def hold(self, holder: int, claim: Claim) -> None:
        """Set `claim` as the only claim of `holder`, without checking conflicts."""
        if self._held.get(holder) == claim:
            return
        self.release(holder)
        self._held[holder] = claim
        counts = self._counts.setdefault(claim.port, {})
        counts[claim] = counts.get(claim, 0) + 1

    def release(self, holder: int) -> None:
        """Remove the claim of `holder`."""
        claim = self._held.pop(holder, None)
        if claim is None:
            return
        counts = self._counts[claim.port]
        counts[claim] -= 1
        if not counts[claim]:
            del counts[claim]
            if not counts:
                del self._counts[claim.port]

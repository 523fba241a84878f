"""The port manager: which socket holds which local port, and which sockets may share one.

Linux's rules for UDP (udp_lib_lport_inuse, inet_rcv_saddr_equal): two sockets with the same port conflict if their
addresses overlap (they are equal, or one is any), unless both set SO_REUSEADDR or both set SO_REUSEPORT. All sockets of
a stack belong to one user, so the rule that the owners must be equal is always met.

Owns only the claims; layers.udp.tables decides which socket gets a datagram.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from typing import NamedTuple

from packets.addresses import ANY

EPHEMERAL_PORT_MIN = 32768  # Linux net.ipv4.ip_local_port_range
EPHEMERAL_PORT_MAX = 60999
EPHEMERAL_PORTS = EPHEMERAL_PORT_MAX - EPHEMERAL_PORT_MIN + 1

SHARE_NOT = 0
SHARE_ADDRESS = 1  # SO_REUSEADDR
SHARE_PORT = 2  # SO_REUSEPORT

STEPS_MAX = 64  # of a search that finds nothing if no port is held by several sockets with different addresses

_EVERYWHERE = "everywhere"  # of a port: its holders with any address
# The holders of a port and an address are counted by their sharing, in one number, so that a check takes as long for
# 10,000 of them as for two.
_BITS = 20
_ONE = tuple(1 << _BITS * sharing for sharing in range(4))
_RIVALS = tuple(sum(((1 << _BITS) - 1) << _BITS * other for other in range(4) if not sharing & other)
                for sharing in range(4))
_ALL, _PLACES = array("H", range(EPHEMERAL_PORT_MIN, EPHEMERAL_PORT_MAX + 1)), array("H", range(EPHEMERAL_PORTS))


class Claim(NamedTuple):
    """A local address (ANY: all), a port, and a set of SHARE_ bits."""

    address: bytes
    port: int
    sharing: int


class FreePorts:
    """The ephemeral ports that nobody holds."""

    __slots__ = ("_places", "_ports")

    def __init__(self) -> None:
        self._ports = _ALL[:]
        self._places = _PLACES[:]  # of each port, if it is free

    def __reduce__(self) -> tuple[Callable[..., FreePorts], tuple[int, list[tuple[int, int]]]]:
        """As the differences from the beginning: a recording contains many copies of a core."""
        ports = self._ports
        return _as_it_was, (len(ports), [(place, port) for place, port in enumerate(ports) if port != _ALL[place]])

    def choose(self, rng: random.Random) -> int | None:
        """One of them, all equally likely (RFC 6056 section 3.3.1: unpredictable); None: there is none."""
        ports = self._ports
        return ports[rng.randrange(len(ports))] if ports else None

    def take(self, port: int) -> None:
        """A port, which was free, is held now."""
        if EPHEMERAL_PORT_MIN <= port <= EPHEMERAL_PORT_MAX:
            place, last = self._places[port - EPHEMERAL_PORT_MIN], self._ports.pop()
            if last != port:
                self._ports[place] = last
                self._places[last - EPHEMERAL_PORT_MIN] = place

    def give(self, port: int) -> None:
        """A port, which was held, is free now."""
        if EPHEMERAL_PORT_MIN <= port <= EPHEMERAL_PORT_MAX:
            self._places[port - EPHEMERAL_PORT_MIN] = len(self._ports)
            self._ports.append(port)


def _as_it_was(number: int, moved: list[tuple[int, int]]) -> FreePorts:
    """So many free ports, of which some are not at their first places."""
    free = FreePorts()
    free._ports = _ALL[:number]
    for place, port in moved:
        free._ports[place] = port
        free._places[port - EPHEMERAL_PORT_MIN] = place
    return free


class Ports:
    """All claims, by holder and by port."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held: dict[int, Claim] = {}
        self._counts: dict[tuple[int, bytes | str], int] = {}  # {(port, address or _EVERYWHERE): holders, by sharing}
        self._free = FreePorts()
        self._taken: dict[bytes, int] = {}  # {address: ephemeral ports that are held with it}

    def clashes(self, holder: int, wanted: Claim) -> bool:
        """True if `wanted` conflicts with a claim of another holder than `holder`."""
        own = self._held.get(holder)
        address, port, sharing = wanted
        for where in (address, ANY) if address else (_EVERYWHERE,):
            count = self._counts.get((port, where), 0)
            if own is not None and own.port == port and where in (_EVERYWHERE, own.address or ANY):
                count -= _ONE[own.sharing]
            if count & _RIVALS[sharing]:
                return True
        return False

    def choose(self, holder: int, address: bytes) -> int | None:
        """A free ephemeral port; None: there is none. Unlike on Linux it is never one that is shared."""
        free = self._free.choose(self._rng)
        if free is not None or not address:
            return free
        # One that is held with other addresses only. RFC 6056 section 3.3.1, algorithm 1: a random start, then the next
        counts, start = self._counts, self._rng.randrange(EPHEMERAL_PORTS)
        some = self._taken.get(address, 0) + self._taken.get(ANY, 0) < EPHEMERAL_PORTS
        for step in range(EPHEMERAL_PORTS if some else STEPS_MAX):
            port = EPHEMERAL_PORT_MIN + (start + step) % EPHEMERAL_PORTS
            if (port, ANY) not in counts and (port, address) not in counts:
                return port
        return None

    def hold(self, holder: int, claim: Claim) -> None:
        """Set `claim` as the only claim of `holder`, without checking conflicts."""
        if self._held.get(holder) == claim:
            return
        self.release(holder)
        self._held[holder] = claim
        address, port, sharing = claim
        counts = self._counts
        if (port, _EVERYWHERE) not in counts:
            self._free.take(port)
        where = address or ANY
        if (port, where) not in counts and EPHEMERAL_PORT_MIN <= port <= EPHEMERAL_PORT_MAX:
            self._taken[where] = self._taken.get(where, 0) + 1
        for place in ((port, _EVERYWHERE), (port, where)):
            counts[place] = counts.get(place, 0) + _ONE[sharing]

    def release(self, holder: int) -> None:
        """Remove the claim of `holder`."""
        claim = self._held.pop(holder, None)
        if claim is None:
            return
        address, port, sharing = claim
        where = address or ANY
        if self._one_less((port, where), sharing) and EPHEMERAL_PORT_MIN <= port <= EPHEMERAL_PORT_MAX:
            self._taken[where] -= 1
            if not self._taken[where]:
                del self._taken[where]
        if self._one_less((port, _EVERYWHERE), sharing):
            self._free.give(port)

    def _one_less(self, place: tuple[int, bytes | str], sharing: int) -> bool:
        """One holder less; True: it was the last."""
        self._counts[place] -= _ONE[sharing]
        if self._counts[place]:
            return False
        del self._counts[place]
        return True

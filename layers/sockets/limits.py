"""Limits for all applications together, and the share of each.

A process of the stack may use 256 MiB. With as many sockets and memberships as these limits allow, a restart reads them
back within a second and needs at most 140 MB, in the socket service and in udp. An application gets no more than is
free for all others: one alone gets half, a second one a quarter, and something is always left for the next one.
"""

from __future__ import annotations

SOCKETS_MAX = 1 << 16
MEMBERSHIPS_MAX = 1 << 16  # of multicast groups, and sources in their filters
WAITING_MAX = 1 << 12  # requests behind one under way on the same socket; each is as long as REQUEST_OCTETS_MAX at most
LONG_WAITING_MAX = 1 << 12  # requests that take long, and those behind them (layers.sockets.waiting)


class Shares:
    """A number of pieces of something, and how many each client has."""

    def __init__(self, most: int) -> None:
        self.free = most
        self._taken: dict[int, int] = {}  # client -> pieces

    def allows(self, client: int, pieces: int = 1) -> bool:
        """True if a client may take this many more."""
        return self._taken.get(client, 0) + pieces <= self.free

    def take(self, client: int, pieces: int = 1) -> None:
        """Record that a client has this many more, or fewer if negative. A restart does so without asking `allows`."""
        left = self._taken.get(client, 0) + pieces
        self.free -= pieces
        if left:
            self._taken[client] = left
        else:
            self._taken.pop(client, None)

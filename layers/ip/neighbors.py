"""ip's copy of what arp knows, and the packets that wait for an answer.

arp owns the neighbours; a copy here spares a question per packet. Lost in a crash: the waiting packets, and the copy,
which arp announces anew.
"""

from __future__ import annotations

from collections import deque

ASK_AGAIN_AFTER_S = 30.0  # half of arp's age limit: a neighbour in use is verified before it expires
WAITING_MAX = 64  # packets per neighbour; RFC 1122 section 2.3.2.2 asks for at least one, the latest
NEIGHBORS_MAX = 8192


class Neighbor:
    """One next hop. `mac` is None until arp has answered."""

    __slots__ = ("address", "ask_again_at", "mac", "waiting")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.mac: bytes | None = None
        self.ask_again_at = 0.0
        self.waiting: deque[bytes] = deque()


class Neighbors:
    """Neighbours by address (4 octets)."""

    def __init__(self) -> None:
        self._by_address: dict[bytes, Neighbor] = {}

    def get(self, address: bytes) -> Neighbor:
        """The neighbour, made where it is new; the longest known gives way where there are too many."""
        neighbor = self._by_address.get(address)
        if neighbor is None:
            if len(self._by_address) >= NEIGHBORS_MAX:
                oldest = next(iter(self._by_address))
                self._by_address.pop(oldest).mac = None  # flows that hold it ask again
            neighbor = self._by_address[address] = Neighbor(address)
        return neighbor

    def find(self, address: bytes) -> Neighbor | None:
        """The neighbour, if it is known."""
        return self._by_address.get(address)

    def unresolved(self) -> list[Neighbor]:
        """Those that somebody waits for."""
        return [neighbor for neighbor in self._by_address.values() if neighbor.waiting]

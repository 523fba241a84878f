"""ip's copy of what arp knows, and the packets that wait for an answer.

arp owns the neighbours; a copy here spares a question per packet. Lost in a crash: the waiting packets, and the copy,
which arp announces anew.
"""

from __future__ import annotations

from collections import deque

from bus.core import CounterWords
from layers.ip.counters import Counters

ASK_AGAIN_AFTER_S = 30.0  # half of arp's age limit: a neighbour in use is verified before it expires
WAITING_MAX = 64  # packets per neighbour; RFC 1122 section 2.3.2.2 asks for at least one, the latest
NEIGHBORS_MAX = 8192


class Neighbor:
    """One next hop. `mac` is None until arp has answered; when it is `ask_again_at`, arp is asked (again)."""

    __slots__ = ("address", "ask_again_at", "mac", "waiting")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.mac: bytes | None = None
        self.ask_again_at = float("-inf")
        self.waiting: deque[bytes] = deque()


class Neighbors:
    """Neighbours by address (4 octets)."""

    def __init__(self, counters: CounterWords) -> None:
        self._counters = counters
        self._by_address: dict[bytes, Neighbor] = {}

    def get(self, address: bytes) -> Neighbor:
        """The neighbour, made where it is new; the longest known gives way where there are too many."""
        neighbor = self._by_address.get(address)
        if neighbor is None:
            if len(self._by_address) >= NEIGHBORS_MAX:
                oldest = self._by_address.pop(next(iter(self._by_address)))
                oldest.mac = None  # flows that hold it ask again
                self._counters[Counters.neighbor_queue_full] += len(oldest.waiting)
            neighbor = self._by_address[address] = Neighbor(address)
        return neighbor

    def find(self, address: bytes) -> Neighbor | None:
        """The neighbour, if it is known."""
        return self._by_address.get(address)

    def unresolved(self) -> list[Neighbor]:
        """Those that somebody waits for."""
        return [neighbor for neighbor in self._by_address.values() if neighbor.waiting]

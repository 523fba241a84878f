"""ip's copy of the neighbour table, and the packets that wait for an answer of arp.

arp owns the neighbours. The copy saves a request for each packet and is stored, so that a restarted ip need not hold
packets back until arp has sent all neighbours again. Lost in a crash: the waiting packets.
"""

from __future__ import annotations

from collections import deque

from bus.layer import CounterWords, State
from bus.messages import INTERFACE
from layers.common.keyed_state import KeyedState
from layers.ip.counters import Counters

ASK_AGAIN_AFTER_S = 30.0  # half of arp's age limit, so that a neighbour in use is verified before it expires
MAC_OCTETS = 6
WAITING_MAX = 64  # packets per neighbour; RFC 1122 section 2.3.2.2 requires at least one, the latest
NEIGHBORS_MAX = 8192
KEYS = 1 << 40  # in durable state, + number of an interface << 32: MACs by address


class Neighbor:
    """One next hop. `mac` is None until arp has answered; at `ask_again_at` arp is asked (again)."""

    __slots__ = ("address", "ask_again_at", "mac", "waiting")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.mac: bytes | None = None
        self.ask_again_at = float("-inf")
        self.waiting: deque[bytes] = deque()


class Neighbors:
    """The neighbours on an interface, by address of any family."""

    def __init__(self, state: State, counters: CounterWords, interface: int = INTERFACE) -> None:
        self._stored = KeyedState(state, KEYS + (interface << 32))
        self._counters = counters
        self._by_address: dict[bytes, Neighbor] = {}

    def start(self) -> None:
        """Restore the neighbours of the former process; those in use are resolved again."""
        for address, mac in self._stored.load().items():
            if len(mac) == MAC_OCTETS:
                self.get(address).mac = mac

    def get(self, address: bytes) -> Neighbor:
        """The neighbour, created if necessary; if there are too many, the oldest is deleted."""
        neighbor = self._by_address.get(address)
        if neighbor is None:
            if len(self._by_address) >= NEIGHBORS_MAX:
                oldest = self._by_address.pop(next(iter(self._by_address)))
                self.forget(oldest)  # flows that use it ask again
                self._counters[Counters.neighbor_queue_full] += len(oldest.waiting)
            neighbor = self._by_address[address] = Neighbor(address)
        return neighbor

    def find(self, address: bytes) -> Neighbor | None:
        """The neighbour if it is known, else None."""
        return self._by_address.get(address)

    def learn(self, address: bytes, mac: bytes, now: float) -> Neighbor:
        """NEIGHBOR from arp: the neighbour's MAC."""
        neighbor = self.get(address)
        if neighbor.mac != mac:
            self._stored.put(address, mac)
            neighbor.mac = mac
        neighbor.ask_again_at = now + ASK_AGAIN_AFTER_S
        return neighbor

    def forget(self, neighbor: Neighbor) -> None:
        """arp must be asked before the next packet to it."""
        neighbor.mac = None
        neighbor.ask_again_at = float("-inf")
        self._stored.discard(neighbor.address)

    def unresolved(self) -> list[Neighbor]:
        """The neighbours for which packets wait."""
        return [neighbor for neighbor in self._by_address.values() if neighbor.waiting]

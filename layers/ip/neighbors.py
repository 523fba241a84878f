"""ip's copy of what arp knows, and the packets that wait for an answer.

arp owns the neighbours; a copy here spares a question per packet, and is kept over a crash, so that a restarted ip need
not hold packets back until arp has told it everything anew. Lost in a crash: the waiting packets.
"""

from __future__ import annotations

from collections import deque

from bus.layer import CounterWords, State
from bus.messages import INTERFACE
from layers.common.keyed_state import KeyedState
from layers.ip.counters import Counters

ASK_AGAIN_AFTER_S = 30.0  # half of arp's age limit: a neighbour in use is verified before it expires
MAC_OCTETS = 6
WAITING_MAX = 64  # packets per neighbour; RFC 1122 section 2.3.2.2 asks for at least one, the latest
NEIGHBORS_MAX = 8192
KEYS = 1 << 40  # in durable state, + an interface's number << 32: MACs by address


class Neighbor:
    """One next hop. `mac` is None until arp has answered; when it is `ask_again_at`, arp is asked (again)."""

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
        """Read back what the former incarnation knew; arp is asked again for what is used of it."""
        for address, mac in self._stored.load().items():
            if len(mac) == MAC_OCTETS:
                self.get(address).mac = mac

    def get(self, address: bytes) -> Neighbor:
        """The neighbour, made where it is new; the longest known gives way where there are too many."""
        neighbor = self._by_address.get(address)
        if neighbor is None:
            if len(self._by_address) >= NEIGHBORS_MAX:
                oldest = self._by_address.pop(next(iter(self._by_address)))
                self.forget(oldest)  # flows that hold it ask again
                self._counters[Counters.neighbor_queue_full] += len(oldest.waiting)
            neighbor = self._by_address[address] = Neighbor(address)
        return neighbor

    def find(self, address: bytes) -> Neighbor | None:
        """The neighbour, if it is known."""
        return self._by_address.get(address)

    def learn(self, address: bytes, mac: bytes, now: float) -> Neighbor:
        """arp says where it is."""
        neighbor = self.get(address)
        if neighbor.mac != mac:
            self._stored.put(address, mac)
            neighbor.mac = mac
        neighbor.ask_again_at = now + ASK_AGAIN_AFTER_S
        return neighbor

    def forget(self, neighbor: Neighbor) -> None:
        """arp has to be asked before the next packet leaves."""
        neighbor.mac = None
        neighbor.ask_again_at = float("-inf")
        self._stored.discard(neighbor.address)

    def unresolved(self) -> list[Neighbor]:
        """Those that somebody waits for."""
        return [neighbor for neighbor in self._by_address.values() if neighbor.waiting]

"""The neighbours that arp knows: those that it learnt, and the permanent ones, which a person set.

Every change is written to durable state, so that a restarted arp answers at once. Nothing here needs a timer: a
neighbour that is too old is forgotten when somebody asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from struct import Struct

from bus.layer import State
from bus.messages import INTERFACE
from layers.arp.acd import OWN_KEY
from layers.common.keyed_state import KeyedState
from packets.addresses import IPV4_OCTETS
from packets.arp import is_station

MAX_PERMANENT = 1024
MAX_NEIGHBORS = 4096  # learnt; what Linux allows by default is 1024 (net.ipv4.neigh.default.gc_thresh3)
ARP_TIMEOUT_S = 60.0  # RFC 1122 section 2.3.2.1: "on the order of a minute"
CONFIRM_STEP_S = 1.0  # a confirmation that follows its predecessor this closely says nothing new and is not stored

ORDER_KEY = 1 << 32  # in state: the number of the last order to delete a neighbour that was there

KEYS = 1 << 40  # in state, + an interface's number << 32: neighbours by address

_ENTRY = Struct("<6sd")  # MAC, when it was last confirmed (inf: permanent)


class Neighbors:
    """Those on an interface. Permanent: address -> MAC. Learnt: (MAC, when last confirmed), least recent first."""

    def __init__(self, state: State, interface: int = INTERFACE) -> None:
        self._state = state
        self._stored = KeyedState(state, KEYS + (interface << 32))
        self.permanent: dict[bytes, bytes] = {}
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def load(self, now: float) -> None:
        """Reads back what a former process stored; what is too old, or makes no sense, is deleted."""
        found = []
        for key in list(self._state):
            if key not in (OWN_KEY, ORDER_KEY) and not self._stored.holds(key):
                del self._state[key]
        for address, value in self._stored.load().items():
            if len(value) == _ENTRY.size and len(address) == IPV4_OCTETS:
                mac, confirmed = _ENTRY.unpack(value)
                if is_station(mac) and confirmed == inf:
                    self.permanent[address] = mac
                    continue
                if is_station(mac) and 0 <= now - confirmed < ARP_TIMEOUT_S:
                    found.append((confirmed, address, mac))
                    continue
            self._stored.discard(address)
        found.sort()
        for confirmed, address, mac in found:
            self._entries[address] = mac, confirmed

    def __len__(self) -> int:
        return len(self._entries) + len(self.permanent)

    def set_permanent(self, address: bytes, mac: bytes) -> None:
        """`address` is at `mac`, whatever packets say. ValueError where there are too many."""
        if len(self.permanent) >= MAX_PERMANENT and address not in self.permanent:
            raise ValueError(f"there are {MAX_PERMANENT} permanent neighbours already")
        self._entries.pop(address, None)
        self.permanent[address] = mac
        self._store(address, mac, inf)

    def get(self, address: bytes, now: float) -> tuple[bytes, float] | None:
        """(MAC, age in seconds) of a neighbour, -inf if permanent; None where it is not known, or no longer."""
        entry = self._entries.get(address)
        if entry is None:
            permanent = self.permanent.get(address)
            return None if permanent is None else (permanent, -inf)
        mac, confirmed = entry
        age_s = now - confirmed
        if age_s >= ARP_TIMEOUT_S:  # RFC 1122 section 2.3.2.1: out-of-date entries are flushed
            self.forget(address)
            return None
        return mac, age_s

    def confirm(self, address: bytes, mac: bytes, now: float) -> bool:
        """`address`, which is not permanent, was seen at `mac`. True where another neighbour had to make room."""
        entries = self._entries
        entry = entries.get(address)
        if entry is not None and entry[0] == mac and now - entry[1] < CONFIRM_STEP_S:
            return False
        evict = entry is None and len(entries) >= MAX_NEIGHBORS
        if evict:
            self.forget(next(iter(entries)))
        entries[address] = mac, now
        entries.move_to_end(address)
        self._store(address, mac, now)
        return evict

    def forget(self, address: bytes) -> None:
        """Removes a neighbour, if it is there."""
        learnt, permanent = self._entries.pop(address, None), self.permanent.pop(address, None)
        if learnt is not None or permanent is not None:
            self._stored.discard(address)

    def learnt(self, now: float) -> list[tuple[bytes, bytes, float]]:
        """(address, MAC, age in seconds) of all that were learnt and are not too old."""
        return [(address, mac, now - confirmed) for address, (mac, confirmed) in self._entries.items()
                if now - confirmed < ARP_TIMEOUT_S]

    def valid(self, now: float) -> list[tuple[bytes, bytes]]:
        """(address, MAC) of all neighbours that are not too old."""
        return [(address, mac) for address, mac, _ in self.learnt(now)] + list(self.permanent.items())

    def _store(self, address: bytes, mac: bytes, confirmed: float) -> None:
        self._stored.put(address, _ENTRY.pack(mac, confirmed))

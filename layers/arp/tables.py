"""The neighbour table of arp: learnt neighbours, and permanent ones, which the user has added.

Every change is written to durable state, so a restarted arp answers at once. No timer is needed: an expired neighbour
is deleted when it is looked up.
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
MAX_NEIGHBORS = 4096  # learnt ones; Linux allows 1024 by default (net.ipv4.neigh.default.gc_thresh3)
ARP_TIMEOUT_S = 60.0  # RFC 1122 section 2.3.2.1: "on the order of a minute"
CONFIRM_STEP_S = 1.0  # a confirmation within this time after the last is not stored

ORDER_KEY = 1 << 32  # in state: the number of the last request that deleted a neighbour

KEYS = 1 << 40  # in state, + number of an interface << 32: neighbours by address

_ENTRY = Struct("<6sd")  # MAC, time of the last confirmation (inf: permanent)


class Neighbors:
    """The neighbours on an interface.

    Permanent: {address: MAC}. Learnt: {address: (MAC, last confirmed)}, least recent first.
    """

    def __init__(self, state: State, interface: int = INTERFACE) -> None:
        self._state = state
        self._stored = KeyedState(state, KEYS + (interface << 32))
        self.permanent: dict[bytes, bytes] = {}
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def load(self, now: float) -> None:
        """Restore what a former process stored; expired and invalid entries are deleted."""
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
        """`address` is permanently at `mac`. ValueError: there are too many."""
        if len(self.permanent) >= MAX_PERMANENT and address not in self.permanent:
            raise ValueError(f"there are {MAX_PERMANENT} permanent neighbours already")
        self._entries.pop(address, None)
        self.permanent[address] = mac
        self._store(address, mac, inf)

    def get(self, address: bytes, now: float) -> tuple[bytes, float] | None:
        """(MAC, age in seconds) of a neighbour, -inf if permanent; None: unknown or expired."""
        entry = self._entries.get(address)
        if entry is None:
            permanent = self.permanent.get(address)
            return None if permanent is None else (permanent, -inf)
        mac, confirmed = entry
        age_s = now - confirmed
        if age_s >= ARP_TIMEOUT_S:  # RFC 1122 section 2.3.2.1: delete out-of-date entries
            self.forget(address)
            return None
        return mac, age_s

    def confirm(self, address: bytes, mac: bytes, now: float) -> bool:
        """`address`, which is not permanent, was seen at `mac`.

        Returns True if another neighbour was deleted for it.
        """
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
        """Delete a neighbour if it exists."""
        learnt, permanent = self._entries.pop(address, None), self.permanent.pop(address, None)
        if learnt is not None or permanent is not None:
            self._stored.discard(address)

    def learnt(self, now: float) -> list[tuple[bytes, bytes, float]]:
        """(address, MAC, age in seconds) of all learnt neighbours that have not expired."""
        return [(address, mac, now - confirmed) for address, (mac, confirmed) in self._entries.items()
                if now - confirmed < ARP_TIMEOUT_S]

    def valid(self, now: float) -> list[tuple[bytes, bytes]]:
        """(address, MAC) of all neighbours that have not expired."""
        return [(address, mac) for address, mac, _ in self.learnt(now)] + list(self.permanent.items())

    def _store(self, address: bytes, mac: bytes, confirmed: float) -> None:
        self._stored.put(address, _ENTRY.pack(mac, confirmed))

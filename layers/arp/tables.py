"""The neighbours that arp knows.

Every change is written to durable state, so that a restarted arp answers at once. Nothing here needs a timer: a
neighbour that is too old is forgotten when somebody asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct

from bus.core import State
from layers.arp.packet import is_station

MAX_NEIGHBORS = 4096  # what Linux allows by default is 1024 (net.ipv4.neigh.default.gc_thresh3)
ARP_TIMEOUT_S = 60.0  # RFC 1122 section 2.3.2.1: "on the order of a minute"
CONFIRM_STEP_S = 1.0  # a confirmation that follows its predecessor this closely says nothing new and is not stored

_ENTRY = Struct("<6sd")  # in state, by the address as an integer: MAC, when it was last confirmed


class Neighbors:
    """Address -> (MAC, time it was last confirmed), the least recently confirmed first."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def load(self, now: float) -> None:
        """Reads back what a former process stored; what is too old, or makes no sense, is deleted."""
        found = []
        for key, value in list(self._state.items()):
            if len(value) == _ENTRY.size and 0 < key < 1 << 32:
                mac, confirmed = _ENTRY.unpack(value)
                if is_station(mac) and 0 <= now - confirmed < ARP_TIMEOUT_S:
                    found.append((confirmed, key.to_bytes(4, "big"), mac))
                    continue
            del self._state[key]
        found.sort()
        for confirmed, address, mac in found:
            self._entries[address] = mac, confirmed

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, address: bytes, now: float) -> tuple[bytes, float] | None:
        """(MAC, age in seconds) of a neighbour; None where it is not known, or no longer."""
        entry = self._entries.get(address)
        if entry is None:
            return None
        mac, confirmed = entry
        age_s = now - confirmed
        if age_s >= ARP_TIMEOUT_S:  # RFC 1122 section 2.3.2.1: out-of-date entries are flushed
            self.forget(address)
            return None
        return mac, age_s

    def confirm(self, address: bytes, mac: bytes, now: float) -> bool:
        """`address` was seen at `mac`. True where another neighbour had to make room."""
        entries = self._entries
        entry = entries.get(address)
        if entry is not None and entry[0] == mac and now - entry[1] < CONFIRM_STEP_S:
            return False
        evict = entry is None and len(entries) >= MAX_NEIGHBORS
        if evict:
            self.forget(next(iter(entries)))
        entries[address] = mac, now
        entries.move_to_end(address)
        self._state[int.from_bytes(address, "big")] = _ENTRY.pack(mac, now)
        return evict

    def forget(self, address: bytes) -> None:
        """Removes a neighbour, if it is there."""
        if self._entries.pop(address, None) is not None:
            self._state.pop(int.from_bytes(address, "big"), None)

    def valid(self, now: float) -> list[tuple[bytes, bytes]]:
        """(address, MAC) of all neighbours that are not too old."""
        oldest = now - ARP_TIMEOUT_S
        return [(address, mac) for address, (mac, confirmed) in self._entries.items() if confirmed > oldest]

"""Who gets packets of which protocol: its transport, if it has one here, and raw, which may want copies of any.

Owns what raw wants (durable state): a restart of ip must not answer for what a raw socket listens to.
"""

from __future__ import annotations

from bus import topology
from bus.layer import State
from bus.messages import FLAG_CHECKSUM_PARTIAL, PACKET
from layers.ip.local_errors import UPPER
from layers.ip.records import HEAD_OCTETS, record_of
from packets.offload import completed

WANTED_KEY = 4  # in durable state


class Uppers:
    """`sole`, on the hot path, knows just the protocols that concern nobody but their transport."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.wanted: frozenset[int] = frozenset()
        self.sole = dict(UPPER)

    def start(self) -> None:
        """Read back what raw wants."""
        self._adopt(self._state.get(WANTED_KEY, b""))

    def want(self, protocols: bytes) -> None:
        """RAW_WANTED: from now on raw gets copies of these."""
        if frozenset(protocols) != self.wanted:
            self._state[WANTED_KEY] = protocols
            self._adopt(protocols)

    def _adopt(self, protocols: bytes) -> None:
        self.wanted = frozenset(protocols)
        self.sole = {protocol: layer for protocol, layer in UPPER.items() if protocol not in self.wanted}


def copy_of(record: bytes, flags: int, protocol: int) -> tuple[int, int, bytes]:
    """A PACKET record for raw, which sees packets as a wire would carry them."""
    if flags & FLAG_CHECKSUM_PARTIAL:
        record = record_of(completed(record[HEAD_OCTETS:], protocol), flags ^ FLAG_CHECKSUM_PARTIAL)
    return topology.RAW, PACKET, record

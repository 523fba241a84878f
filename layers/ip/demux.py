"""Demultiplexing by protocol: the transport of a packet, and whether raw wants a copy.

Owns the protocols that raw wants (durable state): a restarted ip must not send errors for a protocol of a raw socket.
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
    """`sole`, on the hot path, contains only the protocols that concern no layer but their transport."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.wanted: frozenset[int] = frozenset()
        self.sole = dict(UPPER)

    def start(self) -> None:
        """Restore the protocols that raw wants."""
        self._adopt(self._state.get(WANTED_KEY, b""))

    def want(self, protocols: bytes) -> None:
        """RAW_WANTED: from now on raw gets copies of packets of these protocols."""
        if frozenset(protocols) != self.wanted:
            self._state[WANTED_KEY] = protocols
            self._adopt(protocols)

    def _adopt(self, protocols: bytes) -> None:
        self.wanted = frozenset(protocols)
        self.sole = {protocol: layer for protocol, layer in UPPER.items() if protocol not in self.wanted}


def copy_of(record: bytes, flags: int, protocol: int) -> tuple[int, int, bytes]:
    """A PACKET record for raw, in which packets look as on a wire."""
    if flags & FLAG_CHECKSUM_PARTIAL:
        record = record_of(completed(record[HEAD_OCTETS:], protocol), flags ^ FLAG_CHECKSUM_PARTIAL)
    return topology.RAW, PACKET, record

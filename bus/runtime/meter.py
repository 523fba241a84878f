"""A meter for the traffic on a layer's pipes and the time of its core; it counts only on request.

It is a table of 64-bit cells in memory that the layer writes and others read, in the place of a ring
(`bus.durable.layout`):

   owner
   for each peer and direction: records, octets
   calls of the core, and nanoseconds in them
   a histogram of nanoseconds per record: number of records that took up to 2**n ns, n from 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bus import topology

IN, OUT = range(2)
_PEERS = 16  # ids of layers, including DEVICE; the last is for all applications
_APPLICATIONS = _PEERS - 1
_OWNER, _FLOWS = 0, 8
_CALLS = _FLOWS + 2 * 2 * _PEERS
_TIMES = _CALLS + 2
BUCKETS = 40  # up to 2**39 ns, 9 minutes
_WORDS = _TIMES + BUCKETS
OCTETS = 8 * _WORDS


class Flow(NamedTuple):
    """The traffic in one direction between a layer and a peer."""

    records: int
    octets: int


class Reading(NamedTuple):
    """The values of a meter: flows by (peer, direction), the core's calls and time, and the histogram."""

    flows: dict[tuple[int, int], Flow]
    calls: int
    time_ns: int
    times: tuple[int, ...]  # number of records that took up to 2**n ns


def _cell(peer: int, direction: int) -> int:
    return _FLOWS + 2 * (2 * (peer if peer < topology.CLIENT_ID_MIN else _APPLICATIONS) + direction)


class Meter:
    """The writer's side. `owner`, never 0, identifies the present reader; the counts of a new owner begin at zero."""

    def __init__(self, memory: memoryview, owner: int) -> None:
        self._words = words = memory[:OCTETS].cast("Q")
        if words[_OWNER] != owner:
            words[:] = memoryview(bytes(OCTETS)).cast("Q")
            words[_OWNER] = owner

    def passed(self, peer: int, direction: int, records: Sequence[bytes]) -> None:
        """Count records from `peer`, or to it."""
        words, cell = self._words, _cell(peer, direction)
        words[cell] += len(records)
        words[cell + 1] += sum(map(len, records))

    def took(self, records: int, time_ns: int) -> None:
        """Count a call of the core with `records` records, and its time."""
        words = self._words
        words[_CALLS] += 1
        words[_CALLS + 1] += time_ns
        if records:
            words[_TIMES + min((time_ns // records).bit_length(), BUCKETS - 1)] += records


def read(memory: memoryview) -> Reading:
    """Read the present values."""
    words = memory[:OCTETS].cast("Q")
    flows = {}
    for place in range(_PEERS):
        peer = topology.CLIENT_ID_MIN if place == _APPLICATIONS else place
        for direction in (IN, OUT):
            cell = _cell(peer, direction)
            flows[peer, direction] = Flow(words[cell], words[cell + 1])
    return Reading(flows, words[_CALLS], words[_CALLS + 1], tuple(words[_TIMES:_WORDS]))

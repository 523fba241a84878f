"""The backlog: records that wait behind a full pipe in the producer's memory, in order.

Data is bounded, streams are merged. When data has no room, the newest record of the flow (`bus.flow`) with the most
makes room for one of a flow that has less, so a socket that sends too much loses its own datagrams and not those of
others.

What waits here is lost if the producer dies. So the first few records of a flow go ahead of the backlog (`divide`): the
producer makes frames of them, which are in its journal. A flow that sends little need not wait behind one that fills
the pipe, and a SIGKILL costs it nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from bus.flow import flow_of
from usernet.pipe.messages import CREDIT
from usernet.pipe.streams import MERGES, handle_of, is_stream

BACKLOG_OCTETS = 1 << 22  # of data
ENTRY_OCTETS = 192  # of memory for a record that waits, beside its own octets
# Of records that go ahead, with ENTRY_OCTETS for each: of one flow, which is less than a datagram of 9,000 octets that
# somebody sends in a flood, and of all flows.
AHEAD_FLOW_OCTETS = 1 << 13
AHEAD_OCTETS = 1 << 16
_Entry = list[Any]  # [kind, record, flow]: a list, because a record may be replaced in place


def is_kept(kind: int) -> bool:
    """True for records that are never dropped here, because something else bounds them: streams, by credit, and
    questions for credit, of which there is one a socket and which a successor asks anew."""
    return is_stream(kind) or kind == CREDIT


class Pool:
    """The memory of several backlogs together. None gets more than is free for all others."""

    __slots__ = ("free",)

    def __init__(self, octets: int) -> None:
        self.free = octets


class Backlog:
    """Records, oldest first. At most `records_max` of data, within `pool`; credit bounds the streams.

    `let_go`: called for each (kind, record) of data that has no room.
    """

    __slots__ = ("_ahead", "_ahead_octets", "_data", "_entries", "_flows", "_largest", "_let_go", "_mergeable",
                 "_octets", "_pool", "_records_max")

    def __init__(self, records_max: int, pool: Pool | None = None,
                 let_go: Callable[[int, bytes], None] | None = None) -> None:
        self._let_go = let_go or (lambda kind, record: None)
        self._pool = Pool(2 * (BACKLOG_OCTETS + records_max * ENTRY_OCTETS)) if pool is None else pool
        self._entries: deque[_Entry] = deque()
        self._records_max = records_max
        self._data = self._octets = 0  # number and octets of data records
        self._flows: dict[bytes, int] = {}  # {flow: octets of memory for its data}
        self._ahead: dict[bytes, int] = {}  # {flow: octets of memory for its records that went ahead}
        self._ahead_octets = 0  # of all
        self._largest = b""  # the flow with the most, as far as is known without comparing all
        # {(kind, handle): the entry that a newer record may be merged with}
        self._mergeable: dict[tuple[int, bytes], _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def divide(self, kind: int, records: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """(the data records that go ahead, the others, which are to be added), so that each flow stays in order."""
        first: list[bytes] = []
        later: list[bytes] = []
        refused: set[bytes] = set()
        ahead, pool = self._ahead, self._pool
        for record in records:
            octets, flow = len(record) + ENTRY_OCTETS, flow_of(kind, record)
            of_flow, of_all = ahead.get(flow, 0) + octets, self._ahead_octets + octets
            if (flow in self._flows or flow in refused or of_flow > AHEAD_FLOW_OCTETS or of_all > AHEAD_OCTETS
                    or of_all > pool.free):
                refused.add(flow)
                later.append(record)
            else:
                ahead[flow], self._ahead_octets = of_flow, of_all
                pool.free -= octets
                first.append(record)
        return first, later

    def nothing_ahead(self) -> None:
        """All that went ahead has left."""
        self._pool.free += self._ahead_octets
        self._ahead_octets = 0
        self._ahead.clear()

    def add_data(self, kind: int, records: list[bytes]) -> int:
        """Append as many of the records as fit; returns how many more there are now, which is less than that if others
        had to make room."""
        before, pool, flows = self._data, self._pool, self._flows
        for record in records:
            octets, flow = len(record) + ENTRY_OCTETS, flow_of(kind, record)
            while not self._has_room(octets):
                if not self._make_room(flows.get(flow, 0) + octets):
                    self._let_go(kind, record)
                    break
            else:
                pool.free -= octets
                self._entries.append([kind, record, flow])
                self._data += 1
                self._octets += len(record)
                flows[flow] = now = flows.get(flow, 0) + octets
                if now > flows.get(self._largest, 0):
                    self._largest = flow
        return self._data - before

    def _has_room(self, octets: int) -> bool:
        return (self._data < self._records_max and self._octets + octets - ENTRY_OCTETS <= BACKLOG_OCTETS
                and self._octets + self._data * ENTRY_OCTETS + octets <= self._pool.free)

    def _make_room(self, octets: int) -> bool:
        """Drop the newest record of the largest flow, if another one would still be smaller with `octets` of memory."""
        if self._largest not in self._flows and self._flows:
            self._largest = max(self._flows, key=self._flows.__getitem__)
        largest, entries = self._largest, self._entries
        if octets >= self._flows.get(largest, 0):
            return False
        for place in range(len(entries) - 1, -1, -1):
            kind, record, flow = entries[place]
            if flow == largest and not is_kept(kind):
                del entries[place]
                self._leave(record, flow)
                self._let_go(kind, record)
                return True
        return False

    def _leave(self, record: bytes, flow: bytes) -> None:
        """A data record is not here any more."""
        octets = len(record) + ENTRY_OCTETS
        self._data -= 1
        self._octets -= len(record)
        self._pool.free += octets
        left = self._flows[flow] - octets
        if left:
            self._flows[flow] = left
        else:
            del self._flows[flow]

    def add_kept(self, kind: int, records: list[bytes]) -> None:
        """Append all of the records, or merge them with older ones of their kind and handle."""
        merge = MERGES.get(kind)
        for record in records:
            entry: _Entry = [kind, record, b""]
            if merge is not None:
                older = self._mergeable.get((kind, handle_of(record)))
                merged = merge(older[1], record) if older is not None else None
                if older is not None and merged is not None:
                    older[1] = merged
                    continue
                self._mergeable[kind, handle_of(record)] = entry
            self._entries.append(entry)

    def pop(self, records_max: int, octets_max: int) -> tuple[int, list[bytes], int]:
        """Remove the oldest records, as many of one kind as fit into a frame: (kind, records, number of data
        records)."""
        entries = self._entries
        kind, octets = entries[0][0], 0
        records: list[bytes] = []
        is_data = not is_kept(kind)
        while entries and len(records) < records_max and entries[0][0] == kind and octets < octets_max:
            entry = entries.popleft()
            records.append(entry[1])
            octets += len(entry[1])
            if is_data:
                self._leave(entry[1], entry[2])
            if kind in MERGES and self._mergeable.get(key := (kind, handle_of(entry[1]))) is entry:
                del self._mergeable[key]
        return kind, records, len(records) if is_data else 0

    def discard(self) -> int:
        """Forget everything; returns the number of data records."""
        self.nothing_ahead()
        self._pool.free += self._octets + self._data * ENTRY_OCTETS
        data = self._data
        self._entries.clear()
        self._mergeable.clear()
        self._flows.clear()
        self._data = self._octets = 0
        return data

"""A ring of entries in memory that two processes map: one writes, the other reads, and neither waits for the other.

The writer never blocks: entries that find no room are counted as lost. An entry is written first and then published by
one 64-bit cell, so a killed writer leaves complete entries, and its successor continues after them.

   words    head and tail (octets written and read since the beginning), lost records, owner
   data     contiguous entries: ENTRY, the lengths of the records, the records, padding to 8 octets; a length of 0
            sends the reader to the start
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

_HEAD, _TAIL, _LOST, _OWNER = range(4)
_DATA_AT = mmap.PAGESIZE
_ENTRY = Struct("<IHBBIIqQ")  # octets of the entry, records, direction, kind, counter, incarnation, nanoseconds of
# CLOCK_MONOTONIC, peer
_LONE_ENTRY = Struct("<IHBBIIqQI")  # the same, with the length of its only record
_LENGTHS = [Struct(f"<{count}I") for count in range(257)]
RECORDS_MAX = 256  # per entry

# Directions: received from `peer`; sent to `peer`; received from `peer` and dropped; not a direction, but a recording
# (bus.runtime.recorder); dropped by an impairment before it was sent to `peer`.
IN, OUT, DROPPED, RECORDING, UNSENT = range(5)


class Entry(NamedTuple):
    """Records of one kind that a layer received or sent at one time."""

    when_ns: int
    direction: int
    peer: int
    kind: int
    records: list[bytes]
    counter: int  # of DROPPED and UNSENT records: index of the counter with the reason
    incarnation: int


class _Ring:
    """A ring in memory that starts at a page boundary."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:_DATA_AT].cast("Q")
        self._data = memory[_DATA_AT:]
        self._size = len(self._data) // 8 * 8

    @property
    def lost(self) -> int:
        """Number of records that found no room since the beginning."""
        return self._words[_LOST]


class RingWriter(_Ring):
    """The writer's end. `owner`, never 0, identifies the present reader; entries of an earlier owner are dropped."""

    def __init__(self, memory: memoryview, owner: int) -> None:
        super().__init__(memory)
        words = self._words
        if words[_OWNER] != owner:
            words[_HEAD] = words[_TAIL] = words[_LOST] = 0
            words[_OWNER] = owner

    def put(self, when_ns: int, direction: int, peer: int, kind: int, records: Sequence[bytes], incarnation: int,
            counter: int = 0) -> bool:
        """Add an entry of 1 to RECORDS_MAX records, or count them as lost; returns True if there was room."""
        words, size, count = self._words, self._size, len(records)
        lone = count == 1  # the usual case at low load
        octets = records[0] if lone else b"".join((_LENGTHS[count].pack(*map(len, records)), *records))
        head, header = words[_HEAD], _LONE_ENTRY.size if lone else _ENTRY.size
        start, whole = head % size, header + len(octets)
        need = (whole + 7) & -8
        to_end = size - start
        skip = to_end if need > to_end else 0
        if head + skip + need - words[_TAIL] > size:
            words[_LOST] += count
            return False
        data = self._data
        if skip:
            data[start : start + 4] = b"\0\0\0\0"
            start = 0
        if lone:
            _LONE_ENTRY.pack_into(data, start, whole, 1, direction, kind, counter, incarnation, when_ns, peer,
                                  len(octets))
        else:
            _ENTRY.pack_into(data, start, whole, count, direction, kind, counter, incarnation, when_ns, peer)
        data[start + header : start + whole] = octets
        words[_HEAD] = head + skip + need
        return True


class RingReader(_Ring):
    """The reader's end."""

    def read(self) -> list[Entry]:
        """Remove and return all entries."""
        words, data, size = self._words, self._data, self._size
        head, tail = words[_HEAD], words[_TAIL]
        entries = []
        while tail < head:
            start = tail % size
            whole, count, direction, kind, counter, incarnation, when_ns, peer = (
                _ENTRY.unpack_from(data, start) if size - start >= _ENTRY.size else (0,) * 8)
            if whole == 0:
                tail += size - start
                continue
            at = start + _ENTRY.size + 4 * count
            records = []
            for length in _LENGTHS[count].unpack_from(data, start + _ENTRY.size):
                records.append(bytes(data[at : at + length]))
                at += length
            entries.append(Entry(when_ns, direction, peer, kind, records, counter, incarnation))
            tail += (whole + 7) & -8
        words[_TAIL] = tail
        return entries

"""The key-value log: a layer's records by key, in its durable memory.

It is an append-only log in one of two arenas. A record is written first, then published by storing the valid length of
the arena (one cell, with the number of the arena in its lowest bit). When more than half of the log is obsolete, it is
copied to the other arena and the cell is switched. On start the log is read from its beginning; the last record of a
key counts. Each record has a CRC: a damaged record ends the reading, which is counted (`bus_state_damaged`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from struct import Struct
from zlib import crc32

from bus.counters import PipeCounters
from bus.durable import layout

_RECORD = Struct("=IIQ")  # CRC of the rest, payload length or _GONE, key
_BODY = Struct("=IQ")
_GONE = 0xFFFFFFFF
_LENGTH_BITS = 32  # of a place
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_COMPACT_ABOVE = 1 << 16  # octets of log from which on copying is worthwhile


class StoreFull(MemoryError):
    """The live records do not fit into an arena."""


class KeyValueLog(MutableMapping[int, bytes]):
    """A mapping from keys (0 to 2**64 - 1) to octets that survives the process."""

    def __init__(self, durable: layout.Memory) -> None:
        self._memory = durable
        self._words = durable.words
        # {key: offset of the payload << 32 | length}; tuples would need twice the memory
        self._places: dict[int, int] = {}
        self._live = 0
        state = self._words[layout.STORE_STATE]
        self._arena, self._end = state & 1, min(state >> 1, layout.STORE_ARENA_OCTETS)
        self._load()

    def _load(self) -> None:
        log, position = self._memory.arenas[self._arena], 0
        while position < self._end:
            record = self._read(log, position)
            if record is None:
                self._memory.bus_counters[PipeCounters.bus_state_damaged] += 1
                self._publish(position)
                return
            length, key = record
            payload = position + _RECORD.size
            size = 0 if length == _GONE else length
            self._forget(key)
            if length != _GONE:
                self._places[key] = payload << _LENGTH_BITS | length
                self._live += _RECORD.size + length
            position = payload + size

    def _read(self, log: memoryview, position: int) -> tuple[int, int] | None:
        """(payload length or _GONE, key) of the record at `position`; None: not a valid record."""
        payload = position + _RECORD.size
        if payload > self._end:
            return None
        check, length, key = _RECORD.unpack_from(log, position)
        end = payload if length == _GONE else payload + length
        whole = end <= self._end and check == self._crc(length, key, log[payload:end])
        return (length, key) if whole else None

    @staticmethod
    def _crc(length: int, key: int, payload: bytes | memoryview) -> int:
        return crc32(payload, crc32(_BODY.pack(length, key)))

    def _forget(self, key: int) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            self._live -= _RECORD.size + (place & _LENGTH_MASK)

    def _publish(self, end: int) -> None:
        self._end = end
        self._words[layout.STORE_STATE] = end << 1 | self._arena

    def _append(self, key: int, length: int, payload: bytes) -> int:
        size = _RECORD.size + len(payload)
        full = self._end + size > layout.STORE_ARENA_OCTETS
        if full or (self._end > _COMPACT_ABOVE and self._end > 2 * self._live):
            self._compact()
        if self._end + size > layout.STORE_ARENA_OCTETS:
            raise StoreFull(f"{len(self._places)} records fill the key-value log")
        log, start = self._memory.arenas[self._arena], self._end
        body = start + _RECORD.size
        log[body : body + len(payload)] = payload
        _RECORD.pack_into(log, start, self._crc(length, key, payload), length, key)
        self._publish(start + size)
        return body

    def _compact(self) -> None:
        """40 ms for 65,536 records."""
        self._memory.begin_long_work()
        old, new = self._memory.arenas[self._arena], self._memory.arenas[1 - self._arena]
        end = 0
        places = {}
        for key, place in self._places.items():
            offset, length = place >> _LENGTH_BITS, place & _LENGTH_MASK
            size = _RECORD.size + length
            new[end : end + size] = old[offset - _RECORD.size : offset + length]
            places[key] = (end + _RECORD.size) << _LENGTH_BITS | length
            end += size
        self._arena = 1 - self._arena
        self._places = places
        self._publish(end)
        self._memory.release_arena(1 - self._arena)
        self._memory.end_long_work()

    def __setitem__(self, key: int, value: bytes) -> None:
        place = self._places.get(key)
        if place is not None and self[key] == value:
            return
        offset = self._append(key, len(value), value)
        self._forget(key)
        self._places[key] = offset << _LENGTH_BITS | len(value)
        self._live += _RECORD.size + len(value)

    def __getitem__(self, key: int) -> bytes:
        place = self._places[key]
        offset = place >> _LENGTH_BITS
        return bytes(self._memory.arenas[self._arena][offset : offset + (place & _LENGTH_MASK)])

    def __delitem__(self, key: int) -> None:
        if key not in self._places:
            raise KeyError(key)
        self._append(key, _GONE, b"")
        self._forget(key)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._places))

    def __len__(self) -> int:
        return len(self._places)

"""The key-value log: a layer's records by key, in its durable memory.

It is an append-only log in one of two arenas. A record is written first, then published by storing the valid length of
the arena (one cell, with the number of the arena in its lowest bit). When more than half of the log is obsolete, it is
copied to the other arena and the cell is switched. On start the log is read from its beginning; the last record of a
key counts. Each record has a CRC: a damaged record ends the reading, which is counted (`bus_state_damaged`).

A deletion counts from the moment at which its turn is published (`bus.durable.journal`). The input of a turn that was
cut short is repeated to the next process, and what came before a deletion needs what was deleted: the last octets of
a program are for a socket that it closes behind them. So a deletion is stored with the position of the journal, and is
undone at the start if the journal is still there. Then the keys are last in the order, because others may have their
places: a socket is bound to the port of one that was closed in the same turn.

If that turn kills the layer again by itself, its deletions count at once, because repeating them for ever would not
help: what follows them may be what kills, and finds nothing to do if they are done.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from struct import Struct
from zlib import crc32

from bus.counters import PipeCounters
from bus.durable import layout

_RECORD = Struct("=IIQ")  # CRC of the rest, payload length or a deletion, key
_BODY = Struct("=IQ")
_GONE_AT_ONCE = 0xFFFFFFFF  # all deletions of former code, which a restart may have replaced
_GONE = 0xFFFFFFFE
_TURN = Struct("=Q")  # the payload of a deletion: layout.JOURNAL_HEAD during its turn
_DELETIONS = {_GONE_AT_ONCE: 0, _GONE: _TURN.size}  # and their octets of payload
_LENGTH_BITS = 32  # of a place
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_COMPACT_ABOVE = 1 << 16  # octets of log from which on copying is worthwhile


def _payload_octets(length: int) -> int:
    """The octets of payload of a record with this length."""
    return _DELETIONS.get(length, length)


class StoreFull(MemoryError):
    """The live records do not fit into an arena."""


class KeyValueLog(MutableMapping[int, bytes]):
    """A mapping from keys (0 to 2**64 - 1) to octets that survives the process."""

    def __init__(self, durable: layout.Memory) -> None:
        self._memory = durable
        self._words = durable.words
        # {key: offset of the payload << 32 | length}; tuples would need twice the memory
        self._places: dict[int, int] = {}
        self._live = 0  # octets of their records
        self._deleted: dict[int, int] = {}  # the places of what this turn has deleted
        self._deleted_octets = 0
        state = self._words[layout.STORE_STATE]
        self._arena, self._end = state & 1, min(state >> 1, layout.STORE_ARENA_OCTETS)
        self._load()

    def _load(self) -> None:
        log, position = self._memory.arenas[self._arena], 0
        turn = self._words[layout.JOURNAL_HEAD]
        undone: dict[int, None] = {}
        while position < self._end:
            record = self._read(log, position)
            if record is None:
                self._memory.bus_counters[PipeCounters.bus_state_damaged] += 1
                self._publish(position)
                break
            length, key = record
            payload = position + _RECORD.size
            position = payload + _payload_octets(length)
            if length == _GONE and _TURN.unpack_from(log, payload)[0] == turn:
                undone[key] = None
                continue
            self._forget(key)
            if length not in _DELETIONS:
                self._remember(key, payload, length)
                undone.pop(key, None)
        self._undo([key for key in undone if key in self._places])

    def _undo(self, keys: list[int]) -> None:
        """The journal goes on, and then the deletions of these keys would count: store them behind those."""
        words = self._words
        if keys and not words[layout.BLAMELESS]:
            words[layout.UNDONE] += 1
            if words[layout.UNDONE] > 1:
                for key in keys:
                    self._append(key, _GONE_AT_ONCE, b"")
                    self._forget(key)
                return
        for key in keys:
            self._places[key] = self._places.pop(key)
        octets = sum(_RECORD.size + (self._places[key] & _LENGTH_MASK) for key in keys)
        if self._end + octets > layout.STORE_ARENA_OCTETS:
            self._compact()  # what is copied are no deletions
            return
        for key in keys:
            self._store(key, self[key])

    def _read(self, log: memoryview, position: int) -> tuple[int, int] | None:
        """(payload length or deletion, key) of the record at `position`; None: not a valid record."""
        payload = position + _RECORD.size
        if payload > self._end:
            return None
        check, length, key = _RECORD.unpack_from(log, position)
        end = payload + _payload_octets(length)
        whole = end <= self._end and check == self._crc(length, key, log[payload:end])
        return (length, key) if whole else None

    @staticmethod
    def _crc(length: int, key: int, payload: bytes | memoryview) -> int:
        return crc32(payload, crc32(_BODY.pack(length, key)))

    def _forget(self, key: int) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            self._live -= _RECORD.size + (place & _LENGTH_MASK)

    def _remember(self, key: int, payload: int, length: int) -> None:
        self._places[key] = payload << _LENGTH_BITS | length
        self._live += _RECORD.size + length

    def _publish(self, end: int) -> None:
        self._end = end
        self._words[layout.STORE_STATE] = end << 1 | self._arena

    def _append(self, key: int, length: int, payload: bytes) -> int:
        size = _RECORD.size + len(payload)
        full = self._end + size > layout.STORE_ARENA_OCTETS
        if full or (self._end > _COMPACT_ABOVE and self._end > 2 * (self._live + self._deleted_octets)):
            self._compact()
        if self._end + size > layout.STORE_ARENA_OCTETS:
            raise StoreFull(f"{len(self._places)} records fill the key-value log")
        log, start = self._memory.arenas[self._arena], self._end
        self._publish(self._write(log, start, key, length, payload))
        return start + _RECORD.size

    def _write(self, log: memoryview, start: int, key: int, length: int, payload: bytes) -> int:
        """Write a record; returns its end."""
        body = start + _RECORD.size
        log[body : body + len(payload)] = payload
        _RECORD.pack_into(log, start, self._crc(length, key, payload), length, key)
        return body + len(payload)

    def _compact(self) -> None:
        """40 ms for 65,536 records."""
        self._memory.begin_long_work()
        old, new = self._memory.arenas[self._arena], self._memory.arenas[1 - self._arena]
        end = 0

        def copied(place: int) -> int:
            """Copy a record; returns its new place."""
            nonlocal end
            offset, length = place >> _LENGTH_BITS, place & _LENGTH_MASK
            start, end = end, end + _RECORD.size + length
            new[start:end] = old[offset - _RECORD.size : offset + length]
            return (start + _RECORD.size) << _LENGTH_BITS | length

        self._begin_turn()
        for key, place in self._deleted.items():
            self._deleted[key] = copied(place)
            end = self._write(new, end, key, _GONE, _TURN.pack(self._memory.deleted_at))
        self._places = {key: copied(place) for key, place in self._places.items()}
        self._arena = 1 - self._arena
        self._publish(end)
        self._memory.release_arena(1 - self._arena)
        self._memory.end_long_work()

    def _begin_turn(self) -> None:
        """Deletions of former turns count."""
        turn = self._words[layout.JOURNAL_HEAD]
        if turn != self._memory.deleted_at and self._deleted:
            self._deleted.clear()
            self._deleted_octets = self._words[layout.UNDONE] = 0

    def __setitem__(self, key: int, value: bytes) -> None:
        place = self._places.get(key)
        if place is not None and self[key] == value:
            return
        self._store(key, value)

    def _store(self, key: int, value: bytes) -> None:
        offset = self._append(key, len(value), value)
        self._forget(key)
        self._remember(key, offset, len(value))

    def __getitem__(self, key: int) -> bytes:
        place = self._places[key]
        offset = place >> _LENGTH_BITS
        return bytes(self._memory.arenas[self._arena][offset : offset + (place & _LENGTH_MASK)])

    def __delitem__(self, key: int) -> None:
        if key not in self._places:
            raise KeyError(key)
        self._begin_turn()
        self._memory.deleted_at = turn = self._words[layout.JOURNAL_HEAD]
        self._append(key, _GONE, _TURN.pack(turn))
        self._deleted[key] = place = self._places[key]
        self._deleted_octets += 2 * _RECORD.size + (place & _LENGTH_MASK) + _TURN.size
        self._forget(key)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._places))

    def __len__(self) -> int:
        return len(self._places)

"""The journal: the frames that a layer sent last, kept in its durable memory.

What lies in ZeroMQ's queues dies with either end of a pipe. So each frame is written here before it is handed to
ZeroMQ, and is sent again when the consumer starts anew (from where the consumer says it stopped) or when this layer
itself does (the last few, which may never have left the process). Consumers drop what they have seen: sequence numbers
tell. The journal is a ring: the oldest frames make room, unasked; a gap that this leaves is counted by the consumer.
"""

from __future__ import annotations

from collections import deque
from struct import Struct

from bus import memory

_ENTRY = Struct("=IIQQ")  # mark, frame length, consumer, sequence number
_MARK = 0x6A6F7572
_WRAP_MARK = 0x77726170


class Journal:
    """A ring of frames over `memory.journal`. Positions count octets ever written; the ring is their remainder."""

    def __init__(self, store: memory.Memory) -> None:
        self._words = store.words
        self._ring = store.journal
        self._size = len(store.journal)
        self._entries: deque[tuple[int, int, int, int]] = deque()  # position, length, consumer, sequence
        self._load()

    def _load(self) -> None:
        position, head = self._words[memory.JOURNAL_TAIL], self._words[memory.JOURNAL_HEAD]
        if head - position > self._size:
            self._forget()
            return
        while position < head:
            offset = position % self._size
            if self._size - offset < _ENTRY.size:
                position += self._size - offset
                continue
            mark, length, consumer, sequence = _ENTRY.unpack_from(self._ring, offset)
            if mark == _WRAP_MARK:
                position += self._size - offset
                continue
            end = position + _ENTRY.size + length
            if mark != _MARK or length > self._size - offset - _ENTRY.size or end > head:
                self._forget()
                return
            self._entries.append((position, length, consumer, sequence))
            position = end

    def _forget(self) -> None:
        """Foreign octets: start empty rather than send nonsense."""
        self._entries.clear()
        self._words[memory.JOURNAL_TAIL] = self._words[memory.JOURNAL_HEAD]

    def append(self, consumer: int, sequence: int, frame: bytes) -> None:
        """Keep `frame`. It is published by one store of the head, after all of it is in place."""
        words, size, entries = self._words, self._size, self._entries
        length = len(frame)
        need = _ENTRY.size + length
        if need > size // 4:
            return  # too large to keep: such a frame is not repeated
        head = words[memory.JOURNAL_HEAD]
        offset = head % size
        room = size - offset
        start = head if need <= room else head + room
        end = start + need
        if entries and entries[0][0] + size < end:
            while entries and entries[0][0] + size < end:
                entries.popleft()
            words[memory.JOURNAL_TAIL] = entries[0][0] if entries else head
        if start != head:
            if room >= _ENTRY.size:
                _ENTRY.pack_into(self._ring, offset, _WRAP_MARK, 0, 0, 0)
            offset = 0
        body = offset + _ENTRY.size
        self._ring[body : body + length] = frame
        _ENTRY.pack_into(self._ring, offset, _MARK, length, consumer, sequence)
        words[memory.JOURNAL_HEAD] = end
        entries.append((start, length, consumer, sequence))

    def frames(self, consumer: int, after: int, at_most: int | None = None) -> list[tuple[int, bytes]]:
        """The kept frames for `consumer` numbered above `after`, oldest first; only the last `at_most` of them."""
        found = [(sequence, position, length) for position, length, to, sequence in self._entries
                 if to == consumer and sequence > after]
        if at_most is not None:
            found = found[-at_most:]
        frames = []
        for sequence, position, length in found:
            body = position % self._size + _ENTRY.size
            frames.append((sequence, bytes(self._ring[body : body + length])))
        return frames

    def last_sequence(self, consumer: int) -> int:
        """The highest kept sequence number for `consumer`; 0 where none is kept."""
        return max((sequence for _, _, to, sequence in self._entries if to == consumer), default=0)

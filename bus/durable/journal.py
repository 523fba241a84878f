"""The journal: the frames that a layer sent last, kept in its durable memory.

What a pipe holds dies with its reader, and what waits in front of it with its writer. So each frame is written here
before it is sent, and is sent again when the consumer starts anew (from where the consumer says it stopped) or when
this layer itself does (the last few, which may never have left the process). Consumers drop what they have seen:
sequence numbers tell. The journal is a ring: the oldest frames make room, unasked; a gap that this leaves is counted by
the consumer.

A turn of the layer's loop is one transaction: its frames are written, then a note of which frames it took to make them,
then all of it is published by one store of the head. So a death at any moment leaves either none of it, and the turn is
done again from its input, or all of it, and the input counts as done: nothing is lost, nothing is sent twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from struct import Struct
from typing import Protocol

from bus.durable import layout

_ENTRY = Struct("=IIQQQQ")  # mark, frame length, consumer, sequence number; the same turn took: sender, its number
_ENTRY_OCTETS = _ENTRY.size
_pack_entry = _ENTRY.pack_into
_TOOK = Struct("=QQ")
_pack_took = _TOOK.pack_into
_TOOK_AT = _ENTRY_OCTETS - _TOOK.size
_MARK = 0x6A6F7572
_WRAP_MARK = 0x77726170
_DONE_MARK = 0x646F6E65  # no frame: more of what the same turn took
ENTRIES_MAX = 2048  # what ip sends while a hang is noticed, one packet a frame; a restarted layer reads them in 0.7 ms
ENTRIES_AT_ONCE = 64  # so many of the oldest give way where there are too many
_NOBODY = 0  # the consumer of what is no frame


class Taken(Protocol):
    """Whose frames a turn took, and the number of the last of them."""

    sender: int
    done: int


class Journal:
    """A ring of at most ENTRIES_MAX frames over `memory.journal`.

    Positions count octets ever written; the ring is their remainder.
    """

    __slots__ = ("_end", "_entries", "_free", "_last", "_need_max", "_ring", "_size", "_took", "_words", "done")

    def __init__(self, store: layout.Memory) -> None:
        self._words = store.words
        self._ring = store.journal
        self._size = len(store.journal)
        self._need_max = self._size // 4
        self._entries: deque[tuple[int, int, int, int]] = deque()  # position, length, consumer, sequence
        self._end = self._words[layout.JOURNAL_HEAD]  # of what is written; the head is the end of what is published
        self._free = 0  # up to here nothing has to give way
        self._last = 0  # offset of the newest entry
        self._took = False  # whether it says already what its turn took
        self.done: dict[int, int] = {}  # what the turns in here took: sender -> number of its last frame
        self._load()

    def _load(self) -> None:
        position, head = self._words[layout.JOURNAL_TAIL], self._words[layout.JOURNAL_HEAD]
        if head - position > self._size:
            self._forget()
            return
        while position < head:
            offset = position % self._size
            if self._size - offset < _ENTRY_OCTETS:
                position += self._size - offset
                continue
            mark, length, consumer, sequence, sender, number = _ENTRY.unpack_from(self._ring, offset)
            if mark == _WRAP_MARK:
                position += self._size - offset
                continue
            end = position + _ENTRY_OCTETS + length
            if mark not in (_MARK, _DONE_MARK) or length > self._size - offset - _ENTRY_OCTETS or end > head:
                self._forget()
                return
            if number:
                self.done[sender] = number
            self._entries.append((position, length, consumer, sequence))
            position = end
        if not self._entries:
            self._words[layout.JOURNAL_TAIL] = head

    def _forget(self) -> None:
        """Foreign octets: start empty rather than send nonsense."""
        self._entries.clear()
        self._words[layout.JOURNAL_TAIL] = self._words[layout.JOURNAL_HEAD]

    def publish(self, taken: Iterable[Taken]) -> None:
        """The turn is over: what was written counts from now on, and so does what it took."""
        if self._end != self._words[layout.JOURNAL_HEAD]:
            for each in taken:
                if self._took:
                    self.write(_NOBODY, 0, b"", mark=_DONE_MARK)
                _pack_took(self._ring, self._last + _TOOK_AT, each.sender, each.done)
                self._took = True
            self._words[layout.JOURNAL_HEAD] = self._end

    @property
    def unpublished(self) -> bool:
        """True where something was written that does not count yet."""
        return self._end != self._words[layout.JOURNAL_HEAD]

    @property
    def crowded(self) -> bool:
        """True where so much awaits publication that the turn should end."""
        return self._end - self._words[layout.JOURNAL_HEAD] > self._need_max

    def write(self, consumer: int, sequence: int, octets: bytes, sender: int = 0, number: int = 0,
              mark: int = _MARK) -> None:
        """Write a frame; `publish` makes it count. What the turn took, if known already: `number` of `sender`."""
        start, length = self._end, len(octets)
        need = _ENTRY_OCTETS + length
        if need > self._need_max:
            return  # too large to keep: such a frame is not repeated
        if start + need > self._free or len(self._entries) >= ENTRIES_MAX:
            start = self._make_room(need)
        offset = start % self._size
        self._ring[offset + _ENTRY_OCTETS : offset + need] = octets
        _pack_entry(self._ring, offset, mark, length, consumer, sequence, sender, number)
        self._last = offset
        self._took = number != 0
        self._entries.append((start, length, consumer, sequence))
        self._end = start + need

    def _make_room(self, need: int) -> int:
        """Where an entry of so many octets can go. The oldest give way."""
        size, entries, end = self._size, self._entries, self._end
        room = size - end % size
        start = end if need <= room else end + room  # a frame is in one piece
        keep = ENTRIES_MAX if len(entries) < ENTRIES_MAX else ENTRIES_MAX - ENTRIES_AT_ONCE
        while entries and (len(entries) > keep or entries[0][0] + size < start + need):
            entries.popleft()
        self._words[layout.JOURNAL_TAIL] = oldest = entries[0][0] if entries else start
        if start != end and room >= _ENTRY_OCTETS:
            _pack_entry(self._ring, end % size, _WRAP_MARK, 0, 0, 0, 0, 0)
        self._free = min(oldest + size, start - start % size + size)
        return start

    def frames(self, consumer: int, after: int, at_most: int | None = None) -> list[tuple[int, bytes]]:
        """The kept frames for `consumer` numbered above `after`, oldest first; only the last `at_most` of them."""
        found = [(sequence, position, length) for position, length, to, sequence in self._entries
                 if to == consumer and sequence > after]
        if at_most is not None:
            found = found[-at_most:]
        frames = []
        for sequence, position, length in found:
            body = position % self._size + _ENTRY_OCTETS
            frames.append((sequence, bytes(self._ring[body : body + length])))
        return frames

    def last_sequence(self, consumer: int) -> int:
        """The highest kept sequence number for `consumer`; 0 where none is kept."""
        return max((sequence for _, _, to, sequence in self._entries if to == consumer), default=0)

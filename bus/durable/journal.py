"""The journal: the last frames that a layer sent, in its durable memory.

The octets in a pipe are lost with its reader, and those that wait in front of it with its writer. So each frame is
written here before it is sent. It is sent again when the consumer restarts (all frames after the last that the consumer
finished) or when this layer restarts (the last few, which may never have left the process). Consumers drop frames that
they have seen by their sequence numbers. The journal is a ring: new frames overwrite the oldest, and the consumer
counts a gap that results from this.

Much traffic to one consumer must not remove the few frames to another. So a frame that would be overwritten is written
again instead (carried over) if all stored frames of its consumer need at most SHARE_OCTETS: at most CARRIES_MAX times,
and while all carried frames together need at most a part of the ring (CARRIED_PART). CARRIES_MAX rounds of the ring are
the time in which a consumer that is behind, or a producer that died, has to come back.

The ring is as long as what may be under way in pipes full of the longest frames (`layout.JOURNAL_OCTETS`). With small
frames it begins again at its start once it has ENTRIES_MAX frames and `layout.LAP_OCTETS`, and gives the memory of the
rest back. So what is kept is always as much as that, and as much as the ring holds if frames are long.

A turn of the layer's loop is one transaction. Its frames are written, then a note of the frames that were its input,
then one store of the head publishes all of it. So a crash at any moment leaves nothing of the turn, which is then
repeated from its input, or all of it, and its input counts as done. Nothing is lost and nothing is sent twice.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from struct import Struct
from typing import Protocol

from bus.durable import layout

# mark, frame length, consumer, sequence number; of the turn's input: sender, sequence number
_ENTRY = Struct("=IIQQQQ")
_ENTRY_OCTETS = _ENTRY.size
_pack_entry = _ENTRY.pack_into
_TOOK = Struct("=QQ")
_pack_took = _TOOK.pack_into
_TOOK_AT = _ENTRY_OCTETS - _TOOK.size
_MARK = 0x6A6F7572
_WRAP_MARK = 0x77726170
_DONE_MARK = 0x646F6E65  # the mark of an entry without a frame, for further input of the turn
# as many single-packet frames as ip sends until a hang is noticed; a restarted layer reads them in 0.7 ms
ENTRIES_MAX = 2048
ENTRIES_AT_ONCE = 64  # if there are too many, this number of the oldest is removed
SHARE_OCTETS = 1 << 14
CARRIED_PART = 8  # an eighth
CARRIES_MAX = 8
_NOBODY = 0  # the consumer of an entry without a frame


class Taken(Protocol):
    """A sender whose frames a turn took, and the number of the last of them."""

    sender: int
    done: int


class Journal:
    """A ring of at most ENTRIES_MAX frames over `memory.journal`.

    Positions count all octets ever written; the place in the ring is the remainder.
    """

    __slots__ = ("_carried", "_carried_octets", "_end", "_entries", "_free", "_lap", "_last", "_need_max", "_release",
                 "_rescued", "_ring", "_size", "_stored_octets", "_took", "_used", "_words", "done", "sent")

    def __init__(self, store: layout.Memory) -> None:
        self._words = store.words
        self._ring = store.journal
        self._size = len(store.journal)
        self._lap = store.lap_octets
        self._need_max = self._size // 4
        self._release = store.release_journal
        self._used = self._size  # octets of the ring that have memory, at most
        # (position, length, consumer, sequence number, times it was carried over)
        self._entries: deque[tuple[int, int, int, int, int]] = deque()
        self._stored_octets: defaultdict[int, int] = defaultdict(int)  # {consumer: octets of its entries}
        self._carried = self._carried_octets = 0  # entries that were carried over, or will be
        self._rescued: list[tuple[int, int, bytes, int, int, int, int]] = []  # arguments of `write`, which follows
        # end of the written part; the head in the words is the end of the published part
        self._end = self._words[layout.JOURNAL_HEAD]
        self._free = 0  # up to this position no entry has to be removed
        self._last = 0  # offset of the newest entry
        self._took = False  # True if an entry of this turn contains its input already
        # as found at the start, of the turns in the journal:
        self.done: dict[int, int] = {}  # {sender: number of its last frame}
        self.sent: dict[int, int] = {}  # {consumer: number of the last frame to it}
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
            self._entries.append((position, length, consumer, sequence, 0))
            self.sent[consumer] = max(sequence, self.sent.get(consumer, 0))  # one that was carried over is older
            self._stored_octets[consumer] += _ENTRY_OCTETS + length
            position = end
        if not self._entries:
            self._words[layout.JOURNAL_TAIL] = head

    def _forget(self) -> None:
        """Damaged octets: start with an empty journal."""
        self._entries.clear()
        self._stored_octets.clear()
        self.sent.clear()
        self._words[layout.JOURNAL_TAIL] = self._words[layout.JOURNAL_HEAD]

    def publish(self, taken: Iterable[Taken]) -> None:
        """Publish the turn: from now on its output and its input count."""
        if self._end != self._words[layout.JOURNAL_HEAD]:
            for each in taken:
                if self._took:
                    self.write(_NOBODY, 0, b"", mark=_DONE_MARK)
                _pack_took(self._ring, self._last + _TOOK_AT, each.sender, each.done)
                self._took = True
            self._words[layout.JOURNAL_HEAD] = self._end

    def note(self, taken: Iterable[Taken]) -> None:
        """Publish a turn without output, whose deletions count from now on (`bus.durable.key_value_log`)."""
        self.write(_NOBODY, 0, b"", mark=_DONE_MARK)
        self.publish(taken)

    @property
    def unpublished(self) -> bool:
        """True if something was written that is not published yet."""
        return self._end != self._words[layout.JOURNAL_HEAD]

    @property
    def crowded(self) -> bool:
        """True if so much is unpublished that the turn should end."""
        return self._end - self._words[layout.JOURNAL_HEAD] > self._need_max

    def write(self, consumer: int, sequence: int, octets: bytes, sender: int = 0, number: int = 0,
              mark: int = _MARK, carries: int = 0) -> None:
        """Write a frame, which counts after `publish`. `sender`, `number`: the turn's input, if known already.

        `carries`: how many times it was carried over.
        """
        start, length = self._end, len(octets)
        need = _ENTRY_OCTETS + length
        if need > self._need_max:
            return  # too large for the journal: such a frame is not repeated
        if start + need > self._free or len(self._entries) >= ENTRIES_MAX:
            start = self._make_room(need)
        offset = start % self._size
        self._ring[offset + _ENTRY_OCTETS : offset + need] = octets
        _pack_entry(self._ring, offset, mark, length, consumer, sequence, sender, number)
        self._last = offset
        self._took = number != 0
        self._entries.append((start, length, consumer, sequence, carries))
        self._end = start + need
        self._stored_octets[consumer] += need
        while self._rescued and not carries:
            self.write(*self._rescued.pop())

    def _make_room(self, need: int) -> int:
        """The position for an entry of this many octets; removes the oldest entries."""
        size, entries, end = self._size, self._entries, self._end
        offset = end % size
        room = size - offset
        keep = ENTRIES_MAX if len(entries) < ENTRIES_MAX else ENTRIES_MAX - ENTRIES_AT_ONCE
        laps = need > room or (offset >= self._lap and len(entries) >= keep and entries[-keep][0] >= end - offset)
        start = end + room if laps else end  # a frame is contiguous
        while entries and (len(entries) > keep or entries[0][0] + size < start + need):
            self._remove_oldest()
        self._words[layout.JOURNAL_TAIL] = oldest = entries[0][0] if entries else start
        if laps:
            if room >= _ENTRY_OCTETS:
                _pack_entry(self._ring, offset, _WRAP_MARK, 0, 0, 0, 0, 0)
            if self._used > 2 * offset:  # what is stored now is before it
                self._release(offset + _ENTRY_OCTETS)
                self._used = offset
            self._used = max(self._used, offset)
            offset = 0
        self._free = min(oldest + size, start - offset + (self._lap if offset < self._lap else size))
        return start

    def _remove_oldest(self) -> None:
        position, length, consumer, sequence, carries = self._entries.popleft()
        need, stored = _ENTRY_OCTETS + length, self._stored_octets[consumer]
        if stored > need:
            self._stored_octets[consumer] = stored - need
        else:
            del self._stored_octets[consumer]
        if carries:
            self._carried -= 1
            self._carried_octets -= need
        if (stored <= SHARE_OCTETS and carries < CARRIES_MAX and consumer != _NOBODY
                and self._carried < ENTRIES_MAX // CARRIED_PART
                and self._carried_octets + need <= self._size // CARRIED_PART):
            body = position % self._size + _ENTRY_OCTETS
            frame = bytes(self._ring[body : body + length])
            self._rescued.append((consumer, sequence, frame, 0, 0, _MARK, carries + 1))
            self._carried += 1
            self._carried_octets += need

    def frames(self, consumer: int, after: int, at_most: int | None = None) -> list[tuple[int, bytes]]:
        """The stored frames for `consumer` with a number above `after` and no gap up to its last one, oldest first;
        only the last `at_most` of them."""
        found = sorted((sequence, position, length) for position, length, to, sequence, _ in self._entries
                       if to == consumer and sequence > after)
        for place in range(len(found) - 1, 0, -1):
            if found[place][0] != found[place - 1][0] + 1:
                found = found[place:]
                break
        if at_most is not None:
            found = found[-at_most:]
        frames = []
        for sequence, position, length in found:
            body = position % self._size + _ENTRY_OCTETS
            frames.append((sequence, bytes(self._ring[body : body + length])))
        return frames

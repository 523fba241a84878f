"""The receiving direction of a stream: octets that have arrived, until the application takes them; the urgent mark."""

from __future__ import annotations

import threading
from typing import ClassVar

from usernet.client.description import Description
from usernet.client.memory import Memory
from usernet.pipe.rings import Ring
from usernet.pipe.streams import (
    HELD_RECORD,
    READ,
    READ_OCTETS_MIN,
    READ_RECORD,
    RESUME,
    STREAM_END,
    STREAM_HEADER,
    STREAM_URGENT,
)

_SPECIAL = STREAM_URGENT | STREAM_END
READ_OCTETS = 32768  # a quarter of the initial receive buffer (Linux net.ipv4.tcp_rmem)

Sends = list[tuple[int, bytes]]


class Piece:
    """Octets that arrived and are in the ring."""

    __slots__ = ("length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length

    def __len__(self) -> int:
        return self.length


class ReceivedStream(Description):
    """See the module's docstring. `usernet.client.streams` has the rest of a stream."""

    __slots__ = (
        "adrift", "end", "have", "head", "memory", "moved", "read", "read_said", "receive_ring", "reset",
        "resume_asked", "taking", "told", "urgent", "urgent_hidden", "urgent_taken",
    )  # fmt: skip

    _INHERITED: ClassVar[tuple[str, ...]] = (
        *Description._INHERITED,
        "end", "memory", "read", "read_said", "reset", "urgent", "urgent_taken",
    )

    def __init__(self, lock: threading.RLock, handle: int, receive_buffer: int) -> None:
        super().__init__(lock, handle, receive_buffer)
        self.taking = threading.RLock()  # for reading threads

    def begin_receiving(self) -> None:
        """A new connection: nothing has arrived."""
        self.reset = 0  # errno: the connection has ended
        self.items.clear()
        self.head = 0  # octets of items[0] that were taken
        self.have = self.read = self.read_said = 0
        self.end: int | None = None  # offset at which the peer's stream ends
        self.resume_asked = -1
        self.urgent = 0  # offset after the urgent octet: the mark is before it; from `read` on there is none
        self.urgent_taken = False  # MSG_OOB has returned it
        self.urgent_hidden = False  # a call that found only this octet does not find it again
        self.memory: Memory | None = None
        self.receive_ring: Ring | None = None  # where the pieces in `items` are
        self.moved = False  # they have been moved to a ring that tcp is about to name
        # The positions in both directions are not known, because another process has used it: a ROOM with RESUME tells
        # the one of writing, and the STREAM after it the one of reading.
        self.adrift = self.told = False

    # -- the end ------------------------------------------------------------------------------------------------

    @property
    def at_end(self) -> bool:
        """True if all octets of the peer were read, or no more can be read."""
        return self.at_end_or_over and not self.unread

    @property
    def at_end_or_over(self) -> bool:
        """True if no more octets will arrive."""
        return self.ended or bool(self.reset) or self.end_came

    @property
    def end_came(self) -> bool:
        """True if the peer's FIN has arrived, and all octets before it."""
        return self.end is not None and self.have >= self.end

    @property
    def unread_hint(self) -> int:
        """Number of octets from the next one on, for TCP_INQ (Linux, tcp_inq_hint): a FIN counts as one of them, so
        that a program whose last octets were read reads on, and finds the end."""
        return self.have - self.read + self.end_came

    def lacks(self, octets: int) -> bool:
        """True if a call that needs so many octets has to wait for more, an error, or the end."""
        if self.have - self.read < octets and self.end is None and not (self.error or self.reset or self.ended):
            return True  # the usual case
        return not self.error and (self.moved or not (self.unread >= octets or self.at_end_or_over))

    # -- the urgent mark ----------------------------------------------------------------------------------------

    def urgent_waits(self) -> bool:
        """An urgent octet that MSG_OOB has not returned: EPOLLPRI."""
        return self.read < self.urgent <= self.have and not self.urgent_taken and not self.urgent_hidden

    @property
    def at_mark(self) -> bool:
        """SIOCATMARK: the next octet is the urgent one."""
        return self.urgent > 0 and self.read == self.urgent - 1

    # -- from the service ---------------------------------------------------------------------------------------

    def take_stream(self, record: bytes) -> Sends:
        """STREAM: received octets."""
        _, flags, offset = STREAM_HEADER.unpack_from(record)
        octets = len(record) - STREAM_HEADER.size
        if offset == self.have and octets and not flags & _SPECIAL and not self.adrift:
            self.items.append(record[STREAM_HEADER.size :])  # the usual case
            self.have += octets
            return []
        if flags & STREAM_URGENT:
            self._urge(offset + octets)
            if not octets:
                return []
        if not self._placed(offset):
            return []
        if offset > self.have:
            return self._missing()
        known = self.have - offset
        if octets > known:
            self.items.append(record[STREAM_HEADER.size + known :])
            self.have = offset + octets
        if flags & STREAM_END and offset + octets <= self.have:
            self.end = offset + octets
        return []

    def _urge(self, mark: int) -> None:
        """A new urgent mark (Linux, tcp_check_urg); the former urgent octet is lost if it is the next."""
        if mark <= self.urgent or mark <= self.read:
            return
        with self.taking:
            if self.at_mark and not self.oob_inline and self.read < self.have:
                self._take(1, peek=False)
            self.urgent, self.urgent_taken, self.urgent_hidden = mark, False, False

    def take_held(self, record: bytes) -> Sends:
        """STREAM_HELD: received octets in the ring. All that was not taken yet is in this ring now."""
        _, _, offset, length, reference = HELD_RECORD.unpack(record)
        ring = self.receive_ring
        if self.memory is not None and (ring is None or ring.reference != reference):
            ring = self.receive_ring = self.memory.ring(reference)
        self.moved = ring is None
        if not self._placed(offset):
            return []
        if offset > self.have:
            return self._missing()
        if offset + length > self.have:
            self.items.append(Piece(self.have, offset + length - self.have))  # type: ignore[arg-type]
            self.have = offset + length
        return []

    def _placed(self, offset: int) -> bool:
        """False: the record is from before tcp was asked for the position."""
        if self.adrift:
            if not self.told:
                return False
            self.adrift = False
            self.have = self.read = self.read_said = offset
        return True

    def _missing(self) -> Sends:
        if self.resume_asked == self.have:
            return []
        self.resume_asked = self.have
        return [(READ, READ_RECORD.pack(self.handle, RESUME, self.read, self.have))]

    # -- to the application -------------------------------------------------------------------------------------

    def take(self, count: int, peek: bool) -> bytes:
        """Up to `count` of the available octets, not beyond the urgent mark. Holding `taking`."""
        if self.urgent <= self.read:
            return self._take(count, peek)
        mark = self.urgent - 1
        if self.read < mark:
            return self._take(min(count, mark - self.read), peek)
        if self.oob_inline:
            return self._take(count, peek)
        if self.have <= self.urgent:  # nothing, or only the urgent octet, which is not in line
            self.urgent_hidden = True
            return b""
        if peek:
            return self._take(count + 1, peek)[1:]
        self._take(1, peek)
        return self._take(count, peek)

    def take_urgent(self, peek: bool) -> bytes:
        """The urgent octet for MSG_OOB; empty: it has not arrived. Holding `taking`."""
        left = self.urgent - 1 - self.read + self.head
        for item in self.items:
            if left < len(item):
                self.urgent_taken = self.urgent_taken or not peek
                if isinstance(item, Piece):
                    ring = self.receive_ring
                    return ring.read(item.offset + left, 1) if ring is not None else b""
                return item[left : left + 1]
            left -= len(item)
        return b""

    def _take(self, count: int, peek: bool) -> bytes:
        """Octets on either side of the urgent mark; none, with `moved` set: they are being moved."""
        items, head = self.items, self.head
        if not items:
            return b""
        if len(items) == 1 and not head and not peek:
            lone = items[0]
            if lone.__class__ is bytes and len(lone) <= count:  # the usual case for small messages
                items.popleft()
                self.read += len(lone)
                return lone
        parts, left = list[bytes](), count
        at, ring, held = 0, self.receive_ring, False
        while left > 0 and at < len(items):
            first = items[at]
            if isinstance(first, Piece):
                held = True
                if ring is None:
                    return self._lost(ring)
                part = ring.read(first.offset + head, min(left, first.length - head))
            else:
                part = first[head : head + left] if head or left < len(first) else first
            parts.append(part)
            left -= len(part)
            if head + len(part) < len(first):
                head += len(part)
                break
            head = 0
            at += 1
        if held and ring is not None and self.memory is not None and not self.memory.good(ring.reference):
            return self._lost(ring)
        if not peek:
            for _ in range(at):
                items.popleft()
            self.head = head
            self.read += count - left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _lost(self, ring: Ring | None) -> bytes:
        """The ring of the received octets is used for something else: tcp will name another, or has ended."""
        if self.reset:
            self.items.clear()
            self.head, self.read = 0, self.have
        else:
            self.moved = self.receive_ring is ring  # else another thread has just heard of another ring
        return b""

    @property
    def unread(self) -> int:
        """Number of octets that can be read: those before the urgent mark, or those after it."""
        if self.urgent > self.read and not self.oob_inline:
            mark = self.urgent - 1
            return min(mark, self.have) - self.read if self.read < mark else max(0, self.have - self.urgent)
        return self.have - self.read

    def read_due(self) -> bool:
        """True if tcp should be told how far the stream was read."""
        behind = self.read - self.read_said
        return behind >= READ_OCTETS_MIN and (behind >= READ_OCTETS or not self.items)

    def reading(self) -> bytes:
        """The READ record for this."""
        self.read_said = self.read
        return READ_RECORD.pack(self.handle, 0, self.read, self.have)

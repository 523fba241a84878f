"""The shared state of the duplicates of a stream socket: the application's end of a stream (docs/decisions/streams.md).

An offset counts octets from the first one on, in each direction. Written octets are kept until tcp has stored them
(`taken`), and sent again if tcp reports a gap. Received octets are here until the application takes them, and tcp keeps
them as long, so missing octets can be requested. Nothing here waits or does I/O: the methods return what to send as
(kind, record).

With a memory that is shared with the stack (`usernet.client.memory`), written octets are in a ring of it from the first
on that tcp may not have stored, and the records only say how far it was written; received octets are in another ring.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from typing import ClassVar, Self

from usernet.client.description import Description
from usernet.client.memory import Memory
from usernet.pipe.rings import Ring
from usernet.pipe.streams import (
    ACCEPT,
    ACCEPT_RECORD,
    FINISHED,
    HELD_RECORD,
    READ,
    READ_RECORD,
    RESUME,
    ROOM_OF_RING,
    ROOM_RECORD,
    STREAM,
    STREAM_END,
    STREAM_HEADER,
    STREAM_HELD,
    STREAM_MORE,
    STREAM_URGENT,
)

RECORD_OCTETS = 64240  # 44 segments of 1460 octets: what one frame of the TAP carries
READ_OCTETS = 32768  # a quarter of the initial receive buffer (Linux net.ipv4.tcp_rmem)
READ_OCTETS_MIN = 4096  # below this, and with nothing left to read, tcp need not know at once

HELD_OCTETS = 1 << 18  # written into the ring at a time, so that tcp begins to send meanwhile
OFFER_OCTETS = 1 << 14  # from a call that sends so much on, the octets of a stream are in shared memory
OFFER_AFTER_OCTETS = 1 << 16  # the same when so much has been received

Sends = list[tuple[int, bytes]]


class Piece:
    """Octets that arrived and are in the ring."""

    __slots__ = ("length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length

    def __len__(self) -> int:
        return self.length


class StreamDescription(Description):
    """See the module's docstring."""

    __slots__ = (
        "accepted", "acked", "adrift", "attempted", "backlog", "connecting", "deferred", "end", "established",
        "fast_connect", "finished", "have", "head", "incoming", "kept", "limit", "listener", "listening", "memory",
        "moved", "numbered", "offered", "read", "read_said", "receive_ring", "reset", "resume_asked", "send_reference",
        "send_ring", "sent_end", "taken", "taking", "told", "unclaimed", "unsent_low", "urgent", "urgent_hidden",
        "urgent_taken", "writing", "written",
    )  # fmt: skip

    _INHERITED: ClassVar[tuple[str, ...]] = (
        *Description._INHERITED, "accepted", "acked", "attempted", "backlog", "connecting", "end", "established",
        "finished", "limit", "listening", "memory", "numbered", "offered", "read", "read_said", "reset",
        "send_reference", "sent_end", "taken", "unsent_low", "urgent", "urgent_taken", "written",
    )

    def __init__(self, lock: threading.RLock, handle: int, receive_buffer: int) -> None:
        super().__init__(lock, handle, receive_buffer)
        self.taking, self.writing = threading.RLock(), threading.RLock()  # for reading threads, for writing threads
        self.listening = False
        self.listener: StreamDescription | None = None  # the listener of this connection, until it can be accepted
        self.unclaimed = False  # of a shared listener: the service does not know that it was accepted
        self.backlog = 0
        self.incoming: deque[StreamDescription] = deque()  # connections that wait for accept
        self.numbered = 0  # number of the last connection that arrived
        self.accepted = 0  # number of connections that the application has accepted
        self.begin()
        self.connecting = False
        self.unsent_low = 0  # TCP_NOTSENT_LOWAT
        self.fast_connect = False  # TCP_FASTOPEN_CONNECT
        self.deferred: tuple[str, int] | None = None  # the peer of a connect that waits for the first octets

    def begin(self) -> None:
        """A new connection is attempted."""
        self.connecting, self.established = True, False
        self.attempted = False  # a call has reported the result of the attempt
        self.reset = 0  # errno: the connection has ended
        self.items.clear()
        self.head = 0  # octets of items[0] that were taken
        self.have = self.read = self.read_said = 0
        self.end: int | None = None  # offset at which the peer's stream ends
        self.resume_asked = -1
        self.urgent = 0  # offset after the urgent octet: the mark is before it; from `read` on there is none
        self.urgent_taken = False  # MSG_OOB has returned it
        self.urgent_hidden = False  # a call that found only this octet does not find it again
        self.written = self.taken = self.acked = self.limit = 0
        self.memory: Memory | None = None
        self.offered = False  # tcp was offered the memory, or there is none
        self.send_reference = 0  # of the ring that tcp has named; 0: octets to send travel in records
        self.send_ring: Ring | None = None  # that ring, from the next write on
        self.receive_ring: Ring | None = None  # where the pieces in `items` are
        self.moved = False  # they have been moved to a ring that tcp is about to name
        self.kept: deque[tuple[int, bytes]] = deque()  # (offset, octets) written that tcp may not have stored
        self.sent_end = self.finished = False
        self.shut_for_writing = self.ended = False
        # The positions in both directions are not known, because another process has used it: a ROOM with RESUME tells
        # the one of writing, and the STREAM after it the one of reading.
        self.adrift = self.told = False

    def inherited(self, lock: threading.RLock) -> Self:
        """As Description.inherited; what was received and not read comes again once the connection is taken."""
        copy = super().inherited(lock)
        copy.have = copy.read
        copy.end = None
        return copy

    def drift(self) -> None:
        """The connection belongs to this process again: its positions follow."""
        self.items.clear()
        self.head = 0
        self.resume_asked = -1
        self.have = self.read
        self.end = None
        self.send_ring = self.receive_ring = None  # the other process may have had others since
        self.moved = False
        self.adrift, self.told = True, False
        if self.error == errno.EBUSY:
            self.error = 0

    # -- readiness ----------------------------------------------------------------------------------------------

    @property
    def at_end(self) -> bool:
        """True if all octets of the peer were read, or no more can be read."""
        return self.at_end_or_over and not self.unread

    @property
    def at_end_or_over(self) -> bool:
        """True if no more octets will arrive."""
        return self.ended or bool(self.reset) or self.end_came

    def ready(self) -> bool:
        """Readable in the sense of poll."""
        if self.listening:
            return bool(self.incoming or self.error or self.ended)
        return self.unread >= self.low_water or bool(self.error) or self.at_end_or_over

    def urgent_waits(self) -> bool:
        """An urgent octet that MSG_OOB has not returned: EPOLLPRI."""
        return self.read < self.urgent <= self.have and not self.urgent_taken and not self.urgent_hidden

    @property
    def at_mark(self) -> bool:
        """SIOCATMARK: the next octet is the urgent one."""
        return self.urgent > 0 and self.read == self.urgent - 1

    def writable(self) -> bool:
        """True if at least a third of the send buffer is free, or writing fails at once."""
        if self.error or self.reset or self.shut_for_writing or self.deferred is not None:
            return True
        room = self.limit - self.written
        if self.unsent_low:
            return self.established and 2 * room >= self.unsent_low
        return self.established and 3 * room >= self.limit - self.acked > 0

    def hung_up(self) -> bool:
        """True if both directions have ended."""
        return bool(self.reset) or (self.shut_for_writing and (self.ended or self.end_came))

    def failed(self) -> bool:
        """True if the connection has ended by an error that no call has reported: EPOLLERR."""
        return bool(self.reset and self.error)

    @property
    def over(self) -> bool:
        """True if both ends have closed and know it: Linux has no connection any more."""
        return bool(self.reset) or (self.finished and self.end_came)

    @property
    def end_came(self) -> bool:
        """True if the peer's FIN has arrived, and all octets before it."""
        return self.end is not None and self.have >= self.end

    # -- from the service ---------------------------------------------------------------------------------------

    def take_stream(self, record: bytes) -> Sends:
        """STREAM: received octets."""
        _, flags, offset = STREAM_HEADER.unpack_from(record)
        octets = len(record) - STREAM_HEADER.size
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

    def take_room(self, record: bytes) -> Sends:
        """ROOM: what tcp has stored, and how much more it accepts."""
        if len(record) == ROOM_OF_RING.size:
            _, flags, taken, acked, limit, self.send_reference = ROOM_OF_RING.unpack(record)
        else:
            _, flags, taken, acked, limit = ROOM_RECORD.unpack(record)
        self.established = not self.reset
        self.taken, self.acked = max(self.taken, taken), max(self.acked, acked)
        self.limit = max(self.limit, limit)
        self.written = max(self.written, self.taken)
        self.told = self.told or bool(flags & RESUME)
        self.finished = self.finished or bool(flags & FINISHED)
        kept = self.kept
        while kept and kept[0][0] + len(kept[0][1]) <= self.taken:
            kept.popleft()
        return self._resume(taken) if flags & RESUME else []

    def _resume(self, taken: int) -> Sends:
        sends = [(READ, READ_RECORD.pack(self.handle, 0, self.read, self.have))]
        ring = self.send_ring
        if ring is not None and taken < self.written:
            sends.append((STREAM_HELD, HELD_RECORD.pack(self.handle, 0, taken, self.written - taken, ring.reference)))
        for offset, octets in list(self.kept):
            if offset + len(octets) > taken:
                sends.append((STREAM, STREAM_HEADER.pack(self.handle, 0, offset) + octets))
        if self.sent_end:
            sends.append((STREAM, STREAM_HEADER.pack(self.handle, STREAM_END, self.written)))
        return sends

    def take_reset(self, number: int) -> None:
        """STREAM_RESET: the connection has ended, or could not be established."""
        if not self.reset:
            self.reset = self.error = number
            self.established = False
            self.kept.clear()

    # -- from the application -----------------------------------------------------------------------------------

    def write(self, data: memoryview, flags: int) -> tuple[int, int, bytes]:
        """Accept as much of `data` as fits into one record and the room: (number of octets, kind, record).

        Holding `writing`.
        """
        if self.send_reference:
            ring = self._adopted(self.send_reference)
            if ring is not None:
                return self._write_held(ring, data, flags)
        octets = bytes(data[: min(RECORD_OCTETS, self.limit - self.written)])
        offset = self.written
        self.written += len(octets)
        self.kept.append((offset, octets))
        if len(octets) < len(data):
            flags = flags & ~STREAM_URGENT | STREAM_MORE
        return len(octets), STREAM, STREAM_HEADER.pack(self.handle, flags, offset) + octets

    def _adopted(self, reference: int) -> Ring | None:
        """The ring for octets to send; what tcp may not have stored is copied into it first."""
        ring, memory = self.send_ring, self.memory
        if ring is None and memory is not None:
            ring = memory.ring(reference)
            if ring is not None:
                for offset, octets in list(self.kept):
                    ring.write(offset, octets)
                self.send_ring = ring
                self.kept.clear()
        # a ring that tcp has freed is not used for another stream at once, so there is time to write
        return ring if ring is not None and memory is not None and memory.good(reference) else None

    def _write_held(self, ring: Ring, data: memoryview, flags: int) -> tuple[int, int, bytes]:
        assert self.memory is not None
        count, offset = min(len(data), self.limit - self.written, HELD_OCTETS), self.written
        ring.write(offset, data[:count])
        self.written += count
        self.memory.wrote(ring.reference, self.written)
        if count < len(data):
            flags = flags & ~STREAM_URGENT | STREAM_MORE
        return count, STREAM_HELD, HELD_RECORD.pack(self.handle, flags, offset, count, ring.reference)

    def unwrite(self, octets: int) -> bool:
        """The last record could not be sent: undo `write`. False: another thread has written since."""
        if self.send_ring is not None and self.memory is not None:
            self.written -= octets
            self.memory.wrote(self.send_ring.reference, self.written)
            return True
        if not self.kept or len(self.kept[-1][1]) != octets or self.kept[-1][0] + octets != self.written:
            return False
        self.kept.pop()
        self.written -= octets
        return True

    def end_writing(self) -> Sends:
        """SHUT_WR."""
        self.shut_for_writing = True
        if self.sent_end or not self.established:
            return []
        self.sent_end = True
        return [(STREAM, STREAM_HEADER.pack(self.handle, STREAM_END, self.written))]

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
        items, parts, left, head = self.items, list[bytes](), count, self.head
        at, ring, held = 0, self.receive_ring, False
        while left > 0 and at < len(items):
            first = items[at]
            if isinstance(first, Piece):
                held = True
                if ring is None:
                    return self._lost()
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
            return self._lost()
        if not peek:
            for _ in range(at):
                items.popleft()
            self.head = head
            self.read += count - left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _lost(self) -> bytes:
        """The ring of the received octets is used for something else: tcp will name another, or has ended."""
        if self.reset:
            self.items.clear()
            self.head, self.read = 0, self.have
        else:
            self.moved = True
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
        return behind >= READ_OCTETS or (behind >= READ_OCTETS_MIN and not self.items)

    def reading(self) -> bytes:
        """The READ record for this."""
        self.read_said = self.read
        return READ_RECORD.pack(self.handle, 0, self.read, self.have)

    def granting(self, flags: int = 0) -> Sends:
        """The ACCEPT with the number of connections that may be passed up.

        RESUME: those after `numbered` are to be passed up again.
        """
        record = ACCEPT_RECORD.pack(self.handle, flags, self.numbered, self.accepted + self.backlog + 1)
        return [(ACCEPT, record)]

    def recovering(self) -> Sends:
        """After records of the service were lost: the record that asks for them again."""
        if self.listening:
            return self.granting(RESUME)
        return [(READ, READ_RECORD.pack(self.handle, RESUME, self.read, self.have))]

    def closing(self) -> dict[str, object]:
        """The fields of the request that closes it."""
        if self.listening or self.connecting or self.shared or self.adrift:
            return {}
        return {"linger": 0 if self.linger == 0 else -1, "end": self.written, "read": self.read}

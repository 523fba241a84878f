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

from usernet.client.description import UNNAMED
from usernet.client.readiness import ENDED, FAILED, HUNG_UP, READABLE, URGENT, WRITABLE
from usernet.client.received import ReceivedStream, Sends
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

HELD_OCTETS = 1 << 18  # written into the ring at a time, so that tcp begins to send meanwhile
OFFER_OCTETS = 1 << 14  # from a call that sends so much on, the octets of a stream are in shared memory
GRANTED_LATE = 64  # connections, or an eighth of the backlog, accepted before tcp is told while others wait
OFFER_AFTER_OCTETS = 1 << 16  # the same when so much has been received



class StreamDescription(ReceivedStream):
    """See the module's docstring."""

    __slots__ = (
        "acked", "attempted", "backlog", "coming", "connecting", "deferred", "established", "fast_connect",
        "finished", "given_back", "granted", "incoming", "kept", "limit", "listener", "listening", "named", "numbered",
        "offered", "resent", "send_reference", "send_ring", "sent_end", "taken", "tells_unread", "unclaimed",
        "unsent_low", "writing", "written",
    )  # fmt: skip

    _INHERITED: ClassVar[tuple[str, ...]] = (
        *ReceivedStream._INHERITED,
        "acked", "attempted", "backlog", "connecting", "established", "finished", "limit", "listening",
        "named", "numbered", "offered", "send_reference", "sent_end", "taken", "tells_unread", "unsent_low", "written",
    )

    def __init__(self, lock: threading.RLock, handle: int, receive_buffer: int) -> None:
        super().__init__(lock, handle, receive_buffer)
        self.writing = threading.RLock()  # for writing threads
        self.listening = False
        self.listener: StreamDescription | None = None  # the listener of this connection, until it can be accepted
        self.unclaimed = False  # of a shared listener: the service does not know that it was accepted
        self.given_back = False  # it is being given back to the service, which may hand it to any owner of the listener
        self.backlog = 0
        self.coming: dict[int, StreamDescription] = {}  # {handle: connection} whose first ROOM has not come
        self.incoming: deque[StreamDescription] = deque()  # connections that wait for accept
        self.numbered = 0  # number of the last connection that arrived
        self.granted = 0  # the number up to which tcp may pass connections up, as it was last told
        self.named = UNNAMED[0]  # the local address before a connection: that of bind
        self.begin()
        self.connecting = False
        self.unsent_low = 0  # TCP_NOTSENT_LOWAT
        self.fast_connect = False  # TCP_FASTOPEN_CONNECT
        self.tells_unread = False  # TCP_INQ
        self.deferred: tuple[str, int] | None = None  # the peer of a connect that waits for the first octets

    def begin(self) -> None:
        """A new connection is attempted."""
        self.begin_receiving()
        self.connecting, self.established = True, False
        self.attempted = False  # a call has reported the result of the attempt
        self.written = self.taken = self.acked = self.limit = 0
        self.resent = 0  # octets up to here were sent because tcp asked for them, perhaps while a call was sending them
        self.offered = False  # tcp was offered the memory, or there is none
        self.send_reference = 0  # of the ring that tcp has named; 0: octets to send travel in records
        self.send_ring: Ring | None = None  # that ring, from the next write on
        self.kept: deque[tuple[int, bytes]] = deque()  # (offset, octets) written that tcp may not have stored
        self.sent_end = self.finished = False
        self.shut_for_writing = self.ended = False

    def unconnected(self) -> None:
        """The result of an attempt was reported, which has failed: the socket is as before it."""
        self.connecting, self.peer = False, None
        self.local = self.named, self.local[1]  # Linux, tcp_disconnect: the port is shown until there is another

    def listens(self, backlog: int) -> None:
        """It is a listener now, perhaps after such an attempt."""
        if self.reset:
            self.begin()
            self.connecting = False
        self.listening, self.backlog = True, backlog

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

    def ready(self) -> bool:
        """Readable in the sense of poll."""
        if self.listening:
            return bool(self.incoming or self.error or self.ended)
        return self.unread >= self.low_water or bool(self.error) or self.at_end_or_over

    def writable(self) -> bool:
        """True if at least a third of the send buffer is free, or writing fails at once."""
        room = self.limit - self.written
        if self.established and 3 * room >= self.limit - self.acked > 0 and not self.unsent_low:
            return True  # the usual case
        if self.error or self.reset or self.shut_for_writing or self.deferred is not None:
            return True
        return self.established and 0 < self.unsent_low <= 2 * room

    def hung_up(self) -> bool:
        """True if both directions have ended."""
        return bool(self.reset) or (self.shut_for_writing and (self.ended or self.end_came))

    def failed(self) -> bool:
        """True if the connection has ended by an error that no call has reported: EPOLLERR."""
        return bool(self.reset and self.error)

    def events(self) -> int:
        """What its descriptor shows."""
        if self.established and self.end is None and not (
                self.error or self.ended or self.urgent or self.shut_for_writing or self.unsent_low):
            # the usual case in one step: what the methods say for the middle of a connection
            return (READABLE if self.have - self.read >= self.low_water else 0) | (
                WRITABLE if 3 * (self.limit - self.written) >= self.limit - self.acked > 0 else 0)
        hung_up = self.hung_up()
        return ((READABLE if self.ready() else 0) | (WRITABLE if hung_up or self.writable() else 0)
                | (ENDED if self.at_end and not self.listening else 0) | (HUNG_UP if hung_up else 0)
                | (URGENT if self.urgent_waits() else 0) | (FAILED if self.failed() else 0))

    @property
    def over(self) -> bool:
        """True if both ends have closed and know it: Linux has no connection any more."""
        return bool(self.reset) or (self.finished and self.end_came)

    # -- from the service ---------------------------------------------------------------------------------------

    def take_room(self, record: bytes) -> Sends:
        """ROOM: what tcp has stored, and how much more it accepts."""
        if len(record) == ROOM_OF_RING.size:
            _, flags, taken, acked, limit, self.send_reference = ROOM_OF_RING.unpack(record)
        else:
            _, flags, taken, acked, limit = ROOM_RECORD.unpack(record)
        self.established = not self.reset
        self.taken, self.acked = max(self.taken, taken), max(self.acked, acked)
        self.limit = max(self.limit, limit)
        if self.taken > self.written:  # else nothing is stored: another thread may be writing
            self.written = self.taken
        self.told = self.told or bool(flags & RESUME)
        self.finished = self.finished or bool(flags & FINISHED)
        kept = self.kept
        while kept and kept[0][0] + len(kept[0][1]) <= self.taken:
            kept.popleft()
        return self._resume(taken) if flags & RESUME else []

    def _resume(self, taken: int) -> Sends:
        sends = [(READ, READ_RECORD.pack(self.handle, 0, self.read, self.have))]
        self.resent = self.written  # before they are looked at, so that they are not undone from now on
        kept, ring = list(self.kept), self.send_ring  # in this order: a writing thread may be moving them there
        end = self.resent
        if ring is not None and taken < end:
            sends.append((STREAM_HELD, HELD_RECORD.pack(self.handle, 0, taken, end - taken, ring.reference)))
        for offset, octets in kept:
            if taken < offset + len(octets) <= end:
                sends.append((STREAM, STREAM_HEADER.pack(self.handle, 0, offset) + octets))
        if self.sent_end:
            sends.append((STREAM, STREAM_HEADER.pack(self.handle, STREAM_END, self.written)))
        return sends

    def take_reset(self, number: int) -> None:
        """STREAM_RESET: the connection has ended, or could not be established."""
        if not self.reset:
            self.reset = self.error = number
            self.established = False
            self.kept = deque()

    # -- from the application -----------------------------------------------------------------------------------

    def write(self, data: memoryview | bytes, flags: int) -> tuple[int, int, bytes]:
        """Accept as much of `data` as fits into one record and the room: (number of octets, kind, record).

        Holding `writing`.
        """
        if self.send_reference:
            ring = self._adopted(self.send_reference)
            if ring is not None:
                return self._write_held(ring, data, flags)
        offset, count = self.written, len(data)
        room = min(RECORD_OCTETS, self.limit - offset)
        if count > room:
            data, count = data[:room], room
            flags = flags & ~STREAM_URGENT | STREAM_MORE
        octets = bytes(data)
        self.written = offset + count
        self.kept.append((offset, octets))
        return count, STREAM, STREAM_HEADER.pack(self.handle, flags, offset) + octets

    def _adopted(self, reference: int) -> Ring | None:
        """The ring for octets to send; what tcp may not have stored is copied into it first."""
        ring, memory = self.send_ring, self.memory
        if ring is None and memory is not None:
            ring = memory.ring(reference)
            if ring is not None:
                for offset, octets in list(self.kept):
                    ring.write(offset, octets)
                self.send_ring = ring
                self.kept = deque()  # another one: a thread that takes a ROOM may be in the middle of the former
        # a ring that tcp has freed is not used for another stream at once, so there is time to write
        return ring if ring is not None and memory is not None and memory.good(reference) else None

    def _write_held(self, ring: Ring, data: memoryview | bytes, flags: int) -> tuple[int, int, bytes]:
        assert self.memory is not None
        count, offset = min(len(data), self.limit - self.written, HELD_OCTETS), self.written
        ring.write(offset, data[:count])
        self.written += count
        self.memory.wrote(ring.reference, self.written)
        if count < len(data):
            flags = flags & ~STREAM_URGENT | STREAM_MORE
        return count, STREAM_HELD, HELD_RECORD.pack(self.handle, flags, offset, count, ring.reference)

    def unwrite(self, octets: int) -> bool:
        """The last record could not be sent: undo `write`. Holding `writing`.

        False: the octets count as written, because tcp has asked for them and gets them, or the connection has ended.
        """
        ring, kept = self.send_ring, self.kept
        if ring is None and not (kept and len(kept[-1][1]) == octets and kept[-1][0] + octets == self.written):
            return False
        if self.written <= self.resent:  # no call between this and the subtraction: another thread may be in `_resume`
            return False
        self.written -= octets
        if ring is None:
            kept.pop()
        elif self.memory is not None:
            self.memory.wrote(ring.reference, self.written)
        return True

    def end_writing(self) -> Sends:
        """SHUT_WR."""
        self.shut_for_writing = True
        if self.sent_end or not self.established:
            return []
        self.sent_end = True
        return [(STREAM, STREAM_HEADER.pack(self.handle, STREAM_END, self.written))]

    def granting(self, flags: int = 0) -> Sends:
        """The ACCEPT with the number of connections that may be passed up.

        RESUME: those after `numbered` are to be passed up again.
        """
        self.granted = self._grantable()
        return [(ACCEPT, ACCEPT_RECORD.pack(self.handle, flags, self.numbered, self.granted))]

    def _grantable(self) -> int:
        return self.numbered - len(self.coming) - len(self.incoming) + self.backlog + 1

    def grant_due(self) -> bool:
        """True if no more connections wait, or many have been accepted since the last ACCEPT."""
        late = self._grantable() - self.granted
        return not self.incoming or late > min(self.backlog // 8, GRANTED_LATE)

    def arrive(self) -> StreamDescription | None:
        """The first ROOM or the reset of a connection to a listener has come: it can be accepted, unless it is being
        given back. Returns the listener if so."""
        listener = self.listener
        if listener is None or listener.coming.pop(self.handle, None) is None:
            return None
        listener.incoming.append(self)
        self.listener = None
        return listener

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

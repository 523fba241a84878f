"""What the duplicates of a stream socket share, and the application's end of a stream (docs/decisions/streams.md).

An offset counts the octets from the first one on, each way. What is written is kept here until tcp stores it (`taken`),
and sent again from where tcp says that something is missing; what is received is here until the application takes it,
and tcp keeps it as long, so what is missing here is asked for. Nothing in here waits or does I/O: the calls return what
is to be sent as (kind, record).
"""

from __future__ import annotations

import threading
from collections import deque

from usernet.client.description import Description
from usernet.pipe.streams import (
    ACCEPT,
    ACCEPT_RECORD,
    FINISHED,
    READ,
    READ_RECORD,
    RESUME,
    ROOM_RECORD,
    STREAM,
    STREAM_END,
    STREAM_HEADER,
    STREAM_MORE,
    STREAM_URGENT,
)

RECORD_OCTETS = 64240  # 44 segments of 1460 octets: what one frame of the TAP carries
READ_OCTETS = 32768  # a quarter of the receive buffer that a socket starts with (Linux net.ipv4.tcp_rmem)
READ_OCTETS_MIN = 4096  # below, and with nothing left to read, tcp need not hear of it at once

Sends = list[tuple[int, bytes]]


class StreamDescription(Description):
    """See the module's docstring."""

    __slots__ = (
        "accepted", "acked", "attempted", "backlog", "connecting", "end", "established", "finished", "have", "head",
        "incoming", "kept", "limit", "listener", "listening", "numbered", "read", "read_said", "reset",
        "resume_asked", "sent_end", "taken", "taking", "urgent", "writing", "written",
    )  # fmt: skip

    def __init__(self, lock: threading.RLock, handle: int, receive_buffer: int) -> None:
        super().__init__(lock, handle, receive_buffer)
        self.taking, self.writing = threading.RLock(), threading.RLock()  # of those that read, of those that write
        self.listening = False
        self.listener: StreamDescription | None = None  # to which this connection came, until it may be accepted
        self.backlog = 0
        self.incoming: deque[StreamDescription] = deque()  # connections that wait for accept
        self.numbered = 0  # of the last connection that came in
        self.accepted = 0  # connections that the application has taken
        self.begin()
        self.connecting = False

    def begin(self) -> None:
        """A new connection is attempted."""
        self.connecting, self.established = True, False
        self.attempted = False  # the outcome of the attempt was told to somebody
        self.reset = 0  # errno: the connection is gone
        self.items.clear()
        self.head = 0  # octets of items[0] that were taken
        self.have = self.read = self.read_said = 0
        self.end: int | None = None  # where the peer's stream ends
        self.resume_asked = -1
        self.urgent = 0  # offset behind the urgent octet
        self.written = self.taken = self.acked = self.limit = 0
        self.kept: deque[tuple[int, bytes]] = deque()  # (offset, octets) written that tcp may not have stored
        self.sent_end = self.finished = False
        self.shut_for_writing = self.ended = False

    # -- readiness ----------------------------------------------------------------------------------------------

    @property
    def at_end(self) -> bool:
        """All that the peer sent was read, or nothing more is to be read."""
        return not self.items and self.at_end_or_over

    @property
    def at_end_or_over(self) -> bool:
        """Nothing more will come, whatever is still there."""
        return self.ended or bool(self.reset) or (self.end is not None and self.have >= self.end)

    def ready(self) -> bool:
        """Readable in the sense of poll."""
        if self.listening:
            return bool(self.incoming or self.error or self.ended)
        return bool(self.items or self.error) or self.at_end

    def writable(self) -> bool:
        """At least a third of the send buffer is free, or writing fails at once."""
        if self.error or self.reset or self.shut_for_writing:
            return True
        return self.established and 3 * (self.limit - self.written) >= self.limit - self.acked > 0

    def hung_up(self) -> bool:
        """Both ways are over."""
        return bool(self.reset) or (self.shut_for_writing and self.end is not None and self.have >= self.end)

    # -- from the service ---------------------------------------------------------------------------------------

    def take_stream(self, record: bytes) -> Sends:
        """STREAM: octets that came."""
        _, flags, offset = STREAM_HEADER.unpack_from(record)
        octets = len(record) - STREAM_HEADER.size
        if flags & STREAM_URGENT:
            self.urgent = offset + octets
            if not octets:
                return []
        if offset > self.have:
            if self.resume_asked == self.have:
                return []
            self.resume_asked = self.have
            return [(READ, READ_RECORD.pack(self.handle, RESUME, self.read, self.have))]
        known = self.have - offset
        if octets > known:
            self.items.append(record[STREAM_HEADER.size + known :])
            self.have = offset + octets
        if flags & STREAM_END and offset + octets <= self.have:
            self.end = offset + octets
        return []

    def take_room(self, record: bytes) -> Sends:
        """ROOM: what tcp has, and how much more it takes."""
        _, flags, taken, acked, limit = ROOM_RECORD.unpack(record)
        self.established = not self.reset
        self.taken, self.acked = max(self.taken, taken), max(self.acked, acked)
        self.limit = max(self.limit, limit)
        self.finished = self.finished or bool(flags & FINISHED)
        kept = self.kept
        while kept and kept[0][0] + len(kept[0][1]) <= self.taken:
            kept.popleft()
        return self._resume(taken) if flags & RESUME else []

    def _resume(self, taken: int) -> Sends:
        sends = [(READ, READ_RECORD.pack(self.handle, 0, self.read, self.have))]
        for offset, octets in list(self.kept):
            if offset + len(octets) > taken:
                sends.append((STREAM, STREAM_HEADER.pack(self.handle, 0, offset) + octets))
        if self.sent_end:
            sends.append((STREAM, STREAM_HEADER.pack(self.handle, STREAM_END, self.written)))
        return sends

    def take_reset(self, number: int) -> None:
        """STREAM_RESET: the connection is gone, or was not to be had."""
        if not self.reset:
            self.reset = self.error = number
            self.established = False
            self.kept.clear()

    # -- from the application -----------------------------------------------------------------------------------

    def write(self, data: memoryview, flags: int) -> tuple[int, bytes]:
        """Take as much of `data` as one record and the room for it hold: (octets, the record). Under `writing`."""
        octets = bytes(data[: min(RECORD_OCTETS, self.limit - self.written)])
        offset = self.written
        self.written += len(octets)
        self.kept.append((offset, octets))
        if len(octets) < len(data):
            flags = flags & ~STREAM_URGENT | STREAM_MORE
        return len(octets), STREAM_HEADER.pack(self.handle, flags, offset) + octets

    def unwrite(self, octets: int) -> bool:
        """The last record could not be sent: it was never written. False where others have written since."""
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
        """Up to `count` of the octets that are there. Under `taking`."""
        items, parts, left, head = self.items, [], count, self.head
        at = 0
        while left > 0 and at < len(items):
            first = items[at]
            part = first[head : head + left] if head or left < len(first) else first
            parts.append(part)
            left -= len(part)
            if head + len(part) < len(first):
                head += len(part)
                break
            head = 0
            at += 1
        if not peek:
            for _ in range(at):
                items.popleft()
            self.head = head
            self.read += count - left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def unread(self) -> int:
        """Octets that are there to be read."""
        return self.have - self.read

    def read_due(self) -> bool:
        """Whether tcp should hear how far the stream was read."""
        behind = self.read - self.read_said
        return behind >= READ_OCTETS or (behind >= READ_OCTETS_MIN and not self.items)

    def reading(self) -> bytes:
        """The READ that says so."""
        self.read_said = self.read
        return READ_RECORD.pack(self.handle, 0, self.read, self.have)

    def granting(self, flags: int = 0) -> Sends:
        """The ACCEPT that says how many connections may be handed up; RESUME: and that those after `numbered` shall
        be handed up again."""
        record = ACCEPT_RECORD.pack(self.handle, flags, self.numbered, self.accepted + self.backlog + 1)
        return [(ACCEPT, record)]

    def recovering(self) -> Sends:
        """After records of the service were lost: the record that asks for them again."""
        if self.listening:
            return self.granting(RESUME)
        return [(READ, READ_RECORD.pack(self.handle, RESUME, self.read, self.have))]

    def closing(self) -> dict[str, object]:
        """The fields of the request that closes it."""
        if self.listening or self.connecting:
            return {}
        return {"linger": 0 if self.linger == 0 else -1, "end": self.written, "read": self.read}

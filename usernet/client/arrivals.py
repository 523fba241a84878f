"""Received records: each goes to the socket that it is for, and wakes the threads that wait there.

Only the leader (`usernet.client.dispatcher`) calls this, one thread at a time. Replies to send are returned.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from socket import AF_INET, AF_INET6, inet_ntop
from struct import error as StructError  # noqa: N812

from usernet.client.description import Description
from usernet.client.dispatcher import Mailbox, Readers
from usernet.client.streams import StreamDescription
from usernet.pipe.messages import (
    CREDIT,
    CREDIT_RECORD,
    CREDIT_TOTAL,
    DATAGRAM,
    DATAGRAM_HEADER,
    DATAGRAM_OPTIONS,
    DATAGRAM_SEGMENTS,
    FAMILY_4,
    SEGMENT_SIZE,
    SHARED,
    SHARED_RECORD,
    SHARED_RETURNED,
    SHARED_TAKEN,
    SOCKET_ERROR,
    WANT,
    WANT_RECORD,
    WANT_WAITS,
)
from usernet.pipe.streams import (
    ACCEPTED,
    ACCEPTED_HEADER,
    INFO_HEADER,
    RESET_RECORD,
    ROOM,
    STREAM,
    STREAM_HELD,
    STREAM_INFO,
    STREAM_RESET,
    accepted_addresses,
)
from usernet.sockets.cmsg import with_options

OTHER_STREAM_KINDS = frozenset((STREAM_HELD, ROOM, ACCEPTED, STREAM_RESET, STREAM_INFO))

_from_bytes = int.from_bytes


def queued(box: Description) -> bytes:
    """A CREDIT record with the number of octets queued, which accounts for all that was consumed."""
    box.consumed = 0
    return CREDIT_RECORD.pack(box.handle, min(box.queued(), CREDIT_TOTAL - 1) | CREDIT_TOTAL)


class Arrivals:
    """`boxes`: {handle: socket}. `unwanted` is called with the handle of a connection whose listener was closed."""

    def __init__(self, readers: Readers, boxes: dict[int, Description], unwanted: Callable[[int], None]) -> None:
        self.readers = readers
        self.boxes = boxes
        self.infos: dict[int, Mailbox] = {}  # {number of the question: mailbox} of STREAM_INFO
        self.malformed = 0  # records from the service that cannot be decoded
        self._unwanted = unwanted

    def take(self, kind: int, records: list[bytes]) -> list[tuple[int, bytes]]:
        """Process records of one kind, in order; returns (kind, record) to send in reply."""
        boxes = self.boxes
        sends: list[tuple[int, bytes]] = []
        if kind == DATAGRAM:
            for record in records:
                box = boxes.get(_from_bytes(record[:4], "little"))
                if box is not None:
                    box.items.append(record)
                    if box.sleepers or box.descriptors:
                        self.readers.wake(box)
        elif kind == STREAM:
            for record in records:
                box = boxes.get(_from_bytes(record[:4], "little"))
                if isinstance(box, StreamDescription):
                    try:
                        sends += box.take_stream(record)
                    except StructError:
                        self.malformed += 1
                        continue
                    if box.sleepers or box.descriptors:
                        self.readers.wake(box)
        elif kind == DATAGRAM_SEGMENTS:
            for record in records:
                self._segments(record)
        elif kind == DATAGRAM_OPTIONS:
            for record in records:
                self._with_options(record)
        elif kind == SOCKET_ERROR:
            for record in records:
                self._failed(record)
        elif kind in OTHER_STREAM_KINDS:
            for record in records:
                try:
                    sends += self._stream(kind, record)
                except StructError:
                    self.malformed += 1
        elif kind == SHARED:
            for record in records:
                sends += self._owned(*SHARED_RECORD.unpack(record))
        elif kind == CREDIT:  # the service asks
            asked = [boxes.get(CREDIT_RECORD.unpack(record)[0]) for record in records]
            sends += [(CREDIT, queued(box)) for box in asked if box is not None]
        return sends

    def _owned(self, handle: int, owners: int, state: int, accepted: int) -> list[tuple[int, bytes]]:
        """SHARED: the number of the processes that own a socket."""
        box = self.boxes.get(handle)
        if box is None:
            return []
        became_shared = owners > 1 and not box.shared
        box.shared = owners > 1
        if became_shared:
            box.before_shared = len(box.items)
        if isinstance(box, StreamDescription) and not box.listening:
            if state == SHARED_TAKEN:
                box.error = errno.EBUSY
            elif state == SHARED_RETURNED:
                box.drift()
        elif box.shared:
            # If it was shared before, a waiting thread has asked already, and a second question would be answered, too.
            return self.wanted(box) if became_shared else []
        elif isinstance(box, StreamDescription):
            box.numbered = max(box.numbered, accepted)  # other processes have got some of them
            return box.granting()
        self.readers.wake(box)
        return []

    @staticmethod
    def wanted(box: Description) -> list[tuple[int, bytes]]:
        """Of a shared socket: WANT, if a thread or a descriptor waits."""
        return [(WANT, WANT_RECORD.pack(box.handle, WANT_WAITS))] if box.waiters or box.descriptors else []

    def _segments(self, record: bytes) -> None:
        """Many datagrams in one record: they are split into single records."""
        box = self.boxes.get(_from_bytes(record[:4], "little"))
        start = DATAGRAM_HEADER.size + SEGMENT_SIZE.size
        size = SEGMENT_SIZE.unpack_from(record, DATAGRAM_HEADER.size)[0] if len(record) > start else 0
        if not size:
            self.malformed += 1
        elif box is not None:
            header = record[: DATAGRAM_HEADER.size]
            box.items.extend([header + record[at : at + size] for at in range(start, len(record), size)])
            if box.sleepers or box.descriptors:
                self.readers.wake(box)

    def _with_options(self, record: bytes) -> None:
        box = self.boxes.get(_from_bytes(record[:4], "little"))
        made = with_options(record)
        if made is None:
            self.malformed += 1
        elif box is not None:
            box.items.append(made)
            if box.sleepers or box.descriptors:
                self.readers.wake(box)

    def _stream(self, kind: int, record: bytes) -> list[tuple[int, bytes]]:
        box = self.boxes.get(_from_bytes(record[:4], "little"))
        if not isinstance(box, StreamDescription):
            if kind == ACCEPTED:  # the listener was closed meanwhile
                self._unwanted(ACCEPTED_HEADER.unpack_from(record)[1])
            return []
        sends: list[tuple[int, bytes]] = []
        if kind == STREAM_HELD:
            sends = box.take_held(record)
        elif kind == ROOM:
            sends = box.take_room(record)
            self._arrive(box)
        elif kind == STREAM_RESET:
            box.take_reset(RESET_RECORD.unpack(record)[1])
            self._arrive(box)
        elif kind == ACCEPTED:
            self._accepted(box, record)
        elif kind == STREAM_INFO:
            asked = self.infos.get(INFO_HEADER.unpack_from(record)[2])
            if asked is not None:
                asked.items.append(record[INFO_HEADER.size :])
                asked.ended = True
                self.readers.wake(asked)
        if box.sleepers or box.descriptors:
            self.readers.wake(box)
        return sends

    def _accepted(self, listener: StreamDescription, record: bytes) -> None:
        """A connection to a listener; the record may be a repetition."""
        _, handle, number, port, peer_port, family, _ = ACCEPTED_HEADER.unpack_from(record)
        known = self.boxes.get(handle)
        if listener.shared:
            if isinstance(known, StreamDescription) and not known.given_back:
                return
        elif number <= listener.numbered:
            return
        box = StreamDescription(self.readers.lock, handle, 0)
        box.listener, box.unclaimed = listener, listener.shared
        box.linger, box.linger_told = listener.linger, listener.linger_told
        box.receive_timeout, box.send_timeout = listener.receive_timeout, listener.send_timeout
        box.oob_inline, box.low_water, box.unsent_low = listener.oob_inline, listener.low_water, listener.unsent_low
        box.tells_unread = listener.tells_unread
        family = AF_INET if family == FAMILY_4 else AF_INET6
        local, peer = accepted_addresses(record)
        box.local, box.peer = (inet_ntop(family, local), port), (inet_ntop(family, peer), peer_port)
        self.boxes[handle] = listener.coming[handle] = box  # its first ROOM follows, and then it can be accepted
        listener.numbered = max(listener.numbered, number)  # after it has a place in `coming`: see `granting`

    def _arrive(self, box: StreamDescription) -> None:
        listener = box.arrive()
        if listener is not None:
            self.readers.wake(listener)

    def _failed(self, record: bytes) -> None:
        box = self.boxes.get(_from_bytes(record[:4], "little"))
        if box is not None:
            box.fail(record)
            self.readers.wake(box)

"""Pending requests to the service. Each gets one answer, even if the service restarts meanwhile."""

from __future__ import annotations

import itertools
import secrets

import msgspec

from usernet.client.description import Description
from usernet.client.dispatcher import Mailbox, Readers
from usernet.client.streams import StreamDescription

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict).decode


class Unanswered:
    """A pending request."""

    __slots__ = ("box", "gives_back", "opens", "record", "sequence")

    def __init__(self, record: bytes, box: Mailbox | None, opens: type[Description] | None) -> None:
        self.record = record
        self.box = box  # the mailbox of the waiting thread, if any
        self.opens = opens  # the new socket whose handle the answer contains
        self.gives_back: list[int] = []  # handles of the connections that the answer takes from this process
        self.sequence: int | None = None  # number of the frame that contains it; None: not sent yet


class Requests:
    """The pending requests of one connection: `under_way` is {number: request}."""

    def __init__(self) -> None:
        self.under_way: dict[int, Unanswered] = {}
        # Random, because requests of several processes may concern the same socket (after a fork).
        self._numbers = itertools.count(1 + secrets.randbelow(1 << 48))

    def next_number(self) -> int:
        """A new number for a request or a question."""
        return next(self._numbers)

    def new(self, op: str, fields: dict[str, object], box: Mailbox | None) -> tuple[int, Unanswered]:
        """(number, request) of a new request, not sent yet; its answer goes to `box`."""
        number = self.next_number()
        opens = None
        if op == "socket":
            opens = StreamDescription if fields["type"] == "stream" else Description
        request = Unanswered(encode({"id": number, "op": op, **fields}), box, opens)
        if op == "giveback":
            request.gives_back = list(fields["connections"])  # type: ignore[call-overload]
        self.under_way[number] = request
        return number, request

    def replied(self, record: bytes, boxes: dict[int, Description], readers: Readers) -> None:
        """Process a REPLY record."""
        reply = decode(record)
        request = self.under_way.pop(reply["id"], None)
        if request is not None and not reply["errno"]:
            # At once, because the first packets of a raw socket may follow, and another thread may read them; and a
            # connection that was given back may come again.
            if request.opens:
                handle = reply["handle"]
                boxes[handle] = request.opens(readers.lock, handle, reply["receive_buffer"])
            for handle in request.gives_back:
                box = boxes.get(handle)
                if isinstance(box, StreamDescription) and box.given_back:
                    del boxes[handle]
        if request is not None and request.box is not None:
            request.box.items.append(record)
            readers.wake(request.box)

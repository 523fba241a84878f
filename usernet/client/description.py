"""What the duplicates of a socket share: POSIX calls it the open file description.

Its name and peer, what was found out about destinations, the queues of datagrams and of errors, and the options that
nobody but the application's side needs to know.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from usernet.client.dispatcher import Mailbox
from usernet.pipe.messages import DATAGRAM_HEADER, DATAGRAM_OVERHEAD, SEGMENTS_MAX, SocketError

DATAGRAM_COST = DATAGRAM_OVERHEAD - DATAGRAM_HEADER.size  # of receive buffer, on top of the record's length
ERRORS_MAX = 256  # errors kept for MSG_ERRQUEUE; on Linux they have to fit the receive buffer
DESTINATIONS_MAX = 8192  # destinations that a socket remembers; then it asks again
UNNAMED = ("0.0.0.0", 0)

_LARGEST_COST = 65535 + SEGMENTS_MAX * DATAGRAM_OVERHEAD


class Description(Mailbox):
    """See the module's docstring."""

    __slots__ = (
        "ancillary", "begun", "consumed", "corked", "credit_due", "destinations", "errors", "handle",
        "header_included", "keep_errors", "keepalive", "linger", "local", "options_octets", "owners", "peer",
        "receive_timeout", "segment_octets", "send_timeout", "shut_for_writing", "specific", "stale",
    )  # fmt: skip

    def __init__(self, lock: threading.RLock, handle: int, receive_buffer: int) -> None:
        super().__init__(lock)
        self.handle = handle
        self.owners: dict[int, Callable[[], Any]] = {}  # id of each socket object that has it open: that object
        self.local: tuple[str, int] = UNNAMED
        self.peer: tuple[str, int] | None = None
        self.destinations: dict[object, tuple[bytes, int]] = {}  # address -> (head of a SEND, payload octets at most)
        self.specific: dict[bytes, bytes] = {}  # source, destination -> the address of ours that was meant
        self.stale = False  # what was found out about destinations may no longer hold
        self.consumed = 0  # octets of receive buffer taken out and not yet given back
        self.credit_due = 0  # give them back from here on
        self.errors: deque[bytes] = deque()  # SOCKET_ERROR records
        self.keep_errors = False  # IP_RECVERR
        self.header_included = False  # IP_HDRINCL: what is sent has an IP header already
        self.options_octets = 0  # of IP options that go with what is sent (IP_OPTIONS)
        self.ancillary = 0  # usernet.sockets.cmsg: what recvmsg tells besides the datagram
        self.receive_timeout: float | None = None  # SO_RCVTIMEO, where the socket itself has no timeout
        self.send_timeout: float | None = None
        self.segment_octets = 0  # UDP_SEGMENT: longer payloads are sent as datagrams of this size
        self.corked = False  # UDP_CORK: datagrams are sent when it is taken off
        self.begun: Any = None  # usernet.sockets.cork.Piece: a datagram whose rest is to come
        self.shut_for_writing = False
        self.keepalive = False  # SO_KEEPALIVE of a datagram socket
        self.linger: int | None = None  # SO_LINGER, seconds
        self.set_buffer(receive_buffer)

    def set_buffer(self, octets: int) -> None:
        """Give credit back rarely, but before the largest record might no longer fit an empty queue."""
        self.credit_due = max(1, min(octets // 2, octets - _LARGEST_COST))

    def queued(self) -> int:
        """Octets of receive buffer that the datagrams in here cost."""
        return sum(len(record) + DATAGRAM_COST for record in list(self.items))

    def ready(self) -> bool:
        """Whether there is anything to be had without waiting."""
        return bool(self.items or self.error or self.errors or self.ended)

    def fail(self, record: bytes) -> None:
        """An error about a datagram that this socket has sent (SOCKET_ERROR); errno 0: the stack lost an address."""
        self.stale = True
        self.error = SocketError.of(record).errno or self.error
        if self.keep_errors and _fatal(record):  # what the stack itself would not send is no news of the network's
            self.keep(record)

    def keep(self, record: bytes) -> None:
        """An error for MSG_ERRQUEUE; with too many there, it is not kept."""
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(record)

    def next_error(self) -> bytes:
        """The oldest of the errors kept; IndexError where there is none.

        Linux (sock_dequeue_err_skb): the socket fails with the next of them that came by ICMP, or no longer.
        """
        record = self.errors.popleft()
        following = _fatal(self.errors[0]) if self.errors else 0
        if following or _fatal(record):
            self.error = following
        return record


def _fatal(record: bytes) -> int:
    """The errno of an error that has an ICMP type, and so was one about a datagram that had left; else 0."""
    error = SocketError.of(record)
    return error.errno if error.icmp_type else 0

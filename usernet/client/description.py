"""The shared state of the duplicates of a socket, which POSIX calls the open file description.

Its addresses, the known destinations, the queues of datagrams and of errors, and options that only concern the
application.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Self

from usernet.client.dispatcher import Mailbox
from usernet.pipe.messages import DATAGRAM_COST, DATAGRAM_OVERHEAD, SEGMENTS_MAX, SocketError

ERRORS_MAX = 256  # errors stored for MSG_ERRQUEUE; on Linux they count in the receive buffer
DESTINATIONS_MAX = 8192  # known destinations of a socket; then it asks again
UNNAMED = ("0.0.0.0", 0)

_LARGEST_COST = 65535 + SEGMENTS_MAX * DATAGRAM_OVERHEAD


class Description(Mailbox):
    """See the module's docstring."""

    __slots__ = (
        "ancillary", "before_shared", "begun", "consumed", "corked", "credit_due", "destinations", "errors", "handle",
        "header_included", "keep_errors", "keepalive", "linger", "linger_told", "local", "low_water", "oob_inline",
        "options_octets", "owners", "peer", "receive_timeout", "segment_octets", "send_timeout", "shared",
        "shut_for_writing", "specific", "stale", "waiters",
    )  # fmt: skip

    _INHERITED: ClassVar[tuple[str, ...]] = (
        "ancillary", "corked", "credit_due", "header_included", "keep_errors", "keepalive", "linger", "linger_told",
        "local", "low_water", "oob_inline", "options_octets", "peer", "receive_timeout", "segment_octets",
        "send_timeout", "shut_for_writing",
    )

    def __init__(self, lock: threading.RLock, handle: int, receive_buffer: int) -> None:
        super().__init__(lock)
        self.handle = handle
        # {id of a socket object: weak reference to it}, of all objects that have it open
        self.owners: dict[int, Callable[[], Any]] = {}
        self.local: tuple[str, int] = UNNAMED
        self.peer: tuple[str, int] | None = None
        # {address: (head of a SEND, maximum octets of payload)}
        self.destinations: dict[object, tuple[bytes, int]] = {}
        self.specific: dict[bytes, bytes] = {}  # {source and destination: the specific own address}
        self.stale = False  # the known destinations may no longer be valid
        self.consumed = 0  # octets of receive buffer that were consumed and not yet returned
        self.credit_due = 0  # return them from this number on
        self.errors: deque[bytes] = deque()  # SOCKET_ERROR records
        self.keep_errors = False  # IP_RECVERR
        self.header_included = False  # IP_HDRINCL: sent data contains an IP header
        self.options_octets = 0  # octets of the IP options of sent datagrams (IP_OPTIONS)
        self.ancillary = 0  # usernet.sockets.cmsg: the ancillary data that recvmsg returns
        self.receive_timeout: float | None = None  # SO_RCVTIMEO, if the socket object has no timeout
        self.send_timeout: float | None = None
        self.segment_octets = 0  # UDP_SEGMENT: longer payloads are sent as datagrams of this size
        self.corked = False  # UDP_CORK: datagrams are sent when it is cleared
        self.begun: Any = None  # usernet.sockets.cork.Piece: an incomplete datagram
        self.shut_for_writing = False
        self.keepalive = False  # SO_KEEPALIVE of a datagram socket
        self.linger: int | None = None  # SO_LINGER, seconds; None: off
        self.linger_told = 0  # its seconds also while it is off
        self.oob_inline = False  # SO_OOBINLINE
        self.low_water = 1  # SO_RCVLOWAT, octets; without effect on datagrams, as on Linux
        self.shared = False  # several processes own it (usernet.client.sharing)
        self.before_shared = 0  # so many of the queued datagrams came before that: they are this process's alone
        self.waiters: set[int] = set()  # threads that wait for a datagram or a connection
        self.set_buffer(receive_buffer)

    def inherited(self, lock: threading.RLock) -> Self:
        """In a forked child: the same socket, with nothing queued and no thread at it. What waits stays with the
        parent."""
        copy = type(self)(lock, self.handle, 0)
        for name in self._INHERITED:
            setattr(copy, name, getattr(self, name))
        copy.shared = True
        return copy

    def set_buffer(self, octets: int) -> None:
        """Set the size; credit is returned in large steps, but before the largest record might not fit an empty
        queue."""
        self.credit_due = max(1, min(octets // 2, octets - _LARGEST_COST))

    def queued(self) -> int:
        """Octets of receive buffer that the queued datagrams use."""
        return sum(len(record) + DATAGRAM_COST for record in list(self.items))

    def ready(self) -> bool:
        """True if a datagram or an error is available."""
        return bool(self.items or self.error or self.errors or self.ended)

    def fail(self, record: bytes) -> None:
        """An error about a datagram that this socket has sent (SOCKET_ERROR); errno 0: the stack lost an address."""
        self.stale = True
        self.error = SocketError.of(record).errno or self.error
        if self.keep_errors and _fatal(record):  # an error of the stack itself did not come from the network
            self.keep(record)

    def keep(self, record: bytes) -> None:
        """Store an error for MSG_ERRQUEUE; it is dropped if there are too many."""
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(record)

    def next_error(self) -> bytes:
        """The oldest of the stored errors. IndexError: there is none.

        Linux (sock_dequeue_err_skb): the next stored error from ICMP becomes the pending error of the socket.
        """
        record = self.errors.popleft()
        following = _fatal(self.errors[0]) if self.errors else 0
        if following or _fatal(record):
            self.error = following
        return record


def _fatal(record: bytes) -> int:
    """The errno of an error with an ICMP type, which was about a datagram that had left; else 0."""
    error = SocketError.of(record)
    return error.errno if error.icmp_type else 0

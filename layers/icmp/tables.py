"""What the ICMP layer remembers: ping sockets by handle and by identifier, and to whom it sent errors of late."""

from __future__ import annotations

import errno
import random
from collections import OrderedDict

import msgspec

from bus import records
from bus.core import State
from bus.ratelimit import TokenBucket
from bus.records import SocketReply, SocketState
from bus.routes import RouteTable

MAX_SOCKETS = 4096
IDENTIFIERS = 65535  # 1 to 65535; 0 means "choose one"

MAX_TARGETS = 1024
TARGET_ERRORS_PER_SECOND = 1  # Linux: net.ipv4.icmp_ratelimit, 1000 ms
TARGET_ERRORS_BURST = 6  # Linux: XRLIM_BURST_FACTOR
ERRORS_PER_SECOND = 1000  # Linux: net.ipv4.icmp_msgs_per_sec
ERRORS_BURST = 50  # Linux: net.ipv4.icmp_msgs_burst


class PingSockets:
    """Ping sockets as they are: a SocketState whose local address and port (its identifier) are settled.

    Each is in durable state under its handle before the answer to its declaration exists. Handles start at 1.
    """

    def __init__(self, state: State, rng: random.Random) -> None:
        self._state = state
        self._rng = rng
        self._sockets: dict[int, SocketState] = {}
        self._by_identifier: dict[int, SocketState] = {}

    def load(self) -> int:
        """Reads back what a former process stored; returns how many records made no sense and were deleted."""
        unreadable = 0
        for key, value in list(self._state.items()):
            if not key:
                continue
            try:
                socket = records.decode_socket_state(value)
            except ValueError:
                socket = None
            if (socket is None or socket.handle != key or not records.in_range(socket)
                    or socket.port in self._by_identifier):
                unreadable += 1
                del self._state[key]
            else:
                self._keep(socket)
        return unreadable

    def get(self, handle: int) -> SocketState | None:
        """The socket with this handle."""
        return self._sockets.get(handle)

    def of_identifier(self, identifier: int, local: int) -> SocketState | None:
        """The socket that a message to address `local` belongs to; as Linux's ping_lookup, whoever it is from."""
        socket = self._by_identifier.get(identifier)
        return socket if socket is not None and (not socket.local or socket.local == local) else None

    def set(self, wanted: SocketState, routes: RouteTable) -> SocketReply | None:
        """Makes a socket as it is wanted, or leaves it as it is and says why; None where that cannot even be said."""
        if not records.in_range(wanted):
            return None
        handle, local = wanted.handle, wanted.local
        former = self._sockets.get(handle)
        if former is None and len(self._sockets) >= MAX_SOCKETS:
            return _refusal(wanted, errno.ENOBUFS)
        if local and not routes.is_local(local):
            return _refusal(wanted, errno.EADDRNOTAVAIL)
        if wanted.peer:
            if routes.is_broadcast(wanted.peer) and not wanted.broadcast:
                return _refusal(wanted, errno.EACCES)
            local = local or routes.source_for(wanted.peer) or 0
            if not local:
                return _refusal(wanted, errno.ENETUNREACH)
        identifier = 0
        if wanted.bind:
            # A repeated declaration finds the identifier that was chosen for the first one.
            identifier = wanted.port or (former.port if former else 0) or self._choose()
            holder = self._by_identifier.get(identifier)
            if holder is not None and holder.handle != handle:
                return _refusal(wanted, errno.EADDRINUSE)
        socket = msgspec.structs.replace(wanted, request=0, local=local, port=identifier)
        self._state[handle] = records.encode(socket)
        self._keep(socket)
        return SocketReply(handle=handle, request=wanted.request, local=local, port=identifier)

    def close(self, handle: int) -> bool:
        """Forgets a socket; False where there is none."""
        socket = self._sockets.pop(handle, None)
        if socket is None:
            return False
        self._by_identifier.pop(socket.port, None)
        del self._state[handle]
        return True

    def _keep(self, socket: SocketState) -> None:
        former = self._sockets.get(socket.handle)
        if former is not None:
            self._by_identifier.pop(former.port, None)
        self._sockets[socket.handle] = socket
        if socket.port:
            self._by_identifier[socket.port] = socket

    def _choose(self) -> int:
        # A random start, then the next free one: among MAX_SOCKETS + 1 identifiers in a row one is free.
        start = self._rng.randrange(IDENTIFIERS)
        return next(identifier for step in range(MAX_SOCKETS + 1)
                    if (identifier := (start + step) % IDENTIFIERS + 1) not in self._by_identifier)


def _refusal(wanted: SocketState, code: int) -> SocketReply:
    return SocketReply(handle=wanted.handle, request=wanted.request, errno=code)


class ErrorLimits:
    """RFC 1812 section 4.3.2.8: errors are rate limited, for each host that gets them and for all together."""

    def __init__(self) -> None:
        self._all = TokenBucket(ERRORS_PER_SECOND, ERRORS_BURST)
        self._targets: OrderedDict[bytes, TokenBucket] = OrderedDict()  # the most recently used last

    def allow(self, target: bytes, now: float) -> bool:
        """True where an error may be sent to the address `target` at `now`; it counts as sent then."""
        if not self._all.ready(now):
            return False
        targets = self._targets
        bucket = targets.get(target)
        if bucket is None:
            if len(targets) >= MAX_TARGETS:
                targets.popitem(last=False)
            bucket = targets[target] = TokenBucket(TARGET_ERRORS_PER_SECOND, TARGET_ERRORS_BURST)
        else:
            targets.move_to_end(target)
        if not bucket.allow(now):
            return False
        self._all.take()
        return True

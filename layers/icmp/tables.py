"""The tables of icmp: ping sockets by handle and by identifier, and the rate limits of errors."""

from __future__ import annotations

import errno
import random
from collections import OrderedDict

from msgspec.structs import replace

from bus.layer import State
from bus.messages import SocketState
from layers.common import source_address
from layers.common.rate_limit import TokenBucket
from layers.common.raw_transport import DirectSockets
from layers.common.routes import RouteTable
from packets.addresses import ANY

MAX_SOCKETS = 4096
IDENTIFIERS = 65535  # 1 to 65535; 0 means that icmp chooses one

MAX_TARGETS = 1024
TARGET_ERRORS_PER_SECOND = 1  # Linux: net.ipv4.icmp_ratelimit, 1000 ms
TARGET_ERRORS_BURST = 6  # Linux: XRLIM_BURST_FACTOR
ERRORS_PER_SECOND = 1000  # Linux: net.ipv4.icmp_msgs_per_sec
ERRORS_BURST = 50  # Linux: net.ipv4.icmp_msgs_burst


class PingSockets(DirectSockets):
    """Ping sockets. Each is a SocketState whose local address and port (its identifier) are chosen."""

    def __init__(self, state: State, rng: random.Random) -> None:
        super().__init__(state, MAX_SOCKETS)
        self._rng = rng
        self._by_identifier: dict[int, SocketState] = {}

    def of_identifier(self, identifier: int, local: bytes) -> SocketState | None:
        """The socket for a message to address `local` with this identifier; the source does not matter, as in Linux's
        ping_lookup."""
        socket = self._by_identifier.get(identifier)
        return socket if socket is not None and (not socket.local or socket.local == local) else None

    def _settled(self, wanted: SocketState, former: SocketState | None, routes: RouteTable) -> SocketState:
        local = wanted.local
        if local and (former is None or former.local != local) and not routes.is_local(local):
            raise OSError(errno.EADDRNOTAVAIL, "not an address of this stack")
        if wanted.peer:
            if routes.is_broadcast(wanted.peer) and not wanted.broadcast:
                raise OSError(errno.EACCES, "a broadcast address without SO_BROADCAST")
            local = local or source_address.of_destination(routes, wanted.peer) or ANY
            if not local:
                raise OSError(errno.ENETUNREACH, "no route to the peer")
            if routes.leaks(local, wanted.peer):
                raise OSError(errno.EINVAL, "no packet leaves the host from 127/8")
        identifier = 0
        if wanted.bind:
            # A repeated declaration keeps the identifier that was chosen for the first one.
            identifier = wanted.port or (former.port if former else 0) or self._choose()
            holder = self._by_identifier.get(identifier)
            is_own = former is not None and former.port == identifier
            if holder is not None and not is_own:
                raise OSError(errno.EADDRINUSE, "the identifier is taken")
        return replace(wanted, local=local, port=identifier)

    def _fits(self, stored: SocketState) -> bool:
        return True

    def _put(self, socket: SocketState) -> None:
        former = self.get(socket.handle)
        if former is not None:
            self._release(former)
        super()._put(socket)
        if socket.port:
            # Two have the same if the turn that closed one and bound the other was cut short: the one that will be
            # closed again is restored last (bus.durable.key_value_log).
            self._by_identifier.setdefault(socket.port, socket)

    def _remove(self, socket: SocketState) -> None:
        super()._remove(socket)
        self._release(socket)

    def _release(self, socket: SocketState) -> None:
        if self._by_identifier.get(socket.port) is socket:
            del self._by_identifier[socket.port]

    def _choose(self) -> int:
        # A random start, then the next free one: among MAX_SOCKETS + 1 consecutive identifiers one is free.
        start = self._rng.randrange(IDENTIFIERS)
        return next(identifier for step in range(MAX_SOCKETS + 1)
                    if (identifier := (start + step) % IDENTIFIERS + 1) not in self._by_identifier)


class ErrorLimits:
    """RFC 1812 section 4.3.2.8: the rate of errors is limited, for each destination and in all."""

    def __init__(self) -> None:
        self._all = TokenBucket(ERRORS_PER_SECOND, ERRORS_BURST)
        self._targets: OrderedDict[bytes, TokenBucket] = OrderedDict()  # the most recently used is the last

    def allow(self, target: bytes, now: float) -> bool:
        """True if an error may be sent to the address `target` at `now`; it counts as sent."""
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

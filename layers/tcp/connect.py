"""ACTIVE OPEN (RFC 9293 section 3.10.1): a connection to a peer, and the ports that are chosen for sockets."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from typing import Protocol

from bus.messages import WIDTH_OF_FAMILY
from bus.streams import StreamState
from layers.common.ports import EPHEMERAL_PORT_MIN, EPHEMERAL_PORTS
from layers.tcp import acknowledgment, closing, fast_open, history
from layers.tcp.connection import SYN_SENT, TIME_WAIT, Ends
from layers.tcp.counters import Counters as C
from layers.tcp.engine import Engine
from packets.addresses import LOOPBACK

# Linux net.ipv4.tcp_tw_reuse: an outgoing connection may replace one in TIME-WAIT after this time
TIME_WAIT_REUSE_S = 1.0
STEPS_MAX = 128  # of the search for a port that most connects need


class Paths(Protocol):
    """The interface to the routes."""

    def is_local(self, address: bytes) -> bool:
        """True for an own or a loopback address."""

    def source_for(self, destination: bytes) -> bytes | None:
        """The source address for a destination; None: no route."""

    def is_group(self, address: bytes) -> bool:
        """True for a broadcast or multicast address."""

    def leaks(self, source: bytes, destination: bytes) -> bool:
        """True if a segment would carry a loopback address out of the host."""


class Connects:
    """What opens connections."""

    def __init__(self, engine: Engine, rng: random.Random, paths: Paths) -> None:
        self._engine = engine
        self._rng = rng
        self._paths = paths
        self._searched = -1.0  # the time of the turn in which all ports were tried

    def connect(self, wanted: StreamState, local: bytes, port: int) -> tuple[bytes, int]:
        """Open a connection; the SYN is sent at the end of this turn. Returns its address and port.

        `local`, `port`: those of the socket, if it has them. OSError: the reason why there is none.
        """
        engine = self._engine
        peer = wanted.peer or local or LOOPBACK[WIDTH_OF_FAMILY[wanted.family]]  # Linux: 0.0.0.0 is this host
        if self._paths.is_group(peer):
            raise OSError(errno.ENETUNREACH, "TCP does not support groups")  # RFC 9293 section 3.9.2.3 (MUST-46)
        if local and self._paths.leaks(local, peer):
            raise OSError(errno.EINVAL, "no packet leaves the host from 127/8")  # RFC 1122 section 3.2.1.3 (g)
        source = local or self._paths.source_for(peer)
        if source is None:
            raise OSError(errno.ENETUNREACH, "no route to the peer")
        automatic = not port
        if port:
            if not self._available(Ends(source, port, peer, wanted.peer_port)):
                raise OSError(errno.EADDRNOTAVAIL, "this connection exists already")
        else:
            port = self._port_towards(source, peer, wanted.peer_port)
        ends = Ends(source, port, peer, wanted.peer_port)
        conn = engine.new_connection(ends, wanted.handle, wanted)
        conn.automatic = automatic
        conn.state = SYN_SENT
        conn.rcv_limit = acknowledgment.initial_limit(conn)
        if not wanted.window_scaling:
            conn.own_scale = 0
        conn.opened_at = engine.now
        engine.counters[C.active_opens] += 1
        engine.lookup.by_handle[wanted.handle] = conn
        engine.remember(conn)
        engine.history.note(engine.now, conn, history.OPENED)
        if not wanted.fast_open or not fast_open.begins(engine, conn):
            engine.send_syn(conn)
        if conn.slot:  # before the socket is declared: a declared connect is not begun again
            engine.cells.store(conn)
        return source, port

    def _available(self, ends: Ends) -> bool:
        engine = self._engine
        old = engine.lookup.connections.get(ends.flow)
        if old is None:
            return True
        if (old.state == TIME_WAIT and old.timestamps_ok and old.wait_until is not None
                and engine.now - (old.wait_until - closing.TIME_WAIT_S) > TIME_WAIT_REUSE_S):
            engine.counters[C.time_wait_reused] += 1
            engine.predecessor = old
            closing.finish(engine, old)
            return True
        return False

    def _port_towards(self, source: bytes, peer: bytes, peer_port: int) -> int:
        """A port that nobody holds, or that is shared with connections to other peers.

        All that may be shared are tried only once in a turn, because this takes 40 ms if each is in use towards this
        peer. Nobody may hold one that was not tried.
        """
        ports = self._engine.lookup.ports
        port = self._shared_port(source, peer, peer_port, STEPS_MAX) or ports.choose(self._rng)
        if port is None and self._searched != self._engine.now:
            self._searched = self._engine.now
            port = self._shared_port(source, peer, peer_port, EPHEMERAL_PORTS)
        if port is None:
            raise OSError(errno.EADDRNOTAVAIL, "no ephemeral port is free")  # Linux: connect's EADDRNOTAVAIL
        return port

    def _shared_port(self, source: bytes, peer: bytes, peer_port: int, steps: int) -> int | None:
        ports = self._engine.lookup.ports
        for port in self._ephemeral(steps):
            if ports.free(port) or (ports.sharable(port) and self._available(Ends(source, port, peer, peer_port))):
                return port
        return None

    def free_port(self) -> int:
        """A port for a bind. OSError: none is free."""
        port = self._engine.lookup.ports.choose(self._rng)
        if port is None:
            raise OSError(errno.EADDRINUSE, "no ephemeral port is free")
        return port

    def _ephemeral(self, steps: int) -> Iterator[int]:
        # RFC 6056 section 3.3.1, algorithm 1: a random start, then one after the other
        start = self._rng.randrange(EPHEMERAL_PORTS)
        return (EPHEMERAL_PORT_MIN + (start + step) % EPHEMERAL_PORTS for step in range(steps))

"""The look-up of a segment's connection or listener, and the claims on ports."""

from __future__ import annotations

from sys import getsizeof
from typing import Any, NamedTuple
from zlib import crc32

from layers.tcp.connection import Connection, Ends
from layers.tcp.listen import Listener

SPARSE_OCTETS_MIN, SPARSE_OCTETS_EACH = 16384, 250  # a dictionary that only grew has at most 110 for each entry
EPHEMERAL_PORT_MIN, EPHEMERAL_PORT_MAX = 32768, 60999  # Linux net.ipv4.ip_local_port_range


def flow_of(ends: Ends) -> bytes:
    """The key of a connection: peer's address, own address, peer's port, own port, as in a received segment."""
    return b"".join((ends.peer, ends.local, ends.peer_port.to_bytes(2, "big"), ends.port.to_bytes(2, "big")))


def is_sparse(mapping: dict[Any, Any]) -> bool:
    """True for a dictionary from which so much was deleted that a copy is much smaller."""
    return getsizeof(mapping) > SPARSE_OCTETS_MIN + SPARSE_OCTETS_EACH * len(mapping)


class Claim(NamedTuple):
    """The claim of a holder on a port."""

    address: bytes  # ANY: all
    reuse_address: bool
    reuse_port: bool
    listening: bool
    automatic: bool = False  # chosen by connect: may be shared with connections to other peers


class Ports:
    """The holders of ports. A holder is any object: a socket's handle, or a connection that outlives it."""

    def __init__(self) -> None:
        self._claims: dict[int, dict[object, Claim]] = {}
        # {claim: {port: number of dormant connections}} (`layers.tcp.dormant`); there are few different claims
        self._dormant: dict[Claim, dict[int, int]] = {}

    def clashes(self, holder: object, port: int, wanted: Claim) -> bool:
        """Linux, inet_csk_bind_conflict."""
        for other, claim in (*self._claims.get(port, {}).items(),
                             *((None, claim) for claim in self._asleep(port))):
            if other == holder or (wanted.address and claim.address and wanted.address != claim.address):
                continue
            if wanted.reuse_port and claim.reuse_port:
                continue
            if wanted.reuse_address and claim.reuse_address and not claim.listening and not wanted.listening:
                continue
            if wanted.reuse_address and claim.reuse_address and wanted.listening != claim.listening and not (
                    claim.listening):
                continue
            return True
        return False

    def free(self, port: int) -> bool:
        """True if the port has no holder."""
        return port not in self._claims and not self._asleep(port)

    def sharable(self, port: int) -> bool:
        """True if all holders of the port got it by connecting."""
        return all(claim.automatic for claim in (*self._claims.get(port, {}).values(), *self._asleep(port)))

    def _asleep(self, port: int) -> list[Claim]:
        """The claims of dormant connections."""
        return [claim for claim, ports in self._dormant.items() if port in ports]

    def sleeps(self, port: int, claim: Claim) -> None:
        """A dormant connection has this claim."""
        ports = self._dormant.setdefault(claim, {})
        ports[port] = ports.get(port, 0) + 1

    def wakes(self, port: int, claim: Claim) -> None:
        """It is dormant no more."""
        ports = self._dormant[claim]
        ports[port] -= 1
        if not ports[port]:
            del ports[port]

    def claim(self, holder: object, port: int) -> Claim | None:
        """The claim of `holder` on this port."""
        return self._claims.get(port, {}).get(holder)

    def hold(self, holder: object, port: int, claim: Claim) -> None:
        """Set `claim` of `holder`, without checking conflicts."""
        self._claims.setdefault(port, {})[holder] = claim

    def give_back(self) -> None:
        """Many holders have released their claims."""
        for port, claims in self._claims.items():
            if is_sparse(claims):
                self._claims[port] = dict(claims)

    def release(self, holder: object, port: int) -> None:
        """Remove the claim of `holder` on this port."""
        claims = self._claims.get(port)
        if claims is not None and claims.pop(holder, None) is not None and not claims:
            del self._claims[port]


class Lookup:
    """All connections and listeners."""

    def __init__(self) -> None:
        self.connections: dict[bytes, Connection] = {}
        self.by_handle: dict[int, Connection] = {}
        self.listeners: dict[int, Listener] = {}
        self.ports = Ports()
        self._listening: dict[int, list[Listener]] = {}  # by port

    def add(self, conn: Connection) -> None:
        """Add a connection, so that it gets its segments."""
        self.connections[flow_of(conn.ends)] = conn

    def remove(self, conn: Connection) -> None:
        """Remove a connection."""
        flow = flow_of(conn.ends)
        if self.connections.get(flow) is conn:
            del self.connections[flow]
        if conn.handle and self.by_handle.get(conn.handle) is conn:
            del self.by_handle[conn.handle]

    def add_listener(self, listener: Listener) -> None:
        """Add a listener, so that it gets SYNs."""
        self.listeners[listener.handle] = listener
        self._listening.setdefault(listener.port, []).append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Remove a listener."""
        del self.listeners[listener.handle]
        at_port = self._listening[listener.port]
        at_port.remove(listener)
        if not at_port:
            del self._listening[listener.port]

    def listener(self, address: bytes, port: int, flow: bytes = b"") -> Listener | None:
        """The listener for a SYN: one bound to the address before one bound to any; with SO_REUSEPORT one of the group,
        by the flow."""
        candidates = self._listening.get(port)
        if not candidates:
            return None
        exact = [each for each in candidates if each.address == address]
        able = exact or [each for each in candidates if not each.address]
        if not able:
            return None
        group = [each for each in able if each.options.reuse_port]
        if len(group) > 1:
            return group[crc32(flow) % len(group)]  # a hash that is the same after a restart
        return able[-1]

"""The look-up of a segment's connection or listener, and the claims on ports."""

from __future__ import annotations

import random
from sys import getsizeof
from typing import Any, NamedTuple
from zlib import crc32

from layers.common.ports import FreePorts
from layers.tcp.connection import Connection
from layers.tcp.listen import Listener
from packets.addresses import ANY

CROWD_MIN = 64  # holders of a port, beyond which their claims are counted instead of being looked at one by one
_EVERYWHERE = "everywhere"
SPARSE_OCTETS_MIN, SPARSE_OCTETS_EACH = 16384, 250  # a dictionary that only grew has at most 110 for each entry


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


def _conflict(wanted: Claim, claim: Claim) -> bool:
    """Linux, inet_csk_bind_conflict: whether two sockets cannot have one port, if their addresses overlap."""
    if wanted.reuse_port and claim.reuse_port:
        return False
    return not (wanted.reuse_address and claim.reuse_address) or claim.listening


class Ports:
    """The holders of ports. A holder is any object: a socket's handle, or a connection that outlives it."""

    def __init__(self) -> None:
        self._claims: dict[int, dict[object, Claim]] = {}
        # {claim: {port: number of dormant connections}} (`layers.tcp.dormant`); there are few different claims
        self._dormant: dict[Claim, dict[int, int]] = {}
        # Numbers of all holders of each port, and of those that did not get it by connecting
        self._holders: dict[int, int] = {}
        self._binders: dict[int, int] = {}
        self._free = FreePorts()
        # Of a port with many holders: {address, or EVERYWHERE: {claim: number of holders}}
        self._crowds: dict[int, dict[bytes | str, dict[Claim, int]]] = {}

    def clashes(self, holder: object, port: int, wanted: Claim) -> bool:
        """Linux, inet_csk_bind_conflict."""
        claims = self._claims.get(port, {})
        if port in self._crowds:
            others = self._others(port, claims.get(holder), wanted)
        else:
            others = [claim for other, claim in claims.items() if other != holder]
        return any(_conflict(wanted, claim) for claim in (*others, *self._asleep(port))
                   if not (wanted.address and claim.address and wanted.address != claim.address))

    def _others(self, port: int, own: Claim | None, wanted: Claim) -> list[Claim]:
        """The different claims of others in a crowd whose addresses overlap with that of `wanted`."""
        crowd = self._crowds[port]
        found = []
        for where in (wanted.address, ANY) if wanted.address else (_EVERYWHERE,):
            mine = own
            if own is not None and where == _EVERYWHERE:
                mine = own._replace(address=ANY)
            elif own is not None and where != own.address:
                mine = None
            found += [claim for claim, number in crowd.get(where, {}).items() if number > (claim == mine)]
        return found

    def free(self, port: int) -> bool:
        """True if the port has no holder."""
        return port not in self._holders

    def choose(self, rng: random.Random) -> int | None:
        """An ephemeral port without holders; None: there is none."""
        return self._free.choose(rng)

    def sharable(self, port: int) -> bool:
        """True if all holders of the port got it by connecting."""
        return port not in self._binders

    def _asleep(self, port: int) -> list[Claim]:
        """The claims of dormant connections."""
        return [claim for claim, ports in self._dormant.items() if port in ports]

    def sleeps(self, port: int, claim: Claim) -> None:
        """A dormant connection has this claim."""
        ports = self._dormant.setdefault(claim, {})
        ports[port] = ports.get(port, 0) + 1
        self._one_more(port, claim)

    def wakes(self, port: int, claim: Claim) -> None:
        """It is dormant no more."""
        ports = self._dormant[claim]
        ports[port] -= 1
        if not ports[port]:
            del ports[port]
        self._one_less(port, claim)

    def claim(self, holder: object, port: int) -> Claim | None:
        """The claim of `holder` on this port."""
        return self._claims.get(port, {}).get(holder)

    def hold(self, holder: object, port: int, claim: Claim) -> None:
        """Set `claim` of `holder`, without checking conflicts."""
        claims = self._claims.setdefault(port, {})
        former = claims.get(holder)
        if former == claim:
            return
        claims[holder] = claim
        self._one_more(port, claim)
        if former is not None:
            self._one_less(port, former)
        if port in self._crowds:
            self._count(port, claim, 1)
            if former is not None:
                self._count(port, former, -1)
        elif len(claims) > CROWD_MIN:
            self._crowds[port] = {}
            for each in claims.values():
                self._count(port, each, 1)

    def pass_on(self, former: object, holder: object, port: int, claim: Claim) -> None:
        """`holder` has the claim of `former` from now on, which usually is the same."""
        claims = self._claims.get(port)
        if claims is not None and claims.get(former) == claim:
            claims[holder] = claims.pop(former)
        else:
            self.hold(holder, port, claim)

    def give_back(self) -> None:
        """Many holders have released their claims."""
        for port, claims in self._claims.items():
            if is_sparse(claims):
                self._claims[port] = dict(claims)

    def release(self, holder: object, port: int) -> None:
        """Remove the claim of `holder` on this port."""
        claims = self._claims.get(port)
        claim = claims.pop(holder, None) if claims is not None else None
        if claims is None or claim is None:
            return
        self._one_less(port, claim)
        if port in self._crowds:
            self._count(port, claim, -1)
        if not claims:
            del self._claims[port]
            self._crowds.pop(port, None)

    def _one_more(self, port: int, claim: Claim) -> None:
        if port not in self._holders:
            self._free.take(port)
        for numbers in (self._holders,) if claim.automatic else (self._holders, self._binders):
            numbers[port] = numbers.get(port, 0) + 1

    def _one_less(self, port: int, claim: Claim) -> None:
        for numbers in (self._holders,) if claim.automatic else (self._holders, self._binders):
            numbers[port] -= 1
            if not numbers[port]:
                del numbers[port]
        if port not in self._holders:
            self._free.give(port)

    def _count(self, port: int, claim: Claim, number: int) -> None:
        """So many holders more have this claim on a port with a crowd."""
        crowd = self._crowds[port]
        for where, kind in ((claim.address, claim), (_EVERYWHERE, claim._replace(address=ANY))):
            claims = crowd.setdefault(where, {})
            claims[kind] = claims.get(kind, 0) + number
            if not claims[kind]:
                del claims[kind]
                if not claims:
                    del crowd[where]


class Lookup:
    """All connections and listeners."""

    def __init__(self) -> None:
        self.connections: dict[bytes, Connection] = {}  # by `Ends.flow`
        self.by_handle: dict[int, Connection] = {}
        self.listeners: dict[int, Listener] = {}
        self.ports = Ports()
        self._listening: dict[int, dict[int, Listener]] = {}  # by port and handle

    def add(self, conn: Connection) -> None:
        """Add a connection, so that it gets its segments."""
        self.connections[conn.flow] = conn

    def remove(self, conn: Connection) -> None:
        """Remove a connection."""
        flow = conn.flow
        if self.connections.get(flow) is conn:
            del self.connections[flow]
        if conn.handle and self.by_handle.get(conn.handle) is conn:
            del self.by_handle[conn.handle]

    def add_listener(self, listener: Listener) -> None:
        """Add a listener, so that it gets SYNs."""
        self.listeners[listener.handle] = listener
        self._listening.setdefault(listener.port, {})[listener.handle] = listener

    def remove_listener(self, listener: Listener) -> None:
        """Remove a listener."""
        del self.listeners[listener.handle]
        at_port = self._listening[listener.port]
        del at_port[listener.handle]
        if not at_port:
            del self._listening[listener.port]

    def listener(self, address: bytes, port: int, flow: bytes = b"") -> Listener | None:
        """The listener for a SYN: one bound to the address before one bound to any; with SO_REUSEPORT one of the group,
        by the flow."""
        candidates = self._listening.get(port)
        if not candidates:
            return None
        if len(candidates) == 1:  # the usual case
            (only,) = candidates.values()
            return only if not only.address or only.address == address else None
        exact = [each for each in candidates.values() if each.address == address]
        able = exact or [each for each in candidates.values() if not each.address]
        if not able:
            return None
        group = [each for each in able if each.options.reuse_port]
        if len(group) > 1:
            return group[crc32(flow) % len(group)]  # a hash that is the same after a restart
        # Two that do not share the port: the turn that closed one of them was cut short. That one was restored last
        # (bus.durable.key_value_log), and the other stays.
        return able[0]

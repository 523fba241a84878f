"""The sockets, and which of them a datagram is for.

Every socket with a port stands in one index under a key of the shape of a flow: peer, local address, peer's port,
local port, with zeros for what it leaves open. A datagram's receiver is found by asking for the flow itself and then
for the same with more and more left open, in the order that Linux's compute_score gives: four dict look-ups however
many sockets there are, and one for a flow that was seen before.
"""

from __future__ import annotations

import errno
from zlib import crc32

import msgspec

from bus.layer import State
from bus.messages import FAMILY_4, WIDTH_OF_FAMILY, SocketReply, SocketState, decoder, encode, in_range
from layers.common import source_address
from layers.common.ports import SHARE_ADDRESS, SHARE_NOT, SHARE_PORT, Claim, Ports
from layers.common.routes import RouteTable
from layers.common.transport import ROUTES_KEY
from packets.addresses import ANY, LOOPBACK, UNSPECIFIED, is_multicast
from packets.udp import PORTS, PORTS_OCTETS

FLOWS_MAX = 1 << 15  # flows whose receiver is remembered (5 MB); then the cache starts afresh
NOBODY = 0  # no socket has this handle

_PORT_OCTETS = 2
_ANY_PORT = bytes(_PORT_OCTETS)


class Socket(msgspec.Struct, frozen=True, omit_defaults=True):
    """A socket: what was declared, and what it became. Connected where `peer` is not ANY."""

    declared: SocketState
    order: int  # of two sockets with equal claims, the higher was bound last
    address: bytes = ANY  # where it receives; ANY: at every address
    port: int = 0  # 0: none yet
    peer: bytes = ANY

    @property
    def key(self) -> bytes:
        """Where it stands in the index."""
        zero = UNSPECIFIED[WIDTH_OF_FAMILY[self.declared.family]]
        ports = PORTS.pack(self.declared.peer_port if self.peer else 0, self.port)
        return b"".join((self.peer or zero, self.address or zero, ports))

    @property
    def claim(self) -> Claim:
        """What it holds at the port manager."""
        return Claim(self.address, self.port, _sharing(self.declared))

    def hears(self, source: bytes, destination: bytes, source_port: int) -> bool:
        """True where a broadcast or multicast to its port is for it, as Linux's __udp_is_mcast_sock has it."""
        if self.address not in (ANY, destination):
            return False
        if self.peer and (self.peer != source or self.declared.peer_port not in (0, source_port)):
            return False
        return not is_multicast(destination) or self.declared.listens(destination, source)


_decode_socket = decoder(Socket)


class SocketTable:
    """All sockets of the layer; see `layers.common.transport.Sockets`."""

    def __init__(self, ports: Ports, state: State) -> None:
        self._state = state
        self.sockets: dict[int, Socket] = {}
        self.flows: dict[bytes, int] = {}  # cache: flow -> handle, never NOBODY
        self._ports = ports
        self._index: dict[bytes, dict[int, Socket]] = {}  # key -> its sockets by handle, first bound first
        self._at_port: dict[int, dict[int, Socket]] = {}
        self._next_order = 0

    # ------------------------------------------------------------------ who a datagram is for

    def find(self, flow: bytes) -> int:
        """The handle of the socket that a datagram to one of our own addresses is for, or NOBODY."""
        addresses, port = flow[:-PORTS_OCTETS], flow[-_PORT_OCTETS:]
        width = len(addresses) >> 1
        zero, local = UNSPECIFIED[width], addresses[width:]
        index = self._index
        bucket = (
            index.get(flow)
            or index.get(addresses + _ANY_PORT + port)
            or index.get(zero + local + _ANY_PORT + port)
            or index.get(zero + zero + _ANY_PORT + port)
        )
        if not bucket:
            return NOBODY
        handle = _one_of(bucket, flow)
        if len(self.flows) >= FLOWS_MAX:
            self.flows.clear()
        self.flows[flow] = handle
        return handle

    def find_all(self, source: bytes, destination: bytes, ports: bytes) -> list[int]:
        """The handles of all sockets that a broadcast or multicast datagram is for. `ports`: its source's, its own."""
        source_port, port = PORTS.unpack(ports)
        candidates = self._at_port.get(port, {})
        return [handle for handle, socket in candidates.items() if socket.hears(source, destination, source_port)]

    # ------------------------------------------------------------------ declarations, and what is stored of them

    def load(self) -> int:
        """Read back what a former process stored; how many records made no sense and were deleted."""
        sockets, unreadable = [], 0
        for key in list(self._state):
            if key == ROUTES_KEY:
                continue
            try:
                sockets.append(_decode_socket(self._state[key]))
            except ValueError:
                unreadable += 1
                del self._state[key]
        for socket in sorted(sockets, key=lambda socket: socket.order):
            self.put(socket)
        return unreadable

    def set(self, wanted: SocketState, routes: RouteTable) -> SocketReply | None:
        """Make a socket as it is wanted, and store it; or leave it and say why. None where that cannot even be said."""
        handle, request = wanted.handle, wanted.request
        if not (0 < handle < 1 << 32 and 0 <= request < 1 << 64):
            return None
        try:
            socket = self.settle(msgspec.structs.replace(wanted, request=0), routes)
        except OSError as error:
            return SocketReply(handle=handle, request=request, errno=error.errno or errno.EINVAL)
        if socket != self.sockets.get(handle):
            self._state[handle] = encode(socket)
            self.put(socket)
        return SocketReply(handle=handle, request=request, local=socket.address, port=socket.port)

    def close(self, handle: int) -> bool:
        """Forget a socket; False where there is none."""
        if not self.remove(handle):
            return False
        del self._state[handle]
        return True

    # ------------------------------------------------------------------ what a declaration makes of a socket

    def settle(self, declared: SocketState, routes: RouteTable) -> Socket:
        """The socket that `declared` asks for. OSError with Linux's errno where it cannot be had; changes nothing."""
        if declared.family != FAMILY_4:
            raise OSError(errno.EAFNOSUPPORT, "IPv4 only")
        if not in_range(declared) or not declared.ttl:
            raise OSError(errno.EINVAL, "a number out of its range")
        old = self.sockets.get(declared.handle)
        if (old is None or old.declared.local != declared.local) and not _can_bind(declared.local, routes):
            raise OSError(errno.EADDRNOTAVAIL, "not an address of ours")
        address, peer = _connect(declared, old, routes)
        wants_port = declared.bind or declared.port or peer
        port = self._settle_port(declared, old) if wants_port else 0
        socket = Socket(declared, self._next_order, address, port, peer)
        if old is not None and old.key == socket.key:
            return msgspec.structs.replace(socket, order=old.order)
        return socket

    def _settle_port(self, declared: SocketState, old: Socket | None) -> int:
        handle, local = declared.handle, declared.local
        port = declared.port or (old.port if old else 0)
        if port:
            # As on Linux only a bind is checked: connecting and dissolving move a socket between addresses unasked.
            if old is not None and old.port == port and old.declared.local == local:
                return port
            if not self._ports.clashes(handle, Claim(local, port, _sharing(declared))):
                return port
            if declared.port:
                raise OSError(errno.EADDRINUSE, "the port is taken")
        chosen = self._ports.choose(handle, local)
        if chosen is None:  # connect's own bind fails with EAGAIN (Linux inet_autobind)
            raise OSError(errno.EADDRINUSE if declared.bind else errno.EAGAIN, "no ephemeral port is free")
        return chosen

    def put(self, socket: Socket) -> None:
        """Take `socket` in, in the place of the one with its handle."""
        handle, old = socket.declared.handle, self.sockets.get(socket.declared.handle)
        if old is not None and old.key != socket.key:
            self._unlink(handle, old)
        self.sockets[handle] = socket
        self._next_order = max(self._next_order, socket.order + 1)
        self.flows.clear()
        if socket.port:
            self._ports.hold(handle, socket.claim)
            self._index.setdefault(socket.key, {})[handle] = socket
            self._at_port.setdefault(socket.port, {})[handle] = socket

    def remove(self, handle: int) -> bool:
        """Forget a socket; False where there is none."""
        socket = self.sockets.pop(handle, None)
        if socket is None:
            return False
        self._unlink(handle, socket)
        self.flows.clear()
        return True

    def _unlink(self, handle: int, socket: Socket) -> None:
        if socket.port:
            self._ports.release(handle)
            _discard(self._index, socket.key, handle)
            _discard(self._at_port, socket.port, handle)


def _discard(buckets: dict, key: bytes | int, handle: int) -> None:
    bucket = buckets[key]
    del bucket[handle]
    if not bucket:
        del buckets[key]


def _one_of(bucket: dict[int, Socket], flow: bytes) -> int:
    """SO_REUSEADDR: who bound last. SO_REUSEPORT: one of those who set it, always the same for one flow."""
    handle, last = next(reversed(bucket.items()))
    if last.peer or not last.declared.reuse_port:
        return handle
    group = [member for member, socket in bucket.items() if socket.declared.reuse_port]
    # A hash that a restart does not change, unlike Python's own.
    return group[crc32(flow) % len(group)]


def _sharing(declared: SocketState) -> int:
    return (SHARE_ADDRESS if declared.reuse_address else SHARE_NOT) | (SHARE_PORT if declared.reuse_port else SHARE_NOT)


def _can_bind(address: bytes, routes: RouteTable) -> bool:
    return address == ANY or routes.is_local(address) or routes.is_broadcast(address) or is_multicast(address)


def _connect(declared: SocketState, old: Socket | None, routes: RouteTable) -> tuple[bytes, bytes]:
    """(local address, peer) of a socket that connects, stays connected, or (peer ANY) is not connected."""
    if not declared.peer and not declared.peer_port:
        return declared.local, ANY
    if old is not None and _ends(old.declared) == _ends(declared):
        return old.address, old.peer
    peer = declared.peer or declared.local or LOOPBACK[WIDTH_OF_FAMILY[declared.family]]  # Linux: 0.0.0.0 is this host
    if routes.is_broadcast(peer) and not declared.broadcast:
        raise OSError(errno.EACCES, "a broadcast address without SO_BROADCAST")
    source = source_address.of_destination(routes, peer)
    if source is None:
        raise OSError(errno.ENETUNREACH, "no route to the peer")
    if declared.local and routes.leaks(declared.local, peer):
        raise OSError(errno.EINVAL, "no packet leaves the host from 127/8")
    return declared.local or source, peer


def _ends(declared: SocketState) -> tuple[bytes, bytes, int]:
    return declared.local, declared.peer, declared.peer_port

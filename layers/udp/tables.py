"""The sockets of udp, and the look-up of a datagram's receiver.

One index contains every socket with a port, under a key with the format of a flow: peer, local address, peer's port,
local port, with zeros for unspecified fields. A look-up tries the flow itself and then less specific keys, in the order
of Linux's compute_score: at most four dict look-ups for any number of sockets, and one for a known flow.
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

FLOWS_MAX = 1 << 15  # flows whose receiver is cached (5 MB); then the cache is cleared
NO_SOCKET = 0  # no socket has this handle

_PORT_OCTETS = 2
_ANY_PORT = bytes(_PORT_OCTETS)


class Socket(msgspec.Struct, frozen=True, omit_defaults=True):
    """A socket: the declared state, and the chosen address and port. Connected if `peer` is not ANY."""

    declared: SocketState
    order: int  # among sockets with equal claims, the higher was bound last
    address: bytes = ANY  # the local address; ANY: all addresses
    port: int = 0  # 0: none
    peer: bytes = ANY

    @property
    def key(self) -> bytes:
        """Its key in the index."""
        zero = UNSPECIFIED[WIDTH_OF_FAMILY[self.declared.family]]
        ports = PORTS.pack(self.declared.peer_port if self.peer else 0, self.port)
        return b"".join((self.peer or zero, self.address or zero, ports))

    @property
    def claim(self) -> Claim:
        """Its claim at the port manager."""
        return Claim(self.address, self.port, _sharing(self.declared))

    def hears(self, source: bytes, destination: bytes, source_port: int) -> bool:
        """True if the socket gets a broadcast or multicast to its port, as in Linux's __udp_is_mcast_sock."""
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
        self.flows: dict[bytes, int] = {}  # cache: {flow: handle}, never NO_SOCKET
        self._ports = ports
        self._index: dict[bytes, dict[int, Socket]] = {}  # {key: {handle: socket}}, first bound first
        self._at_port: dict[int, dict[int, Socket]] = {}
        self._next_order = 0

    # ------------------------------------------------------------------ look-up of a receiver

    def find(self, flow: bytes) -> int:
        """The handle of the socket for a datagram to an own address, or NO_SOCKET."""
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
            return NO_SOCKET
        handle = _one_of(bucket, flow)
        if len(self.flows) >= FLOWS_MAX:
            self.flows.clear()
        self.flows[flow] = handle
        return handle

    def find_all(self, source: bytes, destination: bytes, ports: bytes) -> list[int]:
        """The handles of all sockets for a broadcast or multicast datagram. `ports`: source port, destination port."""
        source_port, port = PORTS.unpack(ports)
        candidates = self._at_port.get(port, {})
        return [handle for handle, socket in candidates.items() if socket.hears(source, destination, source_port)]

    # ------------------------------------------------------------------ declarations, and what is stored of them

    def load(self) -> int:
        """Restore the sockets of a former process; returns the number of deleted invalid records."""
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
        """Create or change a socket as declared and store it, or refuse and return the reason.

        None: the declaration is unusable.
        """
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
        """Remove a socket; False: there is none."""
        if not self.remove(handle):
            return False
        del self._state[handle]
        return True

    # ------------------------------------------------------------------ what a declaration makes of a socket

    def settle(self, declared: SocketState, routes: RouteTable) -> Socket:
        """The socket for `declared`. OSError with Linux's errno: it cannot be had. Changes nothing."""
        if declared.family != FAMILY_4:
            raise OSError(errno.EAFNOSUPPORT, "IPv4 only")
        if not in_range(declared) or not declared.ttl:
            raise OSError(errno.EINVAL, "a number is out of range")
        old = self.sockets.get(declared.handle)
        if (old is None or old.declared.local != declared.local) and not _can_bind(declared.local, routes):
            raise OSError(errno.EADDRNOTAVAIL, "not an address of this stack")
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
            # As on Linux only a bind is checked: connecting and dissolving change the local address without a check.
            if old is not None and old.port == port and old.declared.local == local:
                return port
            if not self._ports.clashes(handle, Claim(local, port, _sharing(declared))):
                return port
            if declared.port:
                raise OSError(errno.EADDRINUSE, "the port is in use")
        chosen = self._ports.choose(handle, local)
        if chosen is None:  # connect's own bind fails with EAGAIN (Linux inet_autobind)
            raise OSError(errno.EADDRINUSE if declared.bind else errno.EAGAIN, "no ephemeral port is free")
        return chosen

    def put(self, socket: Socket) -> None:
        """Add `socket`, replacing the one with its handle."""
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
        """Remove a socket; False: there is none."""
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
    """SO_REUSEADDR: the one that was bound last. SO_REUSEPORT: one of the group, always the same for a flow."""
    handle, last = next(reversed(bucket.items()))
    if last.peer or not last.declared.reuse_port:
        return handle
    group = [member for member, socket in bucket.items() if socket.declared.reuse_port]
    # A hash that is the same after a restart, unlike Python's own.
    return group[crc32(flow) % len(group)]


def _sharing(declared: SocketState) -> int:
    return (SHARE_ADDRESS if declared.reuse_address else SHARE_NOT) | (SHARE_PORT if declared.reuse_port else SHARE_NOT)


def _can_bind(address: bytes, routes: RouteTable) -> bool:
    return address == ANY or routes.is_local(address) or routes.is_broadcast(address) or is_multicast(address)


def _connect(declared: SocketState, old: Socket | None, routes: RouteTable) -> tuple[bytes, bytes]:
    """(local address, peer) of a socket that connects or is connected; peer ANY: not connected."""
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

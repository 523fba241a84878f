"""The effect of each request on its socket.

An operation gets the socket, the request and the present network. It returns the desired socket, and a function that
makes the answer from the resulting socket. It changes nothing itself; `Refused` contains the errno that Linux gives.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container
from ipaddress import ip_address
from typing import Any, NamedTuple

from msgspec.structs import replace

from bus.messages import (
    FAMILY_4,
    TRANSMIT_IGNORE_PATH_MTU,
    TRANSMIT_MAY_FRAGMENT,
    TRANSMIT_OF_MTU_DISCOVER,
)
from layers.common import source_address
from layers.common.routes import RouteTable
from layers.sockets import groups, options, requests
from layers.sockets.entry import (
    ICMP_PROTOCOL,
    RAW_PROTOCOL,
    TCP_PROTOCOL,
    UDP_PROTOCOL,
    Answer,
    Socket,
    StreamOptions,
)
from layers.sockets.requests import Refused, Request
from packets.addresses import ANY, IPV4_OCTETS, LIMITED_BROADCAST, LOOPBACK, UNSPECIFIED

Outcome = tuple[Socket, Answer]
PACKET_OCTETS_MAX = 65535  # RFC 791 section 3.1
Ends = tuple[bytes, int, bytes, int]  # of a connection: local address and port, peer's address and port


class Network(NamedTuple):
    """What an operation may know of the layers below."""

    routes: RouteTable
    mtu: int  # of the interface
    ttl: int  # of the stack, for sockets that set none

    def way(self, socket: Socket, destination: bytes, wanted: bytes = ANY) -> tuple[bytes, int]:
        """(source address, longest packet) for a destination. Refused: no route, or not permitted.

        `wanted`: the source that the application chose for this destination.
        """
        routes = self.routes
        source = None
        if destination and source_address.of_destination(routes, destination) is not None:
            source = source_address.of_packet(routes, destination, wanted, socket.local, socket.multicast_interface)
        # Linux ip_route_output_key_hash: also if it is bound to an address that is no longer an own address
        if source is None:
            raise Refused(errno.ENETUNREACH)
        forbidden = routes.is_broadcast(destination) and not socket.broadcast
        # RFC 1122 section 3.2.1.3 (g). Linux, __mkroute_output; before it 255.255.255.255 has a route, by the loopback.
        if routes.leaks(source, destination) and not (forbidden and destination == LIMITED_BROADCAST):
            raise Refused(errno.EINVAL)
        if forbidden:
            raise Refused(errno.EACCES)
        return source, self._longest(socket, destination)

    def path_mtu(self, destination: bytes) -> int:
        """The MTU on the path to `destination`, as far as it is known."""
        if self.routes.is_local(destination):
            return PACKET_OCTETS_MAX
        route = None if destination == LIMITED_BROADCAST else self.routes.lookup(destination)
        return route.mtu if route is not None else self.mtu

    def _longest(self, socket: Socket, destination: bytes) -> int:
        """The longest packet that `socket` may send there, by its IP_MTU_DISCOVER (ip(7))."""
        if socket.header_included:  # ip(7), IP_HDRINCL: never fragmented
            return PACKET_OCTETS_MAX if self.routes.is_local(destination) else self.mtu
        flags = TRANSMIT_OF_MTU_DISCOVER[socket.mtu_discover]
        if flags & TRANSMIT_MAY_FRAGMENT:
            return PACKET_OCTETS_MAX
        if flags & TRANSMIT_IGNORE_PATH_MTU and not self.routes.is_local(destination):
            return self.mtu
        return self.path_mtu(destination)


def described_by(request: requests.Open, layers: Container[str], streams: StreamOptions) -> dict[str, Any]:
    """The fields of a new socket that its kind determines. Refused as by Linux's inet_create. `layers`: the booted
    ones.

    `streams`: the defaults of a new stream socket.
    """
    if request.family != FAMILY_4:
        raise Refused(errno.EAFNOSUPPORT)
    if request.type == "stream":
        return {"protocol": TCP_PROTOCOL, "stream": streams}
    if request.type != "raw":
        return {"protocol": UDP_PROTOCOL if request.type == "dgram" else ICMP_PROTOCOL}
    protocol = request.protocol
    if not protocol:
        raise Refused(errno.EPROTONOSUPPORT)
    if "raw" not in layers:  # the owner of the stack has not allowed it
        raise Refused(errno.EPERM)
    return {"raw": True, "protocol": protocol, "port": protocol, "header_included": protocol == RAW_PROTOCOL}


def bind(socket: Socket, request: requests.Bind, network: Network) -> Outcome:
    """The transport decides whether the address and the port are available."""
    if socket.bound_by == request.id:  # executed before a restart; only the answer was lost
        return socket, names
    if socket.stream is not None and socket.stream.connect and not socket.port_chosen:
        socket = _unconnected(socket, socket.stream)
    elif socket.bound and (socket.peer or not socket.raw):  # Linux, raw_bind: repeatedly, unless it is connected
        raise Refused(errno.EINVAL)
    local = requests.parse_address(request.address)
    port = socket.port if socket.raw else request.port
    return replace(socket, bound=True, bound_by=request.id, named=local, local=local, port=port,
                   port_chosen=bool(request.port)), names


def connect(socket: Socket, request: requests.Connect, network: Network) -> Outcome:
    """Set the peer, and the local address if the application has set none.

    Without an address, dissolve the connection.
    """
    peer = requests.parse_address(request.address)
    if socket.stream is not None:
        return _connect_stream(socket, socket.stream, peer, request), names_of_stream
    if not peer:
        # Linux releases an ephemeral port here; this socket keeps it, which is not observable except by its number.
        return replace(socket, peer=ANY, peer_port=0, local=socket.named), names
    source, mtu = network.way(socket, peer)
    changed = replace(socket, bound=True, local=socket.named or source, peer=peer, peer_port=request.port)
    return changed, _prepared(source, mtu - len(socket.ip_options))


def _connect_stream(socket: Socket, stream: StreamOptions, peer: bytes, request: requests.Connect) -> Socket:
    """tcp decides whether the connection is possible."""
    if stream.connect == request.id:
        return socket  # executed before a restart; only the answer was lost
    if stream.listen >= 0:
        raise Refused(errno.EISCONN)  # Linux, inet_stream_connect: the state is LISTEN
    kept = _unconnected(socket, stream).port if stream.connect else socket.port
    return replace(socket, bound=True, local=socket.named, port=kept if socket.bound_by else 0,
                   peer=peer or socket.named or LOOPBACK[IPV4_OCTETS], peer_port=request.port,
                   stream=replace(stream, connect=request.id, fast_open=int(request.fast_open)))


def listen(socket: Socket, request: requests.Listen, network: Network) -> Outcome:
    """A socket that is not bound yet gets an ephemeral port."""
    if socket.stream is None:
        raise Refused(errno.EOPNOTSUPP)
    if socket.stream.connect:
        socket = _unconnected(socket, socket.stream)
    if socket.stream is None or socket.peer:  # it was accepted: Linux, __inet_listen_sk
        raise Refused(errno.EINVAL)
    return replace(socket, bound=True, stream=replace(socket.stream, listen=request.backlog)), names


def _unconnected(socket: Socket, stream: StreamOptions) -> Socket:
    """The socket after a connection that could not be established, as Linux's tcp_disconnect leaves it: the address and
    the port are those that the application chose. tcp refuses what follows if the connection is there."""
    return replace(socket, bound=socket.port_chosen, local=socket.named, port=socket.port if socket.port_chosen else 0,
                   peer=ANY, peer_port=0, stream=replace(stream, connect=0, fast_open=0))


def accepted(listener: Socket, stream: StreamOptions, handle: int, ends: Ends) -> Socket:
    """A connection to a listener: the listener's options, its own ends (local address and port, peer's)."""
    local, port, peer, peer_port = ends
    return replace(listener, created_by=-handle, bound=True, bound_by=0, named=local, local=local, port=port, peer=peer,
                   peer_port=peer_port, stream=replace(stream, listen=-1, connect=0, fast_open=0))


def prepare(socket: Socket, request: requests.Prepare, network: Network) -> Outcome:
    """Check the route to a destination; an unbound socket gets an ephemeral port."""
    if socket.stream is not None:
        raise Refused(errno.EISCONN if socket.peer else errno.EPIPE)
    if not request.port and socket.protocol == UDP_PROTOCOL and not socket.raw:
        raise Refused(errno.EINVAL)  # Linux udp_sendmsg
    wanted = requests.parse_address(request.source) if request.source else ANY
    source, mtu = network.way(socket, requests.parse_address(request.address), wanted)
    return replace(socket, bound=True), _prepared(source, mtu - len(socket.ip_options))


def set_option(socket: Socket, request: requests.SetOption, network: Network) -> Outcome:
    """The answer is the value that took effect; 0 for a structure, the padded length for IP options."""
    if request.level == options.IPPROTO_IP and request.name in groups.MEMBERSHIPS:
        if socket.grouped_by != request.id:  # otherwise executed before a restart; only the answer was lost
            joined = groups.change(socket.groups, request.name, request.value, network.routes)
            socket = replace(socket, groups=joined, grouped_by=request.id)
        return socket, lambda socket: {"value": 0}
    if (request.level, request.name) == (options.IPPROTO_IP, options.IP_MULTICAST_IF):
        address = groups.interface(request.value, network.routes)
        return replace(socket, multicast_interface=address), lambda socket: {"value": 0}
    if (request.level, request.name) == (options.IPPROTO_IP, options.IP_OPTIONS):
        chosen = options.ip_options(socket, request.value)
        return replace(socket, ip_options=chosen), lambda socket: {"value": len(socket.ip_options)}
    if socket.stream is not None and options.of_stream(request.level, request.name):
        field, stored = options.change_stream(request.level, request.name, request.value)
        stream = replace(socket.stream, **{field: stored})
        return replace(socket, stream=stream), lambda socket: {"value": options.read_stream(
            socket, request.level, request.name)}
    field, value = options.change(socket, request.level, request.name, request.value, network.ttl)
    return replace(socket, **{field: value}), lambda socket: {"value": int(getattr(socket, field))}


def get_option(socket: Socket, request: requests.GetOption, network: Network) -> Outcome:
    """Options are integers, as in C; but a filter of multicast sources is a structure, and IP options are octets."""
    if (request.level, request.name) == (options.IPPROTO_IP, options.IP_OPTIONS):
        return socket, lambda socket: {"octets": socket.ip_options}
    if (request.level, request.name) in ((options.IPPROTO_IP, groups.IP_MSFILTER),
                                         (options.IPPROTO_IP, groups.MCAST_MSFILTER)):
        octets = groups.question(socket.groups, request.name, request.value, network.routes)
        return socket, lambda socket: {"octets": octets}
    if socket.stream is not None and options.of_stream(request.level, request.name):
        found = options.read_stream(socket, request.level, request.name)
        return socket, lambda socket: {"octets": found} if isinstance(found, bytes) else {"value": found}
    if (request.level, request.name) == (options.IPPROTO_IP, options.IP_MTU):
        if not socket.peer:
            raise Refused(errno.ENOTCONN)  # ip(7): of the path of the connected socket
        value = network.path_mtu(socket.peer)
    else:
        value = options.read(socket, request.level, request.name)
    return socket, lambda socket: {"value": value}


def get_name(socket: Socket, request: requests.GetName, network: Network) -> Outcome:
    """The local address and port; 0.0.0.0 and port 0 for an unbound socket."""
    return socket, names


def get_peer(socket: Socket, request: requests.GetPeer, network: Network) -> Outcome:
    """The peer. Refused with ENOTCONN: there is none."""
    if not socket.peer:
        raise Refused(errno.ENOTCONN)
    return socket, lambda socket: {"address": text_of(socket.peer), "port": socket.peer_port}


OPERATIONS: dict[type[Request], Callable[..., Outcome]] = {
    requests.Bind: bind,
    requests.Connect: connect,
    requests.Listen: listen,
    requests.Prepare: prepare,
    requests.SetOption: set_option,
    requests.GetOption: get_option,
    requests.GetName: get_name,
    requests.GetPeer: get_peer,
}


def names(socket: Socket) -> dict[str, object]:
    """The answer with the local address and port of a socket."""
    return {"address": text_of(socket.local), "port": socket.port}


def names_of_stream(socket: Socket) -> dict[str, object]:
    """The answer to a connect that has begun."""
    return {"local": text_of(socket.local), "port": socket.port, "peer": text_of(socket.peer)}


def text_of(address: bytes) -> str:
    """An address as text, as in answers."""
    return str(ip_address(address or UNSPECIFIED[IPV4_OCTETS]))


def _prepared(source: bytes, mtu: int) -> Answer:
    return lambda socket: {
        "source": text_of(source), "mtu": mtu, "local": text_of(socket.local), "port": socket.port
    }

"""What the socket service keeps of a socket: the durable part (`Socket`) and what a restart may forget (`Entry`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from bus.messages import SocketState, SourceFilter
from bus.streams import StreamState
from layers.sockets.requests import Request
from packets.addresses import ANY
from packets.ipv4 import TTL_DEFAULT

UDP_PROTOCOL = 17  # IANA protocol numbers
ICMP_PROTOCOL = 1
TCP_PROTOCOL = 6
RAW_PROTOCOL = 255  # raw(7), IPPROTO_RAW: such a socket only sends, and whole packets

RECEIVE_BUFFER_DEFAULT = 212992  # Linux net.core.rmem_default
SEND_BUFFER_DEFAULT = 212992  # Linux net.core.wmem_default
PMTU_DISCOVERY_WANT = 1  # ip(7): IP_PMTUDISC_WANT, the default


class StreamOptions(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What a stream socket has beside the rest: fields of the same name in StreamState, and `linger`."""

    listen: int = -1
    connect: int = 0  # id of the connect request that began the connection
    send_buffer: int = 0
    receive_buffer: int = 0
    nodelay: bool = False
    cork: bool = False
    quickack: bool | None = None
    keepalive: bool = False
    keepidle: int = 7200
    keepintvl: int = 75
    keepcnt: int = 9
    user_timeout: int = 0
    maxseg: int = 0
    syncnt: int = 6
    linger2: int = 60
    defer_accept: int = 0
    window_clamp: int = 0
    notsent_lowat: int = 0
    congestion: str = "cubic"
    linger: int = -1  # seconds (SO_LINGER): 0, and the end of the application's process resets the connection
    window_scaling: bool = True  # these four are settings of the stack (bus.sysctl)
    timestamps: bool = True
    sack: bool = True
    ecn: bool = False


class Socket(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A socket as its application sees it; stored before any answer that tells of it."""

    client: int
    pid: int
    created_by: int  # id of the request that made it: the same request again gets the same socket
    protocol: int
    bound_by: int = 0  # id of the bind request that succeeded: the same request again gets the same answer
    named: bytes = ANY  # address that the application bound; connect may put another into `local`
    bound: bool = False
    local: bytes = ANY
    port: int = 0
    peer: bytes = ANY
    peer_port: int = 0
    receive_buffer: int = RECEIVE_BUFFER_DEFAULT
    send_buffer: int = SEND_BUFFER_DEFAULT
    reuse_address: bool = False
    reuse_port: bool = False
    broadcast: bool = False
    ttl: int = TTL_DEFAULT
    tos: int = 0
    multicast_ttl: int = 1
    mtu_discover: int = PMTU_DISCOVERY_WANT
    receive_errors: bool = False
    segments: bool = False  # its application takes DATAGRAM_SEGMENTS
    raw: bool = False  # bound from its first moment on; `port` is its protocol, as on Linux
    header_included: bool = False
    icmp_filter: int = 0
    multicast_interface: bytes = ANY  # the address that IP_MULTICAST_IF chose
    multicast_loop: bool = True
    multicast_all: bool = True
    groups: tuple[SourceFilter, ...] = ()
    grouped_by: int = 0  # id of the request that changed `groups` last: the same request again gets the same answer
    ip_options: bytes = b""  # that go with what it sends, as Linux pads them
    receive_options: bool = False  # its application is told those that came
    stream: StreamOptions | None = None

    def state(self, handle: int, request: int) -> SocketState:
        """What the transport has to know of it."""
        if self.stream is not None:
            return self._stream_state(handle, request, self.stream)
        return SocketState(
            handle=handle,
            request=request,
            bind=self.bound,
            local=self.local,
            port=self.port,
            peer=self.peer,
            peer_port=self.peer_port,
            reuse_address=self.reuse_address,
            reuse_port=self.reuse_port,
            broadcast=self.broadcast,
            ttl=self.ttl,
            tos=self.tos,
            multicast_ttl=self.multicast_ttl,
            mtu_discover=self.mtu_discover,
            receive_errors=self.receive_errors,
            protocol=self.protocol if self.raw else 0,
            header_included=self.header_included,
            icmp_filter=self.icmp_filter,
            multicast_interface=self.multicast_interface,
            multicast_loop=self.multicast_loop,
            multicast_all=self.multicast_all,
            groups=self.groups,
            ip_options=self.ip_options,
            receive_options=self.receive_options,
        )


    def _stream_state(self, handle: int, request: int, stream: StreamOptions) -> StreamState:
        special = {name: getattr(stream, name) for name in StreamOptions.__struct_fields__ if name != "linger"}
        return StreamState(
            handle=handle, request=request, bind=bool(self.bound_by), local=self.local, port=self.port,
            peer=self.peer, peer_port=self.peer_port, reuse_address=self.reuse_address, reuse_port=self.reuse_port,
            ttl=self.ttl, tos=self.tos, mtu_discover=self.mtu_discover, receive_errors=self.receive_errors,
            ip_options=self.ip_options, **special)


Answer = Callable[[Socket], dict[str, object]]


class Pending(NamedTuple):
    """A change that waits for the transport's word; or, then, one of groups that waits for ip's."""

    request: int
    record: bytes  # the SOCKET_SET or MEMBERSHIP, to be sent again to a layer that restarted
    changed: Socket
    answer: Answer
    of_ip: bool = False


class Entry:
    """A socket in the service's hands: its durable part and the soft state around it."""

    __slots__ = (
        "accepted",
        "client",
        "consumer",
        "drops",
        "handle",
        "limit",
        "outstanding",
        "pending",
        "socket",
        "told",
        "waiting",
    )

    def __init__(self, handle: int, socket: Socket, consumer: int) -> None:
        self.handle = handle
        self.socket = socket
        self.client = socket.client
        self.consumer = consumer  # the transport's id
        self.limit = socket.receive_buffer
        self.outstanding = 0  # octets of receive buffer in use at the application; a restart is told them anew
        self.accepted = 0  # of a listener: the number of the last connection that was stored
        self.drops = 0
        self.told = False  # the application knows that its buffer is full
        self.pending: Pending | None = None
        self.waiting: list[Request] = []  # rarely any; an empty deque would take as much memory as all the rest


encode_socket = msgspec.msgpack.Encoder().encode
decode_socket = msgspec.msgpack.Decoder(Socket).decode

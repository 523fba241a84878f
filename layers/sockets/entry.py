"""A socket in the socket service: the durable part (`Socket`) and the transient part (`Entry`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from bus.layer import State
from bus.messages import SocketState, SourceFilter
from bus.streams import StreamState
from layers.sockets.requests import Request
from packets.addresses import ANY
from packets.ipv4 import TTL_DEFAULT

UDP_PROTOCOL = 17  # IANA protocol numbers
ICMP_PROTOCOL = 1
TCP_PROTOCOL = 6
RAW_PROTOCOL = 255  # raw(7), IPPROTO_RAW: such a socket only sends, and only whole packets

RECEIVE_BUFFER_DEFAULT = 212992  # Linux net.core.rmem_default
SEND_BUFFER_DEFAULT = 212992  # Linux net.core.wmem_default
PMTU_DISCOVERY_WANT = 1  # ip(7): IP_PMTUDISC_WANT, the default


class StreamOptions(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """The fields of a stream socket: those of the same name in StreamState, and `linger`."""

    listen: int = -1
    connect: int = 0  # id of the connect request that started the connection
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
    linger: int = -1  # seconds (SO_LINGER); with 0 the end of the application's process also resets the connection
    window_scaling: bool = True  # the stack has defaults for these four (bus.sysctl)
    timestamps: bool = True
    sack: bool = True
    ecn: int = 2
    fast_open: int = 0


class Socket(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A socket as its application sees it; stored before any answer that depends on it."""

    client: int
    pid: int
    created_by: int  # id of the request that created it: the same request again gets the same socket
    protocol: int
    bound_by: int = 0  # id of the bind request that succeeded: the same request again gets the same answer
    named: bytes = ANY  # address to which the application bound it; connect may put another into `local`
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
    segments: bool = False  # its application accepts DATAGRAM_SEGMENTS
    raw: bool = False  # bound from the start; `port` is its protocol, as on Linux
    header_included: bool = False
    icmp_filter: int = 0
    multicast_interface: bytes = ANY  # the address that IP_MULTICAST_IF selected
    multicast_loop: bool = True
    multicast_all: bool = True
    groups: tuple[SourceFilter, ...] = ()
    grouped_by: int = 0  # id of the last request that changed `groups`: the same request again gets the same answer
    ip_options: bytes = b""  # sent with its datagrams, padded as on Linux
    receive_options: bool = False  # its application gets received IP options
    stream: StreamOptions | None = None
    sharers: tuple[int, ...] = ()  # further clients that own it (layers.sockets.sharing)
    unclaimed: bytes = b""  # of a connection to a shared listener: its ACCEPTED, until a process has accepted it
    offered: bool = False  # of such a connection: its process has got it
    port_chosen: bool = False  # by the application, so that it stays when a connection fails (Linux SOCK_BINDPORT_LOCK)

    @property
    def waits(self) -> bool:
        """True for a connection to a shared listener that no process has got."""
        return bool(self.unclaimed) and not self.offered

    @property
    def is_connection(self) -> bool:
        """True for a stream socket that does not listen."""
        return self.stream is not None and self.stream.listen < 0

    @property
    def is_plain(self) -> bool:
        """True for a connection with one owner and no groups."""
        return self.is_connection and bool(self.peer) and not (self.sharers or self.unclaimed or self.groups)

    @property
    def is_listener(self) -> bool:
        """True after `listen`."""
        return self.stream is not None and self.stream.listen >= 0

    def state(self, handle: int, request: int) -> SocketState:
        """The desired state for the transport."""
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


encode_socket = msgspec.msgpack.Encoder().encode
decode_socket = msgspec.msgpack.Decoder(Socket).decode

Answer = Callable[[Socket], dict[str, object]]


class Pending(NamedTuple):
    """A change that waits for the reply of the transport, or, for groups, then of ip."""

    request: int
    client: int  # that has asked
    record: bytes  # the SOCKET_SET or MEMBERSHIP, to be repeated to a layer that restarted
    changed: Socket
    answer: Answer
    of_ip: bool = False


Waiting = tuple[int, bytes, int]  # a datagram: kind and octets of the record, octets of receive buffer
HANDED_MAX = 16  # a process has as many datagrams ahead as it has threads that wait


class Sharing:
    """What waits at a socket with several owners, and which of them wait."""

    __slots__ = ("connections", "datagrams", "handed", "readers", "resets")

    def __init__(self) -> None:
        self.datagrams: deque[Waiting] = deque()
        self.handed: dict[int, deque[Waiting]] = {}  # by client: what its program has not taken, the last HANDED_MAX
        self.connections: deque[int] = deque()  # of a listener: handles
        self.resets: dict[int, bytes] = {}  # STREAM_RESET of connections among them
        self.readers: dict[int, None] = {}  # clients that wait, the first one first

    def handed_to(self, client: int, datagram: Waiting) -> None:
        """A datagram leaves for a client that waits. If that ends before its program has it, another one gets it."""
        del self.readers[client]
        self.handed.setdefault(client, deque(maxlen=HANDED_MAX)).append(datagram)

    def taken(self, client: int) -> None:
        """The program of `client` has the datagram that came first."""
        waiting = self.handed.get(client)
        if waiting:
            waiting.popleft()


class Entry:
    """A socket in memory: its durable part and its transient state.

    The durable part of a plain connection is decoded from the store when it is needed, which no stream record does.
    There may be tens of thousands, and the object would be most of what the service keeps of them.
    """

    __slots__ = (
        "accepted",
        "client",
        "consumer",
        "drops",
        "handle",
        "kept",
        "limit",
        "outstanding",
        "pending",
        "sharing",
        "stored",
        "told",
        "waiting",
    )

    def __init__(self, handle: int, socket: Socket, consumer: int, stored: State) -> None:
        """`stored` contains the socket."""
        self.handle = handle
        self.stored = stored
        self.kept = None if socket.is_plain else socket
        self.client = socket.client
        self.consumer = consumer  # id of the transport
        self.limit = socket.receive_buffer
        # octets of receive buffer in use at the application, which reports them again after a restart
        self.outstanding = 0
        self.accepted = 0  # of a listener: number of the last stored connection
        self.drops = 0
        self.told = False  # the application has been told that its buffer is full
        self.pending: Pending | None = None
        self.waiting: tuple[tuple[int, Request], ...] = ()  # (client, request)
        self.sharing: Sharing | None = None  # it has several owners

    @property
    def socket(self) -> Socket:
        """The durable part. About 3 us for a plain connection."""
        return decode_socket(self.stored[self.handle]) if self.kept is None else self.kept

    @property
    def waits(self) -> bool:
        """True for a connection to a shared listener that no process has got."""
        return self.kept is not None and self.kept.waits

    @property
    def unclaimed(self) -> bytes:
        """See `Socket.unclaimed`."""
        return b"" if self.kept is None else self.kept.unclaimed

    @property
    def sharers(self) -> tuple[int, ...]:
        """See `Socket.sharers`."""
        return () if self.kept is None else self.kept.sharers

    def change(self, socket: Socket) -> None:
        """The durable part has changed, and is stored."""
        self.kept = None if socket.is_plain else socket

    @property
    def is_connection(self) -> bool:
        """True for a stream socket that does not listen."""
        return self.kept is None or self.kept.is_connection

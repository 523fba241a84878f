"""The desired state of a TCP socket, from the socket service to tcp (docs/decisions/streams.md)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from bus.messages import SocketState, decoder

Seconds = Annotated[int, msgspec.Meta(ge=0, le=32767)]  # Linux MAX_TCP_KEEPIDLE
Octets = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]


class StreamState(SocketState, frozen=True, kw_only=True):
    """The desired state of a TCP socket."""

    listen: Annotated[int, msgspec.Meta(ge=-1, le=65535)] = -1  # backlog; -1: no listener
    # number of the connect request; a new number starts a new attempt
    connect: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    send_buffer: Octets = 0  # as SO_SNDBUF and SO_RCVBUF report them; 0: automatic
    receive_buffer: Octets = 0
    nodelay: bool = False
    cork: bool = False
    quickack: bool | None = None
    keepalive: bool = False
    keepidle: Seconds = 7200
    keepintvl: Seconds = 75
    keepcnt: Annotated[int, msgspec.Meta(ge=1, le=127)] = 9
    user_timeout: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)] = 0  # milliseconds
    maxseg: Annotated[int, msgspec.Meta(ge=0, le=32767)] = 0
    syncnt: Annotated[int, msgspec.Meta(ge=0, le=127)] = 6  # Linux net.ipv4.tcp_syn_retries
    linger2: Annotated[int, msgspec.Meta(ge=-1, le=120)] = 60  # seconds in FIN-WAIT-2
    defer_accept: Seconds = 0
    window_clamp: Octets = 0
    notsent_lowat: Octets = 0
    # RFC 7413: how many connections of a listener may wait for the end of a handshake; of a connection: not 0
    fast_open: Octets = 0
    congestion: str = "cubic"
    window_scaling: bool = True
    timestamps: bool = True
    sack: bool = True
    ecn: Annotated[int, msgspec.Meta(ge=0, le=5)] = 2  # Linux net.ipv4.tcp_ecn (layers.tcp.ecn)


decode_stream_state = decoder(StreamState)

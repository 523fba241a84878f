"""The one table of who talks to whom.

Launcher, layers, captures and the picture in the README are derived from `PIPES`. A pipe goes one way; the consumer
binds its inbox, the producer connects.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from bus.messages import (
    ACCEPT,
    ACCEPTED,
    ARP_IN,
    ARP_OUT,
    DATAGRAM,
    DATAGRAM_OPTIONS,
    DATAGRAM_SEGMENTS,
    FORGET,
    ICMP_ERROR,
    MEMBERSHIP,
    NEIGHBOR,
    PACKET,
    PACKET_OUT,
    PATH_MTU,
    RAW_WANTED,
    READ,
    REDIRECT,
    REPORT_ERROR,
    RESOLVE,
    ROOM,
    ROUTES,
    SEND,
    SEND_SEGMENTS,
    SOCKET_CLOSE,
    SOCKET_ERROR,
    SOCKET_REPLY,
    SOCKET_SET,
    STREAM,
    STREAM_INFO,
    STREAM_RESET,
    TRANSMIT,
    UNREACHABLE,
)

# Ids that stand in each frame as its sender: a layer's, up to LAYER_ID_MAX, or a client's: applications at the socket
# service, links at a wire's switch.
LAYER_ID_MAX = 15
CLIENT_ID_MIN = 1 << 32
CLIENT_ID_END = 1 << 53  # what a JavaScript number holds exactly
DEVICE = 0  # in the calls of link's core: the TAP or wire below it
KEEPER = 255  # as consumer: the keeper, which shows NOTICES to people; over the control line, not a pipe


class Layer(NamedTuple):
    """One layer: a folder of `layers/`, a process, and this row. All that lists layers is derived from the rows."""

    name: str
    id: int  # 1 to LAYER_ID_MAX; never given to another layer
    protocol: int | None = None  # it is the transport of this protocol (IANA protocol numbers): ip hands it the packets
    sockets: str = ""  # the type of sockets that the socket service opens on it, as in the application protocol
    routes: bool = False  # ip tells it addresses and routes
    upper: bool = False  # it belongs to the half that moves to a second core under load
    optional: bool = False  # booted only where the owner wants it; the pipes of a layer that is not do not exist


# From the bottom to the top, which is the order of boot; a stack stops in the reverse order.
ROWS = (
    Layer("link", 1),
    Layer("arp", 2),
    Layer("ip", 3),
    Layer("icmp", 4, protocol=1, sockets="ping", routes=True),
    Layer("udp", 5, protocol=17, sockets="dgram", routes=True, upper=True),
    Layer("tcp", 6, protocol=6, sockets="stream", routes=True, upper=True),
    Layer("raw", 8, sockets="raw", routes=True, upper=True, optional=True),
    Layer("sockets", 7, routes=True, upper=True),
)
LAYERS = {row.name: row.id for row in ROWS}
NAMES = {row.id: row.name for row in ROWS}
OPTIONAL = frozenset(row.name for row in ROWS if row.optional)
ALWAYS = tuple(row.name for row in ROWS if not row.optional)
UPPER_HALF = frozenset(row.name for row in ROWS if row.upper)
LINK, ARP, IP, ICMP, UDP, TCP, RAW, SOCKETS = map(
    LAYERS.__getitem__, ("link", "arp", "ip", "icmp", "udp", "tcp", "raw", "sockets"))


def transports(booted: Collection[str] = LAYERS) -> dict[int, int]:
    """The ids of the layers that are transports, of those that are booted, by their protocol."""
    return {row.protocol: row.id for row in ROWS if row.protocol is not None and row.name in booted}


def routed(booted: Collection[str] = LAYERS) -> tuple[int, ...]:
    """The ids of the layers that ip tells addresses and routes, of those that are booted."""
    return tuple(row.id for row in ROWS if row.routes and row.name in booted)


class Pipe(NamedTuple):
    """One direction between two neighbours."""

    producer: str
    consumer: str
    kinds: frozenset[int]
    contract: str


def _pipe(producer: str, consumer: str, contract: str, *kinds: int) -> Pipe:
    return Pipe(producer, consumer, frozenset(kinds), contract)


_TRANSPORT_IN = (PACKET, ICMP_ERROR, ROUTES)
_SERVICE_IN = (SEND, SOCKET_SET, SOCKET_CLOSE)
_SERVICE_OUT = (DATAGRAM, SOCKET_ERROR, SOCKET_REPLY)

_STATED = (
    _pipe("link", "arp", "every ARP packet that reached us", ARP_IN),
    _pipe("link", "ip", "every IPv4 packet whose frame was for us, trailer not yet cut", PACKET),
    _pipe("arp", "link", "ARP packets to send", ARP_OUT),
    _pipe("arp", "ip", "what arp knows of a neighbour, whenever it changes or is asked", NEIGHBOR, UNREACHABLE,
          FORGET),
    _pipe("ip", "arp", "addresses to resolve or to verify again, each gets an answer; our own, whenever they change",
          RESOLVE, ROUTES),
    _pipe("ip", "link", "IPv4 packets whose next hop is resolved", PACKET_OUT),
    _pipe("ip", "icmp", "checked ICMP packets, padding cut; local errors; packets to complain of",
          *_TRANSPORT_IN, REPORT_ERROR),
    _pipe("ip", "udp", "checked UDP packets, padding cut; local errors", *_TRANSPORT_IN),
    _pipe("ip", "sockets", "addresses and routes, at the start and at every change; answers about groups", ROUTES,
          SOCKET_REPLY),
    _pipe("icmp", "ip", "ICMP messages to send; MTUs and redirects that routers told", TRANSMIT, PATH_MTU,
          REDIRECT),
    _pipe("udp", "ip", "UDP segments to send; MTUs that routers told about them", TRANSMIT, PATH_MTU),
    _pipe("icmp", "udp", "ICMP errors about UDP packets that we sent", ICMP_ERROR),
    _pipe("udp", "icmp", "packets to a port where nobody listens", REPORT_ERROR),
    _pipe("icmp", "sockets", "replies and errors for ping sockets", *_SERVICE_OUT, DATAGRAM_OPTIONS),
    _pipe("udp", "sockets", "datagrams and errors for UDP sockets, answers about their bindings", *_SERVICE_OUT,
          DATAGRAM_SEGMENTS, DATAGRAM_OPTIONS),
    _pipe("sockets", "ip", "multicast groups of sockets; the greeting, which ip answers with addresses and routes",
          MEMBERSHIP),
    _pipe("sockets", "icmp", "ping sockets as they shall be, messages to send", *_SERVICE_IN),
    _pipe("sockets", "udp", "UDP sockets as they shall be, datagrams to send", *_SERVICE_IN, SEND_SEGMENTS),
    _pipe("ip", "tcp", "checked TCP packets, padding cut; local errors", *_TRANSPORT_IN),
    _pipe("tcp", "icmp", "tcp's greeting at its start, which icmp answers"),
    _pipe("tcp", "sockets", "streams, what becomes of connections, answers about TCP sockets", STREAM, ROOM, ACCEPTED,
          STREAM_RESET, STREAM_INFO, SOCKET_REPLY, SOCKET_ERROR),
    _pipe("sockets", "tcp", "TCP sockets as they shall be, streams, how far those were read", SOCKET_SET, SOCKET_CLOSE,
          STREAM, READ, ACCEPT, STREAM_INFO),
    _pipe("ip", "raw", "copies of the packets that raw wants, whole, padding cut; local errors", *_TRANSPORT_IN),
    _pipe("raw", "ip", "payloads and whole packets to send, MTUs told about them; the protocols that raw wants",
          TRANSMIT, RAW_WANTED, PATH_MTU),
    _pipe("icmp", "raw", "ICMP errors about packets that we sent, whatever their protocol", ICMP_ERROR),
    _pipe("raw", "icmp", "the greeting at its start, which icmp answers"),
    _pipe("raw", "sockets", "packets and errors for raw sockets, answers about them", *_SERVICE_OUT),
    _pipe("sockets", "raw", "raw sockets as they shall be, what they send", *_SERVICE_IN),
)


def _implied(row: Layer) -> tuple[Pipe, ...]:
    """The pipes of a transport for which no others are stated."""
    return (
        _pipe("ip", row.name, f"checked packets of {row.name}'s protocol, padding cut; local errors", *_TRANSPORT_IN),
        _pipe(row.name, "ip", f"segments of {row.name} to send; MTUs that routers told about them", TRANSMIT, PATH_MTU),
        _pipe("icmp", row.name, f"ICMP errors about packets that {row.name} sent", ICMP_ERROR),
        _pipe(row.name, "icmp", f"packets that {row.name} has no receiver for", REPORT_ERROR),
    )


_stated_ends = {(pipe.producer, pipe.consumer) for pipe in _STATED}
PIPES = _STATED + tuple(pipe for row in ROWS if row.protocol is not None for pipe in _implied(row)
                        if row.name != "icmp" and (pipe.producer, pipe.consumer) not in _stated_ends)


def inputs(layer: str, booted: Collection[str] = LAYERS) -> dict[str, frozenset[int]]:
    """The producers that feed `layer`, of those that are booted, and the kinds that each may send."""
    return {pipe.producer: pipe.kinds for pipe in PIPES if pipe.consumer == layer and pipe.producer in booted}


def outputs(layer: str, booted: Collection[str] = LAYERS) -> list[str]:
    """The consumers of `layer`, of those that are booted."""
    return [pipe.consumer for pipe in PIPES if pipe.producer == layer and pipe.consumer in booted]

"""The table of layers and of the pipes between them.

The supervisor, the layers, captures and the picture in docs/ARCHITECTURE.md are derived from `ROWS` and `PIPES`. A pipe
goes one way: the consumer binds its inbox, the producer connects to it.
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
    NEGATIVE_ADVICE,
    NEIGHBOR,
    PACKET,
    PACKET_HELD,
    PACKET_OUT,
    PACKET_OUT_HELD,
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
    SEND_SEGMENTS_HELD,
    SOCKET_CLOSE,
    SOCKET_ERROR,
    SOCKET_REPLY,
    SOCKET_SET,
    STREAM,
    STREAM_HELD,
    STREAM_INFO,
    STREAM_MEMORY,
    STREAM_RESET,
    TRANSMIT,
    TRANSMIT_HELD,
    UNREACHABLE,
)

# Ids of senders, one in the header of each frame. Layers have ids up to LAYER_ID_MAX, clients have ids from
# CLIENT_ID_MIN on: applications are clients of the socket service, link layers are clients of the switch of a wire.
LAYER_ID_MAX = 15
CLIENT_ID_MIN = 1 << 32
CLIENT_ID_END = 1 << 53  # a JavaScript number is exact below it
DEVICE = 0  # in the calls of link's core: the TAP or the wire below it
KEEPER = 255  # as consumer: the keeper, which shows NOTICES to the user (on the control channel, not on a pipe)


class Layer(NamedTuple):
    """One layer: a directory of `layers/`, a process, and this row. Every list of layers is derived from the rows."""

    name: str
    id: int  # 1 to LAYER_ID_MAX; the id of a removed layer is not reused
    protocol: int | None = None  # IANA protocol number of the packets that ip passes to this layer
    sockets: str = ""  # type of its sockets, as in the application protocol
    routes: bool = False  # ip sends it addresses and routes
    upper: bool = False  # part of the half that moves to a second core under load
    optional: bool = False  # booted only on request; without the layer its pipes do not exist either
    references: bool = False  # reads or writes payload in shared memory, to which records refer (bus.durable.held)


# From the bottom to the top, which is the order of boot; a stack stops in the reverse order.
ROWS = (
    Layer("link", 1, references=True),
    Layer("arp", 2),
    Layer("ip", 3, references=True),
    Layer("icmp", 4, protocol=1, sockets="ping", routes=True),
    Layer("udp", 5, protocol=17, sockets="dgram", routes=True, upper=True, references=True),
    Layer("tcp", 6, protocol=6, sockets="stream", routes=True, upper=True, references=True),
    Layer("raw", 8, sockets="raw", routes=True, upper=True, optional=True),
    Layer("sockets", 7, routes=True, upper=True, references=True),
)
LAYERS = {row.name: row.id for row in ROWS}
NAMES = {row.id: row.name for row in ROWS}
OPTIONAL = frozenset(row.name for row in ROWS if row.optional)
ALWAYS = tuple(row.name for row in ROWS if not row.optional)
REFERENCES = frozenset(row.name for row in ROWS if row.references)
UPPER_HALF = frozenset(row.name for row in ROWS if row.upper)
LINK, ARP, IP, ICMP, UDP, TCP, RAW, SOCKETS = map(
    LAYERS.__getitem__, ("link", "arp", "ip", "icmp", "udp", "tcp", "raw", "sockets"))


def transports(booted: Collection[str] = LAYERS) -> dict[int, int]:
    """{protocol number: layer id} of the transports among the booted layers."""
    return {row.protocol: row.id for row in ROWS if row.protocol is not None and row.name in booted}


def routed(booted: Collection[str] = LAYERS) -> tuple[int, ...]:
    """The ids of the booted layers to which ip sends addresses and routes."""
    return tuple(row.id for row in ROWS if row.routes and row.name in booted)


class Pipe(NamedTuple):
    """One direction between two neighbouring layers; `kinds` are the kinds of record that it may carry."""

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
    _pipe("link", "arp", "received ARP packets", ARP_IN),
    _pipe("link", "ip", "received IPv4 packets, still with the padding of their frame", PACKET, PACKET_HELD),
    _pipe("arp", "link", "ARP packets to send", ARP_OUT),
    _pipe("arp", "ip", "the link address of a neighbour, or that there is none: on request and at every change",
          NEIGHBOR, UNREACHABLE, FORGET),
    _pipe("ip", "arp", "addresses to resolve or to verify again, each of which arp answers; the stack's own addresses",
          RESOLVE, ROUTES),
    _pipe("ip", "link", "IPv4 packets to send, with the link address of their next hop", PACKET_OUT,
          PACKET_OUT_HELD),
    _pipe("ip", "icmp", "verified ICMP packets without padding; local errors; packets to send an ICMP error about",
          *_TRANSPORT_IN, REPORT_ERROR),
    _pipe("ip", "udp", "verified UDP packets without padding; local errors", *_TRANSPORT_IN),
    _pipe("ip", "sockets", "addresses and routes, at the start and at every change; replies about multicast groups",
          ROUTES, SOCKET_REPLY),
    _pipe("icmp", "ip", "ICMP messages to send; path MTUs and redirects from routers", TRANSMIT, PATH_MTU,
          REDIRECT),
    _pipe("udp", "ip", "UDP datagrams to send; path MTUs from routers", TRANSMIT, TRANSMIT_HELD, PATH_MTU),
    _pipe("icmp", "udp", "ICMP errors about UDP packets that the stack sent", ICMP_ERROR),
    _pipe("udp", "icmp", "packets to closed ports, to send an ICMP error about", REPORT_ERROR),
    _pipe("icmp", "sockets", "replies and errors for ping sockets", *_SERVICE_OUT, DATAGRAM_OPTIONS),
    _pipe("udp", "sockets", "datagrams and errors for UDP sockets; replies about their bindings", *_SERVICE_OUT,
          DATAGRAM_SEGMENTS, DATAGRAM_OPTIONS),
    _pipe("sockets", "ip", "multicast groups of sockets; the greeting, which ip answers with addresses and routes",
          MEMBERSHIP),
    _pipe("sockets", "icmp", "the desired state of ping sockets; messages to send", *_SERVICE_IN),
    _pipe("sockets", "udp", "the desired state of UDP sockets; datagrams to send", *_SERVICE_IN, SEND_SEGMENTS,
          SEND_SEGMENTS_HELD),
    _pipe("ip", "tcp", "verified TCP packets without padding; local errors", *_TRANSPORT_IN, PACKET_HELD),
    _pipe("tcp", "ip", "segments of tcp to send; path MTUs from routers; destinations that do not answer", TRANSMIT,
          TRANSMIT_HELD, PATH_MTU, NEGATIVE_ADVICE),
    _pipe("tcp", "icmp", "only the greeting of tcp at its start, which icmp answers"),
    _pipe("tcp", "sockets", "stream data; the state of connections; replies about TCP sockets", STREAM, STREAM_HELD,
          ROOM, ACCEPTED, STREAM_RESET, STREAM_INFO, SOCKET_REPLY, SOCKET_ERROR),
    _pipe("sockets", "tcp", "the desired state of TCP sockets; stream data; how far streams were read", SOCKET_SET,
          SOCKET_CLOSE, STREAM, STREAM_HELD, STREAM_MEMORY, READ, ACCEPT, STREAM_INFO),
    _pipe("ip", "raw", "copies of whole packets of the protocols that raw asked for, without padding; local errors",
          *_TRANSPORT_IN),
    _pipe("raw", "ip", "payloads and whole packets to send; path MTUs from routers; the protocols to copy",
          TRANSMIT, RAW_WANTED, PATH_MTU),
    _pipe("icmp", "raw", "ICMP errors about packets of any protocol that the stack sent", ICMP_ERROR),
    _pipe("raw", "icmp", "only the greeting of raw at its start, which icmp answers"),
    _pipe("raw", "sockets", "packets and errors for raw sockets; replies about them", *_SERVICE_OUT),
    _pipe("sockets", "raw", "the desired state of raw sockets; packets to send", *_SERVICE_IN),
)


def _implied(row: Layer) -> tuple[Pipe, ...]:
    """The usual pipes of a transport; a pipe in `_STATED` takes precedence."""
    return (
        _pipe("ip", row.name, f"verified packets of {row.name} without padding; local errors", *_TRANSPORT_IN),
        _pipe(row.name, "ip", f"segments of {row.name} to send; path MTUs from routers", TRANSMIT, PATH_MTU),
        _pipe("icmp", row.name, f"ICMP errors about packets that {row.name} sent", ICMP_ERROR),
        _pipe(row.name, "icmp", f"packets without a receiver in {row.name}, to send an ICMP error about", REPORT_ERROR),
    )


_stated_ends = {(pipe.producer, pipe.consumer) for pipe in _STATED}
PIPES = _STATED + tuple(pipe for row in ROWS if row.protocol is not None for pipe in _implied(row)
                        if row.name != "icmp" and (pipe.producer, pipe.consumer) not in _stated_ends)


def inputs(layer: str, booted: Collection[str] = LAYERS) -> dict[str, frozenset[int]]:
    """{producer: kinds that it may send} of the booted producers that send to `layer`."""
    return {pipe.producer: pipe.kinds for pipe in PIPES if pipe.consumer == layer and pipe.producer in booted}


def outputs(layer: str, booted: Collection[str] = LAYERS) -> list[str]:
    """The booted layers to which `layer` sends."""
    return [pipe.consumer for pipe in PIPES if pipe.producer == layer and pipe.consumer in booted]

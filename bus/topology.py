"""The one table of who talks to whom.

Launcher, layers, captures and the picture in the README are derived from `PIPES`. A pipe goes one way; the consumer
binds its inbox, the producer connects.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from bus.messages import (
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
    PACKET_CHECKED,
    PACKET_GROUP,
    PACKET_OUT,
    PACKET_OUT_PARTIAL,
    PACKET_OUT_SEGMENTS,
    PACKET_SEGMENTS,
    PATH_MTU,
    RAW_WANTED,
    REDIRECT,
    REPORT_ERROR,
    RESOLVE,
    ROUTES,
    SEND,
    SEND_SEGMENTS,
    SOCKET_CLOSE,
    SOCKET_ERROR,
    SOCKET_REPLY,
    SOCKET_SET,
    TRANSMIT,
    TRANSMIT_SEGMENTS,
    UNREACHABLE,
)

# Layers, by the id that stands in each frame as its sender. Clients draw ids from CLIENT_ID_MIN on: applications at the
# socket service, links at a wire's switch.
LINK, ARP, IP, ICMP, UDP, TCP, SOCKETS, RAW = range(1, 9)
DEVICE = 0  # in the calls of link's core: the TAP or wire below it
KEEPER = 255  # as consumer: the keeper, which shows NOTICES to people; over the control line, not a pipe
CLIENT_ID_MIN = 1 << 32
CLIENT_ID_END = 1 << 53  # what a JavaScript number holds exactly

LAYERS = {"link": LINK, "arp": ARP, "ip": IP, "icmp": ICMP, "udp": UDP, "sockets": SOCKETS, "raw": RAW}
OPTIONAL = frozenset({"raw"})  # booted only where the owner wants it; the pipes of a layer that is not do not exist
ALWAYS = tuple(name for name in LAYERS if name not in OPTIONAL)
NAMES = {number: name for name, number in LAYERS.items()}


class Pipe(NamedTuple):
    """One direction between two neighbours."""

    producer: str
    consumer: str
    kinds: frozenset[int]
    contract: str


def _pipe(producer: str, consumer: str, contract: str, *kinds: int) -> Pipe:
    return Pipe(producer, consumer, frozenset(kinds), contract)


_TRANSPORT_IN = (PACKET, PACKET_GROUP, ICMP_ERROR, ROUTES)
_SERVICE_IN = (SEND, SOCKET_SET, SOCKET_CLOSE)
_SERVICE_OUT = (DATAGRAM, SOCKET_ERROR, SOCKET_REPLY)

PIPES = (
    _pipe("link", "arp", "every ARP packet that reached us", ARP_IN),
    _pipe("link", "ip", "every IPv4 packet whose frame was for us, trailer not yet cut", PACKET, PACKET_GROUP,
          PACKET_CHECKED, PACKET_SEGMENTS),
    _pipe("arp", "link", "ARP packets to send", ARP_OUT),
    _pipe("arp", "ip", "what arp knows of a neighbour, whenever it changes or is asked", NEIGHBOR, UNREACHABLE,
          FORGET),
    _pipe("ip", "arp", "addresses to resolve or to verify again, each gets an answer; our own, whenever they change",
          RESOLVE, ROUTES),
    _pipe("ip", "link", "IPv4 packets whose next hop is resolved", PACKET_OUT, PACKET_OUT_PARTIAL, PACKET_OUT_SEGMENTS),
    _pipe("ip", "icmp", "checked ICMP packets, padding cut; local errors; packets to complain of",
          *_TRANSPORT_IN, PACKET_CHECKED, REPORT_ERROR),
    _pipe("ip", "udp", "checked UDP packets, padding cut; local errors", *_TRANSPORT_IN, PACKET_CHECKED,
          PACKET_SEGMENTS),
    _pipe("ip", "sockets", "addresses and routes, at the start and at every change; answers about groups", ROUTES,
          SOCKET_REPLY),
    _pipe("icmp", "ip", "ICMP messages to send; MTUs and redirects that routers told", TRANSMIT, PATH_MTU,
          REDIRECT),
    _pipe("udp", "ip", "UDP segments to send; MTUs that routers told about them", TRANSMIT, TRANSMIT_SEGMENTS,
          PATH_MTU),
    _pipe("icmp", "udp", "ICMP errors about UDP packets that we sent", ICMP_ERROR),
    _pipe("udp", "icmp", "packets to a port where nobody listens", REPORT_ERROR),
    _pipe("icmp", "sockets", "replies and errors for ping sockets", *_SERVICE_OUT, DATAGRAM_OPTIONS),
    _pipe("udp", "sockets", "datagrams and errors for UDP sockets, answers about their bindings", *_SERVICE_OUT,
          DATAGRAM_SEGMENTS, DATAGRAM_OPTIONS),
    _pipe("sockets", "ip", "multicast groups of sockets; the greeting, which ip answers with addresses and routes",
          MEMBERSHIP),
    _pipe("sockets", "icmp", "ping sockets as they shall be, messages to send", *_SERVICE_IN),
    _pipe("sockets", "udp", "UDP sockets as they shall be, datagrams to send", *_SERVICE_IN, SEND_SEGMENTS),
    _pipe("ip", "raw", "copies of the packets that raw wants, whole, padding cut; local errors", PACKET, PACKET_GROUP,
          ICMP_ERROR, ROUTES),
    _pipe("raw", "ip", "payloads and whole packets to send, MTUs told about them; the protocols that raw wants",
          TRANSMIT, RAW_WANTED, PATH_MTU),
    _pipe("icmp", "raw", "ICMP errors about packets that we sent, whatever their protocol", ICMP_ERROR),
    _pipe("raw", "icmp", "the greeting at its start, which icmp answers"),
    _pipe("raw", "sockets", "packets and errors for raw sockets, answers about them", *_SERVICE_OUT),
    _pipe("sockets", "raw", "raw sockets as they shall be, what they send", *_SERVICE_IN),
)


def inputs(layer: str, booted: Collection[str] = LAYERS) -> dict[str, frozenset[int]]:
    """The producers that feed `layer`, of those that are booted, and the kinds that each may send."""
    return {pipe.producer: pipe.kinds for pipe in PIPES if pipe.consumer == layer and pipe.producer in booted}


def outputs(layer: str, booted: Collection[str] = LAYERS) -> list[str]:
    """The consumers of `layer`, of those that are booted."""
    return [pipe.consumer for pipe in PIPES if pipe.producer == layer and pipe.consumer in booted]

"""What two neighbouring layers say to each other: the kinds of record, and what stands in them.

Records of data are packed structs, those of control MessagePack. Integers are little-endian, addresses and ports inside
packets are as on the wire. `decode_...` never raises anything but `ValueError` on foreign octets.

An address is octets of its family's width, 4 or 16, or none at all where there is no address (packets.addresses.ANY).
MessagePack has them as they are; JSON would carry them as base64 or text, which is longer, and a SocketState in JSON
takes half as long again to read. For people, `launcher.py capture --control` writes addresses as text.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Annotated, Literal, TypeVar

import msgspec

from packets.addresses import ANY, WIDTHS
from packets.ipv4 import TTL_DEFAULT
from usernet.pipe.messages import (  # noqa: F401  (shared with applications)
    BYE,
    CREDIT,
    CREDIT_RECORD,
    CREDIT_TOTAL,
    DATAGRAM,
    DATAGRAM_HEADER,
    DATAGRAM_HEADER_6,
    DATAGRAM_OPTIONS,
    DATAGRAM_OVERHEAD,
    DATAGRAM_SEGMENTS,
    FAMILY_4,
    FAMILY_6,
    HELLO,
    INTERFACE_INDEX,
    REPLY,
    REQUEST,
    RESUME,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    SEND,
    SEND_OPTIONS,
    SEND_SEGMENTS,
    SEND_TOS_GIVEN,
    SOCKET_ERROR,
    SocketError,
    datagram_header,
)
from usernet.pipe.streams import (
    ACCEPT,
    ACCEPTED,
    READ,
    ROOM,
    STREAM,
    STREAM_HELD,
    STREAM_INFO,
    STREAM_RESET,
)

# Kinds of record. Data (below 128): a full pipe drops the newest and counts it.
PACKET = 3  # PACKET_HEAD + a whole packet, its IP header first: for this host
PACKET_OUT = 5  # PACKET_OUT_HEAD + a whole packet, for link to send
ARP_IN = 6  # an ARP packet, without its Ethernet header
ARP_OUT = 7  # destination MAC (6 octets) + ARP packet
TRANSMIT = 8  # TRANSMIT_HEAD + IP options + transport segment, for ip to wrap and send
REPORT_ERROR = 9  # REPORT_HEAD + a PACKET record, cut to QUOTE_OCTETS of packet: icmp shall tell its sender
ICMP_ERROR = 10  # ERROR_HEAD + the start of the packet of ours that an ICMP error quotes, its IP header first
ETHERNET = 11  # a whole Ethernet frame, between a link and the switch of its wire
PATH_MTU = 12  # PATH_MTU_HEAD + destination: a router could not pass a packet of ours on without fragmenting it
REDIRECT = 20  # destination, gateway that is nearer to it, gateway that says so: addresses of one width

# Control (from 128): never dropped. Streams (160 to 191, usernet.pipe.streams): never dropped either, bounded by
# credit; behind a full pipe they merge.
RESOLVE = 140  # address whose MAC is wanted
NEIGHBOR = 141  # address + MAC (6 octets): reachable there
UNREACHABLE = 142  # address: no answer came
ROUTES = 143  # MessagePack Routes: the addresses and routes as they are now
SOCKET_SET = 144  # MessagePack SocketState: this is how the socket shall be (idempotent)
SOCKET_REPLY = 145  # MessagePack SocketReply: what became of it
SOCKET_CLOSE = 146  # handle (4 octets, little-endian)
FORGET = 147  # address: what was known of it holds no longer; ask again
NOTICES = 148  # MessagePack list of Notice: all that hold now
MEMBERSHIP = 150  # MessagePack Membership: the multicast groups of a socket as they shall be (idempotent)
RAW_WANTED = 149  # protocol numbers, an octet each: packets of which raw wants copies from now on

CONTROL_KIND_MIN = 128
STRUCTURED = frozenset({ROUTES, SOCKET_SET, SOCKET_REPLY, NOTICES, MEMBERSHIP})  # MessagePack
KIND_NAMES = {
    SEND: "SEND",
    DATAGRAM: "DATAGRAM",
    SEND_SEGMENTS: "SEND_SEGMENTS",
    DATAGRAM_SEGMENTS: "DATAGRAM_SEGMENTS",
    DATAGRAM_OPTIONS: "DATAGRAM_OPTIONS",
    HELLO: "HELLO",
    RESUME: "RESUME",
    REQUEST: "REQUEST",
    REPLY: "REPLY",
    CREDIT: "CREDIT",
    SOCKET_ERROR: "SOCKET_ERROR",
    BYE: "BYE",
    PACKET: "PACKET",
    PACKET_OUT: "PACKET_OUT",
    ARP_IN: "ARP_IN",
    ARP_OUT: "ARP_OUT",
    TRANSMIT: "TRANSMIT",
    REPORT_ERROR: "REPORT_ERROR",
    ICMP_ERROR: "ICMP_ERROR",
    ETHERNET: "ETHERNET",
    PATH_MTU: "PATH_MTU",
    REDIRECT: "REDIRECT",
    RESOLVE: "RESOLVE",
    NEIGHBOR: "NEIGHBOR",
    UNREACHABLE: "UNREACHABLE",
    ROUTES: "ROUTES",
    SOCKET_SET: "SOCKET_SET",
    SOCKET_REPLY: "SOCKET_REPLY",
    SOCKET_CLOSE: "SOCKET_CLOSE",
    FORGET: "FORGET",
    NOTICES: "NOTICES",
    MEMBERSHIP: "MEMBERSHIP",
    RAW_WANTED: "RAW_WANTED",
    STREAM: "STREAM",
    STREAM_HELD: "STREAM_HELD",
    READ: "READ",
    ROOM: "ROOM",
    ACCEPT: "ACCEPT",
    ACCEPTED: "ACCEPTED",
    STREAM_RESET: "STREAM_RESET",
    STREAM_INFO: "STREAM_INFO",
}

# Heads of packets. They are in network byte order, so that one Struct reads head and protocol header together. These
# are those of family 4 (IPv4); addresses are octets of their family's width. Segment size: 0, or of a super-packet
# (packets.offload) the octets of payload in each of its packets but perhaps the last.
WIDTH_OF_FAMILY = dict(zip((FAMILY_4, FAMILY_6), WIDTHS, strict=True))
INTERFACE = 1  # the only one; 0 in a TRANSMIT: the route's

# Interface, family, flags, octets of IP header, segment size, protocol, TTL, TOS, 0, source, destination. link says
# interface, family, flags and segment size; the rest is zero, and the packet's padding not yet cut.
PACKET_HEAD = Struct("!BBBBHBBBx4s4s")
FLAG_GROUP = 1  # its frame or packet went to a broadcast or multicast address: never answered by an error
FLAG_CHECKSUM_KNOWN = 2  # the transport's checksum was verified by the device
FLAG_CHECKSUM_PARTIAL = 4  # it is the pseudo header's sum alone (packets.offload): nothing can have spoilt it
FLAG_CHECKED = FLAG_CHECKSUM_KNOWN | FLAG_CHECKSUM_PARTIAL  # nothing is left to verify
FLAG_LOOPED = 8  # from this host itself

# Interface, family, flags (FLAG_CHECKSUM_PARTIAL), protocol, segment size, destination MAC.
PACKET_OUT_HEAD = Struct("!BBBBH6s")

# Segment size, interface, family, flags, protocol, TTL, TOS, octets of IP options, source (0: the route's),
# destination.
TRANSMIT_HEAD = Struct("!HBBHBBBB4s4s")
TRANSMIT_DONT_FRAGMENT = 1  # set DF, unless ip itself fragments
TRANSMIT_BROADCAST = 2  # the sender has leave to broadcast (SO_BROADCAST)
TRANSMIT_MAY_FRAGMENT = 4  # ip fragments what is too long; without it, that is a local error
TRANSMIT_IGNORE_PATH_MTU = 8  # too long is what the interface cannot carry, whatever was learnt of the path
TRANSMIT_PARTIAL = 16  # the segment's checksum is partial, of a protocol in packets.offload.CHECKSUM_AT
TRANSMIT_WHOLE = 32  # behind the head: a whole packet with its IP header, as it shall be sent; protocol as in there
TRANSMIT_RECORD = 64  # ip records our address and the time in those options that ask for it
TRANSMIT_LOOP = 128  # to a multicast group: our own members of it get a copy (IP_MULTICAST_LOOP)

# ip(7), IP_MTU_DISCOVER: what each of its values asks of ip. DONT, WANT, DO, PROBE, INTERFACE, OMIT.
MTU_DISCOVER_MAX = 5
TRANSMIT_OF_MTU_DISCOVER = (
    TRANSMIT_MAY_FRAGMENT,
    TRANSMIT_DONT_FRAGMENT | TRANSMIT_MAY_FRAGMENT,
    TRANSMIT_DONT_FRAGMENT,
    TRANSMIT_DONT_FRAGMENT | TRANSMIT_IGNORE_PATH_MTU,
    TRANSMIT_IGNORE_PATH_MTU,
    TRANSMIT_IGNORE_PATH_MTU | TRANSMIT_MAY_FRAGMENT,
)

# Type, code, origin (SO_EE_ORIGIN_*), family, info (MTU or pointer), octets of the whole quoted packet, its protocol,
# octets of its IP header, offender, source and destination of the quoted packet.
ERROR_HEAD = Struct("!BBBBIHBB4s4s4s")
REPORT_HEAD = Struct("!BBxxI")  # type, code, info (MTU or pointer)
QUOTE_OCTETS = 576  # RFC 1812 section 4.3.2.3: no ICMP error is longer, so no more of a packet can be quoted
PATH_MTU_HEAD = Struct("!HH")  # the next hop's MTU (0: the router did not say), octets of the packet that it refused
ORIGIN_LOCAL = 1  # ip(7): SO_EE_ORIGIN_LOCAL
ORIGIN_ICMP = 2  # ip(7): SO_EE_ORIGIN_ICMP


class Route(msgspec.Struct, frozen=True, array_like=True):
    """One route. `gateway` ANY: the destination is on the link. `source` ANY, of a chosen route: ip finds one."""

    network: bytes
    prefix: int
    gateway: bytes
    source: bytes
    mtu: int
    metric: int = 0


class Routes(msgspec.Struct, frozen=True):
    """What ip tells its upper neighbours: own addresses (address, prefix length) and routes, of all families."""

    addresses: list[tuple[bytes, int]]
    routes: list[Route]


Address = Annotated[bytes, msgspec.Meta(max_length=16)]  # of either width, or ANY


class SourceFilter(msgspec.Struct, frozen=True, array_like=True):
    """What a socket wants of a group (RFC 3376 section 2): all sources but these (`exclude`), or these only."""

    group: Address
    exclude: bool = True
    sources: tuple[Address, ...] = ()
    emptied: bool = False  # its sources were taken away one by one: on Linux, its mode cannot be changed so any more

    def allows(self, source: bytes) -> bool:
        """Whether a datagram from `source` is wanted."""
        return (source in self.sources) != self.exclude


class Membership(msgspec.Struct, frozen=True):
    """The groups that a socket has joined, all of them: none for a socket that is closed.

    `request` comes back in the reply; 0: none is wanted. The same may be sent again at any time.
    """

    handle: Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFFFF)]
    groups: tuple[SourceFilter, ...] = ()
    request: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


class SocketState(msgspec.Struct, frozen=True, kw_only=True):
    """How a socket shall be, as sockets tells it to a transport. Its addresses are ANY or of its family.

    `request` comes back in the reply; the same state may be sent again at any time.
    """

    handle: int
    request: int
    family: Literal[4, 6] = 4  # FAMILY_4, FAMILY_6
    local: Address = ANY
    port: int = 0  # 0 with `bind`: choose one
    bind: bool = False  # a local port is wanted
    peer: Address = ANY
    peer_port: int = 0  # 0 and peer ANY: not connected
    reuse_address: bool = False
    reuse_port: bool = False
    broadcast: bool = False
    ttl: int = TTL_DEFAULT
    tos: int = 0
    multicast_ttl: int = 1
    mtu_discover: Annotated[int, msgspec.Meta(ge=0, le=MTU_DISCOVER_MAX)] = 1  # ip(7), IP_MTU_DISCOVER: WANT
    receive_errors: bool = False
    ip_options: Annotated[bytes, msgspec.Meta(max_length=40)] = b""  # whole words (IP_OPTIONS)
    receive_options: bool = False  # it is told those that came (DATAGRAM_OPTIONS)
    multicast_interface: Address = ANY  # source of multicasts, where the socket has none of its own
    multicast_loop: bool = True
    multicast_all: bool = True  # hears groups that others have joined, too (ip(7), IP_MULTICAST_ALL)
    groups: tuple[SourceFilter, ...] = ()
    protocol: int = 0  # this and all below: of raw sockets
    header_included: bool = False  # it sends whole packets (IP_HDRINCL)
    icmp_filter: int = 0  # bit n: it does not want ICMP messages of type n (ICMP_FILTER)

    def listens(self, group: bytes, source: bytes) -> bool:
        """As Linux's ip_mc_sf_allow: its own filter for the group; without one, what IP_MULTICAST_ALL says."""
        for joined in self.groups:
            if joined.group == group:
                return joined.allows(source)
        return self.multicast_all


# What the numbers in a SocketState stay below; packing anything larger would raise.
_LIMITS = {"handle": 2**32, "request": 2**64, "port": 2**16, "peer_port": 2**16, "ttl": 256, "tos": 256,
           "multicast_ttl": 256, "protocol": 256}  # fmt: skip


def in_range(socket: SocketState) -> bool:
    """Whether its numbers and addresses fit the packed records that they go into. Handles start at 1."""
    words = len(socket.ip_options) % 4 == 0
    width = WIDTH_OF_FAMILY[socket.family]
    addresses = (address for address in (socket.local, socket.peer, socket.multicast_interface) if address)
    fits = all(len(address) == width and any(address) for address in addresses)
    return socket.handle > 0 and words and fits and all(
        0 <= getattr(socket, name) < limit for name, limit in _LIMITS.items())


class SocketReply(msgspec.Struct, frozen=True, kw_only=True):
    """What a transport made of a SocketState, or ip of a Membership. `errno` 0: done, and durably stored."""

    handle: int
    request: int
    errno: int = 0
    local: Address = ANY
    port: int = 0


class Notice(msgspec.Struct, frozen=True):
    """Something that people should know for as long as it lasts: `status` shows it, `events` its beginning and end."""

    event: str  # its name in `events`
    detail: str  # a sentence for a person
    facts: tuple[tuple[str, str], ...] = ()  # the same for a program: names and values


T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A function from a record of control to `kind` that raises ValueError for anything else."""
    decode = msgspec.msgpack.Decoder(kind).decode

    def checked(octets: bytes) -> T:
        try:
            return decode(octets)
        except RecursionError as error:  # nested deeper than Python's stack, in a field nobody asked for
            raise ValueError("nested too deep") from error

    return checked


decode_routes = decoder(Routes)
decode_notices = decoder(list[Notice])
decode_socket_state = decoder(SocketState)
decode_membership = decoder(Membership)
decode_socket_reply = decoder(SocketReply)

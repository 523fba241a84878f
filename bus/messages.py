"""The records between layers: their kinds and their formats.

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

from packets.addresses import ANY, WIDTHS, is_unspecified
from packets.ipv4 import TTL_DEFAULT
from usernet.pipe.messages import (  # noqa: F401  (shared with applications)
    BYE,
    CREDIT,
    CREDIT_RECORD,
    CREDIT_TOTAL,
    DATAGRAM,
    DATAGRAM_COST,
    DATAGRAM_HEADER,
    DATAGRAM_HEADER_6,
    DATAGRAM_OPTIONS,
    DATAGRAM_OVERHEAD,
    DATAGRAM_SEGMENTS,
    FAMILY_4,
    FAMILY_6,
    HELLO,
    INTERFACE_INDEX,
    LOOPBACK_INDEX,
    REPLY,
    REQUEST,
    RESUME,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    SEND,
    SEND_OPTIONS,
    SEND_SEGMENTS,
    SEND_SEGMENTS_HELD,
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
    STREAM_MEMORY,
    STREAM_RESET,
)

# Kinds of record. Data (below 128): a full pipe drops the newest and counts it.
PACKET = 3  # PACKET_HEAD + a whole packet, its IP header first: for this host
PACKET_OUT = 5  # PACKET_OUT_HEAD + a whole packet, for link to send
ARP_IN = 6  # an ARP packet, without its Ethernet header
ARP_OUT = 7  # destination MAC (6 octets) + ARP packet
TRANSMIT = 8  # TRANSMIT_HEAD + IP options + transport segment; ip adds the header and sends it
REPORT_ERROR = 9  # REPORT_HEAD + a PACKET record with at most QUOTE_OCTETS of packet; icmp sends an error to its sender
ICMP_ERROR = 10  # ERROR_HEAD + the start of the packet that an ICMP error quotes, from its IP header on
ETHERNET = 11  # a whole Ethernet frame, behind a virtio_net_hdr if the device has offload
ETHERNET_OFFLOAD = 45  # the same on a wire, always behind a virtio_net_hdr; ETHERNET there is always without
PATH_MTU = 12  # PATH_MTU_HEAD + destination: a router could not forward a packet without fragmenting it
NEGATIVE_ADVICE = 22  # a destination whose answers stay out (RFC 1122 section 3.3.1.4): is its gateway alive?
TRANSMIT_HELD = 40  # these: as TRANSMIT, PACKET_OUT, ETHERNET, PACKET with a reference in place of the payload
PACKET_OUT_HELD = 41  # (bus.durable.held)
ETHERNET_HELD = 42  # from and to the device
PACKET_HELD = 43  # (44 is SEND_SEGMENTS_HELD, 45 ETHERNET_OFFLOAD)
REDIRECT = 20  # destination, better gateway, gateway that sent the redirect: addresses of one width

# Control (from 128 on): never dropped. Streams (160 to 191, usernet.pipe.streams): never dropped, bounded by credit;
# behind a full pipe they are merged.
RESOLVE = 140  # an address to resolve
NEIGHBOR = 141  # address + MAC (6 octets) of a neighbour
UNREACHABLE = 142  # an address that did not answer
ROUTES = 143  # MessagePack Routes: the present addresses and routes
SOCKET_SET = 144  # MessagePack SocketState: the desired state of a socket (idempotent)
SOCKET_REPLY = 145  # MessagePack SocketReply: the result
SOCKET_CLOSE = 146  # handle (4 octets, little-endian)
FORGET = 147  # an address whose entry is no longer valid; resolve it again
NOTICES = 148  # MessagePack list of Notice: all that hold now
MEMBERSHIP = 150  # MessagePack Membership: the desired multicast groups of a socket (idempotent)
RAW_WANTED = 149  # protocol numbers, one octet each: raw wants copies of their packets from now on

CONTROL_KIND_MIN = 128
# {kind: the same without reference}
HELD_OF = {TRANSMIT_HELD: TRANSMIT, PACKET_OUT_HELD: PACKET_OUT, ETHERNET_HELD: ETHERNET, PACKET_HELD: PACKET,
           SEND_SEGMENTS_HELD: SEND_SEGMENTS}
PACKET_HELD_MAX = 65535  # octets that a reference may name: no packet is longer
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
    NEGATIVE_ADVICE: "NEGATIVE_ADVICE",
    TRANSMIT_HELD: "TRANSMIT_HELD",
    PACKET_OUT_HELD: "PACKET_OUT_HELD",
    ETHERNET_HELD: "ETHERNET_HELD",
    ETHERNET_OFFLOAD: "ETHERNET_OFFLOAD",
    PACKET_HELD: "PACKET_HELD",
    SEND_SEGMENTS_HELD: "SEND_SEGMENTS_HELD",
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
    STREAM_MEMORY: "STREAM_MEMORY",
}

# Heads of packets, in network byte order, so that one Struct reads a head and a protocol header together. These are the
# heads for family 4 (IPv4); addresses have the width of their family. Segment size: 0, or for a super-packet
# (packets.offload) the octets of payload in each of its packets except perhaps the last.
WIDTH_OF_FAMILY = dict(zip((FAMILY_4, FAMILY_6), WIDTHS, strict=True))
INTERFACE = 1  # the only interface; in a TRANSMIT 0 means that of the route

# Interface, family, flags, octets of IP header, segment size, protocol, TTL, TOS, 0, source, destination. link sets
# interface, family, flags and segment size; the rest is zero, and the packet still has its padding.
PACKET_HEAD = Struct("!BBBBHBBBx4s4s")
FLAG_GROUP = 1  # the frame or packet was sent to a broadcast or multicast address: never answer it by an error
FLAG_CHECKSUM_KNOWN = 2  # the device has verified the transport's checksum
# the checksum is only the sum of the pseudo header (packets.offload): the packet cannot be corrupt
FLAG_CHECKSUM_PARTIAL = 4
FLAG_CHECKED = FLAG_CHECKSUM_KNOWN | FLAG_CHECKSUM_PARTIAL  # the checksum need not be verified
FLAG_LOOPED = 8  # from this host itself

# Interface, family, flags (FLAG_CHECKSUM_PARTIAL), protocol, segment size, destination MAC.
PACKET_OUT_HEAD = Struct("!BBBBH6s")

# Segment size, interface, family, flags, protocol, TTL, TOS, octets of IP options, source (0: the route's),
# destination.
TRANSMIT_HEAD = Struct("!HBBHBBBB4s4s")
TRANSMIT_DONT_FRAGMENT = 1  # set DF, unless ip itself fragments it
TRANSMIT_BROADCAST = 2  # the sender is permitted to broadcast (SO_BROADCAST)
TRANSMIT_MAY_FRAGMENT = 4  # ip fragments a packet that is too long; otherwise that is a local error
TRANSMIT_IGNORE_PATH_MTU = 8  # only the MTU of the interface counts, not the path MTU
TRANSMIT_PARTIAL = 16  # the segment's checksum is partial; only for a protocol in packets.offload.CHECKSUM_AT
TRANSMIT_WHOLE = 32  # the head is followed by a whole packet with its IP header; protocol as in that header
TRANSMIT_RECORD = 64  # ip records its address and the time in the options that ask for it
TRANSMIT_LOOP = 128  # to a multicast group: members on this host get a copy (IP_MULTICAST_LOOP)

# ip(7), IP_MTU_DISCOVER: the TRANSMIT flags for each value. DONT, WANT, DO, PROBE, INTERFACE, OMIT.
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
# RFC 1812 section 4.3.2.3: the maximum length of an ICMP error, so no more of a packet can be quoted
QUOTE_OCTETS = 576
PATH_MTU_HEAD = Struct("!HH")  # MTU of the next hop (0: not reported), octets of the packet that the router refused
ORIGIN_LOCAL = 1  # ip(7): SO_EE_ORIGIN_LOCAL
ORIGIN_ICMP = 2  # ip(7): SO_EE_ORIGIN_ICMP


class Route(msgspec.Struct, frozen=True, array_like=True):
    """One route. `gateway` ANY: the destination is on the link. `source` ANY in a configured route: ip selects one."""

    network: bytes
    prefix: int
    gateway: bytes
    source: bytes
    mtu: int
    metric: int = 0


class Routes(msgspec.Struct, frozen=True):
    """The own addresses (address, prefix length) and routes of all families, from ip to the layers above."""

    addresses: list[tuple[bytes, int]]
    routes: list[Route]


Address = Annotated[bytes, msgspec.Meta(max_length=16)]  # an address of either width, or ANY


class SourceFilter(msgspec.Struct, frozen=True, array_like=True):
    """The sources that a socket wants of a group (RFC 3376 section 2): all but these (`exclude`), or only these."""

    group: Address
    exclude: bool = True
    sources: tuple[Address, ...] = ()
    emptied: bool = False  # its sources were removed one by one; on Linux, such a filter's mode cannot be changed

    def allows(self, source: bytes) -> bool:
        """True if the socket wants datagrams from `source`."""
        return (source in self.sources) != self.exclude


class Membership(msgspec.Struct, frozen=True):
    """All groups that a socket has joined; none for a closed socket.

    `request` is returned in the reply; 0: no reply is wanted. The same record may be sent repeatedly.
    """

    handle: Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFFFF)]
    groups: tuple[SourceFilter, ...] = ()
    request: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


class SocketState(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of a socket, from sockets to a transport. Its addresses are ANY or of its family.

    `request` is returned in the reply. The same record may be sent repeatedly.
    """

    handle: int
    request: int
    family: Literal[4, 6] = 4  # FAMILY_4, FAMILY_6
    local: Address = ANY
    port: int = 0  # 0 with `bind`: choose an ephemeral port
    bind: bool = False  # bind to a local port
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
    receive_options: bool = False  # the application gets the options of datagrams (DATAGRAM_OPTIONS)
    multicast_interface: Address = ANY  # source of multicasts if the socket has no address
    multicast_loop: bool = True
    multicast_all: bool = True  # receive packets to groups of other sockets, too (ip(7), IP_MULTICAST_ALL)
    groups: tuple[SourceFilter, ...] = ()
    protocol: int = 0  # this and the following fields: for raw sockets
    header_included: bool = False  # it sends packets with their IP header (IP_HDRINCL)
    icmp_filter: int = 0  # bit n: discard ICMP messages of type n (ICMP_FILTER)

    def listens(self, group: bytes, source: bytes) -> bool:
        """As Linux's ip_mc_sf_allow: the socket's own filter for the group decides; without one, IP_MULTICAST_ALL."""
        for joined in self.groups:
            if joined.group == group:
                return joined.allows(source)
        return self.multicast_all


def arrived_on(flags: int) -> int:
    """The index of the interface on which a packet with these flags arrived, as Linux says it (IP_PKTINFO)."""
    return LOOPBACK_INDEX if flags & (FLAG_LOOPED | FLAG_GROUP) == FLAG_LOOPED else INTERFACE_INDEX


def in_range(socket: SocketState) -> bool:
    """True if its numbers and addresses fit into the packed records. Handles start at 1."""
    width = WIDTH_OF_FAMILY[socket.family]
    for address in (socket.local, socket.peer, socket.multicast_interface):
        if address and (len(address) != width or is_unspecified(address)):
            return False
    return (
        0 < socket.handle < 1 << 32 and 0 <= socket.request < 1 << 64
        and 0 <= socket.port < 1 << 16 and 0 <= socket.peer_port < 1 << 16
        and 0 <= socket.ttl < 256 and 0 <= socket.multicast_ttl < 256 and 0 <= socket.tos < 256
        and 0 <= socket.protocol < 256 and len(socket.ip_options) % 4 == 0
    )


class SocketReply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply of a transport to a SocketState, or of ip to a Membership. `errno` 0: done and durably stored."""

    handle: int
    request: int
    errno: int = 0
    local: Address = ANY
    port: int = 0


class Notice(msgspec.Struct, frozen=True):
    """A condition that is of interest to the user while it lasts: `status` shows it, `events` its beginning and end."""

    event: str  # its name in `events`
    detail: str  # a sentence for the user
    facts: tuple[tuple[str, str], ...] = ()  # the same for programs: names and values


T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A function that decodes a control record to `kind`. It raises ValueError for anything else."""
    decode = msgspec.msgpack.Decoder(kind).decode

    def checked(octets: bytes) -> T:
        try:
            return decode(octets)
        except RecursionError as error:  # nested deeper than Python's stack, in an unknown field
            raise ValueError("nested too deep") from error

    return checked


decode_routes = decoder(Routes)
decode_notices = decoder(list[Notice])
decode_socket_state = decoder(SocketState)
decode_membership = decoder(Membership)
decode_socket_reply = decoder(SocketReply)

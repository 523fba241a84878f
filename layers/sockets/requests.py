"""The requests of applications, and their decoding (docs/app-protocol.md)."""

from __future__ import annotations

import errno
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Annotated, Literal

import msgspec

from packets.addresses import ANY, is_unspecified

REQUEST_OCTETS_MAX = 4096
SHARE_MAX = 256  # sockets in a request
LIST_MAX = 256  # sockets per answer to `list`
REQUEST_ID_MAX = 1 << 53  # JSON numbers of every language are exact below it

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
NUMBER_MAX = 0xFFFFFFFF
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
Total = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
Protocol = Annotated[int, msgspec.Meta(ge=0, le=255)]
RequestId = Annotated[int, msgspec.Meta(ge=1, le=REQUEST_ID_MAX)]


class Refused(Exception):
    """The request is answered by the error `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


class Request(msgspec.Struct, frozen=True, tag_field="op", kw_only=True):
    """Any request; `id` is returned in the answer."""

    id: RequestId


class OnSocket(Request, frozen=True):
    """A request about one socket."""

    handle: Number


class Open(Request, frozen=True, tag="socket"):
    """A new socket."""

    type: Literal["dgram", "ping", "raw", "stream"]
    family: Literal[4, 6] = 4
    protocol: Protocol = 0  # of a raw socket
    segments: bool = False  # the application understands DATAGRAM_SEGMENTS


class Bind(OnSocket, frozen=True, tag="bind"):
    """Bind to a local address and port; 0: any."""

    address: str
    port: Port


class Connect(OnSocket, frozen=True, tag="connect"):
    """Address 0.0.0.0 dissolves the connection."""

    address: str
    port: Port
    fast_open: bool = False  # of a stream: its first octets may leave with the SYN (RFC 7413)


class Listen(OnSocket, frozen=True, tag="listen"):
    """Make a stream socket a listener, or change its backlog."""

    backlog: Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Prepare(OnSocket, frozen=True, tag="prepare"):
    """Before the first datagram to a destination: is it permitted, from which source (from `source`, if given), how
    large?"""

    address: str
    port: Port
    source: str = ""


class SetOption(OnSocket, frozen=True, tag="setsockopt"):
    """`value` is an integer, or the octets of a C structure."""

    level: int
    name: int
    value: int | bytes


class GetOption(OnSocket, frozen=True, tag="getsockopt"):
    """The value of an option; `value`: the C structure of the question, if the option has one."""

    level: int
    name: int
    value: bytes = b""


class GetName(OnSocket, frozen=True, tag="getsockname"):
    """The local address and port."""


class GetPeer(OnSocket, frozen=True, tag="getpeername"):
    """The connected peer."""


class Close(OnSocket, frozen=True, tag="close"):
    """Close the socket. The fields are for streams: docs/decisions/streams.md, SOCKET_CLOSE."""

    linger: Annotated[int, msgspec.Meta(ge=-1, le=0)] = -1  # 0: reset
    end: Total = -1  # number of octets written; -1: as many as have arrived
    read: Total = -1  # number of octets that the application has taken; -1: all


class Share(Request, frozen=True, tag="share"):
    """After a fork: become an owner of sockets of the parent."""

    owner: RequestId  # id of the parent's connection
    handles: Annotated[list[Number], msgspec.Meta(max_length=SHARE_MAX)]


class Take(OnSocket, frozen=True, tag="take"):
    """A shared connection now belongs to this process."""


class GiveBack(OnSocket, frozen=True, tag="giveback"):
    """Connections to a listener, now shared, that arrived before the fork and were not accepted."""

    connections: Annotated[list[Number], msgspec.Meta(max_length=SHARE_MAX)]


class List(Request, frozen=True, tag="list"):
    """Sockets of all applications whose handle is greater than `after`."""

    after: Number = 0


class _Envelope(msgspec.Struct):
    id: RequestId
    op: str


_OPERATIONS = (Open, Bind, Connect, Listen, Prepare, SetOption, GetOption, GetName, GetPeer, Close, Share, Take,
               GiveBack, List)
_KNOWN = {operation.__struct_config__.tag for operation in _OPERATIONS}
_decode = msgspec.json.Decoder(
    Open | Bind | Connect | Listen | Prepare | SetOption | GetOption | GetName | GetPeer | Close | Share | Take
    | GiveBack | List
).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def decode(record: bytes) -> tuple[int, Request | None, int]:
    """(id, request, 0), or (id, None, errno) for an invalid one; the id is 0 if it is unknown."""
    if len(record) > REQUEST_OCTETS_MAX:
        return 0, None, errno.EPROTO
    try:
        request = _decode(record)
        return request.id, request, 0
    except (ValueError, RecursionError):  # RecursionError: JSON nested too deeply
        pass
    try:
        envelope = _decode_envelope(record)
    except (ValueError, RecursionError):
        return 0, None, errno.EPROTO
    return envelope.id, None, errno.EINVAL if envelope.op in _KNOWN else errno.ENOSYS


def parse_address(text: str) -> bytes:
    """The octets of a dotted-quad address, ANY for 0.0.0.0. Refused: EAFNOSUPPORT for an IPv6 address, else EINVAL."""
    try:
        address = IPv4Address(text).packed
        return ANY if is_unspecified(address) else address
    except AddressValueError:
        pass
    try:
        IPv6Address(text)  # may contain the index of its zone, as in RFC 4007 section 11
    except AddressValueError:
        raise Refused(errno.EINVAL) from None
    raise Refused(errno.EAFNOSUPPORT)

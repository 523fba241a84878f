"""The C structures of multicast options: ip(7), and RFC 3678 for those of MCAST_ options.

Sizes and errors are those of Linux (net/ipv4/ip_sockglue.c). Numbers are in the machine's byte order.
"""

from __future__ import annotations

import errno
from struct import Struct
from sys import byteorder
from typing import NamedTuple

from bus.messages import INTERFACE_INDEX
from layers.common import source_address
from layers.common.routes import RouteTable
from layers.sockets.requests import Refused
from packets.addresses import ANY, is_unspecified

SOURCES_MAX = 10  # Linux net.ipv4.igmp_max_msf
MCAST_EXCLUDE, MCAST_INCLUDE = 0, 1  # linux/in.h

_AF_INET = 2
_MREQ = Struct("4s4s")  # struct ip_mreq: group, address of an interface
_MREQN = Struct("4s4s4s")  # struct ip_mreqn: the same, and the interface's index
_MREQ_SOURCE = Struct("4s4s4s")  # struct ip_mreq_source on Linux: group, address of an interface, source
_MSFILTER = Struct("4s4s4s4s")  # struct ip_msfilter: group, address of an interface, mode, count; sources follow
_STORAGE_OCTETS = 128  # struct sockaddr_storage
_INDEX_OCTETS = 8  # index of an interface, and padding
_GROUP_REQ_OCTETS = _INDEX_OCTETS + _STORAGE_OCTETS
_GROUP_SOURCE_REQ_OCTETS = _GROUP_REQ_OCTETS + _STORAGE_OCTETS
_GROUP_FILTER_OCTETS = _GROUP_REQ_OCTETS + 8  # then mode, count; sources follow


class Interface(NamedTuple):
    """An interface given by its index, by its address, or, with neither, by the route to the group."""

    number: int
    address: bytes  # ANY: none

    def is_ours(self, group: bytes, routes: RouteTable) -> bool:
        """As Linux's ip_mc_find_dev."""
        if self.number:
            return self.number == INTERFACE_INDEX
        if self.address:
            return routes.is_local(self.address)
        return source_address.of_destination(routes, group) is not None


class Membership(NamedTuple):
    """A group, and the sources of an option."""

    interface: Interface
    group: bytes
    sources: tuple[bytes, ...] = ()
    mode: int = MCAST_EXCLUDE
    room: int = 0  # number of sources that fit into the answer


def mreq(octets: bytes) -> Membership:
    """Decode a struct ip_mreq or ip_mreqn."""
    if len(octets) >= _MREQN.size:
        group, address, index = _MREQN.unpack_from(octets)
        return Membership(Interface(int.from_bytes(index, byteorder, signed=True), _named(address)), group)
    if len(octets) < _MREQ.size:
        raise Refused(errno.EINVAL)
    group, address = _MREQ.unpack_from(octets)
    return Membership(Interface(0, _named(address)), group)


def mreq_source(octets: bytes) -> Membership:
    """Decode a struct ip_mreq_source."""
    if len(octets) != _MREQ_SOURCE.size:
        raise Refused(errno.EINVAL)
    group, address, source = _MREQ_SOURCE.unpack(octets)
    return Membership(Interface(0, _named(address)), group, (source,))


def group_req(octets: bytes) -> Membership:
    """Decode a struct group_req."""
    if len(octets) < _GROUP_REQ_OCTETS:
        raise Refused(errno.EINVAL)
    return Membership(_interface(octets), _stored(octets, _INDEX_OCTETS, errno.EINVAL))


def group_source_req(octets: bytes) -> Membership:
    """Decode a struct group_source_req."""
    if len(octets) != _GROUP_SOURCE_REQ_OCTETS:
        raise Refused(errno.EINVAL)
    group, source = (_stored(octets, at, errno.EADDRNOTAVAIL) for at in (_INDEX_OCTETS, _GROUP_REQ_OCTETS))
    return Membership(_interface(octets), group, (source,))


def msfilter(octets: bytes, question: bool = False) -> Membership:
    """Decode a struct ip_msfilter; in a question it has no sources."""
    if len(octets) < _MSFILTER.size:
        raise Refused(errno.EINVAL)
    group, address = _MREQ.unpack_from(octets)
    mode, count = _mode_and_count(octets, _MREQ.size)
    interface = Interface(0, _named(address))
    if question:
        return Membership(interface, group, room=count)
    rest = _sources(octets[_MSFILTER.size :], count, 4)
    return Membership(interface, group, tuple(rest), mode)


def group_filter(octets: bytes, question: bool = False) -> Membership:
    """Decode a struct group_filter; in a question it has no sources."""
    if len(octets) < _GROUP_FILTER_OCTETS:
        raise Refused(errno.EINVAL)
    mode, count = _mode_and_count(octets, _GROUP_REQ_OCTETS)
    interface = _interface(octets)
    if question:
        return Membership(interface, _stored(octets, _INDEX_OCTETS, errno.EINVAL), room=count)
    rest = _sources(octets[_GROUP_FILTER_OCTETS:], count, _STORAGE_OCTETS)
    group = _stored(octets, _INDEX_OCTETS, errno.EADDRNOTAVAIL)
    return Membership(interface, group, tuple(_stored(source, 0, errno.EADDRNOTAVAIL) for source in rest), mode)


def answer_msfilter(asked: bytes, mode: int, sources: tuple[bytes, ...], room: int) -> bytes:
    """The struct ip_msfilter of a question, filled in: the number of all sources, and as many as fit."""
    return b"".join((asked[: _MREQ.size], _ints(mode, len(sources)), *sources[:room]))


def answer_group_filter(asked: bytes, mode: int, sources: tuple[bytes, ...], room: int) -> bytes:
    """The same in a struct group_filter."""
    family = _AF_INET.to_bytes(2, byteorder)
    told = ((family + bytes(2) + source).ljust(_STORAGE_OCTETS, b"\0") for source in sources[:room])
    return b"".join((asked[:_GROUP_REQ_OCTETS], _ints(mode, len(sources)), *told))


def _interface(octets: bytes) -> Interface:
    return Interface(int.from_bytes(octets[:4], byteorder, signed=True), ANY)


def _stored(octets: bytes, at: int, refusal: int) -> bytes:
    """The address in a struct sockaddr_storage that contains a struct sockaddr_in."""
    if int.from_bytes(octets[at : at + 2], byteorder) != _AF_INET:
        raise Refused(refusal)
    return octets[at + 4 : at + 8]


def _named(address: bytes) -> bytes:
    return ANY if is_unspecified(address) else address


def _mode_and_count(octets: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(octets[at : at + 4], byteorder), int.from_bytes(octets[at + 4 : at + 8], byteorder)


def _sources(octets: bytes, count: int, size: int) -> list[bytes]:
    if count > SOURCES_MAX:
        raise Refused(errno.ENOBUFS)
    if len(octets) < count * size:
        raise Refused(errno.EINVAL)
    return [octets[at : at + size] for at in range(0, count * size, size)]


def _ints(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, byteorder) for number in numbers)

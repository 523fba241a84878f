"""Multicast memberships of a socket (ip(7)): from the structures of a C program to its source filters.

Limits and errors are those of Linux (net/ipv4/igmp.c). The stack has one interface, which all structures may name by
its index, by one of its addresses, or not at all.
"""

from __future__ import annotations

import errno
from struct import Struct
from sys import byteorder

from bus.records import SourceFilter
from bus.routes import RouteTable, is_multicast
from layers.sockets.requests import Refused

IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP = 35, 36  # linux/in.h
IP_UNBLOCK_SOURCE, IP_BLOCK_SOURCE, IP_ADD_SOURCE_MEMBERSHIP, IP_DROP_SOURCE_MEMBERSHIP = 37, 38, 39, 40
MEMBERSHIPS = range(IP_ADD_MEMBERSHIP, IP_DROP_SOURCE_MEMBERSHIP + 1)

MEMBERSHIPS_MAX = 20  # Linux net.ipv4.igmp_max_memberships
SOURCES_MAX = 10  # Linux net.ipv4.igmp_max_msf
INTERFACE = 2  # index of the one interface, as in usernet.messages

_ADDRESS = Struct("!I")
_MREQ = Struct("!II")  # struct ip_mreq: group, address of an interface
_MREQN = Struct("!II4s")  # struct ip_mreqn: the same, and the interface's index, in the machine's byte order
_MREQ_SOURCE = Struct("!III")  # struct ip_mreq_source on Linux: group, address of an interface, source

Groups = tuple[SourceFilter, ...]


def change(groups: Groups, name: int, value: int | bytes, routes: RouteTable) -> Groups:
    """The groups of a socket after one of the MEMBERSHIPS options."""
    if name in (IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP):
        group, ours = _group_and_interface(_octets(value), routes)
        return _join(groups, group, ours) if name == IP_ADD_MEMBERSHIP else _leave(groups, group, ours)
    octets = _octets(value)
    if len(octets) != _MREQ_SOURCE.size:
        raise Refused(errno.EINVAL)
    group, address, source = _MREQ_SOURCE.unpack(octets)
    ours = _is_ours(0, address, group, routes)
    exclude = name in (IP_BLOCK_SOURCE, IP_UNBLOCK_SOURCE)
    if name == IP_ADD_SOURCE_MEMBERSHIP and _find(groups, group) is None:
        groups = _join(groups, group, ours, exclude=False)
    return _change_sources(groups, group, source, ours, exclude, name in (IP_BLOCK_SOURCE, IP_ADD_SOURCE_MEMBERSHIP))


def interface(value: int | bytes, routes: RouteTable) -> int:
    """The address that IP_MULTICAST_IF chooses; 0: none."""
    octets = value.to_bytes(4, byteorder, signed=value < 0) if isinstance(value, int) else value
    index = 0
    if len(octets) >= _MREQN.size:
        _, address, last = _MREQN.unpack_from(octets)
        index = int.from_bytes(last, byteorder, signed=True)
    elif len(octets) >= _MREQ.size:
        _, address = _MREQ.unpack_from(octets)
    elif len(octets) >= _ADDRESS.size:
        (address,) = _ADDRESS.unpack_from(octets)
    else:
        raise Refused(errno.EINVAL)
    if index not in (0, INTERFACE) or (address and not routes.is_local(address)):
        raise Refused(errno.EADDRNOTAVAIL)
    return address


def _octets(value: int | bytes) -> bytes:
    if isinstance(value, int):  # a structure does not fit into an int
        raise Refused(errno.EINVAL)
    return value


def _group_and_interface(octets: bytes, routes: RouteTable) -> tuple[int, bool]:
    """(group, whether the interface is ours) of a struct ip_mreq or ip_mreqn."""
    if len(octets) < _MREQ.size:
        raise Refused(errno.EINVAL)
    if len(octets) < _MREQN.size:
        group, address = _MREQ.unpack_from(octets)
        index = 0
    else:
        group, address, last = _MREQN.unpack_from(octets)
        index = int.from_bytes(last, byteorder, signed=True)
    return group, _is_ours(index, address, group, routes)


def _is_ours(index: int, address: int, group: int, routes: RouteTable) -> bool:
    if index:
        return index == INTERFACE
    return routes.is_local(address) if address else routes.source_for(group) is not None


def _find(groups: Groups, group: int) -> int | None:
    return next((place for place, joined in enumerate(groups) if joined.group == group), None)


def _join(groups: Groups, group: int, ours: bool, exclude: bool = True) -> Groups:
    if not is_multicast(group):
        raise Refused(errno.EINVAL)
    if not ours:
        raise Refused(errno.ENODEV)
    if _find(groups, group) is not None:
        raise Refused(errno.EADDRINUSE)
    if len(groups) >= MEMBERSHIPS_MAX:
        raise Refused(errno.ENOBUFS)
    return (*groups, SourceFilter(group, exclude))


def _leave(groups: Groups, group: int, ours: bool) -> Groups:
    place = _find(groups, group)
    if place is None or not ours:
        raise Refused(errno.EADDRNOTAVAIL)
    return groups[:place] + groups[place + 1 :]


def _change_sources(groups: Groups, group: int, source: int, ours: bool, exclude: bool, add: bool) -> Groups:
    """Linux's ip_mc_source: one source into or out of the filter, which must be of that mode."""
    if not is_multicast(group):
        raise Refused(errno.EINVAL)
    if not ours:
        raise Refused(errno.ENODEV)
    place = _find(groups, group)
    if place is None:
        raise Refused(errno.EINVAL)
    joined = groups[place]
    sources = joined.sources
    if sources and joined.exclude != exclude:
        raise Refused(errno.EINVAL)
    if add == (source in sources):  # there already, or not there
        raise Refused(errno.EADDRNOTAVAIL)
    if add and len(sources) >= SOURCES_MAX:
        raise Refused(errno.ENOBUFS)
    sources = (*sources, source) if add else tuple(other for other in sources if other != source)
    # RFC 3376 section 3.1: to include nothing is to leave
    kept = (SourceFilter(group, exclude, sources),) if sources or exclude else ()
    return groups[:place] + kept + groups[place + 1 :]

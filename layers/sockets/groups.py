"""Multicast memberships of a socket (ip(7), RFC 3678): the effect of each option on its groups and source filters.

Limits and errors are those of Linux (net/ipv4/igmp.c). The stack has one interface. Structures name it by its index, by
one of its addresses, or not at all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from sys import byteorder

from bus.messages import INTERFACE_INDEX, SourceFilter
from layers.common.routes import RouteTable
from layers.sockets import option_structs
from layers.sockets.option_structs import MCAST_EXCLUDE, MCAST_INCLUDE, SOURCES_MAX, Interface, Membership
from layers.sockets.requests import Refused
from packets.addresses import ANY, IPV4_OCTETS, is_multicast, is_unspecified

# linux/in.h
IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP = 35, 36
IP_UNBLOCK_SOURCE, IP_BLOCK_SOURCE, IP_ADD_SOURCE_MEMBERSHIP, IP_DROP_SOURCE_MEMBERSHIP, IP_MSFILTER = range(37, 42)
MCAST_JOIN_GROUP, MCAST_BLOCK_SOURCE, MCAST_UNBLOCK_SOURCE, MCAST_LEAVE_GROUP = range(42, 46)
MCAST_JOIN_SOURCE_GROUP, MCAST_LEAVE_SOURCE_GROUP, MCAST_MSFILTER = range(46, 49)
MEMBERSHIPS = range(IP_ADD_MEMBERSHIP, MCAST_MSFILTER + 1)

MEMBERSHIPS_MAX = 20  # Linux net.ipv4.igmp_max_memberships

_MREQ_OCTETS = 8  # struct ip_mreq, and longer structures

Groups = tuple[SourceFilter, ...]


def change(groups: Groups, name: int, value: int | bytes, routes: RouteTable) -> Groups:
    """The groups of a socket after one of the MEMBERSHIPS options."""
    if isinstance(value, int):  # an integer is no structure
        raise Refused(errno.EINVAL)
    parse, execute = _CHANGES[name]
    wanted = parse(value)
    return execute(groups, wanted, wanted.interface.is_ours(wanted.group, routes))


def question(groups: Groups, name: int, asked: bytes, routes: RouteTable) -> bytes:
    """The structure `asked` by IP_MSFILTER or MCAST_MSFILTER, filled in with the filter of its group."""
    by_address = name == IP_MSFILTER
    wanted = (option_structs.msfilter if by_address else option_structs.group_filter)(asked, question=True)
    if not is_multicast(wanted.group):
        raise Refused(errno.EINVAL)
    if by_address and not wanted.interface.is_ours(wanted.group, routes):
        raise Refused(errno.ENODEV)
    place = _find(groups, wanted.group)
    if place is None or not (by_address or wanted.interface.number == INTERFACE_INDEX):  # ip_mc_gsfget accepts no other
        raise Refused(errno.EADDRNOTAVAIL)
    joined = groups[place]
    answer = option_structs.answer_msfilter if by_address else option_structs.answer_group_filter
    return answer(asked, MCAST_EXCLUDE if joined.exclude else MCAST_INCLUDE, joined.sources, wanted.room)


def interface(value: int | bytes, routes: RouteTable) -> bytes:
    """The address that IP_MULTICAST_IF selects; ANY: none."""
    if isinstance(value, int) and not -(1 << 31) <= value < 1 << 32:
        raise Refused(errno.EINVAL)
    octets = value.to_bytes(4, byteorder, signed=value < 0) if isinstance(value, int) else value
    if len(octets) >= _MREQ_OCTETS:
        index, address = option_structs.mreq(octets).interface
    elif len(octets) >= IPV4_OCTETS:
        index, address = 0, octets[:IPV4_OCTETS]
    else:
        raise Refused(errno.EINVAL)
    if index not in (0, INTERFACE_INDEX) or not (is_unspecified(address) or routes.is_local(address)):
        raise Refused(errno.EADDRNOTAVAIL)
    return ANY if is_unspecified(address) else address


def _find(groups: Groups, group: bytes) -> int | None:
    return next((place for place, joined in enumerate(groups) if joined.group == group), None)


def _join(groups: Groups, wanted: Membership, ours: bool, exclude: bool = True) -> Groups:
    """As Linux's ip_mc_join_group."""
    if not is_multicast(wanted.group):
        raise Refused(errno.EINVAL)
    if not ours:
        raise Refused(errno.ENODEV)
    if _find(groups, wanted.group) is not None:
        raise Refused(errno.EADDRINUSE)
    if len(groups) >= MEMBERSHIPS_MAX:
        raise Refused(errno.ENOBUFS)
    return (*groups, SourceFilter(wanted.group, exclude))


def _leave(groups: Groups, wanted: Membership, ours: bool) -> Groups:
    """As Linux's ip_mc_leave_group."""
    if not ours and wanted.interface == _UNNAMED:
        raise Refused(errno.ENODEV)
    place = _find(groups, wanted.group)
    if place is None or not ours:
        raise Refused(errno.EADDRNOTAVAIL)
    return groups[:place] + groups[place + 1 :]


def _block(groups: Groups, wanted: Membership, ours: bool) -> Groups:
    return _change_sources(groups, wanted, ours, exclude=True, add=True)


def _unblock(groups: Groups, wanted: Membership, ours: bool) -> Groups:
    return _change_sources(groups, wanted, ours, exclude=True, add=False)


def _join_source(groups: Groups, wanted: Membership, ours: bool) -> Groups:
    if _find(groups, wanted.group) is None:
        groups = _join(groups, wanted, ours, exclude=False)
    return _change_sources(groups, wanted, ours, exclude=False, add=True)


def _leave_source(groups: Groups, wanted: Membership, ours: bool) -> Groups:
    return _change_sources(groups, wanted, ours, exclude=False, add=False)


def _change_sources(groups: Groups, wanted: Membership, ours: bool, exclude: bool, add: bool) -> Groups:
    """As Linux's ip_mc_source: add or remove one source of the filter, which must have that mode."""
    place = _place(groups, wanted, ours)
    if place is None:
        raise Refused(errno.EINVAL)
    joined, source = groups[place], wanted.sources[0]
    sources = joined.sources
    if (sources or joined.emptied) and joined.exclude != exclude:
        raise Refused(errno.EINVAL)
    if add == (source in sources):  # present already, or absent already
        raise Refused(errno.EADDRNOTAVAIL)
    if add and len(sources) >= SOURCES_MAX:
        raise Refused(errno.ENOBUFS)
    if add:
        return _filtered(groups, place, exclude, (*sources, source))
    at = sources.index(source)
    return _filtered(groups, place, exclude, sources[:at] + sources[at + 1 :], emptied=len(sources) == 1)


def _set_filter(groups: Groups, wanted: Membership, ours: bool) -> Groups:
    """As Linux's ip_mc_msfilter: set the whole filter at once."""
    if wanted.mode not in (MCAST_EXCLUDE, MCAST_INCLUDE):
        raise Refused(errno.EINVAL)
    place = _place(groups, wanted, ours)
    exclude = wanted.mode == MCAST_EXCLUDE
    if not exclude and not wanted.sources:
        return _leave(groups, wanted, ours)
    if place is None:
        raise Refused(errno.EINVAL)
    return _filtered(groups, place, exclude, wanted.sources)


def _place(groups: Groups, wanted: Membership, ours: bool) -> int | None:
    if not is_multicast(wanted.group):
        raise Refused(errno.EINVAL)
    if not ours:
        raise Refused(errno.ENODEV)
    return _find(groups, wanted.group)


def _filtered(groups: Groups, place: int, exclude: bool, sources: tuple[bytes, ...], emptied: bool = False) -> Groups:
    # RFC 3376 section 3.1: to include no source is to leave
    kept = (SourceFilter(groups[place].group, exclude, sources, emptied),) if sources or exclude else ()
    return groups[:place] + kept + groups[place + 1 :]


_UNNAMED = Interface(0, ANY)

_CHANGES: dict[int, tuple[Callable[[bytes], Membership], Callable[[Groups, Membership, bool], Groups]]] = {
    IP_ADD_MEMBERSHIP: (option_structs.mreq, _join),
    IP_DROP_MEMBERSHIP: (option_structs.mreq, _leave),
    IP_BLOCK_SOURCE: (option_structs.mreq_source, _block),
    IP_UNBLOCK_SOURCE: (option_structs.mreq_source, _unblock),
    IP_ADD_SOURCE_MEMBERSHIP: (option_structs.mreq_source, _join_source),
    IP_DROP_SOURCE_MEMBERSHIP: (option_structs.mreq_source, _leave_source),
    IP_MSFILTER: (option_structs.msfilter, _set_filter),
    MCAST_JOIN_GROUP: (option_structs.group_req, _join),
    MCAST_LEAVE_GROUP: (option_structs.group_req, _leave),
    MCAST_BLOCK_SOURCE: (option_structs.group_source_req, _block),
    MCAST_UNBLOCK_SOURCE: (option_structs.group_source_req, _unblock),
    MCAST_JOIN_SOURCE_GROUP: (option_structs.group_source_req, _join_source),
    MCAST_LEAVE_SOURCE_GROUP: (option_structs.group_source_req, _leave_source),
    MCAST_MSFILTER: (option_structs.group_filter, _set_filter),
}

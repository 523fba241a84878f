"""Multicast groups: the memberships of sockets, and the resulting membership of the host.

Owns memberships by socket, as the socket service sends them (durable state), and the merged filters of all sockets;
drives IGMP, which reports to routers. Forgets in a crash: pending IGMP reports; a start reports everything again.
"""

from __future__ import annotations

import random

from bus import messages, topology
from bus.layer import CounterWords, Send, State
from bus.messages import FAMILY_4, INTERFACE, PACKET_OUT_HEAD, Membership, SourceFilter
from layers.common import source_address
from layers.ip.counters import Counters as C
from layers.ip.igmp import NOTHING, Change, Filter, Igmp, Message, Querier
from layers.ip.members import Members
from layers.ip.routing import Routing
from packets import ipv4
from packets.addresses import IPV4_OCTETS, UNSPECIFIED, is_multicast
from packets.checksum import verifies
from packets.igmp import ALL_SYSTEMS, HEADER_OCTETS, QUERY, V1_REPORT, V2_REPORT, group_of, parse_query

QUERIER_KEY = 3  # in durable state
MEMBERS_KEYS = 2 << 32  # + handle: that socket's memberships

IGMP_TTL = 1  # RFC 3376 section 4
IGMP_TOS = 0xC0  # RFC 3376 section 4: internetwork control
ROUTER_ALERT = b"\x94\x04\0\0"  # RFC 2113 section 2.1

_decode_querier = messages.decoder(Querier)


class Groups:
    """The groups of the host. Groups and sources are octets."""

    def __init__(self, routing: Routing, state: State, counters: CounterWords, rng: random.Random) -> None:
        self._routing = routing
        self._state = state
        self._counters = counters
        self._members: dict[bytes, Members] = {}
        self._joined: dict[int, dict[bytes, Filter]] = {}  # {handle: its groups}
        self._filters: dict[bytes, Filter] = {}  # {group: merged filter of all members}
        room_octets = routing.mtu_octets - ipv4.HEADER_OCTETS - len(ROUTER_ALERT)
        self._igmp = Igmp(self._filters, rng, room_octets)

    @property
    def next_due(self) -> float | None:
        """The time at which `expire` has something to do."""
        return self._igmp.next_due

    def start(self, now: float) -> list[Send]:
        """Restore the memberships; report them, because routers may have expired them meanwhile."""
        for key in list(self._state):
            try:
                if key == QUERIER_KEY:
                    self._igmp.querier = _decode_querier(self._state[key])
                elif key >> 32 == MEMBERS_KEYS >> 32:
                    self._take(messages.decode_membership(self._state[key]))
            except ValueError:
                self._counters[C.state_unreadable] += 1
                del self._state[key]
        joined = [(group, NOTHING, wanted) for group, wanted in self._filters.items()]
        return self._wrap(self._igmp.changed(joined, now))

    def accepts(self, group: bytes, source: bytes | None) -> bool:
        """True if a socket may want a packet to `group` from `source`; None: from any source."""
        if group == ALL_SYSTEMS:  # RFC 1112 section 7.2: always joined
            return True
        wanted = self._filters.get(group)
        return wanted is not None and (source is None or (source in wanted.sources) != wanted.exclude)

    def listen(self, records: list[bytes], now: float) -> list[Send]:
        """MEMBERSHIP records: the present groups of a socket; stored, answered, and reported if the host's membership
        changes."""
        sends: list[Send] = []
        changes: list[Change] = []
        for record in records:
            try:
                membership = messages.decode_membership(record)
                changes += self._take(membership)
            except ValueError:
                self._counters[C.bad_membership] += 1
                continue
            key = MEMBERS_KEYS | membership.handle
            if membership.groups:
                self._state[key] = record
            elif key in self._state:
                del self._state[key]
            if membership.request:
                done = messages.SocketReply(handle=membership.handle, request=membership.request)
                sends.append((topology.SOCKETS, messages.SOCKET_REPLY, messages.encode(done)))
        return sends + self._wrap(self._igmp.changed(changes, now)) if changes else sends

    def heard(self, received: bytes, now: float) -> None:
        """Process an IGMP packet, which is whole and for this host."""
        message = received[ipv4.header_octets(received) :]
        self._counters[C.igmp_in] += 1
        if len(message) < HEADER_OCTETS or not verifies(message):
            self._counters[C.igmp_malformed] += 1
        elif message[0] == QUERY:
            query = parse_query(message)
            if query is None:
                self._counters[C.igmp_malformed] += 1
                return
            self._igmp.queried(query, now)
            self._state[QUERIER_KEY] = messages.encode(self._igmp.querier)
        elif message[0] in (V1_REPORT, V2_REPORT):
            self._igmp.overheard(group_of(message), now)
        else:
            self._counters[C.igmp_not_for_hosts] += 1

    def expire(self, now: float) -> list[Send]:
        """Send due reports."""
        due = self._igmp.next_due
        return self._wrap(self._igmp.expire(now)) if due is not None and due <= now else []

    # -- from sockets to the host ----------------------------------------------------------------------------------

    def _take(self, membership: Membership) -> list[Change]:
        """Replace the groups of a socket; returns the changes for the host. ValueError: an invalid group."""
        handle = membership.handle
        wanted = {entry.group: _filter(entry) for entry in membership.groups}
        before = self._joined.pop(handle, {})
        changed = sorted(group for group in before.keys() | wanted.keys() if before.get(group) != wanted.get(group))
        for group in changed:
            if group in wanted:
                self._members.setdefault(group, Members()).put(handle, wanted[group])
            else:
                self._members[group].remove(handle)
        if wanted:
            self._joined[handle] = wanted
        return self._merge(changed)

    def _merge(self, groups: list[bytes]) -> list[Change]:
        changes = []
        for group in groups:
            old = self._filters.get(group, NOTHING)
            members = self._members[group]
            new = members.merged()
            if not members:
                del self._members[group]
            if new == old or group == ALL_SYSTEMS:  # RFC 3376 section 5: it is never reported
                continue
            if new == NOTHING:
                del self._filters[group]
            else:
                self._filters[group] = new
            changes.append((group, old, new))
        return changes

    def _wrap(self, reports: list[Message]) -> list[Send]:
        sends: list[Send] = []
        for destination, message in reports:
            source = source_address.of_destination(self._routing.table, destination)
            source = source or UNSPECIFIED[len(destination)]  # RFC 3376 section 4.2.13
            template = ipv4.header_template(source, destination, ipv4.IGMP, IGMP_TTL, IGMP_TOS, True)
            octets = ipv4.HEADER_OCTETS + len(ROUTER_ALERT) + len(message)
            built = ipv4.header_with_options(template, ROUTER_ALERT, octets, 0) + message
            head = PACKET_OUT_HEAD.pack(INTERFACE, FAMILY_4, 0, ipv4.IGMP, 0, ipv4.group_mac(destination))
            sends.append((topology.LINK, messages.PACKET_OUT, head + built))
        self._counters[C.igmp_out] += len(sends)
        self._counters[C.packets_out] += len(sends)
        return sends


def _filter(entry: SourceFilter) -> Filter:
    width = len(entry.group)
    if width != IPV4_OCTETS or not is_multicast(entry.group) or any(len(source) != width for source in entry.sources):
        raise ValueError("invalid group or sources")
    return Filter(entry.exclude, frozenset(entry.sources))

"""The way in: from what link brings to what is checked, whole, and for us.

Owns the fragments of packets that are not whole yet, which a crash loses.
"""

from __future__ import annotations

from bus import messages, topology
from bus.layer import CounterWords, Send
from bus.messages import SUPER_HEADER
from layers.common.routes import is_multicast
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers, copy_of
from layers.ip.groups import Groups
from layers.ip.local_errors import (
    PARAMETER_PROBLEM,
    PROTOCOL_UNREACHABLE,
    REASSEMBLY_TIMEOUT,
    TIME_EXCEEDED,
    UNREACHABLE,
    UPPER,
    complaint,
)
from layers.ip.options import examine
from layers.ip.reassembly import Reassembly
from layers.ip.routing import Routing
from packets import ipv4
from packets.checksum import verifies
from packets.offload import UDP_HEADER_OCTETS, packets, settled

SOURCES_MAX = 4096  # addresses remembered as those of single hosts; then it starts afresh
FRAGMENT_HIGH = ipv4.FRAGMENT_MASK >> 8  # as much of the mask as stands in octet 6; octet 7 is all offset


class Input:
    """Packets up."""

    def __init__(self, routing: Routing, groups: Groups, uppers: Uppers, counters: CounterWords,
                 epoch: float) -> None:
        self._routing = routing
        self._uppers = uppers
        self._epoch = epoch
        self._groups = groups
        self._counters = counters
        self._reassembly = Reassembly(counters)
        self._sources: set[bytes] = set()  # cache of what `_is_host` said yes to

    @property
    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        return self._reassembly.next_expiry

    def rerouted(self) -> None:
        """What is a broadcast address, and what is our own, may have changed."""
        self._sources.clear()

    def deliver(self, kind: int, records: list[bytes], now: float) -> list[Send]:
        """PACKET, PACKET_CHECKED or PACKET_GROUP records, the trailer not yet cut."""
        counters, own, sources, sole = self._counters, self._routing.own, self._sources, self._uppers.sole
        sends: list[Send] = []
        counters[C.packets_in] += len(records)
        for record in records:
            octets = len(record)
            if octets < ipv4.HEADER_OCTETS:
                counters[C.truncated] += 1
                continue
            header_octets = 20
            if record[0] != ipv4.VERSION_4_NO_OPTIONS:
                if record[0] >> 4 != 4:
                    counters[C.bad_version] += 1
                    continue
                header_octets = (record[0] & 15) * 4
                if header_octets < ipv4.HEADER_OCTETS or header_octets > octets:
                    counters[C.bad_header_length] += 1
                    continue
            total = record[2] << 8 | record[3]
            if total > octets or total < header_octets:
                counters[C.truncated] += 1
                continue
            if not verifies(record[:header_octets]):  # RFC 1122 section 3.2.1.2: silently discarded
                counters[C.bad_header_checksum] += 1
                continue
            destination = record[16:20]
            reach = kind
            if destination not in own:
                reach = self._group_kind(destination, record)
                if not reach:
                    continue
                if kind == messages.PACKET_CHECKED:
                    record = settled(record[:total])
                    octets = total
            elif kind == messages.PACKET_GROUP:
                counters[C.unicast_in_group_frame] += 1
                continue
            source = record[12:16]
            if source not in sources and not self._is_host(source) and not _is_unnumbered_router(record):
                counters[C.bad_source] += 1
                continue
            if octets != total:
                record = record[:total]  # RFC 894: what is beyond is padding
            if record[6] & FRAGMENT_HIGH or record[7] or header_octets != 20:
                whole = self._unwrap(record, header_octets, reach, now, sends)
                if whole is None:
                    continue
                record = whole
                if reach == messages.PACKET_CHECKED:
                    reach = messages.PACKET  # what was said of the checksum was said of the packet as it came
            upper = sole.get(record[9])
            if upper is None:
                self._deliver_otherwise(reach, record, now, sends)
                continue
            sends.append((upper, reach, record))
        return sends

    def _deliver_otherwise(self, reach: int, record: bytes, now: float, sends: list[Send]) -> None:
        """A packet that is not just its transport's."""
        protocol = record[9]
        copied = protocol in self._uppers.wanted
        if copied:
            self._counters[C.copied] += 1
            sends.append(copy_of(reach, settled(record) if reach == messages.PACKET_CHECKED else record))
        if protocol == ipv4.IGMP:
            self._groups.heard(record, now)
        elif protocol in UPPER:
            sends.append((UPPER[protocol], reach, record))
        elif not copied:
            self._counters[C.unknown_protocol] += 1
            if reach != messages.PACKET_GROUP:  # RFC 1122 section 3.2.2.1: SHOULD be answered by protocol unreachable
                sends.append(complaint(UNREACHABLE, PROTOCOL_UNREACHABLE, record))

    def deliver_segments(self, kind: int, records: list[bytes], now: float) -> list[Send]:
        """PACKET_SEGMENTS records: as one packet, where udp can take it so; else in the packets that it stands for."""
        sends: list[Send] = []
        start = SUPER_HEADER.size
        for record in records:
            size, group = SUPER_HEADER.unpack_from(record) if len(record) > start else (0, 0)
            whole = record[start:]
            if len(whole) <= ipv4.HEADER_OCTETS + UDP_HEADER_OCTETS or not size or whole[9] != ipv4.UDP:
                self._counters[C.packets_in] += 1
                self._counters[C.truncated] += 1
            elif (group or whole[0] != ipv4.VERSION_4_NO_OPTIONS or whole[16:20] not in self._routing.own
                    or ipv4.UDP in self._uppers.wanted):
                kind = messages.PACKET_GROUP if group else messages.PACKET
                sends += self.deliver(kind, packets(whole, size), now)
            else:
                for send in self.deliver(messages.PACKET_CHECKED, [whole], now):
                    if send[:2] == (topology.UDP, messages.PACKET_CHECKED):
                        send = topology.UDP, messages.PACKET_SEGMENTS, record[:start] + send[2]
                    sends.append(send)
                self._counters[C.packets_in] += (len(whole) - ipv4.HEADER_OCTETS - UDP_HEADER_OCTETS - 1) // size
        return sends

    def _unwrap(self, record: bytes, header_octets: int, reach: int, now: float, sends: list[Send]) -> bytes | None:
        """Look into options, put fragments together: the packet that is to be delivered, if there is one now."""
        if header_octets != ipv4.HEADER_OCTETS:
            ours = record[16:20] if reach != messages.PACKET_GROUP else None
            header, problem, source_routed = examine(record[:header_octets], ours, now + self._epoch)
            if source_routed:
                self._counters[C.source_routed] += 1
                return None
            if problem:
                self._counters[C.bad_options] += 1
                sends.append(complaint(PARAMETER_PROBLEM, 0, record, problem))
                return None
            record = header + record[header_octets:]
        if record[6] & FRAGMENT_HIGH or record[7]:
            return self._reassembly.add(record, now)
        return record

    def expire(self, now: float) -> list[Send]:
        """Fragments that waited in vain: tell the senders of packets whose beginning came."""
        return [complaint(TIME_EXCEEDED, REASSEMBLY_TIMEOUT, first) for first in self._reassembly.expire(now)]

    def _is_host(self, source: bytes) -> bool:
        """Whether `source` can be that of one other host; remembered, for it is asked about every packet."""
        number = int.from_bytes(source, "big")
        if (source in self._routing.own or ipv4.source_is_martian(source) or is_multicast(number)
                or self._routing.table.is_broadcast(number)):
            return False
        if len(self._sources) >= SOURCES_MAX:
            self._sources.clear()
        self._sources.add(source)
        return True

    def _group_kind(self, destination: bytes, record: bytes) -> int:
        """PACKET_GROUP for a group that concerns us, 0 (and counted) for an address that is not ours.

        Groups are the limited and the directed broadcast addresses, and multicast groups that a socket has joined.
        """
        number = int.from_bytes(destination, "big")
        if is_multicast(number):
            # RFC 1112 section 7.2: only joined groups. IGMP is about a group, not of one of its sources.
            if self._groups.accepts(destination, record[12:16] if record[9] != ipv4.IGMP else None):
                return messages.PACKET_GROUP
            self._counters[C.other_group] += 1
        elif self._routing.table.is_broadcast(number):
            return messages.PACKET_GROUP
        else:
            self._counters[C.other_destination] += 1
        return 0


def _is_unnumbered_router(record: bytes) -> bool:
    """RFC 4541 section 2.1.1: who asks in a router's place, a switch for one, may have no address."""
    return record[9] == ipv4.IGMP and record[12:16] == bytes(4)

"""The way in: from what link brings to what is checked, whole, and for us.

Owns the fragments of packets that are not whole yet, which a crash loses.
"""

from __future__ import annotations

from bus import table
from bus.checksum import verifies
from bus.core import CounterWords, Send
from bus.routes import is_multicast
from layers.ip import packet
from layers.ip.complaints import (
    PARAMETER_PROBLEM,
    PROTOCOL_UNREACHABLE,
    REASSEMBLY_TIMEOUT,
    TIME_EXCEEDED,
    UNREACHABLE,
    UPPER,
    complaint,
)
from layers.ip.counters import Counters as C
from layers.ip.options import examine
from layers.ip.reassembly import Reassembly
from layers.ip.routing import Routing

SOURCES_MAX = 4096  # addresses remembered as those of single hosts; then it starts afresh
FRAGMENT_HIGH = packet.FRAGMENT_MASK >> 8  # as much of the mask as stands in octet 6; octet 7 is all offset


class Input:
    """Packets up."""

    def __init__(self, routing: Routing, counters: CounterWords) -> None:
        self._routing = routing
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
        """PACKET or PACKET_GROUP records, the trailer not yet cut."""
        counters, own, sources = self._counters, self._routing.own, self._sources
        sends: list[Send] = []
        counters[C.packets_in] += len(records)
        for record in records:
            octets = len(record)
            if octets < packet.HEADER_OCTETS:
                counters[C.truncated] += 1
                continue
            header_octets = 20
            if record[0] != packet.VERSION_4_NO_OPTIONS:
                if record[0] >> 4 != 4:
                    counters[C.bad_version] += 1
                    continue
                header_octets = (record[0] & 15) * 4
                if header_octets < packet.HEADER_OCTETS or header_octets > octets:
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
                reach = self._group_kind(destination)
                if not reach:
                    continue
            elif kind == table.PACKET_GROUP:
                counters[C.unicast_in_group_frame] += 1
                continue
            source = record[12:16]
            if source not in sources and not self._is_host(source):
                counters[C.bad_source] += 1
                continue
            if octets != total:
                record = record[:total]  # RFC 894: what is beyond is padding
            if record[6] & FRAGMENT_HIGH or record[7] or header_octets != 20:
                whole = self._unwrap(record, header_octets, reach, now, sends)
                if whole is None:
                    continue
                record = whole
            upper = UPPER.get(record[9])
            if upper is None:
                counters[C.unknown_protocol] += 1
                if reach == table.PACKET:  # RFC 1122 section 3.2.2.1: SHOULD be answered by protocol unreachable
                    sends.append(complaint(UNREACHABLE, PROTOCOL_UNREACHABLE, record))
                continue
            sends.append((upper, reach, record))
        return sends

    def _unwrap(self, record: bytes, header_octets: int, reach: int, now: float, sends: list[Send]) -> bytes | None:
        """Look into options, put fragments together: the packet that is to be delivered, if there is one now."""
        if header_octets != packet.HEADER_OCTETS:
            ours = record[16:20] if reach == table.PACKET else None
            header, problem, source_routed = examine(record[:header_octets], ours, now)
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
        if (source in self._routing.own or packet.source_is_martian(source) or is_multicast(number)
                or self._routing.table.is_broadcast(number)):
            return False
        if len(self._sources) >= SOURCES_MAX:
            self._sources.clear()
        self._sources.add(source)
        return True

    def _group_kind(self, destination: bytes) -> int:
        """PACKET_GROUP for a group that concerns us, 0 (and counted) for an address that is not ours.

        Groups are the limited and the directed broadcast addresses. This is where multicast groups would be looked up.
        """
        if self._routing.table.is_broadcast(int.from_bytes(destination, "big")):
            return table.PACKET_GROUP
        self._counters[C.other_destination] += 1
        return 0

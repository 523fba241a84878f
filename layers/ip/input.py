"""Input: received packets are checked, reassembled and passed to their transport.

Owns the fragments of incomplete packets, which a crash loses.
"""

from __future__ import annotations

from struct import Struct

from bus.durable.held import REFERENCE_OCTETS, held_octets
from bus.layer import CounterWords, Octets, Send
from bus.messages import FAMILY_4, FLAG_CHECKED, FLAG_GROUP, PACKET, PACKET_HEAD, PACKET_HELD
from bus.topology import TCP
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
from layers.ip.records import HEAD_OCTETS, record_of
from layers.ip.routing import Routing
from packets import fragments, ipv4, offload
from packets.addresses import LIMITED_BROADCAST, is_multicast, is_unicast
from packets.checksum import verifies

SOURCES_MAX = 4096  # sources cached as single hosts; then the cache is cleared
# Interface, flags and segment size of a PACKET_HEAD, and the IPv4 header after it, for one unpack.
_HEADS = Struct(f"!BxBxH{HEAD_OCTETS - 6}x" + ipv4.HEADER.format[1:])
_START = HEAD_OCTETS
_END = HEAD_OCTETS + ipv4.HEADER_OCTETS


class Input:
    """The input path."""

    def __init__(self, routing: Routing, groups: Groups, uppers: Uppers, counters: CounterWords,
                 epoch: float) -> None:
        self._routing = routing
        self._uppers = uppers
        self._epoch = epoch
        self._groups = groups
        self._counters = counters
        self._reassembly = Reassembly(counters)
        self._sources: set[bytes] = set()  # cache of sources for which `_is_host` returned True

    @property
    def next_expiry(self) -> float | None:
        """The time at which `expire` has something to do."""
        return self._reassembly.next_expiry

    def rerouted(self) -> None:
        """The own and broadcast addresses may have changed."""
        self._sources.clear()

    def deliver(self, records: list[bytes], now: float) -> list[Send]:
        """Process PACKET records from link, which still have the padding of their frame."""
        counters, own, sources, sole = self._counters, self._routing.own, self._sources, self._uppers.sole
        read, pack = _HEADS.unpack_from, PACKET_HEAD.pack
        sends: list[Send] = []
        counters[C.packets_in] += len(records)
        for record in records:
            octets = len(record) - _START
            if octets < ipv4.HEADER_OCTETS:
                counters[C.truncated] += 1
                continue
            (interface, flags, size, version, tos, total, _, fragment, ttl, protocol, _, source,
             destination) = read(record)
            header_octets, end = 20, _END
            if version != ipv4.VERSION_4_NO_OPTIONS:
                if version >> 4 != 4:
                    counters[C.bad_version] += 1
                    continue
                header_octets = (version & 15) << 2
                if header_octets < ipv4.HEADER_OCTETS or header_octets > octets:
                    counters[C.bad_header_length] += 1
                    continue
                end = _START + header_octets
            if total > octets or total < header_octets:
                counters[C.truncated] += 1
                continue
            if not verifies(record[_START:end]):  # RFC 1122 section 3.2.1.2: silently discarded
                counters[C.bad_header_checksum] += 1
                continue
            if destination not in own:
                if not self._is_group(destination, source, protocol):
                    continue
                flags |= FLAG_GROUP
            elif flags & FLAG_GROUP:
                counters[C.unicast_in_group_frame] += 1
                continue
            if source not in sources and not self._is_host(source) and not _may_lack_address(
                    source, destination, protocol):
                counters[C.bad_source] += 1
                continue
            packet = record[_START : _START + total]  # RFC 894: octets beyond are padding
            if size and (flags & FLAG_GROUP or header_octets != 20 or fragment & ipv4.FRAGMENT_MASK
                         or protocol not in sole):
                head, pieces = _cut_head(record[:_START]), offload.packets(packet, protocol, size)
                sends += self.deliver([head + piece for piece in pieces], now)
                counters[C.packets_in] -= bool(pieces)
                counters[C.truncated] += not pieces
                continue
            if fragment & ipv4.FRAGMENT_MASK or header_octets != 20:
                whole = self._unwrap(packet, header_octets, flags, now, sends)
                if whole is None:
                    continue
                packet, header_octets, tos = whole, ipv4.header_octets(whole), ipv4.tos_of(whole)
                if fragment & ipv4.FRAGMENT_MASK:
                    # the device's statement about the checksum was about the packet before reassembly
                    flags &= ~FLAG_CHECKED
            head = pack(interface, FAMILY_4, flags, header_octets, size, protocol, ttl, tos, source, destination)
            record = head + packet
            upper = sole.get(protocol)
            if upper is None:
                self._deliver_otherwise(record, flags, protocol, now, sends)
                continue
            if size:
                segment_octets = total - header_octets
                payload = segment_octets - offload.segment_header_octets(packet[header_octets:], protocol)
                if payload == segment_octets:
                    counters[C.truncated] += 1
                    continue
                counters[C.packets_in] += (payload - 1) // size
            sends.append((upper, PACKET, record))
        return sends

    def deliver_held(self, records: list[bytes], held: Octets, now: float) -> list[Send]:
        """Process PACKET_HELD records from link: tcp gets the reference, unless something here must see the text."""
        sends: list[Send] = []
        for record in records:
            if self._pass_held(record, sends):
                continue
            inline = held.inline(PACKET_HELD, record)
            if inline is not None:
                sends += self.deliver([inline[1]], now)
        return sends

    def _pass_held(self, record: bytes, sends: list[Send]) -> bool:
        """Pass a reference to tcp; False: the packet is not an ordinary one for tcp."""
        header_octets = len(record) - _START - REFERENCE_OCTETS
        if header_octets < ipv4.HEADER_OCTETS:
            return False
        interface, flags, size, version, tos, total, _, fragment, ttl, protocol, _, source, destination = (
            _HEADS.unpack_from(record))
        text_octets = held_octets(record)
        if (version != ipv4.VERSION_4_NO_OPTIONS or not size or flags & FLAG_GROUP or fragment & ipv4.FRAGMENT_MASK
                or total != header_octets + text_octets or destination not in self._routing.own
                or source not in self._sources or self._uppers.sole.get(protocol) != TCP
                or not verifies(record[_START:_END])):
            return False
        head = PACKET_HEAD.pack(interface, FAMILY_4, flags, ipv4.HEADER_OCTETS, size, protocol, ttl, tos, source,
                                destination)
        self._counters[C.packets_in] += -(-text_octets // size)
        sends.append((TCP, PACKET_HELD, head + record[_START:]))
        return True

    def _deliver_otherwise(self, record: bytes, flags: int, protocol: int, now: float, sends: list[Send]) -> None:
        """Deliver a packet that also concerns a layer other than its transport."""
        copied = protocol in self._uppers.wanted
        if copied:
            self._counters[C.copied] += 1
            sends.append(copy_of(record, flags, protocol))
        if protocol == ipv4.IGMP:
            self._groups.heard(record[HEAD_OCTETS:], now)
        elif protocol in UPPER:
            sends.append((UPPER[protocol], PACKET, record))
        elif not copied:
            self._counters[C.unknown_protocol] += 1
            if not flags & FLAG_GROUP:  # RFC 1122 section 3.2.2.1: SHOULD be answered by protocol unreachable
                sends.append(complaint(UNREACHABLE, PROTOCOL_UNREACHABLE, record))

    def _unwrap(self, packet: bytes, header_octets: int, flags: int, now: float, sends: list[Send]) -> bytes | None:
        """Process options and reassemble fragments: the packet to deliver, if one is complete now."""
        if header_octets != ipv4.HEADER_OCTETS:
            ours = None if flags & FLAG_GROUP else packet[ipv4.DESTINATION]
            header, problem, source_routed = examine(packet[:header_octets], ours, now + self._epoch)
            if source_routed:
                self._counters[C.source_routed] += 1
                return None
            if problem:
                self._counters[C.bad_options] += 1
                sends.append(complaint(PARAMETER_PROBLEM, 0, record_of(packet, flags), problem))
                return None
            packet = header + packet[header_octets:]
        if ipv4.is_fragment(packet):
            return self._reassembly.add(fragments.parse(packet), now)
        return packet

    def expire(self, now: float) -> list[Send]:
        """Expire fragments; send errors to the senders of packets whose first fragment has arrived."""
        firsts = self._reassembly.expire(now)
        return [complaint(TIME_EXCEEDED, REASSEMBLY_TIMEOUT, record_of(first)) for first in firsts]

    def _is_host(self, source: bytes) -> bool:
        """True if `source` can be the address of another single host; cached, because every packet is checked."""
        table = self._routing.table
        if table.is_own(source) or not is_unicast(source) or table.is_broadcast(source):
            return False
        if len(self._sources) >= SOURCES_MAX:
            self._sources.clear()
        self._sources.add(source)
        return True

    def _is_group(self, destination: bytes, source: bytes, protocol: int) -> bool:
        """True if a foreign address is that of a group of this host; counted otherwise.

        Groups are the limited and directed broadcast addresses, and joined multicast groups.
        """
        if is_multicast(destination):
            # RFC 1112 section 7.2: only joined groups. IGMP messages are not filtered by source.
            if self._groups.accepts(destination, source if protocol != ipv4.IGMP else None):
                return True
            self._counters[C.other_group] += 1
        elif self._routing.table.is_broadcast(destination):
            return True
        else:
            self._counters[C.other_destination] += 1
        return False


def _may_lack_address(source: bytes, destination: bytes, protocol: int) -> bool:
    """True if a packet may come from 0/8: from a host without an address yet, or a switch without one.

    RFC 1122 section 3.2.1.3 (a): while a host learns its address. As on Linux only broadcasts and multicasts of the
    link (ip_route_input_slow, ip_mc_validate_source). RFC 4541 section 2.1.1: a switch that acts as a querier.
    """
    return ipv4.is_this_network(source) and (
        destination == LIMITED_BROADCAST or ipv4.is_link_local_group(destination) or protocol == ipv4.IGMP)


def _cut_head(head: bytes) -> bytes:
    """The head of a super-packet for one of its packets, as on a wire."""
    interface, family, flags, *_ = PACKET_HEAD.unpack(head)
    return PACKET_HEAD.pack(interface, family, flags & ~FLAG_CHECKED, 0, 0, 0, 0, 0, bytes(4), bytes(4))

"""Output: from a transport's segment to packets whose next hop is resolved.

What all packets of a flow have in common is made once (`layers.ip.flows`); packets whose next hop has no known address
wait (`layers.ip.resolution`).
"""

from __future__ import annotations

from struct import Struct

from bus import messages, topology
from bus.config import SEGMENTATION_OF
from bus.durable.held import REFERENCE_OCTETS, held_octets
from bus.layer import CounterWords, Octets, Send
from bus.messages import PACKET, PACKET_HEAD, PACKET_OUT, PACKET_OUT_HEAD
from layers.ip.counters import Counters as C
from layers.ip.demux import Uppers, copy_of
from layers.ip.flows import GROWTH_OCTETS, HEAD_OCTETS, LOOPED_ONLY, Flow, Flows, out_record
from layers.ip.local_errors import FRAGMENTATION_NEEDED, PROTOCOL_UNREACHABLE, UNREACHABLE, complaint, local_error
from layers.ip.options import examine
from layers.ip.records import record_of
from layers.ip.resolution import Resolution
from packets import ipv4
from packets.fragments import split
from packets.offload import CHECKSUM_AT, complete, completed, segment_header_octets, segments

_ONE_PACKET = bytes(2)  # segment size at the beginning of the head

# The head of a record, and ipv4.PARTS, for one pack.
_UP = Struct(f"!{PACKET_HEAD.size + 2}s" + ipv4.PARTS.format[3:])
_OUT = Struct(f"!{PACKET_OUT_HEAD.size + 2}s" + ipv4.PARTS.format[3:])


class Output:
    """The output path of segments."""

    def __init__(self, flows: Flows, resolution: Resolution, uppers: Uppers, counters: CounterWords,
                 epoch: float) -> None:
        self._flows = flows
        self._resolution = resolution
        self._uppers = uppers
        self._counters = counters
        self._epoch = epoch

    def transmit(self, records: list[bytes], now: float) -> list[Send]:
        """Process TRANSMIT records."""
        # The hot path: does what finish_header does without a call. It uses locals, and no call that a known flow does
        # not need.
        flows, pack_up, pack_out = self._flows.by_head, _UP.pack, _OUT.pack
        sends: list[Send] = []
        sent = looped = 0
        for record in records:
            head = record[:HEAD_OCTETS]
            flow = flows.get(head) or self._flows.new(head, record, sends)
            if flow is None:
                continue
            length = len(record) + GROWTH_OCTETS
            if length > flow.plain_octets:
                sent += self._transmit_otherwise(flow, record, now, sends)
                continue
            identification = 0 if flow.dont_fragment else flow.series.next(now)  # RFC 6864 section 4.1
            total = 65535 - ((flow.template_sum + length + identification) % 65535 or 65535)
            neighbor = flow.neighbor
            if neighbor is None:
                built = pack_up(flow.start, length, identification, flow.middle, total, flow.end)
                sends.append((flow.upper, PACKET, built + record[HEAD_OCTETS:]))  # type: ignore[arg-type]  # None is not plain
                looped += 1
                continue
            mac = neighbor.mac
            if mac is None or now > neighbor.ask_again_at:
                packet = ipv4.finish_header(flow.template, flow.template_sum, length, identification)
                packet += record[HEAD_OCTETS:]
                packet = completed(packet, flow.protocol) if flow.partial else packet
                mac = self._resolution.ask(flow, packet, now, sends)
                if mac is None:
                    continue
            if mac is not flow.mac:
                flow.set_mac(mac)
            built = pack_out(flow.start, length, identification, flow.middle, total, flow.end)
            sends.append((topology.LINK, PACKET_OUT, built + record[HEAD_OCTETS:]))
            sent += 1
        self._counters[C.packets_out] += sent
        self._counters[C.looped] += looped
        return sends

    def _transmit_super(self, flow: Flow, record: bytes, now: float, sends: list[Send]) -> int:
        """Send a super-packet: as a whole if its packets only need headers, otherwise as single packets."""
        segment = record[HEAD_OCTETS + flow.option_octets :]
        if self._transmit_whole(flow, segment, now, sends):
            return 0
        cut = segments(segment, flow.protocol, flow.size) if flow.partial and not flow.crafted else []
        if not cut:
            self._counters[C.bad_transmit] += 1
        head = _ONE_PACKET + record[len(_ONE_PACKET) : HEAD_OCTETS + flow.option_octets]
        sends += self.transmit([head + piece for piece in cut], now)
        return 0

    def _transmit_whole(self, flow: Flow, segment: bytes, now: float, sends: list[Send]) -> bool:
        """Send a super-packet as a whole; False: it must be split here."""
        length = ipv4.HEADER_OCTETS + len(segment)
        header_octets = segment_header_octets(segment, flow.protocol)
        headers_octets = ipv4.HEADER_OCTETS + header_octets
        if not (flow.partial and header_octets) or length > ipv4.LENGTH_MAX:
            return False
        if headers_octets + flow.size > flow.whole_octets:
            return False
        neighbor = flow.neighbor
        cut_below = SEGMENTATION_OF.get(flow.protocol) in self._flows.offload
        if neighbor is not None and (neighbor.mac is None or not cut_below):
            return False
        count = -(-(length - headers_octets) // flow.size)
        identification = 0 if flow.dont_fragment else flow.series.run(count, now)  # each packet gets the next number
        header = ipv4.finish_header(flow.template, flow.template_sum, length, identification)
        if neighbor is None:
            sends.append((flow.upper, PACKET, b"".join((flow.start[:-2], header, segment))))  # type: ignore[arg-type]
            self._counters[C.looped] += count
            return True
        if now > neighbor.ask_again_at:
            self._resolution.ask(flow, b"", now, sends)  # its address is known, so no packet waits
        if neighbor.mac is not flow.mac:
            flow.set_mac(neighbor.mac)  # type: ignore[arg-type]  # looked at above
        sends.append((topology.LINK, PACKET_OUT, b"".join((flow.start[:-2], header, segment))))
        self._counters[C.packets_out] += count
        return True

    def transmit_held(self, records: list[bytes], held: Octets, now: float) -> list[Send]:
        """Process TRANSMIT_HELD records: link gets the reference, unless something here must see the payload."""
        sends: list[Send] = []
        for record in records:
            head = record[:HEAD_OCTETS]
            flow = self._flows.by_head.get(head) or self._flows.new(head, record, sends)
            if flow is None or self._pass_held(flow, record, now, sends):
                continue
            inline = held.inline(messages.TRANSMIT_HELD, record)
            if inline is not None:
                sends += self.transmit([inline[1]], now)
        return sends

    def _pass_held(self, flow: Flow, record: bytes, now: float, sends: list[Send]) -> bool:
        """Pass a reference to link; False: the payload is needed here. As `_transmit_whole` for a device that splits
        it."""
        neighbor, header_octets = flow.neighbor, len(record) - HEAD_OCTETS - REFERENCE_OCTETS
        if neighbor is None or neighbor.mac is None or not flow.partial or not flow.size or header_octets <= 0:
            return False
        length = ipv4.HEADER_OCTETS + header_octets + held_octets(record)
        if (ipv4.HEADER_OCTETS + header_octets + flow.size > flow.whole_octets or length > ipv4.LENGTH_MAX
                or SEGMENTATION_OF.get(flow.protocol) not in self._flows.offload):
            return False
        count = -(-held_octets(record) // flow.size)
        identification = 0 if flow.dont_fragment else flow.series.run(count, now)
        header = ipv4.finish_header(flow.template, flow.template_sum, length, identification)
        if now > neighbor.ask_again_at:
            self._resolution.ask(flow, b"", now, sends)
        if neighbor.mac is not flow.mac:
            flow.set_mac(neighbor.mac)
        sends.append((topology.LINK, messages.PACKET_OUT_HELD,
                      b"".join((flow.start[:-2], header, record[HEAD_OCTETS:]))))
        self._counters[C.packets_out] += count
        return True

    def _transmit_otherwise(self, flow: Flow, record: bytes, now: float, sends: list[Send]) -> int:
        """Send a packet that is looped back, has options, is too long or a super-packet; returns how many were passed
        to link here."""
        end = HEAD_OCTETS + flow.option_octets
        options, segment = record[HEAD_OCTETS:end], record[end:]
        if len(options) != flow.option_octets:
            self._counters[C.bad_transmit] += 1
            return 0
        if flow.size:
            return self._transmit_super(flow, record, now, sends)
        if flow.crafted:
            return self._transmit_crafted(flow, segment, now, sends)
        if flow.partial:
            segment = complete(segment, CHECKSUM_AT[flow.protocol])
        length = ipv4.HEADER_OCTETS + len(options) + len(segment)
        if length > ipv4.LENGTH_MAX:
            self._counters[C.over_length] += 1
            return 0
        too_long = length > flow.mtu_octets
        identification = 0 if flow.dont_fragment and not too_long else flow.series.next(now)
        header = ipv4.header_with_options(flow.template, options, length, identification)
        if options and flow.flags & messages.TRANSMIT_RECORD:
            header = examine(header, header[ipv4.SOURCE], now + self._epoch, ours_to_send=True).header
        built = header + segment
        if too_long and not flow.may_fragment:
            self._counters[C.over_mtu] += 1
            sends += local_error(FRAGMENTATION_NEEDED, built, self._uppers.wanted, flow.mtu_octets)
            return 0
        if flow.loops:
            self._loop(flow, built, sends)
        if flow.neighbor is None or flow.neighbor is LOOPED_ONLY:
            return 0
        if not too_long:
            return self._hand_over(flow, built, now, sends)
        self._counters[C.fragmented] += 1
        return sum(self._hand_over(flow, fragment, now, sends) for fragment in split(built, flow.mtu_octets))

    def _transmit_crafted(self, flow: Flow, given: bytes, now: float, sends: list[Send]) -> int:
        """Send a packet with its own IP header (ip(7), IP_HDRINCL), which is never fragmented."""
        counters = self._counters
        if ipv4.header_octets(given) > len(given) or len(given) < ipv4.HEADER_OCTETS:
            counters[C.bad_crafted] += 1
            return 0
        if len(given) > ipv4.LENGTH_MAX:
            counters[C.over_length] += 1
            return 0
        built = ipv4.completed(given, flow.template[ipv4.SOURCE], flow.series.next(now))
        if len(given) > flow.mtu_octets:
            counters[C.over_mtu] += 1
            sends += local_error(FRAGMENTATION_NEEDED, built, self._uppers.wanted, flow.mtu_octets)
            return 0
        if flow.loops:
            elsewhere = built[ipv4.DESTINATION] != flow.template[ipv4.DESTINATION]
            if ipv4.is_fragment(built) or (flow.neighbor is None and elsewhere):
                counters[C.bad_crafted] += 1
                return 0
            self._loop(flow, built, sends)
        if flow.neighbor is None or flow.neighbor is LOOPED_ONLY:
            return 0
        return self._hand_over(flow, built, now, sends)

    def _loop(self, flow: Flow, built: bytes, sends: list[Send]) -> None:
        self._counters[C.looped] += 1
        flags = flow.up_flags
        protocol = built[ipv4.PROTOCOL_AT]
        record = record_of(built, flags)
        copied = protocol in self._uppers.wanted
        if copied:
            self._counters[C.copied] += 1
            sends.append(copy_of(record, flags, protocol))
        if flow.upper is not None:
            sends.append((flow.upper, PACKET, record))
        elif flow.neighbor is None and not copied:
            sends.append(complaint(UNREACHABLE, PROTOCOL_UNREACHABLE, record))

    def _hand_over(self, flow: Flow, built: bytes, now: float, sends: list[Send]) -> int:
        """Pass one packet to link or to the waiting ones; returns the number passed to link."""
        neighbor = flow.neighbor
        assert neighbor is not None
        mac = neighbor.mac
        if mac is None or now > neighbor.ask_again_at:
            mac = self._resolution.ask(flow, built, now, sends)
            if mac is None:
                return 0
        sends.append((topology.LINK, PACKET_OUT, out_record(mac, built)))
        return 1

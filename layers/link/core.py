"""link's core: passes frames from the device to ip or arp, and puts packets from them into frames.

Owns: the MAC address. Talks to: the device below, arp and ip above. Forgets in a crash: nothing; the address is in the
configuration.
"""

from __future__ import annotations

import random
from itertools import pairwise

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.held import NO_HOLDINGS, REFERENCE_OCTETS
from bus.layer import CounterWords, Octets, Send, State
from bus.messages import FAMILY_4, FLAG_CHECKSUM_KNOWN, FLAG_CHECKSUM_PARTIAL, FLAG_GROUP, PACKET_OUT_HEAD
from layers.link import heads
from layers.link.counters import Counters as C
from layers.link.gro import Joiner
from packets import ethernet, tcp, udp, vnet
from packets.ipv4 import PROTOCOL_AT
from packets.offload import complete

VNETS_MAX = 1024  # kinds of super-packet whose virtio_net_hdr is cached; then the cache is cleared
_MAC = slice(PACKET_OUT_HEAD.size - ethernet.MAC_OCTETS, PACKET_OUT_HEAD.size)
_KIND = slice(0, PACKET_OUT_HEAD.size - ethernet.MAC_OCTETS)  # the rest of the head
_PARTIAL = {vnet.PARTIAL_UDP, vnet.PARTIAL_TCP}
_VERIFIED = bytes((udp.PROTOCOL, tcp.PROTOCOL))  # protocols whose checksum a device can have verified


class Core:
    """The core of link; it has no state except the configuration."""

    next_wake: float | None = None
    held: Octets = NO_HOLDINGS

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self._mac = config.mac
        self._mtu_octets = config.mtu
        self._counters = counters
        self._pads = bool(config.wire)  # a TAP accepts short frames
        self._offload = bool(config.offload)  # a virtio_net_hdr precedes each frame in both directions
        self._joiner = Joiner()
        start = vnet.HEADER_OCTETS if self._offload else 0
        self._frame_octets = range(start + ethernet.HEADER_OCTETS, start + ethernet.HEADER_OCTETS + config.mtu + 1)
        # Slices of a frame for destination, source, type and content; they are as fast as constants.
        ends = (start, start + 6, start + 12, start + 14, None)
        self._parts = tuple(slice(*each) for each in pairwise(ends))
        # {rest of a PACKET_OUT_HEAD: octets before the frame}; None: the head is invalid.
        self._vnets: dict[bytes, bytes | None] = {}

    def start(self, now: float) -> list[Send]:
        """Nothing to send."""
        return []

    def wake(self, now: float) -> list[Send]:
        """Never called, because `next_wake` is None."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Neighbours depend on no state of link."""
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process frames from the device, or packets from arp and ip."""
        if sender == topology.DEVICE:
            return self._up_held(records) if kind == messages.ETHERNET_HELD else self._up(records)
        if kind == messages.PACKET_OUT:
            return self._down(records)
        if kind == messages.PACKET_OUT_HELD:
            return self._down_held(records)
        if kind == messages.ARP_OUT:
            return self._down_arp(records)
        self._counters[C.bad_request] += len(records)
        return []

    def _up(self, frames: list[bytes]) -> list[Send]:
        counters, mac, offload = self._counters, self._mac, self._offload
        shortest, longest = self._frame_octets[0], self._frame_octets[-1]
        to, origin, kind_of_packet, rest = self._parts
        sends: list[Send] = []
        counters[C.frames_in] += len(frames)
        joiner = self._joiner if len(frames) > 1 else None  # a single frame cannot be joined
        for frame in frames:
            octets = len(frame)
            if octets < shortest:
                counters[C.runt] += 1
                continue
            if octets > longest and not (offload and frame[1] in vnet.SUPER_TYPES):
                counters[C.oversize] += 1
                continue
            destination = frame[to]
            group = destination != mac
            if group and not destination[0] & 1:
                counters[C.other_host] += 1
                continue
            if frame[origin] == mac:
                counters[C.own_source] += 1
                continue
            ethertype = frame[kind_of_packet]
            if ethertype == ethernet.TYPE_IPV4:
                if offload and (before := frame[:10]) != vnet.PLAIN:
                    if joiner is not None and before == vnet.PARTIAL_UDP and not group:
                        joiner.add(frame, sends)
                        continue
                    self._joiner.flush(sends)  # this one may belong to the same flow and must not overtake it
                    if before in _PARTIAL:
                        sends.append((topology.IP, messages.PACKET, heads.PARTIAL[group] + frame[rest]))
                    else:
                        self._up_offloaded(frame, group, sends)
                    continue
                self._joiner.flush(sends)
                sends.append((topology.IP, messages.PACKET, heads.PLAIN[group] + frame[rest]))
            elif ethertype == ethernet.TYPE_ARP:
                sends.append((topology.ARP, messages.ARP_IN, frame[rest]))
            else:
                self._joiner.flush(sends)
                self._up_ieee802(ethertype, frame[rest], group, sends)
        if joiner is not None:
            joiner.flush(sends)
        return sends

    def _up_held(self, records: list[bytes]) -> list[Send]:
        """ETHERNET_HELD: super-packets of TCP without their text; the others are processed like any frame."""
        to, origin, kind_of_packet, rest = self._parts
        sends: list[Send] = []
        for record in records:
            flags, gso, _, size, _, offset = vnet.HEADER.unpack_from(record)
            if (record[to] == self._mac and record[origin] != self._mac and record[kind_of_packet] == ethernet.TYPE_IPV4
                    and vnet.is_super(flags, gso, size, offset)):
                self._counters[C.frames_in] += 1
                head = heads.head(FLAG_CHECKSUM_PARTIAL, size)
                sends.append((topology.IP, messages.PACKET_HELD, head + record[rest]))
                continue
            inline = self.held.inline(messages.ETHERNET_HELD, record)
            if inline is not None:
                sends += self._up([inline[1]])
        return sends

    def _up_ieee802(self, ethertype: bytes, content: bytes, group: bool, sends: list[Send]) -> None:
        """RFC 1122 section 2.3.3: SHOULD accept RFC 1042 packets, intermixed with those of RFC 894."""
        ethertype, content = ethernet.from_ieee802(ethertype, content)
        if ethertype == ethernet.TYPE_IPV4:
            sends.append((topology.IP, messages.PACKET, heads.PLAIN[group] + content))
        elif ethertype == ethernet.TYPE_ARP:
            sends.append((topology.ARP, messages.ARP_IN, content))
        else:
            self._counters[C.unknown_type] += 1

    def _up_offloaded(self, frame: bytes, group: bool, sends: list[Send]) -> None:
        """An IPv4 packet whose virtio_net_hdr is neither plain nor the usual partial one."""
        flags, gso, _, size, start, offset = vnet.HEADER.unpack_from(frame)
        content = frame[vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS :]
        if vnet.is_super(flags, gso, size, offset):
            content = heads.head(FLAG_CHECKSUM_PARTIAL | (FLAG_GROUP if group else 0), size) + content
        elif gso != vnet.GSO_NONE:
            self._counters[C.bad_offload] += 1
            return
        elif flags & vnet.NEEDS_CHECKSUM:
            at = start - ethernet.HEADER_OCTETS
            if not 0 <= at <= at + offset <= len(content) - 2:
                self._counters[C.bad_offload] += 1
                return
            content = heads.PLAIN[group] + content[:at] + complete(content[at:], offset)
        else:
            verified = flags & vnet.DATA_VALID and content[PROTOCOL_AT : PROTOCOL_AT + 1] in _VERIFIED
            content = heads.head((FLAG_CHECKSUM_KNOWN if verified else 0) | (FLAG_GROUP if group else 0)) + content
        sends.append((topology.IP, messages.PACKET, content))

    def _down(self, records: list[bytes]) -> list[Send]:
        """Process PACKET_OUT records."""
        counters, vnets, pads = self._counters, self._vnets, self._pads
        sends: list[Send] = []
        start = PACKET_OUT_HEAD.size
        most, tail = start + self._mtu_octets, self._mac + ethernet.TYPE_IPV4
        for record in records:
            kind, octets = record[_KIND], len(record)
            try:
                before = vnets[kind]
            except KeyError:
                before = self._vnet(kind, record)
            if before is None or octets <= start or (octets > most and not kind[4] and not kind[5]):
                counters[C.bad_request] += 1
                continue
            payload = ethernet.pad(record[start:]) if pads else record[start:]
            sends.append((topology.DEVICE, messages.ETHERNET, before + record[_MAC] + tail + payload))
        counters[C.frames_out] += len(sends)
        return sends

    def _down_held(self, records: list[bytes]) -> list[Send]:
        """PACKET_OUT_HELD: super-packets, only with offload, with the payload in shared memory."""
        start, tail = PACKET_OUT_HEAD.size, self._mac + ethernet.TYPE_IPV4
        sends: list[Send] = []
        for record in records:
            kind = record[_KIND]
            before = self._vnets.get(kind) or self._vnet(kind, record)
            if not before or len(record) <= start + REFERENCE_OCTETS or not (kind[4] or kind[5]):
                self._counters[C.bad_request] += 1
                continue
            sends.append((topology.DEVICE, messages.ETHERNET_HELD, before + record[_MAC] + tail + record[start:]))
        self._counters[C.frames_out] += len(sends)
        return sends

    def _vnet(self, kind: bytes, record: bytes) -> bytes | None:
        """The octets before a frame with such a head; cached."""
        if len(record) < PACKET_OUT_HEAD.size:
            return None
        _, family, flags, protocol, size, _ = PACKET_OUT_HEAD.unpack_from(record)
        partial = bool(flags & FLAG_CHECKSUM_PARTIAL)
        if family != FAMILY_4 or (not self._offload and (partial or size)):
            before = None
        else:
            before = vnet.header(protocol, partial, size) if self._offload else b""
        if len(self._vnets) >= VNETS_MAX:
            self._vnets.clear()
        self._vnets[kind] = before
        return before

    def _down_arp(self, records: list[bytes]) -> list[Send]:
        """Process ARP_OUT records."""
        before, tail = vnet.PLAIN if self._offload else b"", self._mac + ethernet.TYPE_ARP
        sends: list[Send] = []
        for record in records:
            if not ethernet.MAC_OCTETS < len(record) <= ethernet.MAC_OCTETS + self._mtu_octets:
                self._counters[C.bad_request] += 1
                continue
            payload = ethernet.pad(record[6:]) if self._pads else record[6:]
            sends.append((topology.DEVICE, messages.ETHERNET, before + record[:6] + tail + payload))
        self._counters[C.frames_out] += len(sends)
        return sends

"""link's core: frames from the device to the protocol that they carry, packets from above into frames.

Owns: the station's MAC address. Talks to: the device below, arp and ip above. Forgets in a crash: nothing; the address
comes from the launcher.
"""

from __future__ import annotations

import random
from itertools import pairwise

from bus import messages, topology
from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import SEGMENT_SIZE, SUPER_HEADER
from layers.link.counters import Counters as C
from layers.link.gro import Joiner
from packets import ethernet, vnet
from packets.offload import UDP, complete


class Core:
    """Stateless but for the configuration."""

    next_wake: float | None = None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self._mac = config.mac
        self._mtu_octets = config.mtu
        self._counters = counters
        self._pads = bool(config.wire)  # a TAP takes short frames as they are
        self._offload = bool(config.offload)  # then a virtio_net_hdr precedes each frame, both ways
        self._joiner = Joiner()
        head = vnet.HEADER_OCTETS if self._offload else 0
        self._frame_octets = range(head + ethernet.HEADER_OCTETS, head + ethernet.HEADER_OCTETS + config.mtu + 1)
        # Where destination, source, type and content stand: slices of a frame, which are as fast as with constants.
        ends = (head, head + 6, head + 12, head + 14, None)
        self._parts = tuple(slice(*each) for each in pairwise(ends))
        before, tail = vnet.PLAIN[:head], config.mac + ethernet.TYPE_IPV4
        # What stands before a destination and behind it, by kind.
        self._around = {messages.PACKET_OUT: (before, tail), messages.ARP_OUT: (before, config.mac + ethernet.TYPE_ARP)}
        if self._offload:
            self._around[messages.PACKET_OUT_PARTIAL] = vnet.PARTIAL_UDP, tail

    def start(self, now: float) -> list[Send]:
        """Nothing to announce."""
        return []

    def wake(self, now: float) -> list[Send]:
        """Never due."""
        return []

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Neighbours need nothing from here."""
        return []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Frames from the device, or packets from arp and ip."""
        if sender == topology.DEVICE:
            return self._up(records)
        return self._down_segments(records) if kind == messages.PACKET_OUT_SEGMENTS else self._down(kind, records)

    def _up(self, frames: list[bytes]) -> list[Send]:
        counters, mac, offload = self._counters, self._mac, self._offload
        shortest, longest = self._frame_octets[0], self._frame_octets[-1]
        to, origin, kind_of_packet, rest = self._parts
        sends: list[Send] = []
        counters[C.frames_in] += len(frames)
        joiner = self._joiner if len(frames) > 1 else None  # a frame that is alone has nothing to be joined with
        for frame in frames:
            octets = len(frame)
            if octets < shortest:
                counters[C.runt] += 1
                continue
            if octets > longest and not (offload and frame[1] == vnet.GSO_UDP_L4):
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
                if offload and frame[:10] != vnet.PLAIN:
                    if frame[:10] != vnet.PARTIAL_UDP or group:
                        self._joiner.flush(sends)  # this one may be of the same flow: it must not overtake
                        self._up_offloaded(frame, group, sends)
                    elif joiner is None:
                        sends.append((topology.IP, messages.PACKET_CHECKED, frame[rest]))
                    else:
                        joiner.add(frame, sends)
                    continue
                self._joiner.flush(sends)
                sends.append((topology.IP, messages.PACKET_GROUP if group else messages.PACKET, frame[rest]))
            elif ethertype == ethernet.TYPE_ARP:
                sends.append((topology.ARP, messages.ARP_IN, frame[rest]))
            else:
                self._joiner.flush(sends)
                self._up_ieee802(ethertype, frame[rest], group, sends)
        if joiner is not None:
            joiner.flush(sends)
        return sends

    def _up_ieee802(self, ethertype: bytes, content: bytes, group: bool, sends: list[Send]) -> None:
        """RFC 1122 section 2.3.3: SHOULD take RFC 1042 packets, intermixed with those of RFC 894."""
        ethertype, content = ethernet.from_ieee802(ethertype, content)
        if ethertype == ethernet.TYPE_IPV4:
            sends.append((topology.IP, messages.PACKET_GROUP if group else messages.PACKET, content))
        elif ethertype == ethernet.TYPE_ARP:
            sends.append((topology.ARP, messages.ARP_IN, content))
        else:
            self._counters[C.unknown_type] += 1

    def _up_offloaded(self, frame: bytes, group: bool, sends: list[Send]) -> None:
        """An IPv4 packet of which its virtio_net_hdr says anything but that it is plain, or UDP for us and partial."""
        flags, gso, _, size, start, offset = vnet.HEADER.unpack_from(frame)
        content = frame[vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS :]
        kind = messages.PACKET_GROUP if group else messages.PACKET
        if gso == vnet.GSO_NONE and flags & vnet.NEEDS_CHECKSUM:
            at = start - ethernet.HEADER_OCTETS
            if not 0 <= at <= at + offset <= len(content) - 2:
                self._counters[C.bad_offload] += 1
                return
            sends.append((topology.IP, kind, content[:at] + complete(content[at:], offset)))
        elif gso == vnet.GSO_NONE:
            if flags & vnet.DATA_VALID and not group and content[9:10] == bytes((UDP,)):
                kind = messages.PACKET_CHECKED
            sends.append((topology.IP, kind, content))
        elif vnet.is_udp_super(flags, gso, size, offset):
            sends.append((topology.IP, messages.PACKET_SEGMENTS, SUPER_HEADER.pack(size, group) + content))
        else:
            self._counters[C.bad_offload] += 1

    def _down(self, kind: int, records: list[bytes]) -> list[Send]:
        counters = self._counters
        sends: list[Send] = []
        if kind not in self._around:
            counters[C.bad_request] += len(records)
            return sends
        before, tail = self._around[kind]
        for record in records:
            if not ethernet.MAC_OCTETS < len(record) <= ethernet.MAC_OCTETS + self._mtu_octets:
                counters[C.bad_request] += 1
                continue
            payload = ethernet.pad(record[6:]) if self._pads else record[6:]
            sends.append((topology.DEVICE, messages.ETHERNET, before + record[:6] + tail + payload))
        counters[C.frames_out] += len(sends)
        return sends

    def _down_segments(self, records: list[bytes]) -> list[Send]:
        tail = self._around[messages.PACKET_OUT][1]
        sends: list[Send] = []
        start = SEGMENT_SIZE.size
        for record in records:
            size = SEGMENT_SIZE.unpack_from(record)[0] if len(record) > start + ethernet.MAC_OCTETS else 0
            if not size or not self._offload:
                self._counters[C.bad_request] += 1
                continue
            frame = b"".join((vnet.super_header(size), record[start : start + 6], tail, record[start + 6 :]))
            sends.append((topology.DEVICE, messages.ETHERNET, frame))
        self._counters[C.frames_out] += len(sends)
        return sends

"""link's core: frames from the medium to the protocol that they carry, packets from above into frames.

Owns: the station's MAC address. Talks to: the medium below, arp and ip above. Forgets in a crash: nothing; the address
comes from the launcher.
"""

from __future__ import annotations

import random

from bus import table
from bus.config import StackConfig
from bus.core import CounterWords, Send, State
from layers.link import packet
from layers.link.counters import Counters as C


class Core:
    """Stateless but for the configuration."""

    next_wake: float | None = None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self._mac = config.mac
        self._mtu_octets = config.mtu
        self._counters = counters
        self._pads = bool(config.wire)  # a TAP takes short frames as they are
        self._frame_max_octets = packet.HEADER_OCTETS + config.mtu
        self._tails = {table.PACKET_OUT: config.mac + packet.TYPE_IPV4, table.ARP_OUT: config.mac + packet.TYPE_ARP}

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
        """Frames from the medium, or packets from arp and ip."""
        return self._up(records) if sender == table.MEDIUM else self._down(kind, records)

    def _up(self, frames: list[bytes]) -> list[Send]:
        counters, mac, longest = self._counters, self._mac, self._frame_max_octets
        sends: list[Send] = []
        counters[C.frames_in] += len(frames)
        for frame in frames:
            octets = len(frame)
            if octets < packet.HEADER_OCTETS:
                counters[C.runt] += 1
                continue
            if octets > longest:
                counters[C.oversize] += 1
                continue
            destination = frame[:6]
            group = destination != mac
            if group and not frame[0] & 1:
                counters[C.other_host] += 1
                continue
            if frame[6:12] == mac:
                counters[C.own_source] += 1
                continue
            ethertype = frame[12:14]
            if ethertype == packet.TYPE_IPV4:
                sends.append((table.IP, table.PACKET_GROUP if group else table.PACKET, frame[14:]))
            elif ethertype == packet.TYPE_ARP:
                sends.append((table.ARP, table.ARP_IN, frame[14:]))
            else:
                counters[C.unknown_type] += 1
        return sends

    def _down(self, kind: int, records: list[bytes]) -> list[Send]:
        counters, tail = self._counters, self._tails[kind]
        sends: list[Send] = []
        for record in records:
            if not packet.MAC_OCTETS < len(record) <= packet.MAC_OCTETS + self._mtu_octets:
                counters[C.bad_request] += 1
                continue
            payload = packet.pad(record[6:]) if self._pads else record[6:]
            sends.append((table.MEDIUM, table.ETHERNET, record[:6] + tail + payload))
        counters[C.frames_out] += len(sends)
        return sends

"""The switch's core: a transparent bridge (IEEE 802.1D-2004 clause 7). It has no spanning tree, because a wire has no
loops.

Owns: the port at which each station was last seen. Talks to: ports, by number. Forgets in a crash: everything; frames
are flooded until their receivers have sent a frame again.
"""

from __future__ import annotations

from bus.layer import CounterWords
from packets import ethernet, ipv4
from switch.counters import Counters as C

FRAME_MIN_OCTETS = 60  # IEEE 802.3 clause 3.2.8: 64, minus the check sequence, which frames here do not have
FRAME_MAX_OCTETS = ethernet.HEADER_OCTETS + ipv4.LENGTH_MAX  # as long as the longest super-packet
AGEING_S = 300.0  # IEEE 802.1D-2004 table 7-5: the recommended default
STATIONS_MAX = 256  # per port, so that a port with many addresses displaces only its own
RESERVED = b"\x01\x80\xc2\x00\x00"  # IEEE 802.1D-2004 table 7-10: these octets, then 00 to 0f


class Switch:
    """The ports, and the stations that were seen there."""

    def __init__(self, counters: CounterWords) -> None:
        self._counters = counters
        self._ports: dict[int, dict[bytes, float]] = {}  # {port: {station: time last seen}}, oldest first
        self._port_of: dict[bytes, int] = {}  # {station: port}

    def join(self, port: int) -> None:
        """Add a port."""
        self._ports[port] = {}
        self._counters[C.joined] += 1

    def leave(self, port: int) -> None:
        """Remove a port and its stations."""
        for station in self._ports.pop(port):
            del self._port_of[station]
        self._counters[C.left] += 1

    def forward(self, port: int, frames: list[bytes], now: float, start: int = 0) -> dict[int, list[bytes]]:
        """Forward frames that arrived at `port`, in order. Returns {port: frames to send there}.

        `start`: where the frame begins in the octets, behind a virtio_net_hdr.
        """
        counters, ports, port_of = self._counters, self._ports, self._port_of
        stations = ports[port]
        out: dict[int, list[bytes]] = {}
        counters[C.frames_in] += len(frames)
        to, origin = slice(start, start + 6), slice(start + 6, start + 12)
        shortest, longest = start + FRAME_MIN_OCTETS, start + FRAME_MAX_OCTETS
        for frame in frames:
            if not shortest <= len(frame) <= longest:
                counters[C.runt if len(frame) < shortest else C.oversize] += 1
                continue
            destination, source = frame[to], frame[origin]
            # IEEE 802.1D-2004 section 7.8: learn only from individual addresses; a frame from a group is none
            if source[0] & 1:
                counters[C.bad_source] += 1
                continue
            if source not in stations:
                self._learn(source, port)
            stations[source] = now
            # IEEE 802.1D-2004 section 7.12.6: a bridge does not relay frames to reserved addresses
            if destination[:5] == RESERVED and destination[5] < 16:
                counters[C.reserved] += 1
                continue
            target = port_of.get(destination)
            if target is not None and now - ports[target][destination] > AGEING_S:
                self._forget(destination)
                counters[C.aged] += 1
                target = None
            if target is None:
                counters[C.flooded] += 1
                for other in ports:
                    if other != port:
                        out.setdefault(other, []).append(frame)
            elif target != port:
                out.setdefault(target, []).append(frame)
            else:
                counters[C.same_port] += 1
        return out

    def _learn(self, station: bytes, port: int) -> None:
        """Note that the station is now at `port`; the caller notes the time."""
        stations = self._ports[port]
        self._counters[C.moved if station in self._port_of else C.learnt] += 1
        if station in self._port_of:
            self._forget(station)
        if len(stations) >= STATIONS_MAX:
            self._forget(next(iter(stations)))
            self._counters[C.evicted] += 1
        self._port_of[station] = port

    def _forget(self, station: bytes) -> None:
        del self._ports[self._port_of.pop(station)][station]

"""Reassembly of fragments (RFC 791 section 3.2, RFC 815, RFC 1122 section 3.3.2).

Owns the fragments of incomplete datagrams, in memory only: a crash loses them, as a network may.

Hostile input: an invalid fragment is dropped. A fragment that overlaps others without being contained in them makes the
whole datagram invalid, including its later fragments. Memory is bounded for each source and in all; the source that
uses most loses its oldest datagram first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from itertools import islice

from bus.layer import CounterWords
from layers.ip.counters import Counters as C
from packets.fragments import Fragment

# Linux: net.ipv4.ipfrag_time. RFC 1122 section 3.3.2 asks for 60 to 120 s, which dates from slower networks. On fast
# ones identification numbers repeat within seconds (RFC 4963), and the longer fragments wait, the more likely they are
# to be mixed with those of another datagram.
TIMEOUT_S = 30.0
OCTETS_MAX = 4 << 20  # Linux: net.ipv4.ipfrag_high_thresh
SOURCE_OCTETS_MAX = OCTETS_MAX // 8  # so that one source cannot use all memory or displace the others
SOURCES_MAX = 1024  # sources are easily forged; the one that was seen first is deleted
DATAGRAM_COST = 512  # octets accounted for each datagram in addition to its data, for Python's objects
PIECE_COST = 128
EXPIRED_AT_ONCE = 256  # datagrams in one turn: about 2 ms with what is sent about them

_NOT_ECT, _CE = 1 << 0, 1 << 3  # RFC 3168 section 5: bits for the set of ECN fields


class Datagram:
    """The fragments of one datagram. The pieces are in order and do not overlap; `starts` are their offsets."""

    __slots__ = ("cost", "deadline", "ecn", "end", "first_header", "key", "octets", "pieces", "source", "spoilt",
                 "starts")

    def __init__(self, source: bytes, key: bytes, deadline: float) -> None:
        self.source = source
        self.key = key
        self.deadline = deadline
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.octets = 0  # of all pieces
        self.end: int | None = None  # end of the payload; None: the last fragment has not arrived
        self.first_header = b""
        self.ecn = 0  # the set of ECN fields of its fragments
        self.spoilt = False
        self.cost = 0

    def insert(self, start: int, data: bytes, last: bool) -> bool | None:
        """Add a piece. None: it is contained in the others. False: it contradicts them.

        In RFC 791 section 3.2 later data wins, in Linux (inet_frag_queue_insert) earlier data; if a piece overlaps
        partially, or contains another, Linux drops the whole datagram.
        """
        starts, pieces = self.starts, self.pieces
        end = start + len(data)
        if self.end is not None and (end > self.end or (last and end != self.end)):
            return False
        place = bisect_right(starts, start)
        if self._covers(place - 1, start, end):
            if last and starts[-1] + len(pieces[-1]) > end:
                return False
            self.end = end if last else self.end
            return None
        # RFC 5722 section 4, for IPv6; no legitimate sender of IPv4 makes such fragments either
        if place and starts[place - 1] + len(pieces[place - 1]) > start:
            return False
        if place < len(starts) and starts[place] < end:
            return False
        if last:
            if place < len(starts):
                return False
            self.end = end
        starts.insert(place, start)
        pieces.insert(place, data)
        self.octets += len(data)
        return True


    def _covers(self, place: int, start: int, end: int) -> bool:
        """True if contiguous pieces from that one on contain all of [start, end)."""
        if place < 0:
            return False
        reached = self.starts[place] + len(self.pieces[place])
        while start < reached < end and place + 1 < len(self.starts) and self.starts[place + 1] == reached:
            place += 1
            reached += len(self.pieces[place])
        return end <= reached


class Source:
    """The datagrams of one source address, oldest first."""

    __slots__ = ("cost", "datagrams")

    def __init__(self) -> None:
        self.cost = 0
        self.datagrams: dict[bytes, Datagram] = {}


class Reassembly:
    """All incomplete datagrams. `next_expiry`: the time at which `expire` has something to do."""

    def __init__(self, counters: CounterWords) -> None:
        self.next_expiry: float | None = None
        self._counters = counters
        self._datagrams: OrderedDict[bytes, Datagram] = OrderedDict()  # oldest first
        self._sources: dict[bytes, Source] = {}
        self.cost = 0

    def add(self, fragment: Fragment, now: float) -> bytes | None:
        """Add a fragment; returns the whole packet if nothing is missing."""
        counters = self._counters
        counters[C.fragments_in] += 1
        address, key, start, more, room, ecn, header, data, _ = fragment
        if not data or (more and len(data) & 7):
            counters[C.fragment_malformed] += 1
            return None
        if start + len(data) > room:
            counters[C.fragment_beyond] += 1
            return None
        datagram = self._datagrams.get(key) or self._begin(address, key, now)
        if datagram.spoilt:
            counters[C.fragment_spoilt] += 1
            return None
        taken = datagram.insert(start, data, not more)
        if taken is None:
            counters[C.fragment_repeated] += 1
            if datagram.octets != datagram.end:
                return None
        elif not taken:
            counters[C.fragment_spoilt] += 1
            self._spoil(datagram)
            return None
        datagram.ecn |= 1 << ecn
        if not start:
            datagram.first_header = header
        if datagram.octets == datagram.end:
            self._remove(datagram)
            return self._whole(datagram, fragment)
        self._charge(datagram, len(data) + PIECE_COST)
        self._make_room(address)
        return None

    def expire(self, now: float) -> list[bytes]:
        """Delete some of the expired datagrams; returns their first fragments, as far as these have arrived.

        RFC 1122 section 3.3.2: their senders get time exceeded, code 1.
        """
        firsts = []
        for datagram in list(islice(self._datagrams.values(), EXPIRED_AT_ONCE)):
            if datagram.deadline > now:
                break
            self._remove(datagram)
            if not datagram.spoilt:
                self._counters[C.reassembly_timeout] += 1
                if datagram.first_header:
                    firsts.append(datagram.first_header + datagram.pieces[0])
        return firsts

    def __len__(self) -> int:
        return len(self._datagrams)

    def _whole(self, datagram: Datagram, fragment: Fragment) -> bytes | None:
        ecn = datagram.ecn
        packet = fragment.whole(datagram.first_header, datagram.pieces, bool(ecn & _CE))
        if packet is None:
            self._counters[C.fragment_beyond] += 1
            return None
        if ecn & _NOT_ECT and ecn != _NOT_ECT:  # RFC 3168 section 5.3: one packet cannot have such a mixture
            self._counters[C.reassembly_ecn] += 1
            return None
        self._counters[C.reassembled] += 1
        return packet

    # -- accounting ------------------------------------------------------------------------------------------------

    def _begin(self, address: bytes, key: bytes, now: float) -> Datagram:
        source = self._sources.get(address)
        if source is None:
            if len(self._sources) >= SOURCES_MAX:
                for datagram in list(next(iter(self._sources.values())).datagrams.values()):
                    self._evict(datagram)
            source = self._sources[address] = Source()
        datagram = self._datagrams[key] = source.datagrams[key] = Datagram(address, key, now + TIMEOUT_S)
        if self.next_expiry is None:
            self.next_expiry = datagram.deadline
        self._charge(datagram, DATAGRAM_COST)
        return datagram

    def _charge(self, datagram: Datagram, octets: int) -> None:
        datagram.cost += octets
        self._sources[datagram.source].cost += octets
        self.cost += octets

    def _make_room(self, address: bytes) -> None:
        source = self._sources[address]
        while source.cost > SOURCE_OCTETS_MAX:
            self._evict(next(iter(source.datagrams.values())))
        while self.cost > OCTETS_MAX:
            greediest = max(self._sources.values(), key=lambda source: source.cost)
            self._evict(next(iter(greediest.datagrams.values())))

    def _evict(self, datagram: Datagram) -> None:
        self._counters[C.reassembly_evicted] += 1
        self._remove(datagram)

    def _spoil(self, datagram: Datagram) -> None:
        """RFC 5722 section 4: drop the rest of the datagram, too, so remember it until its timeout."""
        datagram.spoilt = True
        datagram.starts.clear()
        datagram.pieces.clear()
        self._charge(datagram, DATAGRAM_COST - datagram.cost)

    def _remove(self, datagram: Datagram) -> None:
        address = datagram.source
        source = self._sources[address]
        self._charge(datagram, -datagram.cost)
        del self._datagrams[datagram.key], source.datagrams[datagram.key]
        if not source.datagrams:
            del self._sources[address]
        self.next_expiry = next(iter(self._datagrams.values())).deadline if self._datagrams else None

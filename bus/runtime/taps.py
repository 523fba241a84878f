"""Taps: records are watched and impaired on their way into a core and out of it.

Taps cost nothing while they are not used: without requests the event loop calls the plain core, otherwise a wrapper
with the same calls; and it divides what the core returns into runs (`bus.runtime.runs`) either by itself or by
`TappedCore.leaving`, which shows them. A capture copies records into a ring, which its reader may leave full
(`bus.runtime.ring`). An impairment holds, drops, duplicates and corrupts records with packets (`bus.runtime.impair`).
Control records are shown but never impaired, because pipes guarantee their delivery.

The keeper sends all of its requests in one message each time; requests that were there before continue undisturbed. In
a crash the packets that an impairment holds are lost; the keeper sends its requests to the successor again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from time import monotonic_ns, perf_counter_ns
from typing import Any

import msgspec

from bus import topology, views
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.durable.held import NO_HOLDINGS, Holdings
from bus.layer import ClientCore, Core, ManagedCore, PoisonCore, Send
from bus.messages import CONTROL_KIND_MIN, HELD_OF
from bus.runtime.impair import Impairment, Settings
from bus.runtime.meter import Meter
from bus.runtime.ring import DROPPED, IN, OUT, UNSENT, RingWriter
from bus.runtime.runs import Run, runs
from packets.filter import Test, compile_filter

APPLICATIONS = topology.CLIENT_ID_MIN  # as peer: any application
BUS_COUNTER = 1 << 16  # added to the index of a bus counter, to tell it from the layer's own

ONE_BY_ONE_S = 1.0  # seconds after a drop during which records go to the core one by one, to find which are dropped

_COUNTERS = {"loss": C.bus_impaired_lost, "nth": C.bus_impaired_lost, "limit": C.bus_impaired_full,
             "duplicate": C.bus_impaired_duplicated, "corrupt": C.bus_impaired_corrupted,
             "reorder": C.bus_impaired_reordered}
_DROPS = ("loss", "nth", "limit")
_joined = b"".join


class CaptureRequest(msgspec.Struct, frozen=True):
    """Copy records from and to these peers (ids of layers, DEVICE, APPLICATIONS) into ring `slot`."""

    number: int  # assigned by the keeper: the same number is the same capture
    slot: int  # number of the ring in the layer's memory (bus.durable.layout)
    taken: frozenset[int] = frozenset()
    sent: frozenset[int] = frozenset()
    drops: bool = False  # show for each dropped record which counter counted it
    meter: bool = False  # only count, for all peers (bus.runtime.meter)
    record: bool = False  # record all calls of the core from the process's start on (bus.runtime.recorder)
    every: int = 0  # octets of the recording between two checkpoints; 0: none


class ImpairmentRequest(msgspec.Struct, frozen=True):
    """Impair records to `peer`, or from it."""

    number: int  # assigned by the keeper: the same number is the same impairment
    peer: int
    sent: bool
    settings: Settings
    flow: str = ""  # only packets that match this expression (packets.filter)


class TapRequests(msgspec.Struct, frozen=True):
    """All requests for the taps of one layer."""

    captures: tuple[CaptureRequest, ...] = ()
    impairments: tuple[ImpairmentRequest, ...] = ()


# Made here, in the keeper: a decoder that each process made for itself would cost 2 ms of a restart.
decode_requests = msgspec.json.Decoder(TapRequests).decode


class Taps:
    """The taps of one layer's core. At present `core` is the one to call, and `runs` divides what leaves into runs."""

    def __init__(self, core: Core, durable: layout.Memory, drop_counters: Iterable[int], with_vnet: bool,
                 held: Holdings = NO_HOLDINGS, clock: Callable[[], float] | None = None) -> None:
        """`clock`: the time of a turn is that of its begin, and a packet that arrived later must not be held too
        short."""
        self.plain = core
        self.clock = clock
        self.core = core
        self.runs: Callable[[list[Send]], list[Run]] = runs
        self.words = durable.words
        self.counters = durable.counters
        self.bus_counters = durable.bus_counters
        self.drop_counters = tuple(sorted(drop_counters))
        consecutive = groupby(enumerate(self.drop_counters), lambda each: each[1] - each[0])
        # The words of the counters of drops, compared after each call of the core: so in few pieces.
        self.drop_words = [durable.counters[some[0][1] : some[-1][1] + 1]
                            for some in (list(some) for _, some in consecutive)]
        self.incarnation = durable.words[layout.INCARNATION]
        self.held = held  # where octets lie that records only refer to
        self.with_vnet = with_vnet  # ETHERNET records start with a virtio_net_hdr
        self._memory = durable.tap  # the memory of a ring
        self._rings: dict[int, RingWriter] = {}  # {number of the capture: writer}
        self._meters: dict[int, Meter] = {}
        self._disturbers: dict[int, _Disturber] = {}

    def apply(self, octets: Any, now: float) -> list[Send]:
        """Apply exactly these requests; returns packets that ended impairments had held: they leave now."""
        asked = msgspec.convert(octets, TapRequests)
        self._rings = {capture.number: self._rings.get(capture.number)
                       or RingWriter(self._memory(capture.slot, True), capture.number)
                       for capture in asked.captures if not (capture.meter or capture.record)}
        self._meters = {capture.number: self._meters.get(capture.number)
                        or Meter(self._memory(capture.slot, False), capture.number)
                        for capture in asked.captures if capture.meter}
        kept = {request.number: request for request in asked.impairments}
        ended = [self._disturbers.pop(number) for number in list(self._disturbers)
                 if self._disturbers[number].request != kept.get(number)]
        for number, request in kept.items():
            if number not in self._disturbers:
                self._disturbers[number] = _Disturber(request, self)
        before = self.core
        if self._rings or self._meters or kept:
            captures = [(self._rings[c.number], c) for c in asked.captures if c.number in self._rings]
            kind = next((kind for interface, kind in _TAPPED if isinstance(self.plain, interface)), TappedCore)
            self.core = core = kind(self, captures, list(self._meters.values()), list(self._disturbers.values()))
            self.runs = core.leaving
        else:
            self.core, self.runs = self.plain, runs
        sends = []
        for disturber in ended:
            sends += _released(disturber, before if isinstance(before, TappedCore) else None, now)
        return sends


def _released(disturber: _Disturber, core: TappedCore | None, now: float) -> list[Send]:
    held = disturber.model.flush()
    if core is None:
        return []
    return held if disturber.request.sent else core.taken_in(held, now)


class _Disturber:
    """One impairment, and the records that it applies to."""

    def __init__(self, request: ImpairmentRequest, taps: Taps) -> None:
        self.request = request
        self._with_vnet = taps.with_vnet
        self._test: Test | None = compile_filter(request.flow) if request.flow else None
        self._taps = taps
        self.core: TappedCore | None = None  # the present core, which shows dropped packets
        self.model: Impairment[Send] = Impairment(request.settings, _size, partial(_corrupted, taps.with_vnet),
                                                  self._note)

    def _note(self, item: Send, what: str) -> None:
        counter = _COUNTERS[what]
        self._taps.bus_counters[counter] += 1
        if what in _DROPS:
            first = layout.PIPE_DROPPED if self.request.sent else layout.PIPE_DROPPED_IN
            self._taps.words[first + layout.pipe_cell(item[0])] += 1
            if self.core is not None:
                self.core.show_drop(item, BUS_COUNTER + counter, UNSENT if self.request.sent else DROPPED)

    def offered(self, items: Iterable[Send], now: float) -> list[Send]:
        """The records that leave at once: of these, and of those held."""
        leaving: list[Send] = []
        for peer, kind, record in items:
            if kind >= CONTROL_KIND_MIN or not self._concerns(kind, record):
                leaving.append((peer, kind, record))
                continue
            for piece in views.pieces(kind, record, self._with_vnet):
                leaving += self.model.offered((peer, *piece), now)
        return leaving

    def _concerns(self, kind: int, record: bytes) -> bool:
        if self._test is None:
            return True
        at = 14 if views.is_frame(kind) else 0
        return any(self._test(packet[at:]) for packet in views.packets_of(kind, [record], self._with_vnet)[:1])


def _size(item: Send) -> int:
    return len(item[2])


def _corrupted(with_vnet: bool, item: Send, rng: random.Random) -> Send:
    return item[0], *views.corrupted(item[1], item[2], with_vnet, rng)


class TappedCore:
    """A core with taps."""

    def __init__(self, taps: Taps, captures: list[tuple[RingWriter, CaptureRequest]], meters: list[Meter],
                 disturbers: list[_Disturber]) -> None:
        self._core = taps.plain
        self._taps = taps
        self._incarnation = taps.incarnation
        self._taken: dict[int, list[RingWriter]] = {}  # {peer: rings for what is received from it}
        self._sent: dict[int, list[RingWriter]] = {}
        for ring, asked in captures:
            for peers, rings in ((asked.taken, self._taken), (asked.sent, self._sent)):
                for peer in peers:
                    rings.setdefault(peer, []).append(ring)
        self._watches_out = bool(self._sent or meters)
        self._meters = meters
        self._shows_drops = [ring for ring, asked in captures if asked.drops]
        self._drop_words = taps.drop_words
        self._dropped = _joined(self._drop_words)
        self._one_by_one_until = float("-inf")
        self._disturbers = disturbers
        self._on_way_in: dict[int, list[_Disturber]] = {}
        self._on_way_out: dict[int, list[_Disturber]] = {}
        for disturber in disturbers:
            disturber.core = self
            way = self._on_way_out if disturber.request.sent else self._on_way_in
            way.setdefault(disturber.request.peer, []).append(disturber)

    @property
    def next_wake(self) -> float | None:
        """The time when the core or a held record is due."""
        if not self._disturbers:
            return self._core.next_wake
        due = [disturber.model.next_wake for disturber in self._disturbers] + [self._core.next_wake]
        return min((at for at in due if at is not None), default=None)

    # -- the calls of a core --------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        return self._out(self._core.start(now), now)

    def receive(self, sender: int, kind: int, records: list[bytes], now: float, through: bool = False) -> list[Send]:
        """See `bus.layer.Core`. `through`: the records have left the impairments on the way in.

        While nothing is dropped all records go to the core at once, because single calls cost several times as much. So
        if the first drop after a quiet second happens in such a group, it is counted but not shown.
        """
        if kind in HELD_OF:
            kind, records = self._taps.held.inlined(kind, records)
        if self._on_way_in and not through:
            return self._impaired(sender, kind, records, now)
        if self._taken:
            for ring in self._taken.get(sender if sender < APPLICATIONS else APPLICATIONS, ()):
                ring.put(monotonic_ns(), IN, sender, kind, records, self._incarnation)
        started = perf_counter_ns() if self._meters else 0
        if len(records) > 1 and now <= self._one_by_one_until:
            sends = self._one_by_one(sender, kind, records, now)
        else:
            sends = self._core.receive(sender, kind, records, now)
            if self._shows_drops and _joined(self._drop_words) != self._dropped:
                self._dropped_some(sender, kind, records, now)
        if self._meters:
            took_ns = perf_counter_ns() - started
            for meter in self._meters:
                meter.passed(sender, IN, records)
                meter.took(len(records), took_ns)
        return self._out(sends, now) if self._on_way_out else sends

    def wake(self, now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        sends: list[Send] = []
        for way in (*self._on_way_in.values(), *self._on_way_out.values()):
            for place, disturber in enumerate(way):
                held = disturber.model.due(now)
                for later in way[place + 1 :]:
                    held = later.offered(held, now)
                if held:
                    sends += held if disturber.request.sent else self.taken_in(held, now)
        if self._core.next_wake is not None and self._core.next_wake <= now:
            started = perf_counter_ns()
            woken = self._core.wake(now)
            for meter in self._meters:
                meter.took(0, perf_counter_ns() - started)
            sends += self._out(woken, now)
        return sends

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """See `bus.layer.Core`."""
        return self._out(self._core.neighbor_started(sender, now), now)

    def record_set_aside(self, sender: int, kind: int, record: bytes, now: float) -> list[Send]:
        """See `bus.layer.PoisonCore`."""
        if not isinstance(self._core, PoisonCore):
            return []
        return self._out(self._core.record_set_aside(sender, kind, record, now), now)

    # -- on the way ----------------------------------------------------------------------------------------------

    def _impaired(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """The same behind the impairments on the way in."""
        items: list[Send] = [(sender, kind, record) for record in records]
        if self._taps.clock is not None:
            now = self._taps.clock()
        for disturber in self._on_way_in.get(sender if sender < APPLICATIONS else APPLICATIONS, ()):
            items = disturber.offered(items, now)
        return self.taken_in(items, now)

    def taken_in(self, items: list[Send], now: float) -> list[Send]:
        """Pass records that have left the impairments to the core, in runs."""
        sends = []
        for sender, kind, records in runs(items):
            sends += self.receive(sender, kind, records, now, True)
        return sends

    def _one_by_one(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        sends: list[Send] = []
        for record in records:
            sends += self._core.receive(sender, kind, [record], now)
            if _joined(self._drop_words) != self._dropped:
                self._dropped_some(sender, kind, [record], now)
        return sends

    def _dropped_some(self, sender: int, kind: int, records: list[bytes], now: float) -> None:
        """Show a record that was dropped alone with each counter that has increased."""
        before, self._dropped = self._dropped, _joined(self._drop_words)
        self._one_by_one_until = now + ONE_BY_ONE_S
        if len(records) == 1:
            words = (memoryview(octets).cast("Q") for octets in (before, self._dropped))
            for index, was, is_now in zip(self._taps.drop_counters, *words, strict=True):
                if is_now > was:
                    self.show_drop((sender, kind, records[0]), index)

    def _out(self, sends: list[Send], now: float) -> list[Send]:
        """What is left of these sends, and is not held, behind the impairments."""
        if not self._on_way_out or not sends:
            return sends
        if self._taps.clock is not None:
            now = self._taps.clock()
        left: list[Send] = []
        for consumer, kind, records in self._with_octets(runs(sends)):
            items: list[Send] = [(consumer, kind, record) for record in records]
            for disturber in self._on_way_out.get(consumer if consumer < APPLICATIONS else APPLICATIONS, ()):
                items = disturber.offered(items, now)
            left += items
        return left

    def leaving(self, sends: list[Send]) -> list[Run]:
        """The runs of what the event loop passes on now; they are shown, with the octets that records refer to."""
        found, incarnation = runs(sends), self._incarnation
        if not self._watches_out:
            return found
        for _, kind, _ in found:
            if kind in HELD_OF:
                found = self._with_octets(found)
                break
        for consumer, kind, records in found:
            for ring in self._sent.get(consumer if consumer < APPLICATIONS else APPLICATIONS, ()):
                ring.put(monotonic_ns(), OUT, consumer, kind, records, incarnation)
            if self._meters:
                for meter in self._meters:
                    meter.passed(consumer, OUT, records)
        return found

    def _with_octets(self, found: list[Run]) -> list[Run]:
        """The same runs with the octets that their records refer to, of those that are still there."""
        inlined = self._taps.held.inlined
        return [run for consumer, kind, records in found if (run := (consumer, *inlined(kind, records)))[2]]

    def show_drop(self, item: Send, counter: int, direction: int = DROPPED) -> None:
        """Show a dropped record to the captures that want drops."""
        peer, kind, record = item
        for ring in self._shows_drops:
            ring.put(monotonic_ns(), direction, peer, kind, [record], self._incarnation, counter)


class TappedManagedCore(TappedCore):
    """The same for a core that can be managed."""

    _core: ManagedCore

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """See `bus.layer.ManagedCore`."""
        answer, sends = self._core.manage(request, now)
        return answer, self._out(sends, now)


class TappedClientCore(TappedCore):
    """The same for a core that serves clients."""

    _core: ClientCore

    @property
    def contested(self) -> bool:
        """That of the core."""
        return self._core.contested

    def welcome(self, client: int) -> dict[str, object]:
        """See `bus.layer.ClientCore`."""
        return self._core.welcome(client)

    def client_joined(self, client: int, hello: dict[str, object], now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._out(self._core.client_joined(client, hello, now), now)

    def client_left(self, client: int, now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._out(self._core.client_left(client, now), now)

    def frames_lost(self, sender: int, now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._out(self._core.frames_lost(sender, now), now)

    def clients_checked(self, now: float) -> list[Send]:
        """See `bus.layer.ClientCore`."""
        return self._out(self._core.clients_checked(now), now)


_TAPPED: tuple[tuple[type, type[TappedCore]], ...] = (
    (ClientCore, TappedClientCore), (ManagedCore, TappedManagedCore))

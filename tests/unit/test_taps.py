"""bus.runtime.taps around a core: what is seen, held, dropped and counted; without watchers the plain core is
called."""

from __future__ import annotations

import random

import msgspec
import pytest
from durable import Durable

from bus import messages as m
from bus import topology
from bus.counters import PipeCounters
from bus.durable import layout
from bus.layer import ClientCore, ManagedCore, Send
from bus.runtime import meter, recorder, ring
from bus.runtime.impair import Settings
from bus.runtime.taps import BUS_COUNTER, CaptureRequest, ImpairmentRequest, TapRequests, Taps
from packets import ipv4

APP = topology.CLIENT_ID_MIN + 5
HEAD = m.PACKET_HEAD.pack(1, 4, 0, 20, 0, 0, 0, 0, bytes(4), bytes(4))
PACKET = HEAD + ipv4.build(bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 17, bytes.fromhex("0035003500080000"))
OTHER = HEAD + ipv4.build(bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 6, bytes(20))


class Relay:
    """Everything from link goes to udp, but what begins with 'x', which is dropped and counted."""

    def __init__(self) -> None:
        self.counters = [0, 0]
        self.next_wake: float | None = None

    def receive(self, sender, kind, records, now):
        self.counters[0] += len(records)
        self.counters[1] += sum(record[:1] == b"x" for record in records)
        return [(topology.UDP, kind, record) for record in records if record[:1] != b"x"]

    def wake(self, now):
        self.next_wake = None
        return [(APP, m.DATAGRAM, b"woken")]

    def start(self, now):
        return []


class Doorman(Relay):
    """Tells udp of each client that comes and goes."""

    contested = True

    def neighbor_started(self, sender, now):
        return []

    def welcome(self, client):
        return {"client": client}

    def client_joined(self, client, hello, now):
        return [(topology.UDP, m.SOCKET_SET, b"joined")]

    def client_left(self, client, now):
        return [(topology.UDP, m.SOCKET_CLOSE, b"left")]

    def frames_lost(self, sender, now):
        return [(topology.TCP, m.READ, b"lost")]

    def clients_checked(self, now):
        return [(topology.UDP, m.SOCKET_CLOSE, b"checked")]


class Bench:
    def __init__(self, core: Relay | None = None) -> None:
        self.core = core or Relay()
        durable = Durable()
        self.memory = durable.map()
        durable.close()
        self.memory.words[layout.INCARNATION] = 3
        self.core.counters, self.bus_counters = self.memory.counters, self.memory.bus_counters
        self.taps = Taps(self.core, self.memory, [1], False)

    def ask(self, *requests, now: float = 0.0):
        asked = TapRequests(tuple(r for r in requests if isinstance(r, CaptureRequest)),
                            tuple(r for r in requests if isinstance(r, ImpairmentRequest)))
        return self.taps.apply(msgspec.json.decode(msgspec.json.encode(asked)), now)

    def passes(self, sends: list[Send]) -> list[Send]:
        """What the event loop passes on."""
        return [(consumer, kind, record) for consumer, kind, records in self.taps.runs(sends) for record in records]

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        return self.passes(self.taps.core.receive(sender, kind, records, now))

    def entries(self, slot: int = 0) -> list[ring.Entry]:
        return ring.RingReader(self.memory.tap(slot, False)).read()


def impair(number: int = 1, sent: bool = True, peer: int = topology.UDP, flow: str = "", **settings):
    return ImpairmentRequest(number, peer, sent, Settings(**settings), flow)


def test_without_watchers_the_plain_core_is_called():
    bench = Bench()
    assert bench.taps.core is bench.core
    bench.ask(CaptureRequest(1, 0))
    assert bench.taps.core is not bench.core
    bench.ask()
    assert bench.taps.core is bench.core


def test_a_capture_sees_both_ways_and_what_was_dropped():
    bench = Bench()
    bench.ask(CaptureRequest(1, 0, frozenset({topology.LINK}), frozenset({topology.UDP}), drops=True))
    bench.receive(topology.LINK, m.PACKET, [b"x"], 0.0)  # alone: shown
    assert [entry.direction for entry in bench.entries()] == [ring.IN, ring.DROPPED]
    sends = bench.receive(topology.LINK, m.PACKET, [b"a", b"xb", b"c"], 0.5)
    assert sends == [(topology.UDP, m.PACKET, b"a"), (topology.UDP, m.PACKET, b"c")]
    taken, dropped, sent = bench.entries()
    assert (taken.direction, taken.peer, taken.records) == (ring.IN, topology.LINK, [b"a", b"xb", b"c"])
    assert dropped[1:3] == (ring.DROPPED, topology.LINK)
    assert (dropped.records, dropped.counter) == ([b"xb"], 1)
    assert (sent.direction, sent.peer, sent.records, sent.incarnation) == (ring.OUT, topology.UDP, [b"a", b"c"], 3)


def test_what_leaves_together_is_shown_in_runs_of_one_consumer_and_kind():
    class Distributor(Relay):
        def receive(self, sender, kind, records, now):
            return [(consumer, kind, b"%d" % place) for place, (consumer, kind) in enumerate(order)]

    order = [(topology.UDP, m.PACKET)] * 2 + [(topology.TCP, m.PACKET), (topology.UDP, m.PACKET),
                                              (topology.UDP, m.ROUTES)] + [(APP, m.DATAGRAM)] * 300
    bench = Bench(Distributor())
    bench.ask(CaptureRequest(1, 0, sent=frozenset({topology.UDP, topology.CLIENT_ID_MIN})))
    sends = bench.receive(topology.LINK, m.PACKET, [b"a"], 0.0)
    assert [send[:2] for send in sends] == order
    assert [(entry.peer, entry.kind, entry.records) for entry in bench.entries()] == [
        (topology.UDP, m.PACKET, [b"0", b"1"]), (topology.UDP, m.PACKET, [b"3"]), (topology.UDP, m.ROUTES, [b"4"]),
        (APP, m.DATAGRAM, [b"%d" % place for place in range(5, 305)])]


def test_applications_are_one_peer_and_timers_are_seen():
    bench = Bench()
    bench.ask(CaptureRequest(1, 0, frozenset(), frozenset({topology.CLIENT_ID_MIN})))
    bench.core.next_wake = 5.0
    assert bench.taps.core.next_wake == 5.0
    bench.passes(bench.taps.core.wake(5.0))
    (entry,) = bench.entries()
    assert (entry.peer, entry.records) == (APP, [b"woken"])


def test_two_captures_at_a_time_and_one_ends():
    bench = Bench()
    one, two = (CaptureRequest(n, n, frozenset(), frozenset({topology.UDP})) for n in (1, 2))
    bench.ask(one, two)
    bench.receive(topology.LINK, m.PACKET, [b"a"], 0.0)
    bench.ask(two)
    bench.receive(topology.LINK, m.PACKET, [b"b"], 0.0)
    assert [entry.records for entry in bench.entries(1)] == [[b"a"]]
    assert [entry.records for entry in bench.entries(2)] == [[b"a"], [b"b"]]


def test_delay_holds_and_wakes():
    bench = Bench()
    bench.ask(impair(delay=0.5))
    core = bench.taps.core
    assert core.receive(topology.LINK, m.PACKET, [PACKET], 1.0) == []
    assert core.next_wake == 1.5
    assert core.wake(1.4) == []
    assert core.wake(1.5) == [(topology.UDP, m.PACKET, PACKET)]
    assert core.next_wake is None


def test_control_records_are_never_disturbed():
    bench = Bench()
    bench.ask(impair(loss=1.0))
    routes = [(topology.UDP, m.ROUTES, b"{}")]
    assert bench.receive(topology.LINK, m.ROUTES, [b"{}"], 0.0) == routes
    assert bench.receive(topology.LINK, m.PACKET, [PACKET], 0.0) == []
    assert bench.bus_counters[PipeCounters.bus_impaired_lost] == 1


def test_on_the_way_in_the_core_gets_it_late():
    bench = Bench()
    bench.ask(impair(sent=False, peer=topology.LINK, delay=0.5))
    assert bench.receive(topology.LINK, m.PACKET, [PACKET], 1.0) == []
    assert bench.core.counters[0] == 0
    assert bench.taps.core.wake(1.5) == [(topology.UDP, m.PACKET, PACKET)]


def test_a_flow_alone_is_disturbed():
    bench = Bench()
    bench.ask(impair(loss=1.0, flow="udp port 53"))
    assert bench.receive(topology.LINK, m.PACKET, [PACKET, OTHER], 0.0) == [(topology.UDP, m.PACKET, OTHER)]


def test_a_capture_shows_packets_that_an_impairment_drops():
    bench = Bench()
    bench.ask(CaptureRequest(1, 0, frozenset(), frozenset({topology.UDP}), drops=True), impair(drop_nth=2))
    bench.receive(topology.LINK, m.PACKET, [PACKET, OTHER], 0.0)
    dropped, sent = bench.entries()
    assert (dropped.direction, dropped.peer, dropped.records) == (ring.UNSENT, topology.UDP, [OTHER])
    assert dropped.counter == BUS_COUNTER + PipeCounters.bus_impaired_lost
    assert sent.records == [PACKET]
    bench.ask(CaptureRequest(2, 0, frozenset({topology.LINK}), drops=True),
              impair(sent=False, peer=topology.LINK, loss=1.0))
    bench.receive(topology.LINK, m.PACKET, [PACKET], 0.0)
    (dropped,) = bench.entries()
    assert (dropped.direction, dropped.peer, dropped.records) == (ring.DROPPED, topology.LINK, [PACKET])


def test_a_repeated_impairment_continues_and_an_ended_one_releases_its_packets():
    bench = Bench()
    bench.ask(impair(delay=5.0))
    bench.receive(topology.LINK, m.PACKET, [PACKET], 0.0)
    assert bench.ask(impair(delay=5.0), CaptureRequest(1, 0)) == []
    assert bench.taps.core.next_wake == 5.0
    assert bench.ask(CaptureRequest(1, 0)) == [(topology.UDP, m.PACKET, PACKET)]
    bench.ask(impair(2, delay=5.0))
    bench.receive(topology.LINK, m.PACKET, [OTHER], 0.0)
    assert bench.ask() == [(topology.UDP, m.PACKET, OTHER)]


def test_packets_held_on_the_way_in_are_released_when_the_impairment_ends():
    bench = Bench()
    bench.ask(impair(sent=False, peer=topology.LINK, delay=5.0))
    bench.receive(topology.LINK, m.PACKET, [PACKET], 0.0)
    assert bench.ask() == [(topology.UDP, m.PACKET, PACKET)]


@pytest.mark.parametrize("way", [True, False])
def test_two_impairments_follow_each_other(way):
    bench = Bench()
    peer = topology.UDP if way else topology.LINK
    bench.ask(impair(1, way, peer, delay=1.0), impair(2, way, peer, delay=1.0))
    core = bench.taps.core
    assert core.receive(topology.LINK, m.PACKET, [PACKET], 0.0) == []
    assert core.wake(1.0) == []
    assert core.wake(2.0) == [(topology.UDP, m.PACKET, PACKET)]


def test_a_meter_counts_records_octets_and_calls():
    bench = Bench()
    bench.ask(CaptureRequest(1, 4, meter=True))
    for records in ([b"abc", b"xy"], [b"d"]):
        bench.receive(topology.LINK, m.PACKET, records, 0.0)
    reading = meter.read(bench.memory.tap(4, False))
    assert reading.flows[topology.LINK, meter.IN] == (3, 6)
    assert reading.flows[topology.UDP, meter.OUT] == (2, 4)
    assert reading.calls == 2
    assert sum(reading.times) == 3
    bench.ask(CaptureRequest(2, 4, meter=True))
    assert meter.read(bench.memory.tap(4, False)).calls == 0


def test_corruption_turns_one_bit_over():
    bench = Bench()
    bench.ask(impair(corrupt=1.0, seed=random.Random(1).randrange(99)))
    ((_, _, record),) = bench.receive(topology.LINK, m.PACKET, [PACKET], 0.0)
    assert sum((a ^ b).bit_count() for a, b in zip(record, PACKET, strict=True)) == 1


def test_while_nothing_is_dropped_what_comes_at_once_goes_to_the_core_at_once():
    bench = Bench()
    bench.ask(CaptureRequest(1, 0, drops=True))
    lengths = []
    receive = bench.core.receive

    def counted(sender, kind, records, now):
        lengths.append(len(records))
        return receive(sender, kind, records, now)

    bench.core.receive = counted
    for now, first in ((0.0, b"a"), (0.1, b"x"), (0.2, b"a"), (2.0, b"a")):
        bench.receive(topology.LINK, m.PACKET, [first, b"b"], now)
    assert lengths == [2, 2, 1, 1, 2]


def test_of_a_core_with_clients_what_it_sends_for_them_is_seen_too():
    bench = Bench(Doorman())
    bench.ask(CaptureRequest(1, 0, sent=frozenset({topology.UDP})))
    tapped = bench.taps.core
    assert isinstance(tapped, ClientCore)
    assert (tapped.contested, tapped.welcome(APP)) == (True, {"client": APP})
    bench.passes(tapped.client_joined(APP, {}, 1.0) + tapped.client_left(APP, 1.0))
    bench.passes(tapped.clients_checked(1.0))
    assert [record for entry in bench.entries() for record in entry.records] == [b"joined", b"left", b"checked"]


@pytest.mark.parametrize("core", [Relay, Doorman])
def test_a_recording_core_has_the_calls_of_the_core_that_it_is_around(core):
    class Sink:
        every = most = 0

        def put(self, octets: bytes) -> bool:
            written.append(msgspec.msgpack.decode(octets))
            return True

    plain, written = core(), []
    plain.neighbor_started = lambda sender, now: []
    origin = recorder.Origin(recorder.Start("udp", 1, "", b"{}", b"", False), {}, {})
    around = recorder.recorded(plain, origin, [], Sink())
    assert isinstance(around, ClientCore) == isinstance(plain, ClientCore)
    assert not isinstance(around, ManagedCore)
    around.receive(topology.LINK, m.PACKET, [b"record"], 1.0)
    if isinstance(around, ClientCore):
        around.client_left(APP, 2.0)
    assert [entry[1] for entry in written if entry[0] == "call"] == ["receive", "client_left"][: len(written) // 2]

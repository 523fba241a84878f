"""Datagrams in buffers of shared memory: who finds their octets, when a buffer is used again, and what a hostile
application cannot do."""

from __future__ import annotations

import mmap
import os
import random
import socket
import threading
from collections.abc import Iterator
from itertools import count

import pytest
from durable import Durable, dies
from lent import Lent

from bus import messages, topology
from bus.config import CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION, StackConfig
from bus.durable import held, journal, layout
from bus.durable.arena import Arena
from bus.durable.held import APPLICATION_MIN, FRAMES, RETURNED, STREAM_ARENA, Held, Holdings
from bus.durable.journal import Journal
from bus.messages import (
    PACKET_OUT,
    PACKET_OUT_HELD,
    SEGMENT_SIZE,
    SEND_SEGMENTS,
    SEND_SEGMENTS_HELD,
    TRANSMIT,
    TRANSMIT_HELD,
    SocketState,
    datagram_header,
    encode,
)
from bus.runtime import backlog, event_loop, greetings, inbox, outbox, turn
from bus.runtime.backlog import Backlog
from bus.runtime.control import Control
from bus.runtime.device import DeviceEnd
from bus.runtime.event_loop import EventLoop
from bus.runtime.inbox import Inbox
from bus.runtime.ring import RingReader
from bus.runtime.spawn import SpawnArguments
from bus.runtime.taps import Taps
from layers.ip.core import Core as Ip
from layers.ip.counters import Counters as IpCounters
from layers.link.core import Core as Link
from layers.link.counters import Counters as LinkCounters
from layers.sockets.core import Core as Sockets
from layers.sockets.counters import Counters as SocketsCounters
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters
from usernet.client import buffers as client
from usernet.client.buffers import HELD_OCTETS_MIN
from usernet.pipe import numbering
from usernet.pipe.buffers import BUFFER_MEMORY, BUFFERS, LOST_S, REFERENCE, REFERENCE_OCTETS
from usernet.pipe.frame import pack_frame, unpack_frame
from usernet.pipe.rings import APPLICATION_BLOCKS, APPLICATION_OCTETS, FACTS_AT, TOKEN
from usernet.sockets.sendmmsg import Runs

ME, PEER = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))
GROUP, JOINED = bytes((224, 0, 0, 9)), bytes((224, 0, 0, 8))
BROADCAST = bytes((10, 0, 0, 255))
MAC = bytes((2, 0, 0, 0, 0, 2))
EVERYTHING = (CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION)
HEADER = datagram_header(1, PEER, 9, bytes(4))
HEAD = HEADER + SEGMENT_SIZE.pack(1472)
PAYLOADS = [random.Random(7).randbytes(1472) for _ in range(43)] + [b"the last is shorter"]
CLIENT = topology.CLIENT_ID_MIN + 1
COOKIE = 1000


@pytest.fixture
def lent() -> Iterator[Lent]:
    made = Lent()
    yield made
    made.close()


def config(*offload: str, mtu: int = 1500) -> StackConfig:
    return StackConfig(name="t", run_dir="", address=ME, prefix=24, mac=MAC, mtu=mtu, offload=offload)


def sent(lent: Lent, payloads: list[bytes] = PAYLOADS, head: bytes = HEAD) -> bytes:
    """A record with such datagrams in a buffer."""
    assert lent.buffers is not None
    reference = lent.buffers.put(payloads)
    assert reference is not None
    return head + reference


def changed(record: bytes, **fields: int) -> bytes:
    """The record with another reference."""
    at = len(record) - REFERENCE_OCTETS
    return record[:at] + Held(*REFERENCE.unpack_from(record, at))._replace(**fields).pack()


def all_used(lent: Lent) -> list[bytes]:
    records = [sent(lent, [b"%d" % number]) for number in range(BUFFERS)]
    assert lent.buffers is not None
    assert lent.buffers.put([b"one more"]) is None
    return records


# -- the application and the layers ------------------------------------------------------------------------------------


def test_every_layer_finds_the_octets(lent):
    record = sent(lent)
    kinds = (SEND_SEGMENTS_HELD, SEND_SEGMENTS), (TRANSMIT_HELD, TRANSMIT), (PACKET_OUT_HELD, PACKET_OUT)
    for kind, plain in kinds:
        assert lent.holdings().inline(kind, record) == (plain, HEAD + b"".join(PAYLOADS))
    assert lent.gone == 0


def test_the_rings_of_streams_in_the_same_memory_are_found_as_well(lent):
    streams = Arena(mmap.mmap(lent.memory, APPLICATION_OCTETS), blocks=APPLICATION_BLOCKS)
    references = [streams.allocate(1 << 16) for _ in range(APPLICATION_BLOCKS)]
    record = sent(lent)
    for reference in (references[0], references[-1]):
        text = b"text of %d" % reference
        streams.ring(reference).write(100, text)
        segment = b"head" + Held(reference, 100, len(text), lent.number).pack()
        assert lent.holdings().inline(TRANSMIT_HELD, segment) == (TRANSMIT, b"head" + text)
    assert lent.holdings().inline(SEND_SEGMENTS_HELD, record) == (SEND_SEGMENTS, HEAD + b"".join(PAYLOADS))


def test_a_buffer_is_used_again_once_the_turn_that_has_used_its_octets_is_published(lent):
    records, holdings = all_used(lent), lent.holdings()
    assert holdings.inline(SEND_SEGMENTS_HELD, records[5]) is not None
    assert lent.buffers.put([b"too early"]) is None
    holdings.settle()
    again = sent(lent, [b"again"])
    assert REFERENCE.unpack_from(again, len(HEAD))[0] >> 8 & 0xFFFF == REFERENCE.unpack_from(
        records[5], len(HEAD))[0] >> 8 & 0xFFFF
    assert lent.buffers.put([b"one more"]) is None
    assert holdings.inline(SEND_SEGMENTS_HELD, records[5]) is None, "it has a former reference"
    assert lent.gone == 1
    assert holdings.inline(SEND_SEGMENTS_HELD, again) == (SEND_SEGMENTS, HEAD + b"again")


def test_the_buffer_that_was_returned_last_is_used_next(lent):
    holdings, used = lent.holdings(), set()
    for _ in range(3 * BUFFERS):
        record = sent(lent)
        used.add(REFERENCE.unpack_from(record, len(HEAD))[0] >> 8 & 0xFFFF)
        holdings.spend(record)
        holdings.settle()
    assert len(used) == 1


def test_a_buffer_whose_record_was_lost_is_free_after_a_time_and_its_record_is_found_out(lent, monkeypatch):
    records = all_used(lent)
    later = client.monotonic() + LOST_S + 1
    monkeypatch.setattr(client, "monotonic", lambda: later)
    again = sent(lent)
    holdings = lent.holdings()
    gone = [record for record in records if holdings.inline(SEND_SEGMENTS_HELD, record) is None]
    assert len(gone) == 1
    assert holdings.inline(SEND_SEGMENTS_HELD, again) is not None


def test_records_that_were_not_sent_leave_their_buffers_free(lent):
    records = all_used(lent)
    lent.buffers.take_back(records[3:5])
    assert [lent.buffers.put([b"x"]) is not None for _ in range(3)] == [True, True, False]


def test_a_thread_that_finds_none_free_goes_on_as_soon_as_one_is_returned(lent):
    records, holdings = all_used(lent), lent.holdings()
    asked = threading.Event()

    def layer() -> None:
        asked.wait(20)
        holdings.spend(records[0])
        holdings.settle()

    thread = threading.Thread(target=layer)
    thread.start()
    asked.set()
    reference = lent.buffers.put_soon(PAYLOADS, 20)
    thread.join()
    assert holdings.inline(SEND_SEGMENTS_HELD, HEAD + reference) == (SEND_SEGMENTS, HEAD + b"".join(PAYLOADS))
    assert lent.buffers.put_soon(PAYLOADS, 0.001) is None


def test_a_second_connection_of_a_process_to_the_same_stack_gets_no_buffers(lent):
    assert lent.used() is None
    lent.buffers = None
    assert lent.used() is not None


def test_what_a_former_connection_has_sent_stays_until_it_is_returned(lent):
    record, holdings = sent(lent), lent.holdings()
    lent.buffers = None
    lent.buffers = lent.used()
    new = [sent(lent, [b"x"]) for _ in range(BUFFERS - 1)]
    assert lent.buffers.put([b"one more"]) is None
    assert holdings.inline(SEND_SEGMENTS_HELD, record) == (SEND_SEGMENTS, HEAD + b"".join(PAYLOADS))
    holdings.settle()
    assert sent(lent) not in new


def test_a_signal_handler_in_the_middle_of_it_finds_none_free(lent):
    with lent.buffers._lock:
        assert lent.buffers.put(PAYLOADS) is None


# -- hostile applications ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"length": 0}, {"length": 65536}, {"length": 0xFFFFFFFF}, {"offset": 0}, {"offset": 1}, {"ring": 0},
    {"ring": (1 << 64) - 1}, {"ring": 1 << 24 | 1 << 8 | 1}, {"ring": 1 << 24 | BUFFERS << 8 | 1},
    {"memory": BUFFER_MEMORY}, {"memory": BUFFER_MEMORY | APPLICATION_MIN + 1}, {"memory": BUFFER_MEMORY | RETURNED},
    {"memory": STREAM_ARENA}, {"memory": FRAMES}, {"memory": APPLICATION_MIN}, {"memory": 0xFFFFFFFF}])
def test_a_reference_to_anything_else_is_counted_and_dropped(lent, change):
    # the first buffer that is used is the first of the memory
    record, holdings = changed(sent(lent), **change), lent.holdings()
    assert holdings.inline(SEND_SEGMENTS_HELD, record) is None
    assert lent.gone == 1
    assert not holdings.spent


def test_a_reference_that_is_sent_again_and_again_is_copied_once_a_turn(lent):
    record, holdings = sent(lent), lent.holdings()
    kind, records = holdings.inlined(SEND_SEGMENTS_HELD, [record] * 256)
    assert (kind, records) == (SEND_SEGMENTS, [HEAD + b"".join(PAYLOADS)])
    assert lent.gone == 255
    holdings.settle()
    assert holdings.inline(SEND_SEGMENTS_HELD, record) is not None


def test_a_memory_is_found_by_its_own_token_only(lent):
    other = Lent(APPLICATION_MIN + 1)
    holdings = Holdings([*([lent._others] * 2), lent._readable, other._readable, *([lent._others] * 30), lent.table],
                        lent.counters)
    mine, its = sent(lent), sent(other)
    assert holdings.inline(SEND_SEGMENTS_HELD, mine) is not None
    assert holdings.inline(SEND_SEGMENTS_HELD, its) is not None
    holdings.spent.clear()
    forged = changed(mine, memory=BUFFER_MEMORY | other.number)
    assert holdings.inline(SEND_SEGMENTS_HELD, forged) is None
    holdings.spend(forged)
    assert not holdings.spent, "nobody returns the buffers of another application"
    other.close()


def test_a_memory_without_a_token_has_no_buffers(lent):
    record = changed(sent(lent), offset=0)
    os.pwrite(lent.memory, bytes(8), FACTS_AT + 8 * TOKEN)
    assert lent.holdings().inline(SEND_SEGMENTS_HELD, record) is None


@pytest.mark.parametrize("octets", range(REFERENCE_OCTETS))
def test_a_record_without_a_reference_is_dropped(lent, octets):
    assert lent.holdings().inline(SEND_SEGMENTS_HELD, b"\xff" * octets) is None
    udp = UdpLayer(lent, *EVERYTHING)
    assert udp.held(b"\xff" * octets) == []


def test_random_references_never_raise(lent):
    rng, holdings, record = random.Random(1), lent.holdings(), sent(lent)
    udp = UdpLayer(lent, *EVERYTHING)
    for _ in range(2000):
        place = rng.randrange(len(record))
        damaged = record[:place] + rng.randbytes(rng.randrange(1, 9)) + record[place + 4 :]
        for each in (damaged, rng.randbytes(rng.randrange(64))):
            holdings.inline(SEND_SEGMENTS_HELD, each)
            holdings.spend(each)
            udp.held(each)
    holdings.settle()


# -- sockets, udp, ip, link --------------------------------------------------------------------------------------------


class UdpLayer:
    """With one socket, handle 1, at port 7."""

    def __init__(self, lent: Lent, *offload: str) -> None:
        self.counters = UdpCounters.new()
        self.core = Udp(config(*offload), {}, self.counters, random.Random(1))
        self.core.held = lent.holdings()
        self.core.start(0.0)
        state = SocketState(handle=1, request=1, port=7, bind=True, broadcast=True, multicast_loop=True)
        self.core.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(state)], 0.0)

    def held(self, record: bytes) -> list:
        return self.core.receive(topology.SOCKETS, SEND_SEGMENTS_HELD, [record], 0.0)

    def plain(self, record: bytes) -> list:
        return self.core.receive(topology.SOCKETS, SEND_SEGMENTS, [record], 0.0)


def test_udp_passes_on_a_reference_with_the_headers_of_the_datagrams(lent):
    udp = UdpLayer(lent, *EVERYTHING)
    expected = udp.plain(HEAD + b"".join(PAYLOADS))
    counted = list(udp.counters)
    ((consumer, kind, record),) = udp.held(sent(lent))
    assert (consumer, kind) == (topology.IP, TRANSMIT_HELD)
    assert [(consumer, *lent.holdings().inline(kind, record))] == expected
    assert [2 * each if index != UdpCounters.sets else each for index, each in enumerate(counted)] == list(udp.counters)
    assert not udp.core.held.spent, "link has not sent it yet"


@pytest.mark.parametrize("offload", [(), (CHECKSUM,), (CHECKSUM, TCP_SEGMENTATION)])
@pytest.mark.parametrize("known", [False, True])
def test_udp_takes_the_octets_where_the_device_does_not_split_them(lent, offload, known):
    udp = UdpLayer(lent, *offload)
    expected = udp.plain(HEAD + b"".join(PAYLOADS))
    if not known:
        udp = UdpLayer(lent, *offload)
    assert udp.held(sent(lent)) == expected
    assert len(udp.core.held.spent) == 1


@pytest.mark.parametrize("head", [
    HEAD[:4] + bytes([6]) + HEAD[5:], HEADER[:10] + b"\x09\0" + HEADER[12:] + HEAD[-2:],  # family, interface
    HEADER + SEGMENT_SIZE.pack(0), HEADER + SEGMENT_SIZE.pack(65000), HEADER + SEGMENT_SIZE.pack(100),
    datagram_header(2, PEER, 9, bytes(4)) + HEAD[-2:], datagram_header(1, PEER, 0, bytes(4)) + HEAD[-2:],
    datagram_header(1, PEER, 9, bytes(4), flags=messages.SEND_OPTIONS) + HEAD[-2:]])
def test_udp_refuses_and_reports_what_it_does_in_a_record(lent, head):
    by_record, by_reference = UdpLayer(lent, *EVERYTHING), UdpLayer(lent, *EVERYTHING)
    for layer in (by_record, by_reference):
        layer.plain(HEAD + b"".join(PAYLOADS))
    expected = by_record.plain(head + b"".join(PAYLOADS))
    assert by_reference.held(sent(lent, head=head)) == expected
    assert list(by_reference.counters) == list(by_record.counters)


@pytest.mark.parametrize("number", [STREAM_ARENA, FRAMES, APPLICATION_MIN])
def test_udp_passes_on_no_reference_to_other_memory(lent, number):
    udp = UdpLayer(lent, *EVERYTHING)
    udp.plain(HEAD + b"".join(PAYLOADS))
    assert udp.held(changed(sent(lent), memory=number)) == []
    assert lent.gone == 1


class Chain:
    """udp, ip and link; `frames` is what the device gets."""

    def __init__(self, lent: Lent, mtu: int = 1500, resolved: bool = True) -> None:
        self.udp = UdpLayer(lent, *EVERYTHING)
        self.ip = Ip(config(*EVERYTHING, mtu=mtu), {}, IpCounters.new(), random.Random(1))
        self.link = Link(config(*EVERYTHING, mtu=mtu), {}, LinkCounters.new(), random.Random(1))
        self.ip.held = self.link.held = self.holdings = lent.holdings()
        self.ip.start(0.0)
        membership = messages.Membership(1, (messages.SourceFilter(JOINED),))
        self.ip.receive(topology.SOCKETS, messages.MEMBERSHIP, [encode(membership)], 0.0)
        self.frames: list[tuple[int, bytes]] = []
        self.others: list[tuple[int, int, bytes]] = []
        if resolved:
            self.resolve()

    def resolve(self) -> None:
        self._on(self.ip.receive(topology.ARP, messages.NEIGHBOR, [PEER + MAC], 0.0))

    def down(self, kind: int, record: bytes) -> None:
        for consumer, each, segment in self.udp.core.receive(topology.SOCKETS, kind, [record], 0.0):
            assert consumer == topology.IP
            self._on(self.ip.receive(topology.UDP, each, [segment], 0.0))

    def _on(self, sends: list) -> None:
        for consumer, kind, record in sends:
            if consumer == topology.LINK:
                self.frames += [(each, frame) for _, each, frame in self.link.receive(topology.IP, kind, [record], 0.0)]
            else:
                self.others.append((consumer, kind, record))


@pytest.mark.parametrize(("to", "mtu", "resolved", "by_reference"), [
    (PEER, 1500, True, True), (PEER, 1500, False, False), (PEER, 600, True, False), (ME, 1500, True, False),
    (GROUP, 1500, True, True), (JOINED, 1500, True, False), (BROADCAST, 1500, True, False)])
def test_the_device_gets_the_same_as_from_a_record(lent, to, mtu, resolved, by_reference):
    """To another host by reference; octets where an address is not known yet, for fragments, loops and groups."""
    head = datagram_header(1, to, 9, bytes(4)) + HEAD[-2:]
    chains = [Chain(lent, mtu, resolved) for _ in range(2)]
    for chain, held_too in zip(chains, (False, True), strict=True):
        chain.down(SEND_SEGMENTS, head + b"".join(PAYLOADS))
        if held_too:
            chain.down(SEND_SEGMENTS_HELD, sent(lent, head=head))
        else:
            chain.down(SEND_SEGMENTS, head + b"".join(PAYLOADS))
        chain.resolve()
    plain, held_chain = chains
    assert plain.others == held_chain.others
    assert [messages.ETHERNET_HELD in (kind for kind, _ in chain.frames) for chain in chains] == [False, by_reference]
    assert len(held_chain.holdings.spent) == (not by_reference), "ip has copied it, link has not sent it yet"
    assert plain.frames == [held_chain.holdings.inline(*each) for each in held_chain.frames]
    assert plain.frames or plain.others


def test_the_socket_service_passes_on_only_what_belongs_to_the_application(lent):
    counters = SocketsCounters.new()
    core = Sockets(config(), {}, counters, random.Random(1))
    core.start(0.0)
    core.client_joined(CLIENT, {"pid": 1}, 0.0)
    for number, kind in enumerate(("dgram", "ping"), 1):
        record = b'{"id": %d, "op": "socket", "type": "%s"}' % (number, kind.encode())
        core.receive(CLIENT, messages.REQUEST, [record], 0.0)
    handles = sorted(entry for entry in core._table.entries)
    mine, ping = (each.to_bytes(4, "little") + sent(lent)[4:] for each in handles)
    foreign = (99).to_bytes(4, "little") + sent(lent)[4:]
    assert core.receive(CLIENT, SEND_SEGMENTS_HELD, [mine, ping, foreign], 0.0) == [
        (topology.UDP, SEND_SEGMENTS_HELD, mine)]
    assert counters[SocketsCounters.sent] == len(PAYLOADS)
    assert counters[SocketsCounters.send_foreign] == 2
    assert core.receive(CLIENT, SEND_SEGMENTS_HELD, [mine[:5], b""], 0.0) == [
        (topology.UDP, SEND_SEGMENTS_HELD, mine[:5])], "udp drops it"


@pytest.mark.parametrize("offload", [(), EVERYTHING])
def test_an_application_hears_whether_references_pay(offload):
    core = Sockets(config(*offload), {}, SocketsCounters.new(), random.Random(1))
    assert core.welcome(CLIENT)["buffers"] is bool(offload)


# -- the bus -----------------------------------------------------------------------------------------------------------


class Device:
    """`write_parts` takes what is there at that time."""

    writes_through = True

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write_parts(self, parts) -> None:
        self.written.append(b"".join(parts))


def test_link_returns_a_buffer_when_it_has_written_the_frame(lent):
    durable, device = Durable(), Device()
    memory = durable.map()
    end = DeviceEnd(device, memory, Inbox(topology.DEVICE, frozenset(), memory, layout.DONE), lent.holdings())
    records = all_used(lent)
    end.begin(topology.IP, 1)
    end.write_held(records[0])
    assert device.written == [HEAD + b"0"]
    assert sent(lent, [b"again"])
    # it dies, and its successor does the same once more: it skips what was written
    end = DeviceEnd(device, memory, Inbox(topology.DEVICE, frozenset(), memory, layout.DONE), lent.holdings())
    end.begin(topology.IP, 1)
    for record in records[:2]:
        end.write_held(record)
    assert device.written == [HEAD + b"0", HEAD + b"1"]
    assert lent.gone == 0
    durable.close()


def test_a_record_that_finds_no_room_in_a_pipe_returns_its_buffer(lent):
    records, holdings = all_used(lent), lent.holdings()
    waiting = Backlog(2, let_go=holdings.let_go)
    assert waiting.add_data(SEND_SEGMENTS_HELD, records[:3]) == 2
    holdings.settle()
    assert sent(lent, [b"again"])
    assert waiting.add_data(messages.SEND, [b"\2\0\0\0 of another socket"]) == 0, "the newest of the first made room"
    assert len(holdings.spent) == 1


class Copier:
    """ip, where it must see the octets: its core puts them into the record."""

    next_wake = None

    def __init__(self, holdings: Holdings) -> None:
        self._held = holdings

    def start(self, now):
        return []

    def wake(self, now):
        return []

    def neighbor_started(self, sender, now):
        return []

    def receive(self, sender, kind, records, now):
        found = [self._held.inline(kind, record) for record in records]
        return [(topology.LINK, messages.PACKET_OUT, each[1]) for each in found if each is not None]


class Layer:
    """A process of ip with that core, over one durable memory; an application uses each buffer again at once."""

    FRAMES, RECORDS = 6, 3

    def __init__(self, folder, lent: Lent) -> None:
        self.lent = lent
        self.durable = Durable()
        self._folder = folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / "ip.sock"))
        self._listener.listen()
        self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.incarnation = 0
        self.node: EventLoop | None = None
        self.frames = []
        number = count()
        for sequence in range(1, self.FRAMES + 1):
            records = [sent(lent, [b"payload %d" % next(number)]) for _ in range(self.RECORDS)]
            self.frames.append(pack_frame(TRANSMIT_HELD, COOKIE + topology.UDP, 1, sequence, records))
        self.born()

    def born(self) -> None:
        self.end()
        self.incarnation += 1
        memory = self.durable.map()
        memory.words[layout.INCARNATION] = self.incarnation
        memory.words[layout.BLAMELESS] = 1
        settings = StackConfig(name="t", run_dir=str(self._folder), address=ME, prefix=24, mac=MAC, mtu=1500,
                               cookie=COOKIE)
        holdings = self.lent.holdings()
        spawned = SpawnArguments("ip", settings, -1, self._listener.fileno(), Control(self._keeper[0]), held=holdings)
        spawned.listener_fd = socket.dup(self._listener.fileno())
        self.node = EventLoop(spawned, Copier(holdings), memory)

    def end(self) -> None:
        if self.node is not None:
            self.node._poller.close()
            self.node = None

    def live(self) -> None:
        self.node._start()
        done = self.node._inboxes[COOKIE + topology.UDP].done
        for frame in self.frames[done:]:
            self.node._take(frame, 0.0)
            self.node._turn.end()

    def write_into_what_is_returned(self) -> None:
        while self.lent.buffers.put([b"something else"]) is not None:
            pass

    def sent_down(self) -> list[bytes]:
        kept = Journal(self.durable.map()).frames(topology.LINK, 0)
        return [record[len(HEAD) :] for _, frame in kept for record in unpack_frame(frame)[4] if record[:1] != b"{"]

    def close(self) -> None:
        self.end()
        self._listener.close()
        for each in self._keeper:
            each.close()
        self.durable.close()


MODULES = (event_loop, greetings, turn, inbox, outbox, backlog, numbering, journal, held)


@pytest.mark.parametrize("seed", range(40))
def test_a_death_at_any_line_costs_no_datagram_though_its_buffer_is_used_again_at_once(lent, tmp_path, seed):
    chance = random.Random(seed)
    layer = Layer(tmp_path, lent)
    deaths = 0
    while dies(chance.randrange(3000), MODULES, layer.live):
        deaths += 1
        layer.write_into_what_is_returned()
        layer.born()
    assert layer.sent_down() == [b"payload %d" % number for number in range(Layer.FRAMES * Layer.RECORDS)]
    assert lent.gone == 0
    layer.close()


class Core:
    """Remembers what it gets."""

    next_wake = None

    def __init__(self):
        self.seen = []

    def receive(self, sender, kind, records, now):
        self.seen += [(kind, record) for record in records]
        return []


def test_a_tapped_layer_sees_the_octets(lent):
    durable, core = Durable(), Core()
    holdings = lent.holdings()
    taps = Taps(core, durable.map(), [], True, holdings)
    taps.apply({"captures": [{"number": 1, "slot": 0, "taken": [topology.SOCKETS]}]}, 0.0)
    taps.core.receive(topology.SOCKETS, SEND_SEGMENTS_HELD, [sent(lent)], 0.0)
    assert core.seen == [(SEND_SEGMENTS, HEAD + b"".join(PAYLOADS))]
    assert len(holdings.spent) == 1
    durable.close()


def test_what_leaves_a_tapped_layer_has_its_octets_which_are_shown_once(lent):
    durable, holdings = Durable(), lent.holdings()
    memory = durable.map()
    taps = Taps(Core(), memory, [], True, holdings)
    taps.apply({"captures": [{"number": 1, "slot": 0, "sent": [topology.UDP]}]}, 0.0)
    record, plain = sent(lent), (topology.UDP, SEND_SEGMENTS, b"plain")
    whole = HEAD + b"".join(PAYLOADS)
    gone = (topology.IP, SEND_SEGMENTS_HELD, record)  # the same reference once more
    left = taps.runs([plain, (topology.UDP, SEND_SEGMENTS_HELD, record), gone, plain])
    assert left == [(topology.UDP, SEND_SEGMENTS, [b"plain"]), (topology.UDP, SEND_SEGMENTS, [whole]),
                    (topology.UDP, SEND_SEGMENTS, [b"plain"])]
    seen = RingReader(memory.tap(0, False)).read()
    assert [(entry.peer, entry.kind, entry.records) for entry in seen] == left
    durable.close()


# -- sendmany ----------------------------------------------------------------------------------------------------------


def runs(*groups: tuple[int, int], header: bytes = HEADER) -> Runs:
    """(number, octets) of consecutive datagrams."""
    made = Runs(segmenting=True)
    for number, octets in groups:
        for _ in range(number):
            made.add(header, b"x" * octets)
    return made


def inlined(holdings: Holdings, frames) -> list[tuple[int, bytes, int]]:
    return [(*holdings.inline(kind, record), count) for kind, records, count in frames for record in records]


def test_long_runs_go_into_buffers_and_short_ones_into_records(lent):
    made = runs((44, 1472), (1, 900), (2, 1000), (8, 1472), (5, 1472))
    assert made.long
    frames = list(made.frames(lent.buffers))
    assert [(kind, len(records), number) for kind, records, number in frames] == [
        (SEND_SEGMENTS_HELD, 1, 44), (messages.SEND, 1, 1), (SEND_SEGMENTS, 1, 2), (SEND_SEGMENTS_HELD, 1, 13)]
    assert [each[:2] for each in inlined(lent.holdings(), frames)] == [
        (kind, record) for kind, records, _ in made.frames() for record in records]


def test_a_run_is_long_from_some_octets_on():
    assert runs((2, HELD_OCTETS_MIN // 2)).long
    assert not runs((2, HELD_OCTETS_MIN // 2 - 1)).long
    assert not runs((1, 65000), (1, 65001)).long, "two runs of one datagram each"


def test_what_has_no_buffer_is_sent_in_records_and_in_order(lent):
    made = runs(*[(44, 1472)] * (BUFFERS + 2))
    frames = list(made.frames(lent.buffers, 0.001))
    kinds = [kind for kind, records, _ in frames for _ in records]
    assert kinds == [SEND_SEGMENTS_HELD] * BUFFERS + [SEND_SEGMENTS] * 2
    assert sum(number for _, _, number in frames) == 44 * (BUFFERS + 2)


def test_all_buffers_are_sent_before_one_is_waited_for(lent):
    made, holdings, sent_records = runs(*[(44, 1472)] * (2 * BUFFERS)), lent.holdings(), 0
    for kind, records, _ in made.frames(lent.buffers, 20):
        assert kind == SEND_SEGMENTS_HELD
        for record in records:
            assert holdings.inline(kind, record) is not None
        holdings.settle()
        sent_records += len(records)
    assert sent_records == 2 * BUFFERS



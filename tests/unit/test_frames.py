"""The memory into which link reads frames: windows, what a reader may still take, and how a held frame travels up."""

from __future__ import annotations

import mmap
import os
import random
import socket
from collections.abc import Iterator

import pytest
from durable import Durable

from bus import messages, topology
from bus.config import CHECKSUM, TCP_SEGMENTATION, StackConfig
from bus.counters import PipeCounters
from bus.durable.arena import octets_for
from bus.durable.frames import FRAMES_OCTETS, SIZE, WINDOW, Windows
from bus.durable.held import FRAMES, REFERENCE_OCTETS, Held, Holdings, held_octets
from bus.durable.rx_log import RxLog
from layers.ip import core as ip
from layers.ip.counters import Counters as IpCounters
from layers.link.core import Core
from layers.link.counters import Counters
from layers.link.references import REFERRED_OCTETS_MIN
from layers.link.tap import Tap
from packets import ethernet, ipv4, tcp, vnet

MAC, PEER_MAC = b"\x02\0^\0\0\2", b"\x02\0^\0\0\1"
ADDRESS, PEER = b"\x0a\0\0\2", b"\x0a\0\0\1"
TEXT = random.Random(5).randbytes(63_000)
HEAD = vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS + ipv4.HEADER_OCTETS + tcp.HEADER_OCTETS


def frame(text: bytes = TEXT, mac: bytes = MAC, size: int = 1448, source: bytes = PEER_MAC) -> bytes:
    """A super-packet of TCP, as a TAP gives it."""
    segment = tcp.Segment(1000, 80, 1, 1, tcp.ACK, 100, payload=text).pack()
    before = vnet.header(6, True, size)
    assert before is not None
    return before + mac + source + ethernet.TYPE_IPV4 + ipv4.build(PEER, ADDRESS, 6, segment)


class Lab:
    """link's device and its memory, and a reader of it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("frames")
        os.ftruncate(self.descriptor, FRAMES_OCTETS)
        self.counters = PipeCounters.new()
        self.arena = os.memfd_create("arena")
        os.ftruncate(self.arena, octets_for(1 << 20))
        self.holdings = Holdings((self.arena, self.descriptor), self.counters)
        self.far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.device = Tap(near.detach(), Counters.new(), True)
        self.durable = Durable()
        self.number = 0
        self.successor()

    def successor(self) -> None:
        """The process of link starts."""
        self.windows = Windows(mmap.mmap(self.descriptor, FRAMES_OCTETS))
        self.log = RxLog(self.durable.map(), self.windows)

    def read(self, *frames: bytes) -> list[bytes]:
        """One batch with these frames."""
        for each in frames:
            self.far.send(each)
        self.number += 1
        self.log.open(self.number)
        return self.device.read(self.log)

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self.arena)
        os.close(self.device.fileno())
        self.far.close()
        self.durable.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_a_large_segment_is_referred_to_and_the_rest_is_copied(lab: Lab) -> None:
    frames = [frame(), frame(bytes(100), size=0), frame(bytes(REFERRED_OCTETS_MIN)), b"\xff" * 60]
    found = lab.read(*frames)
    assert lab.log.held == [0, 2]
    assert found[1] == frames[1]
    assert found[3] == frames[3]
    for number in lab.log.held:
        assert found[number][:HEAD] == frames[number][:HEAD]
        assert len(found[number]) == HEAD + REFERENCE_OCTETS
        assert lab.holdings.inline(messages.ETHERNET_HELD, found[number]) == (messages.ETHERNET, frames[number])


@pytest.mark.parametrize("change", [
    lambda octets: octets[:1] + b"\5" + octets[2:],  # of UDP
    lambda octets: octets[:24] + b"\x46" + octets[25:],  # with IP options
    lambda octets: octets[:56] + b"\x40" + octets[57:]])  # with a header of TCP that is too short
def test_frames_other_than_plain_segments_of_tcp_are_copied(lab: Lab, change) -> None:
    found = lab.read(change(frame()))
    assert found == [change(frame())]
    assert not lab.log.held


def test_a_window_is_used_again_unless_something_refers_to_it(lab: Lab) -> None:
    lab.read(frame(bytes(100)))
    first = lab.windows.window()
    lab.read(frame(bytes(100)))
    assert not lab.windows.open()
    held = lab.read(frame())[0]
    lab.read(frame(bytes(60_000)))
    assert lab.holdings.inline(messages.ETHERNET_HELD, held) is not None
    assert bytes(first[:8]) == bytes(frame()[:8])


def test_a_frame_can_be_taken_until_the_memory_has_been_used_up_once(lab: Lab) -> None:
    held, taken = lab.read(frame())[0], 0
    while lab.holdings.inline(messages.ETHERNET_HELD, held) == (messages.ETHERNET, frame()):
        assert lab.holdings.intact(held)
        lab.read(frame(bytes(60_000)))
        taken += 1
    assert SIZE - 2 * WINDOW <= 60_000 * taken <= SIZE
    assert not lab.holdings.intact(held)
    assert lab.counters[PipeCounters.bus_held_gone] == 1


@pytest.mark.parametrize(("position", "length"), [
    (SIZE, 100), (WINDOW, 100), (WINDOW - 50, 100), ((1 << 64) - 1, 100), (0, 0), (0, 65_536), (0, (1 << 32) - 1)])
def test_a_reference_beyond_what_was_read_is_refused(lab: Lab, position: int, length: int) -> None:
    lab.read(frame())
    assert lab.holdings.inline(messages.ETHERNET_HELD, Held(0, position, length, FRAMES).pack()) is None
    assert lab.counters[PipeCounters.bus_held_gone] == 1


def test_a_successor_does_not_write_where_a_reference_of_its_predecessor_leads(lab: Lab) -> None:
    held = lab.read(frame())[0]
    lab.log.close()  # the turn is over, and then the process dies
    lab.successor()
    lab.read(frame(bytes(60_000)))
    assert lab.holdings.inline(messages.ETHERNET_HELD, held) == (messages.ETHERNET, frame())


def test_a_successor_finds_the_frames_of_an_unfinished_batch(lab: Lab) -> None:
    lab.read(frame(), frame(bytes(100)))
    lab.successor()
    assert lab.log.left(lab.device.length) == (1, [frame(), frame(bytes(100))])


# -- on its way up ---------------------------------------------------------------------------------------------------


def config() -> StackConfig:
    return StackConfig(name="t", run_dir="", address=ADDRESS, prefix=24, mac=MAC, offload=(CHECKSUM, TCP_SEGMENTATION))


def test_link_passes_the_reference_on(lab: Lab) -> None:
    counters = Counters.new()
    core = Core(config(), {}, counters, random.Random(1))
    core.held = lab.holdings
    record = lab.read(frame())[0]
    [(consumer, kind, up)] = core.receive(topology.DEVICE, messages.ETHERNET_HELD, [record], 0.0)
    assert (consumer, kind) == (topology.IP, messages.PACKET_HELD)
    [(_, _, plain)] = core.receive(topology.DEVICE, messages.ETHERNET, [frame()], 0.0)
    assert lab.holdings.inline(kind, up) == (messages.PACKET, plain)
    assert counters[Counters.frames_in] == 2


@pytest.mark.parametrize(("given", "counter"), [
    (frame(mac=PEER_MAC), Counters.other_host), (frame(source=MAC), Counters.own_source),
    (frame(size=1448)[:5] + bytes(1) + frame()[6:], None)])
def test_link_judges_a_held_frame_like_any_other(lab: Lab, given: bytes, counter: int | None) -> None:
    counters = Counters.new()
    core = Core(config(), {}, counters, random.Random(1))
    core.held = lab.holdings
    record = lab.read(given)[0]
    held = core.receive(topology.DEVICE, messages.ETHERNET_HELD, [record], 0.0)
    plain = core.receive(topology.DEVICE, messages.ETHERNET, [given], 0.0)
    assert [lab.holdings.inline(kind, up) for _, kind, up in held] == [(kind, up) for _, kind, up in plain]
    if counter is not None:
        assert counters[counter] == 2


@pytest.mark.parametrize("raw_wants", [False, True])
def test_ip_passes_the_reference_to_tcp_unless_raw_wants_a_copy(lab: Lab, raw_wants: bool) -> None:
    link = Core(config(), {}, Counters.new(), random.Random(1))
    link.held = lab.holdings
    counters = IpCounters.new()
    core = ip.Core(config(), {}, counters, random.Random(1))
    core.held = lab.holdings
    core.start(0.0)
    if raw_wants:
        core.receive(topology.RAW, messages.RAW_WANTED, [bytes((6,))], 0.0)
    [(_, kind, record)] = link.receive(topology.DEVICE, messages.ETHERNET_HELD, [lab.read(frame())[0]], 0.0)
    core.receive(topology.LINK, kind, [record], 0.0)  # the first of a source is looked at more closely
    sends = core.receive(topology.LINK, kind, [record], 0.0)
    to_tcp = [(kind, up) for consumer, kind, up in sends if consumer == topology.TCP]
    if raw_wants:
        assert {kind for kind, _ in to_tcp} == {messages.PACKET}
        assert any(consumer == topology.RAW for consumer, _, _ in sends)
        return
    [(kind, up)] = to_tcp
    assert kind == messages.PACKET_HELD
    assert held_octets(up) == len(TEXT)
    [(_, _, plain)] = core.receive(topology.LINK, messages.PACKET, [lab.holdings.inline(kind, record)[1]], 0.0)
    assert lab.holdings.inline(kind, up) == (messages.PACKET, plain)


@pytest.mark.parametrize("octets", range(0, 100, 7))
def test_ip_counts_a_held_packet_that_is_too_short(lab: Lab, octets: int) -> None:
    counters = IpCounters.new()
    core = ip.Core(config(), {}, counters, random.Random(1))
    core.held = lab.holdings
    core.start(0.0)
    lab.read(frame())
    record = bytes(octets) + Held(0, 0, 5, FRAMES).pack()
    assert core.receive(topology.LINK, messages.PACKET_HELD, [record], 0.0) == []
    assert core.receive(topology.LINK, messages.PACKET_HELD, [record[:octets]], 0.0) == []

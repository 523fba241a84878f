"""cli.capture.File and cli.watching.Merger: from the rings of the layers to a file, octet for octet."""

from __future__ import annotations

import mmap
import platform
import resource
import subprocess
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from struct import pack

import pytest
from test_pcapng import tool
from test_views import CHECKED, MAC, PACKET, PARTIAL, SUPERS, TRANSMIT, A, B, out_head, packet_head

from bus import messages as m
from bus import topology
from bus.counters import PipeCounters
from bus.runtime import ring
from bus.runtime.taps import BUS_COUNTER
from cli import capture
from cli.capture import File, packets, said
from cli.pipes import Pipe
from cli.watching import Merger, Seen, sentence
from packets import pcapng, vnet

APP = topology.CLIENT_ID_MIN + 5
PIPES = [Pipe("device", "link"), Pipe("link", "device"), Pipe("link", "ip"), Pipe("ip", "udp"), Pipe("ip", "link"),
         Pipe("udp", "ip"), Pipe("sockets", "app"), Pipe("arp", "ip")]
HEAD = pcapng.section("usernet", system=platform.platform(), hardware=platform.machine()) + b"".join(
    pcapng.interface(pipe.name, pipe.link_type, f"what {pipe.producer} sends to {pipe.consumer}") for pipe in PIPES)
COUNTERS = {"link": [], "arp": [], "ip": ["received", "bad_header_checksum"], "udp": [], "sockets": []}
FRAME = vnet.PARTIAL_UDP + MAC + MAC + b"\x08\0" + CHECKED
DATAGRAM = m.datagram_header(4, B, 53, A, 64, 0) + b"hello"

Entry = tuple[str, int, int, int, list[bytes], int]  # layer, direction, peer, kind, records, counter
ROUND: list[Entry] = [
    ("link", ring.IN, topology.DEVICE, m.ETHERNET, [FRAME] * 5 + [SUPERS[3][1]], 0),
    ("link", ring.OUT, topology.IP, m.PACKET, [packet_head(PARTIAL) + CHECKED] * 3 + [SUPERS[0][1]], 0),
    ("ip", ring.DROPPED, topology.LINK, m.PACKET, [packet_head(0) + PACKET], 1),
    ("ip", ring.OUT, topology.UDP, m.PACKET, [packet_head(0) + PACKET + bytes(n) for n in range(9)], 0),
    ("arp", ring.OUT, topology.IP, m.NEIGHBOR, [A + MAC, B + MAC], 0),
    ("sockets", ring.OUT, APP, m.DATAGRAM, [DATAGRAM, DATAGRAM + b"!"], 0),
    ("udp", ring.OUT, topology.IP, m.TRANSMIT, [TRANSMIT], 0),
    ("udp", ring.UNSENT, topology.IP, m.TRANSMIT, [TRANSMIT], BUS_COUNTER + PipeCounters.bus_impaired_lost),
    ("ip", ring.OUT, topology.LINK, m.PACKET_OUT, [out_head(PARTIAL) + CHECKED, SUPERS[1][1]], 0),
    ("ip", ring.OUT, topology.TCP, m.PACKET, [packet_head(0) + PACKET], 0),  # a pipe that is not watched
    ("link", ring.OUT, topology.DEVICE, m.ETHERNET, [FRAME], 0)]


class Layers:
    """The rings of some layers, and what reads them. A ring has room for a few rounds."""

    def __init__(self, octets: int = 1 << 20) -> None:
        memories = {layer: memoryview(mmap.mmap(-1, octets)) for layer in COUNTERS}
        self._writers = {layer: ring.RingWriter(memory, 1) for layer, memory in memories.items()}
        readers = {layer: ring.RingReader(memory) for layer, memory in memories.items()}
        self.merger = Merger(readers, frozenset(PIPES), COUNTERS, 10**18)
        self.now_ns = 0

    def put(self, *entries: Entry) -> None:
        for layer, direction, peer, kind, records, counter in entries:
            self.now_ns += 1000
            self._writers[layer].put(self.now_ns, direction, peer, kind, records, 7, counter)

    def seen(self) -> list[Seen]:
        return self.merger.taken(self.merger.look(float("inf")))


def option(code: int, value: bytes) -> bytes:
    return pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def expected(batches: list[tuple[list[Seen], dict[str, int]]], size: int) -> list[bytes]:
    """The files without their heads and statistics, written packet after packet by section 4.3 of the draft."""
    files: list[bytes] = []
    told = dict.fromkeys(COUNTERS, 0)
    each = [(seen, octets, lost) for batch, lost in batches for seen in batch for octets in packets(seen, True, True)]
    for seen, octets, lost in each:
        if not files or (size and len(HEAD) + len(files[-1]) >= size):
            numbers = {(pipe, False): number for number, pipe in enumerate(PIPES)}
            files.append(b"")
        control = seen.kind == m.NEIGHBOR
        if (seen.pipe, control) not in numbers:
            numbers[seen.pipe, control] = len(numbers)
            files[-1] += pcapng.interface("arp:ip control", pcapng.LINKTYPE_USER0, "what arp sends to ip")
        comment = f"{seen.layer} 7: {m.KIND_NAMES[seen.kind]}" + (f" {said(seen.kind, octets)}" if control else "")
        if seen.counter:
            comment = f"dropped by {seen.layer} 7: {seen.counter}: {sentence(seen.layer, seen.counter)}"
        options = option(1, comment.encode())
        if "device" in seen.pipe:
            options += option(2, pack("<I", 1 if seen.pipe.producer == "device" else 2))
        if lost[seen.layer] > told[seen.layer]:
            options += option(4, pack("<Q", lost[seen.layer] - told[seen.layer]))
            told[seen.layer] = lost[seen.layer]
        body = pack("<IIIII", numbers[seen.pipe, control], seen.when_ns >> 32, seen.when_ns & 0xFFFFFFFF, len(octets),
                    len(octets)) + octets + bytes(-len(octets) % 4) + options + bytes(4)
        files[-1] += pack("<II", 6, len(body) + 12) + body + pack("<I", len(body) + 12)
    return files


def without_statistics(file: bytes) -> bytes:
    """What follows the head of a file. The statistics say how many packets of each interface are there."""
    assert file.startswith(HEAD)
    read = list(pcapng.read(file))
    of_packets = Counter(block.interface for block in read if isinstance(block, pcapng.Packet))
    statistics = [block for block in read if isinstance(block, pcapng.Statistics)]
    assert [block.received for block in statistics] == [of_packets[number] for number in range(len(statistics))]
    one = pcapng.statistics(0, 0, start_ns=0, received=0, lost=0)
    return file[len(HEAD) : -len(one) * len(statistics)]


@pytest.mark.parametrize("size", [0, 6000])
def test_files_octet_for_octet(tmp_path: Path, size: int) -> None:
    """Drops, control records, super-packets, losses, and rotation."""
    layers, batches = Layers(1 << 14), []
    path = tmp_path / "way.pcapng"
    out = File(str(path), PIPES, "", f"{size}B" if size else None, None)
    for rounds in (1, 3, 0, 30, 1, 2):  # thirty find no room in the rings
        for _ in range(rounds):
            layers.put(*ROUND)
        batch, lost = layers.seen(), dict(layers.merger.lost)
        batches.append((batch, lost))
        for seen in batch:
            out.add(seen, packets(seen, True, True), lost)
        out.flush()
    out.close(layers.merger.lost)
    assert layers.merger.lost["link"] > layers.merger.lost["arp"] == 0
    files = sorted(tmp_path.iterdir())
    assert [without_statistics(file.read_bytes()) for file in files] == expected(batches, size)
    assert (len(files) > 3) == bool(size)
    numbers = [subprocess.run([tool("tshark"), "-r", file, "-T", "fields", "-e", "frame.number"], capture_output=True,
                              check=True, text=True).stdout.split() for file in files[:2]]
    assert [len(each) for each in numbers] == [
        sum(isinstance(block, pcapng.Packet) for block in pcapng.read(file.read_bytes())) for file in files[:2]]


@contextmanager
def room(octets: int) -> Iterator[None]:
    """No file gets longer than this: a write ends there, and the next one is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_without_room_ends_with_a_complete_block(tmp_path: Path) -> None:
    layers, path = Layers(), tmp_path / "full.pcapng"
    for _ in range(5):
        layers.put(*ROUND)
    batch = layers.seen()
    ends = set()
    for octets in range(len(HEAD), len(HEAD) + 4000, 333):
        out = File(str(path), PIPES, "", None, None)
        for seen in batch:
            out.add(seen, packets(seen, True, True), layers.merger.lost)
        with room(octets), pytest.raises(OSError, match="File too large"):
            out.flush()
        written = path.read_bytes()
        assert octets - 1500 < len(written) <= octets
        assert expected([(batch, layers.merger.lost)], 0)[0].startswith(written[len(HEAD) :])
        list(pcapng.read(written))
        ends.add(len(written))
    assert len(ends) > 5


def test_a_count_ends_within_the_records_of_an_entry() -> None:
    layers = Layers()
    layers.put(*ROUND)
    first = layers.seen()
    every = sum(len(packets(seen, True, False)) for seen in first)
    for count in (1, 5, 8, 17, every, every + 1):
        given, flushed = Namespace(count=count, control=False), []
        found = list(capture._wanted([first], True, {}, given, partial(flushed.append, 1)))
        assert sum(len(packets) for _, packets in found) == min(count, every)
        assert len(flushed) == (count > every)


def test_what_several_layers_saw_is_in_order_of_time_and_what_may_be_incomplete_waits() -> None:
    layers = Layers()
    layers.put(*ROUND, *ROUND)
    first = layers.merger.taken(layers.merger.look(8_000))
    assert [seen.layer for seen in first] == ["link", "link", "ip", "ip", "arp", "sockets", "udp", "udp"]
    assert [seen.when_ns for seen in first] == [10**18 + 1000 * number for number in range(1, 9)]
    assert [seen.counter for seen in first if seen.counter] == ["bad_header_checksum", "bus_impaired_lost"]
    layers.put(*ROUND)
    rest = layers.seen()
    assert [seen.when_ns for seen in rest] == sorted(seen.when_ns for seen in rest)
    assert len(first) + len(rest) == 3 * (len(ROUND) - 1)  # without the pipe that is not watched
    assert layers.seen() == []


def test_a_ring_that_fills_is_to_be_read_again_soon() -> None:
    layers = Layers(1 << 16)
    layers.put(*ROUND)
    layers.seen()
    assert not layers.merger.crowded
    for _ in range(30):
        layers.put(*ROUND)
    layers.seen()
    assert layers.merger.crowded
    layers.seen()
    assert not layers.merger.crowded

"""cli.deferring: a file gets the same octets whenever there is time to encode them; what waits for it is bounded."""

from __future__ import annotations

import gc
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import lengths
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_capture_file import PIPES, ROUND, Layers, expected, room, without_statistics

from bus.runtime import ring
from cli import capture
from cli.capture import File, Rest, heed, packets
from cli.deferring import SHARE, Budget, Spool, _idle_s, batches
from cli.watching import Look, Seen


class Turns(Budget):
    """There is time in every `each`th case; 0: never."""

    def __init__(self, each: int) -> None:
        self._each, self._number = each, 0

    def left(self) -> bool:
        self._number += 1
        return bool(self._each) and self._number % self._each == 0


def never(octets: int) -> bool:
    """What waits is not given up."""
    return False


def looks(layers: Layers, turns: list[int], told: list[dict[str, int]]) -> Iterator[Look]:
    """A look after each of so many rounds, the last for good; `told` gets what was lost."""
    for number, rounds in enumerate(turns, 1):
        for _ in range(rounds):
            layers.put(*ROUND)
        look = layers.merger.look(float("inf") if number == len(turns) else layers.now_ns - 5_000)
        told.append(dict(zip(layers.merger.lost, look.lost, strict=True)))
        yield look


@pytest.mark.parametrize("each", [0, 1, 3, 7])
@pytest.mark.parametrize("size", [0, 6000])
def test_the_file_is_the_same_whenever_there_is_time(tmp_path: Path, each: int, size: int) -> None:
    """Three rounds leave room in the rings, thirty do not; the spool has room for a few looks."""
    layers, seen, told, rest, waited = Layers(1 << 14), [], [], [], 0
    out = File(str(tmp_path / "way.pcapng"), PIPES, "", f"{size}B" if size else None, None)
    spool = Spool(str(tmp_path), 2, 30_000)
    rounds = [1, 3, 0, 30, 1, 2] * 4
    for batch in batches(layers.merger, looks(layers, rounds, told), spool, Turns(each), rest.append, never):
        lost = dict(layers.merger.lost)
        assert lost == told[len(seen)]
        seen.append((batch, lost))
        waited = max(waited, len(spool))
        for some in batch:
            out.add(some, packets(some, True, True), lost)
    out.close(layers.merger.lost)
    assert len(seen) == len(told)
    assert layers.merger.lost == told[-1]
    assert layers.merger.lost["link"] > 0
    assert (waited > 0) == (each != 1)
    assert bool(rest) == (each != 1)
    files = sorted(tmp_path.iterdir())  # without those of the spool, which have no names
    assert [without_statistics(file.read_bytes()) for file in files] == expected(seen, size)
    assert sum(len(batch) for batch, _ in seen) > 100
    times = [some.when_ns for batch, _ in seen for some in batch]
    assert times == sorted(times)


def test_what_waits_leaves_the_rings_at_once(tmp_path: Path) -> None:
    layers, told, rest = Layers(1 << 15), [], []
    spool = Spool(str(tmp_path))
    turns = [3] * 40
    found = list(batches(layers.merger, looks(layers, turns, told), spool, Turns(0), rest.append, never))
    assert layers.merger.lost == dict.fromkeys(layers.merger.lost, 0)
    assert len(found) == len(turns)
    assert sum(map(len, found)) == sum(turns) * (len(ROUND) - 1)  # without the pipe that is not watched
    assert rest[0] > len(turns) * 3 * 1000
    assert (spool.octets, len(spool)) == (0, 0)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_much_is_encoded_ends_the_file_there(
        tmp_path: Path, signal_number: signal.Signals, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """As `capture` uses it: the first signal ends the watching; until then, and with little that waits, it ends no
    encoding."""
    monkeypatch.setattr(capture, "_SOON_OCTETS", 10_000)
    layers, told, seen, stopped = Layers(), [], [], []
    rest, out, spool = Rest(), File(str(tmp_path / "way.pcapng"), PIPES, "", None, None), Spool(str(tmp_path))
    before = heed(rest, lambda: stopped.append(len(told)))
    try:
        os.kill(os.getpid(), signal_number)
        for batch in batches(layers.merger, looks(layers, [1] * 20, told), spool, Turns(0), rest.begin, rest.given_up):
            seen.append((batch, dict(layers.merger.lost)))
            for some in batch:
                out.add(some, packets(some, True, True), layers.merger.lost)
            if len(seen) == 5:
                os.kill(os.getpid(), signal_number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    out.close(layers.merger.lost)
    assert stopped == [0]
    assert len(seen) == 5
    assert len(spool) == 15
    assert without_statistics((tmp_path / "way.pcapng").read_bytes()) == expected(seen, 0)[0]
    assert rest.missing == f"; {spool.octets / 1e6:.0f} MB that waited are not in the file"
    assert "encoding 0 MB that wait; Ctrl-C leaves them out" in capsys.readouterr().err


def test_a_signal_while_little_is_encoded_does_not_end_it() -> None:
    rest = Rest()
    assert not rest.interrupt()
    rest.begin(1000)
    assert not rest.interrupt()
    assert not rest.given_up(1000)
    assert not rest.missing


SPANS = st.lists(st.lists(st.binary(min_size=1, max_size=9), max_size=2), max_size=3)


@given(lengths.lists(st.none() | SPANS, 30))
def test_looks_leave_the_spool_as_they_came_and_files_when_they_are_read(steps: list[list[list[bytes]] | None]) -> None:
    """None: one is taken out."""
    gc.disable()  # it might close descriptors of others
    try:
        as_they_came(steps)
    finally:
        gc.enable()


def as_they_came(steps: list[list[list[bytes]] | None]) -> None:
    spool, waiting = Spool(None, 3, 8), []
    before = len(os.listdir("/proc/self/fd"))
    for number, spans in enumerate(steps):
        if spans is None:
            if waiting:
                assert spool.get() == waiting.pop(0)
        elif spool.put(look := Look(number, number, spans, [number])):
            waiting.append(look)
        else:
            assert sum(len(span) for each in waiting for some in each.spans for span in some) >= 8
        assert len(spool) == len(waiting)
        assert spool.octets == sum(len(span) for each in waiting for some in each.spans for span in some)
        assert len(os.listdir("/proc/self/fd")) - before <= min(3, len(waiting))
    assert [spool.get() for _ in waiting] == waiting
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("limit", [0, 5000])
def test_on_a_full_disk_what_does_not_fit_is_encoded_at_once(tmp_path: Path, limit: int) -> None:
    layers, told, seen = Layers(), [], []
    spool = Spool(str(tmp_path))
    with room(limit):
        for batch in batches(layers.merger, looks(layers, [1] * 20, told), spool, Turns(0), lambda octets: None, never):
            seen += batch
            assert spool.octets <= limit
    assert len(seen) == 20 * (len(ROUND) - 1)
    assert [some.when_ns for some in seen] == sorted(some.when_ns for some in seen)
    assert not any(layers.merger.lost.values())


def test_a_folder_that_takes_no_files_is_like_a_full_disk(tmp_path: Path) -> None:
    layers, told = Layers(), []
    found = batches(layers.merger, looks(layers, [1] * 3, told), Spool(str(tmp_path / "none")), Turns(0), pytest.fail,
                    never)
    assert len(list(found)) == 3


def test_where_packets_wait(tmp_path: Path) -> None:
    """Beside the file; for a device in the folder for temporary files; who reads a pipe need not wait."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert File(str(fifo), PIPES, "", None, None).spool() is None
    finally:
        os.close(reader)
    for path, folder in ((str(tmp_path / "file"), str(tmp_path)), (os.devnull, None)):
        spool = File(path, PIPES, "", None, None).spool()
        assert spool is not None
        assert spool.folder == folder


class Machine:
    """A process that takes what it may of a machine with some processors without work."""

    def __init__(self, free: float) -> None:
        self.now = self.used = self.idle = 0.0
        self.free = free
        self.budget = Budget(lambda: self.used, lambda: self.now, lambda: self.idle)

    def run(self, seconds: float, step: float = 0.001) -> float:
        """Returns the processor time that it took."""
        before, until = self.used, self.now + seconds
        while self.now < until:
            may = self.budget.left()
            self.now += step
            self.used += step if may else 0.0
            self.idle += step * max(0.0, self.free - may)
        return self.used - before


def test_while_no_processor_is_free_it_takes_its_share() -> None:
    machine = Machine(free=1.0)
    machine.run(1.0)
    for _ in range(3):
        assert machine.run(10.0) == pytest.approx(10 * SHARE, rel=0.05)


def test_while_a_processor_is_free_it_takes_it_and_stops_soon_when_none_is() -> None:
    machine = Machine(free=2.0)
    machine.run(0.2)
    assert machine.run(10.0) == pytest.approx(10.0, rel=0.01)
    machine.free = 0.5
    assert machine.run(0.3) < 0.25  # in the window in which that changes it may see one more
    assert machine.run(10.0) == pytest.approx(10 * SHARE, rel=0.05)
    machine.free = 2.0
    machine.run(0.2)
    assert machine.run(10.0) == pytest.approx(10.0, rel=0.01)


def test_after_a_rest_it_has_saved_little() -> None:
    machine = Machine(free=0.0)
    machine.run(1.0)
    machine.now += 3600
    assert machine.run(1.0) < 0.1 + SHARE


def test_what_copying_alone_takes_is_owed_for_a_limited_time() -> None:
    machine = Machine(free=0.0)
    for _ in range(3600):
        machine.now += 1
        machine.used += 2 * SHARE
        assert not machine.budget.left()
    machine.run(1 / SHARE)
    assert machine.run(10.0) == pytest.approx(10 * SHARE, rel=0.1)


def test_whether_a_processor_is_free_is_known_only_of_all() -> None:
    every = os.sched_getaffinity(0)
    assert (_idle_s() > 0) == (len(every) == os.cpu_count())
    os.sched_setaffinity(0, {min(every)})
    try:
        assert (_idle_s() > 0) == (os.cpu_count() == 1)
    finally:
        os.sched_setaffinity(0, every)


def entries_of(write: Callable[[memoryview], None]) -> list[Seen]:
    layers = Layers()
    layers.put(*ROUND)
    (span, *_), *_ = layers.merger.look(float("inf")).spans
    write(span)
    return layers.seen()


@pytest.mark.parametrize("octets", [b"\x30\0\0\0" + bytes(range(48)), b"\xff\xff\xff\x7f", b"\1\0\0\0\xc1"])
def test_a_layer_of_another_version_is_named(octets: bytes) -> None:
    def write(span: memoryview) -> None:
        span[: len(octets)] = octets

    with pytest.raises(ring.FormError, match=r"^link: a layer of another version of usernet"):
        entries_of(write)


def test_a_ring_can_be_looked_at_again_until_it_is_released() -> None:
    memory = memoryview(mmap.mmap(-1, 2 * mmap.PAGESIZE))
    writer, reader = ring.RingWriter(memory, 1), ring.RingReader(memory)
    for number in range(200):  # around the ring many times
        assert writer.put(number, ring.IN, 1, 2, [bytes(number)], 1)
        seen = [entry.when_ns for span in reader.spans() for entry in ring.entries(span)]
        assert seen[-1] == number
        if number % 3 == 0:
            assert writer.put(1000 + number, ring.IN, 1, 2, [bytes(number)], 1)  # after the look
            reader.release()
            seen = [entry.when_ns for span in reader.spans() for entry in ring.entries(span)]
            assert seen == [1000 + number]
    assert reader.lost == 0

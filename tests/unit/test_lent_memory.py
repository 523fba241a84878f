"""The memories that the keeper lends applications: to whom, and when to another one."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.durable.held import APPLICATION_MIN, APPLICATIONS_MAX, RETURNED, RETURNED_OCTETS, Holdings, row_at
from bus.messages import SEND_SEGMENTS, SEND_SEGMENTS_HELD
from supervisor import shared_memory
from supervisor.shared_memory import SharedMemory
from usernet.client import memory as client
from usernet.client.buffers import Buffers
from usernet.client.memory import CONTROL_SOCKET, Memory
from usernet.pipe.buffers import BUFFERS, LOST_S


class Applications:
    """Processes that do nothing."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen] = []

    def new(self) -> int:
        self._all.append(subprocess.Popen(["sleep", "600"]))
        return self._all[-1].pid

    def end(self) -> None:
        """The last one ends."""
        process = self._all.pop()
        process.kill()
        process.wait()

    def close(self) -> None:
        while self._all:
            self.end()


@pytest.fixture
def applications() -> Iterator[Applications]:
    made = Applications()
    yield made
    made.close()


@pytest.fixture(scope="module")
def descriptors() -> Iterator[list[SharedMemory]]:
    made: list[SharedMemory] = []
    yield made
    for shared in made:
        for descriptor in (*shared._writable, *shared._readable, *shared._pidfds.values()):
            os.close(descriptor)


@pytest.fixture
def shared(descriptors) -> SharedMemory:
    made = SharedMemory()
    descriptors.append(made)
    return made


def lent(shared: SharedMemory, pid: int) -> tuple[int, Buffers]:
    number, descriptor = shared.lend(pid)
    buffers = Buffers.of(number, descriptor, shared.returned, row_at(number))
    assert buffers is not None
    return number, buffers


def test_a_process_gets_the_same_memory_each_time_and_another_process_another(shared, applications):
    first, second = applications.new(), applications.new()
    assert [shared.lend(pid)[0] - APPLICATION_MIN for pid in (first, second, first)] == [0, 1, 0]


def test_layers_find_what_the_application_writes_and_return_it(shared, applications):
    _, buffers = lent(shared, applications.new())
    record = b"head" + buffers.put([b"payload"])
    for layer in ("link", "ip", "udp", "sockets"):
        holdings = Holdings(shared.of(layer))
        assert holdings.inline(SEND_SEGMENTS_HELD, record) == (SEND_SEGMENTS, b"headpayload")
    assert len([buffers.put([b"x"]) for _ in range(BUFFERS - 1)]) == BUFFERS - 1
    assert buffers.put([b"x"]) is None
    holdings.settle()
    assert buffers.put([b"x"]) is not None
    with pytest.raises(PermissionError):
        mmap.mmap(shared.returned, RETURNED_OCTETS)


def test_what_an_ended_application_has_sent_stays_until_it_is_returned(shared, applications):
    number, buffers = lent(shared, applications.new())
    record = b"head" + buffers.put([b"payload"])
    applications.end()
    assert shared.lend(applications.new())[0] == number + 1
    holdings = Holdings(shared.of("link"))
    assert holdings.inline(SEND_SEGMENTS_HELD, record) == (SEND_SEGMENTS, b"headpayload")
    holdings.settle()
    del buffers
    again, buffers = lent(shared, applications.new())
    assert again == number
    assert holdings.inline(SEND_SEGMENTS_HELD, record) is None, "it has the token of the former application"
    assert not any(buffers._memory.octets(0)[:100]), "nothing of the former application is left"
    assert len([buffers.put([b"x"]) for _ in range(BUFFERS)]) == BUFFERS, "all are free"


def test_a_memory_whose_records_were_lost_is_free_after_a_time(shared, applications, monkeypatch):
    number, buffers = lent(shared, applications.new())
    assert buffers.put([b"payload"]) is not None
    applications.end()
    now = shared_memory.time.monotonic()
    for later, expected in ((0, number + 1), (LOST_S - 1, number + 2), (LOST_S, number)):
        monkeypatch.setattr(shared_memory.time, "monotonic", lambda later=later: now + later)
        assert shared.lend(applications.new())[0] == expected


def test_there_are_so_many_memories_and_no_more(shared, applications):
    for _ in range(APPLICATIONS_MAX):
        shared.lend(applications.new())
    with pytest.raises(OSError, match="32 applications have a memory"):
        shared.lend(applications.new())
    assert len(shared.of("ip")) == RETURNED + 1
    assert shared.of("icmp") == ()


class Keeper(threading.Thread):
    """Answers one request; `descriptors`: how many of them, as an older keeper sends one."""

    def __init__(self, folder: Path, shared: SharedMemory, descriptors: int) -> None:
        super().__init__()
        self._shared, self._count = shared, descriptors
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / CONTROL_SOCKET))
        self._listener.listen()
        self.start()

    def run(self) -> None:
        line, _ = self._listener.accept()
        with line, self._listener:
            assert line.recv(100) == b'{"op": "memory", "buffers": true}\n'
            number, descriptor = self._shared.lend(os.getpid())
            more = b', "returned": %d' % row_at(number) if self._count > 1 else b""
            socket.send_fds(line, [b'{"ok": {"number": %d%b}}\n' % (number, more)],
                            [descriptor, self._shared.returned][: self._count])


@pytest.mark.parametrize("descriptors_sent", [1, 2])
def test_a_process_asks_the_keeper_for_its_memory(shared, tmp_path, descriptors_sent):
    keeper = Keeper(tmp_path, shared, descriptors_sent)
    made = Memory(str(tmp_path))
    keeper.join()
    assert made.number == APPLICATION_MIN
    assert made.ring(1) is None
    assert (made.buffers is not None) == (descriptors_sent > 1)
    if made.buffers is not None:
        record = b"head" + made.buffers.put([b"payload"])
        assert Holdings(shared.of("link")).inline(SEND_SEGMENTS_HELD, record) == (SEND_SEGMENTS, b"headpayload")


def test_a_process_without_a_keeper_has_no_memory(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        client.Memory(str(tmp_path))

"""A thread writes to a stream, or reads from it, and another one takes records about the same stream: at every step of
the one at which the interpreter may switch to the other, all that the other does."""

from __future__ import annotations

import dis
import itertools
import mmap
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from usernet.client.memory import Memory
from usernet.client.streams import StreamDescription
from usernet.pipe.rings import APPLICATION_OCTETS, ApplicationRings
from usernet.pipe.streams import HELD_RECORD, RESUME, ROOM_OF_RING, ROOM_RECORD, STREAM, STREAM_HEADER, STREAM_HELD

HANDLE = 7
LIMIT = 1 << 16
FIRST, SECOND = 1 << 24 | 1, 1 << 24 | 1 << 8 | 1  # rings: the first and the second block, each for the first time
TEXT = bytes(range(256)) * 8


SWITCHES = ("CALL", "JUMP_BACKWARD", "RESUME")  # byte codes after which CPython may let another thread run


class Step:
    """Executes `other` at step number `number` of `call`: where CPython may let another thread run."""

    def __init__(self, number: int, other: Callable[[], object]) -> None:
        self._left = number
        self._other = other
        self._former: dict[FrameType, str] = {}  # {frame: its last byte code}
        self.done = False

    def run(self, call: Callable[[], object]) -> object:
        """The result of the call."""
        sys.settrace(self._trace)
        try:
            return call()
        finally:
            sys.settrace(None)

    def _trace(self, frame, event, argument):
        if "usernet" not in frame.f_code.co_filename or self.done:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            former = self._former.get(frame, "")
            self._former[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self._left -= former.startswith(SWITCHES)
            if self._left < 0:
                self.done = True
                self._other()
        return self._trace


def streams(both: Callable[[StreamDescription, int], bool]) -> Iterator[int]:
    """For each step: `both` gets a new stream and the step's number; False: there is no such step."""
    for number in itertools.count():
        stream = StreamDescription(threading.RLock(), HANDLE, LIMIT)
        rings = ApplicationRings(mmap.mmap(-1, APPLICATION_OCTETS))
        rings.cells[0], rings.cells[1] = FIRST, SECOND
        stream.memory = Memory.__new__(Memory)
        stream.memory._rings = rings
        stream.take_room(ROOM_RECORD.pack(HANDLE, 0, 0, 0, LIMIT))
        if not both(stream, number):
            assert number > 1
            return
        yield number


def ranges(sends: list[tuple[int, bytes]]) -> set[int]:
    """The offsets of the octets in STREAM and STREAM_HELD records."""
    offsets: set[int] = set()
    for kind, record in sends:
        if kind == STREAM:
            start = STREAM_HEADER.unpack_from(record)[2]
            offsets.update(range(start, start + len(record) - STREAM_HEADER.size))
        elif kind == STREAM_HELD:
            _, _, start, length, _ = HELD_RECORD.unpack(record)
            offsets.update(range(start, start + length))
    return offsets


@pytest.mark.parametrize("flags", [0, RESUME])
@pytest.mark.parametrize("ring", [False, True])
def test_octets_are_written_while_a_room_is_taken(ring, flags):
    """Perhaps the first into a ring, which this ROOM names: earlier ones, which tcp may not have, are moved there."""

    def both(stream: StreamDescription, number: int) -> bool:
        for octets in (b"1111", b"2222", b"3333"):
            stream.write(octets, 0)
        written: list[tuple[int, bytes]] = []
        room = (ROOM_OF_RING.pack(HANDLE, flags, 4, 0, LIMIT, FIRST) if ring
                else ROOM_RECORD.pack(HANDLE, flags, 4, 0, LIMIT))
        step = Step(number, lambda: written.append(stream.write(b"4444", 0)[1:]))
        sends = step.run(lambda: stream.take_room(room))
        if not step.done:
            return False
        assert stream.written == 16
        assert ranges(written) == {12, 13, 14, 15}
        if flags:  # tcp lacks what it has not stored
            assert ranges(sends + written) >= set(range(4, 16))
        lacking = b"222233334444"
        if stream.send_ring is not None:
            assert stream.send_ring.read(4, 12) == lacking
        else:
            assert b"".join(octets for offset, octets in stream.kept if offset >= 4) == lacking
        return True

    assert list(streams(both))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("asks_meanwhile", [False, True])
def test_octets_for_which_a_call_found_no_room_are_sent_once(ring, asks_meanwhile):
    """By the answer, if tcp asks for them before the call has given up; otherwise when the program sends them again."""

    def both(stream: StreamDescription, number: int) -> bool:
        if ring:
            stream.take_room(ROOM_OF_RING.pack(HANDLE, 0, 0, 0, LIMIT, FIRST))
        for octets in (b"1111", b"2222"):
            stream.write(octets, 0)
        sent: list[tuple[int, bytes]] = []
        undone: list[bool] = []

        def answer() -> None:
            sent.extend(stream.take_room(ROOM_RECORD.pack(HANDLE, RESUME, 0, 0, LIMIT)))

        def give_up() -> None:
            undone.append(stream.unwrite(4))

        step = Step(number, answer if asks_meanwhile else give_up)
        step.run(give_up if asks_meanwhile else answer)
        if not step.done:
            return False
        assert stream.written == (4 if undone == [True] else 8)
        assert ranges(sent) == set(range(stream.written))
        return True

    assert list(streams(both))


def test_octets_are_read_while_tcp_moves_them_to_another_ring():
    """A thread that finds the former ring gone need not wait for the name of the other, which has been told."""

    def both(stream: StreamDescription, number: int) -> bool:
        first, second = stream.memory.ring(FIRST), stream.memory.ring(SECOND)
        first.write(0, TEXT)
        stream.take_held(HELD_RECORD.pack(HANDLE, 0, 0, len(TEXT), FIRST))

        def move() -> None:
            second.write(0, TEXT)
            stream.take_held(HELD_RECORD.pack(HANDLE, 0, 0, len(TEXT), SECOND))
            stream.memory._rings.cells[0] = FIRST + (1 << 24)
            first.write(0, bytes(len(TEXT)))

        step = Step(number, move)
        got = step.run(lambda: stream.take(len(TEXT), peek=False))
        if not step.done:
            return False
        if not got:
            assert not stream.lacks(1)
            got = stream.take(len(TEXT), peek=False)
        assert got == TEXT
        return True

    assert list(streams(both))

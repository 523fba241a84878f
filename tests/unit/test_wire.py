"""The numbers of messages on a wire: a port that is killed between two messages loses none, takes none twice."""

from __future__ import annotations

import contextlib
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import wire
from bus.durable import layout
from packets import vnet

PORT = 7
FOREIGN = 8  # incarnation of no switch


class Ends:
    """A switch and a port with a pipe between them, whose messages are lost with the port's process."""

    def __init__(self) -> None:
        self.words = memoryview(bytearray(8 * layout.WORDS)).cast("Q")
        self.pipe: deque[bytes] = deque()
        self.taken: list[int] = []
        self.sent = 0
        self.switches = 0
        self.start_switch()
        self.start_port()

    def start_switch(self) -> None:
        self.switches += 1
        self.numbered = wire.Numbered(self.switches)
        self.first = self.sent  # what was sent before is not promised
        self.pipe.clear()
        self.repeat()

    def start_port(self) -> None:
        self.order = wire.InOrder(self.words)
        self.ask()

    def kill_port(self) -> None:
        self.pipe.clear()
        self.start_port()

    def ask(self) -> None:
        self.hear(self.order.packed(PORT, []))

    def hear(self, message: bytes) -> None:
        """The switch reads a message of the port."""
        port, incarnation, number, frames, _ = wire.unpack(message)
        assert port == PORT
        self.numbered.took(incarnation, number)
        if not frames:
            self.repeat()

    def repeat(self) -> None:
        self.pipe.extend(self.numbered.repeated())

    def send(self) -> None:
        numbered = self.numbered.next(wire.pack(1, 0, 0, [self.sent.to_bytes(60, "big")]))
        self.numbered.sent(numbered)
        self.pipe.append(numbered)
        self.sent += 1

    def take(self) -> None:
        if self.pipe:
            is_next, number, frames = self.order.next(self.pipe.popleft())
            if frames:
                self.taken += [int.from_bytes(frame, "big") for frame in frames]
                self.order.took(number)
            elif not is_next:
                self.ask()

    def acknowledge(self) -> None:
        self.hear(self.order.packed(PORT, [bytes(60)]))

    def lose(self) -> None:
        """The pipe breaks, and both processes live."""
        self.pipe.clear()

    def settle(self) -> None:
        self.send()
        while self.pipe:
            self.take()


def after(steps) -> Ends:
    ends = Ends()
    for step in steps:
        step(ends)
    ends.settle()
    return ends


STEPS = (Ends.send, Ends.take, Ends.acknowledge, Ends.kill_port, Ends.lose, Ends.ask)


@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_nothing_is_lost_or_taken_twice(steps):
    ends = after(steps)
    assert ends.taken == list(range(ends.sent))


@given(st.lists(st.sampled_from((*STEPS, Ends.start_switch)), max_size=60))
def test_the_next_switch_begins_anew(steps):
    ends = after(steps)
    assert ends.taken == sorted(set(ends.taken))
    assert set(range(ends.first, ends.sent)) <= set(ends.taken)


def test_what_was_taken_is_forgotten():
    ends = Ends()
    ends.settle()
    ends.settle()
    assert len(ends.numbered.repeated()) > 1
    ends.acknowledge()
    assert len(ends.numbered.repeated()) == 1


def test_a_port_that_takes_nothing_loses_the_oldest(monkeypatch):
    monkeypatch.setattr(wire, "KEPT_OCTETS", 1000)
    ends = Ends()
    for _ in range(50):
        ends.send()
    kept = len(ends.numbered.repeated()) - 1
    ends.kill_port()
    ends.settle()
    assert 5 < kept < 20
    assert ends.taken == list(range(50 - kept, 51))


def test_messages_without_numbers_are_taken_as_they_come():
    ends = Ends()
    ends.pipe.clear()
    for value in (3, 1, 1):
        ends.pipe.append(wire.pack(1, 0, 0, [value.to_bytes(60, "big")]))
        ends.take()
    assert ends.taken == [3, 1, 1]


def ordered(offload: bool) -> wire.InOrder:
    return wire.InOrder(memoryview(bytearray(8 * layout.WORDS)).cast("Q"), offload)


def test_a_port_with_offload_takes_both_kinds_of_frames():
    port, frame, partial = ordered(True), bytes(60), vnet.PARTIAL_TCP + bytes(60)
    assert port.next(wire.pack(1, 0, 0, [frame])) == (True, 0, [vnet.PLAIN + frame])
    assert port.next(wire.pack(1, 0, 0, [partial], offload=True)) == (True, 0, [partial])
    assert wire.unpack(port.packed(PORT, [partial])).offload


def test_a_port_without_offload_takes_plain_frames_only():
    port, frame = ordered(False), bytes(60)
    assert port.next(wire.pack(1, 0, 0, [frame])) == (True, 0, [frame])
    with pytest.raises(ValueError, match="virtio_net_hdr"):
        port.next(wire.pack(1, 0, 0, [vnet.PLAIN + frame], offload=True))
    assert not wire.unpack(port.packed(PORT, [frame])).offload


@given(st.binary(max_size=80) | st.tuples(st.sampled_from((0, FOREIGN)), st.integers(0, 2**64 - 1), st.booleans()))
def test_foreign_messages_do_not_stop_the_wire(foreign):
    ends = Ends()
    ends.settle()
    message = foreign if isinstance(foreign, bytes) else wire.pack(1, foreign[0], foreign[1], [bytes(60)] * foreign[2])
    with contextlib.suppress(ValueError):
        ends.order.next(message)
    ends.hear(wire.pack(PORT, FOREIGN, 2**64 - 1, [bytes(60)]))
    ends.taken.clear()
    ends.send()
    ends.settle()
    assert ends.taken[-2:] == [1, 2]

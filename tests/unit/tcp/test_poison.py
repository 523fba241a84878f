"""A segment that killed tcp twice: when it comes again its connection is reset, and no other."""

from __future__ import annotations

import errno
import random

import pytest

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import PACKET_HEAD, TRANSMIT_HEAD, encode
from bus.streams import StreamState
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from packets.tcp import ACK, FIN, PSH, RST, SYN, Options, Segment, parse
from tests.unit.tcp.host import A, B
from usernet.pipe.streams import ACCEPT_RECORD, RESET_RECORD

NOW, PORT = 1000.0, 80
ISS = 5000  # the peer's


class Stack:
    """A core with a listener and an established connection for each of the peer's ports."""

    def __init__(self, *ports: int) -> None:
        self.state: dict[int, bytes] = {}
        self.core = self._born()
        self.told(messages.SOCKET_SET, encode(StreamState(handle=5, request=1, port=PORT, bind=True, listen=9)))
        self.told(messages.ACCEPT, ACCEPT_RECORD.pack(5, 0, 0, 10))
        self.iss = {}
        for port in ports:
            (answer,) = self.arrives(Segment(port, PORT, ISS, 0, SYN, 60_000))
            self.iss[port] = answer.sequence
            self.arrives(Segment(port, PORT, ISS + 1, answer.sequence + 1, ACK, 60_000))

    def _born(self) -> Core:
        config = StackConfig(name="t", run_dir="", address=B, prefix=24, mac=bytes(6))
        core = Core(config, self.state, Counters.new(), random.Random(1))
        core.start(NOW)
        return core

    def told(self, kind: int, record: bytes) -> None:
        self.core.receive(topology.SOCKETS, kind, [record], NOW)

    def arrives(self, segment: Segment) -> list[Segment]:
        self.sends = self.core.receive(topology.IP, messages.PACKET, [packet(segment)], NOW)
        return self.out()

    def set_aside(self, segment: Segment) -> list[Segment]:
        self.sends = self.core.record_set_aside(topology.IP, messages.PACKET, packet(segment), NOW)
        return self.out()

    def out(self) -> list[Segment]:
        return [parse(record[TRANSMIT_HEAD.size :]) for _, kind, record in self.sends if kind == messages.TRANSMIT]

    def resets(self) -> list[int]:
        return [RESET_RECORD.unpack(record)[1] for _, kind, record in self.sends if kind == messages.STREAM_RESET]


def packet(segment: Segment) -> bytes:
    return PACKET_HEAD.pack(1, 4, 2, 20, 0, 6, 64, 0, A, B) + bytes(20) + segment.pack()


def text(stack: Stack, port: int, octets: bytes, at: int = 1, **more) -> Segment:
    return Segment(port, PORT, ISS + at, stack.iss[port] + 1, ACK | PSH, 60_000, payload=octets, **more)


@pytest.mark.parametrize("again", [
    {"octets": b"poison"}, {"octets": b"poison and more", "options": Options(timestamps=(7, 8))},
    {"octets": b"son", "at": 4}])
def test_its_retransmission_resets_the_connection_both_ways_and_no_other(again):
    stack = Stack(1001, 1002)
    assert stack.set_aside(text(stack, 1001, b"poison")) == []
    assert stack.resets() == []
    (reset,) = stack.arrives(text(stack, 1001, **again))
    assert (reset.flags & RST, reset.sequence, reset.destination_port) == (RST, stack.iss[1001] + 1, 1001)
    assert stack.resets() == [errno.ECONNRESET]
    assert stack.core.counters[Counters.poison_resets] == 1
    assert [each.flags & RST for each in stack.arrives(text(stack, 1002, b"poison"))] in ([], [0])
    assert stack.resets() == []
    (late,) = stack.arrives(text(stack, 1001, b"poison"))  # the peer has not heard the reset
    assert late.flags & RST


def test_a_record_that_is_dropped_again_is_the_segment_again():
    stack = Stack(1001)
    stack.set_aside(text(stack, 1001, b"poison"))
    (reset,) = stack.set_aside(text(stack, 1001, b"poison"))
    assert reset.flags & RST


@pytest.mark.parametrize("other", [{"octets": b"later", "at": 7}, {"octets": b""}])
def test_other_segments_of_the_connection_are_processed(other):
    stack = Stack(1001)
    stack.set_aside(text(stack, 1001, b"poison"))
    assert [each.flags & RST for each in stack.arrives(text(stack, 1001, **other))] in ([], [0])
    assert stack.core.counters[Counters.poison_resets] == 0


def test_a_segment_outside_the_window_resets_nothing():
    stack = Stack(1001)
    stack.set_aside(text(stack, 1001, b"poison", at=1 << 30))
    assert stack.arrives(text(stack, 1001, b"poison", at=1 << 30)) == []
    assert stack.core.counters[Counters.poison_resets] == 0


@pytest.mark.parametrize("flags", [ACK, ACK | FIN])
def test_an_acknowledgment_or_a_fin_that_killed(flags):
    stack = Stack(1001)
    poison = Segment(1001, PORT, ISS + 1, stack.iss[1001] + 1, flags, 60_001)
    stack.set_aside(poison)
    (reset,) = stack.arrives(poison)
    assert reset.flags & RST


def test_a_syn_that_killed_is_refused_when_it_comes_again():
    stack = Stack()
    stack.set_aside(Segment(1001, PORT, ISS, 0, SYN, 60_000))
    (reset,) = stack.arrives(Segment(1001, PORT, ISS, 0, SYN, 60_000))
    assert (reset.flags, reset.acknowledgment) == (RST | ACK, ISS + 1)
    (answer,) = stack.arrives(Segment(1002, PORT, ISS, 0, SYN, 60_000))
    assert answer.flags == SYN | ACK


def test_a_successor_knows_the_segment_and_broken_records_do_no_harm():
    stack = Stack(1001)
    stack.set_aside(text(stack, 1001, b"poison"))
    again = stack._born()
    assert again._poison.known == stack.core._poison.known != []
    for broken in (b"", b"x", bytes(26)):
        stack.core.record_set_aside(topology.IP, messages.PACKET, broken, NOW)

"""When the end of a peer's write is acknowledged, as on Linux, and that it costs nobody else anything
(docs/decisions/acknowledgments.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from layers.tcp.acknowledgment import DELAY_S, QUICK_ACKS
from packets.tcp import SYN
from tests.unit.tcp.host import A, B, Host, World, pair
from tests.unit.tcp.peer import Peer
from usernet.client.streams import StreamDescription
from usernet.pipe.streams import READ_RECORD, STREAM_HEADER

DELAY = 0.005  # of the link, one way
MSS, FULL = 1000, b"d" * 1000


class Reader:
    """A program that reads all that comes, with the library's end of the stream: it says as seldom as that how far."""

    def __init__(self, host: Host, handle: int) -> None:
        self._host, self._handle = host, handle
        self._end = StreamDescription(threading.RLock(), handle, 0)
        self.said = 0  # READ records

    def read(self) -> bytes:
        end, received = self._end, self._host.applications[self._handle].received
        if len(received) > end.have:
            end.take_stream(STREAM_HEADER.pack(self._handle, 0, end.have) + received[end.have :])
        octets = end.take(1 << 20, False)
        if end.read_due():
            self.said += 1
            _, flags, read, have = READ_RECORD.unpack(end.reading())
            self._host.do(lambda host: host.calls.read(self._handle, flags, read, have))
        return octets


def runs(world: World, seconds: float, readers: dict[Reader, Callable[[bytes], None]]) -> None:
    """Let time pass; what each reader reads goes to its function."""
    def reads() -> bool:
        for reader, react in readers.items():
            if octets := reader.read():
                react(octets)
        return False

    world.run(seconds, reads, reading=False)


def pure_acks(world: World, source: bytes) -> int:
    return sum(not segment.payload and not segment.flags & SYN for _, sender, segment in world.log if sender == source)


def without_quick_acks() -> tuple[Peer, int]:
    """A peer whose first segments, which are acknowledged at once anyway, are over; the handle of its connection."""
    peer = Peer()
    handle = peer.connects()
    conn = peer.host.conn(handle)
    conn.last_text, conn.quick = peer.now, 0
    return peer, handle


@pytest.mark.parametrize(("flags", "octets", "at_once"), [
    ("P.", 1, True), ("P.", 100, True), ("P.", MSS - 1, True), ("P.", MSS + 100, True), ("P.", MSS, False),
    (".", 100, False), (".", MSS, False), (".", MSS + 100, False)])
def test_a_pushed_segment_that_is_not_full_is_acknowledged_at_once(flags, octets, at_once):
    peer, _ = without_quick_acks()
    answer = [f". 1(0) ack {octets + 1}"]
    assert peer.says(flags, 1, 1, b"d" * octets) == (answer if at_once else [])
    peer.passes(DELAY_S)
    assert peer.hears() == answer


def test_so_is_one_after_others_of_its_length_and_once_for_a_turn():
    peer, _ = without_quick_acks()
    assert [peer.says("P.", 1 + 800 * number, 1, b"d" * 800) for number in range(3)] == [
        [". 1(0) ack 801"], [". 1(0) ack 1601"], [". 1(0) ack 2401"]]
    assert peer.says_together(*(("P.", 2401 + 100 * number, 1, b"d" * 100) for number in range(9))) == [
        ". 1(0) ack 3301"]


def test_not_where_answers_carry_the_ack_until_one_fails_to_come():
    peer, handle = without_quick_acks()
    assert peer.says("P.", 1, 1, b"question") == [". 1(0) ack 9"]
    assert peer.write(handle, b"answer")[-1] == "P. 1(6) ack 9"
    assert peer.says("P.", 9, 7, b"question") == []
    assert peer.write(handle, b"answer") == ["P. 7(6) ack 17"]
    assert peer.says("P.", 17, 13, b"first half ") == []
    peer.passes(DELAY_S)
    assert peer.hears() == [". 13(0) ack 28"]
    assert peer.says("P.", 28, 13, b"second half") == [". 13(0) ack 39"]


def test_not_while_the_application_is_known_not_to_read_but_when_it_has_read():
    peer, handle = without_quick_acks()
    for number in range(4):
        peer.says(".", 1 + MSS * number, 1, FULL)
    assert peer.says("P.", 4001, 1, b"d" * 100) == [". 1(0) ack 4101"]  # the library may have kept it to itself
    assert peer.says("P.", 4101, 1, b"d" * 100) == []
    peer.passes(DELAY_S / 2)
    peer.hears()
    peer.host.take(handle)
    assert peer.hears() == [". 1(0) ack 4201"]
    peer.passes(1)
    assert peer.hears() == []


def test_not_with_tcp_quickack_off():
    peer, handle = without_quick_acks()
    peer.host.set(handle, 9, quickack=False)
    assert peer.says("P.", 1, 1, b"d") == []


def after_the_first(world: World, a: Host, left: int, reader: Reader) -> None:
    """Segments that are acknowledged at once anyway; since then nothing has come for 100 ms."""
    for _ in range(QUICK_ACKS):
        a.write(left, b"first")
        runs(world, 2 * DELAY + 0.001, {reader: lambda octets: None})
    runs(world, 0.1, {reader: lambda octets: None})


@pytest.mark.parametrize("size", [100, 800])
def test_who_writes_twice_with_nagles_algorithm_does_not_wait_for_a_delayed_ack(size):
    """As on Linux, which stalls such a peer only where answers come, and come soon."""
    world, a, b, left, right = pair(DELAY)
    reader = Reader(b, right)
    after_the_first(world, a, left, reader)
    took = []
    for _ in range(20):
        began, came = world.now, []
        a.write(left, b"h" * size)
        a.write(left, b"b" * size)
        runs(world, 0.1, {reader: lambda octets, came=came: came.append((world.now, len(octets)))})
        assert sum(octets for _, octets in came) == 2 * size
        took.append(came[-1][0] - began)
    assert max(took) == pytest.approx(3 * DELAY)  # there, the ACK back, and there


def test_questions_and_answers_cost_no_pure_ack_and_no_record_about_reading():
    world, a, b, left, right = pair(DELAY)
    server, client = Reader(b, right), Reader(a, left)
    answered = 0

    def next_question(octets: bytes) -> None:
        nonlocal answered
        answered += 1
        a.write(left, b"question")

    next_question(b"")
    runs(world, 4 * DELAY, {server: lambda octets: b.write(right, b"answer"), client: next_question})
    world.collect()
    began = pure_acks(world, A), pure_acks(world, B), answered
    runs(world, 200 * DELAY, {server: lambda octets: b.write(right, b"answer"), client: next_question})
    assert answered - began[2] == 100
    assert (pure_acks(world, A), pure_acks(world, B)) == began[:2]
    assert server.said == client.said == 0


def test_a_question_whose_answer_takes_long_has_one_ack_and_the_answer_none():
    world, a, b, left, right = pair(DELAY)
    server, client = Reader(b, right), Reader(a, left)
    after_the_first(world, a, left, server)
    acks, answers = [], list[bytes]()
    for _ in range(20):
        a.write(left, b"question")
        runs(world, DELAY_S + 4 * DELAY, {server: lambda octets: None})
        b.write(right, b"answer")
        runs(world, DELAY, {client: answers.append})
        acks.append((pure_acks(world, A), pure_acks(world, B)))
    assert answers == [b"answer"] * 20
    assert (acks[-1][0] - acks[0][0], acks[-1][1] - acks[0][1]) == (0, 19)  # the first answer has a quick ACK


def test_bulk_has_an_ack_for_every_second_segment_and_no_more():
    full, count = 1448, 1000
    world, a, b, left, right = pair(DELAY)
    reader = Reader(b, right)
    after_the_first(world, a, left, reader)
    world.collect()
    world.log.clear()
    program, received = a.applications[left], b.applications[right].received
    end = len(program.written) + count * full
    while len(received) < end:
        while (rest := min(end, program.limit) - len(program.written)) >= full:
            a.write(left, bytes(min(rest // full, 10) * full))
        runs(world, DELAY, {reader: lambda octets: None})
    runs(world, 1, {reader: lambda octets: None})
    segments = [segment for _, sender, segment in world.log if sender == A]
    assert [len(segment.payload) for segment in segments] == [full] * count
    assert count / 2 <= pure_acks(world, B) <= 1.01 * count / 2  # window updates, and the last before a pause

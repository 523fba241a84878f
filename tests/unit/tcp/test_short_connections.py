"""Connections that are accepted, answer one request and are closed: few segments, few frames, nothing left behind."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.stream_memory import StreamMemory
from bus.messages import PACKET_HEAD, TRANSMIT_HEAD, encode
from bus.streams import StreamState
from layers.tcp.acknowledgment import END_DELAY_S
from layers.tcp.closing import TIME_WAIT_S
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from layers.tcp.durable import LEAVING_S, Durable
from packets.tcp import ACK, SYN, Segment, parse
from tests.unit.tcp.host import A, B
from tests.unit.tcp.peer import PORT, Peer

QUESTION, ANSWER = b"question", b"the answer"


def hears(peer: Peer, *segment: object) -> list[str]:
    """A segment comes in; what goes out at once, which `Peer.hears` does not return again."""
    peer.says(*segment)  # type: ignore[arg-type]
    return peer.hears()


def test_a_short_connection_takes_four_segments_one_of_which_acknowledges_the_fin_and_is_ours():
    peer = Peer()
    handle = peer.connects()
    assert hears(peer, "P.", 1, 1, QUESTION) == [". 1(0) ack 9"]
    assert peer.write(handle, ANSWER) == ["P. 1(10) ack 9"]
    assert hears(peer, "F.", 9, 11) == []
    assert peer.host.applications[handle].ended
    peer.host.take(handle)
    peer.host.close(handle)
    assert peer.hears() == ["F. 11(0) ack 10"]
    assert hears(peer, ".", 10, 12) == []
    engine = peer.host.engine
    assert not engine.lookup.connections
    assert engine.timers.next_due is engine.quiet.next_due is None  # nothing wakes the layer for it any more
    peer.passes(1.0)
    assert peer.hears() == []


@pytest.mark.parametrize("text", [b"", b"with text"])
def test_a_fin_that_the_application_does_not_answer_by_closing_is_acknowledged_soon(text):
    peer = Peer()
    peer.connects()
    assert hears(peer, "F.", 1, 1, text) == []
    peer.passes(END_DELAY_S - 0.001)
    assert peer.hears() == []
    peer.passes(0.002)
    assert peer.hears() == [f". 1(0) ack {2 + len(text)}"]
    peer.passes(100.0)
    assert peer.hears() == []


def test_the_ack_of_a_fin_that_leaves_with_the_answer_is_not_sent_again():
    peer = Peer()
    handle = peer.connects()
    assert hears(peer, "F.", 1, 1) == []
    assert peer.write(handle, ANSWER) == ["P. 1(10) ack 2"]
    assert hears(peer, ".", 2, 11) == []
    peer.passes(1.0)
    assert peer.hears() == []


def test_a_fin_is_acknowledged_at_once_where_text_before_it_would_be():
    peer = Peer()
    peer.connects()
    assert hears(peer, "F.", 1, 1, bytes(3000)) == [". 1(0) ack 3002"]


def test_a_fin_that_fills_a_gap_is_acknowledged_at_once():
    peer = Peer()
    peer.connects()
    assert hears(peer, "F.", 9, 1) == [". 1(0) ack 1"]
    assert hears(peer, "P.", 1, 1, QUESTION) == [". 1(0) ack 10"]


def test_a_fin_that_was_not_acknowledged_when_tcp_died_is_acknowledged_by_the_successor():
    peer = Peer()
    peer.connects()
    assert hears(peer, "F.", 1, 1) == []
    peer.host = peer.host.successor(2)
    peer.passes(0.1)
    assert peer.hears() == [". 1(0) ack 2"]


def test_connections_that_were_closed_are_not_passed_up_to_a_new_socket_service():
    peer = Peer()
    handles = []
    for turn in range(3):
        peer.port += 1
        if turn:
            assert hears(peer, "S", 0) == ["S. 0(0) ack 1"]
            peer.says(".", 1, 1)
            handles.append(peer.host.accepted_handles[-1][1])
        else:
            handles.append(peer.connects())
    passed_up: list[int] = []
    peer.host.engine.above.accepted = lambda listener, handle, number, ends: passed_up.append(handle)
    peer.host.close(handles[0])  # it goes on without an owner
    peer.host.close(handles[1], linger=0)
    peer.host.calls.repeat()
    assert passed_up == handles[2:]
    peer.host = heir = peer.host.successor(2)
    heir.engine.above.accepted = lambda listener, handle, number, ends: passed_up.append(handle)
    heir.calls.repeat()
    assert passed_up == 2 * handles[2:]


def test_records_of_connections_that_are_accepted_together_fit_into_two_frames():
    core = Core(StackConfig(name="t", run_dir="", address=B, prefix=24, mac=bytes(6)), {}, Counters.new(),
                random.Random(1))
    core.start(0.0)
    core.receive(topology.SOCKETS, messages.SOCKET_SET,
                 [encode(StreamState(handle=5, request=1, port=PORT, bind=True, listen=9))], 0.0)

    def arrive(segments: list[Segment]) -> list[tuple[int, int, bytes]]:
        packed = [segment.pack() for segment in segments]
        return core.receive(topology.IP, messages.PACKET, [
            PACKET_HEAD.pack(1, 4, messages.FLAG_CHECKSUM_KNOWN, 20, 0, 6, 64, 0, A, B) + bytes(20) + octets
            for octets in packed], 0.0)

    ports = range(4001, 4005)
    answers = [parse(record[TRANSMIT_HEAD.size :])
               for _, _, record in arrive([Segment(port, PORT, 7, 0, SYN, 60_000) for port in ports])]
    sends = arrive([Segment(each.destination_port, PORT, 8, each.sequence + 1 & 0xFFFFFFFF, ACK, 60_000)
                    for each in answers])
    frames = [(to, kind, len(list(run))) for (to, kind), run in groupby(sends, lambda send: send[:2])]
    assert frames == [(topology.SOCKETS, messages.ACCEPTED, 4), (topology.SOCKETS, messages.ROOM, 4)]


def test_rings_that_are_released_one_after_the_other_leave_together():
    """Each stays untouched for LEAVING_S, and few turns are needed to free them all."""
    durable = Durable(StreamMemory.volatile()._replace(shared=True), {}, 1)
    trims, now = 0, 0.0
    for number in range(1, 401):
        now = number / 1000
        ring = durable.take(1)
        assert ring is not None
        durable.give(ring)
        durable.turn_stored(now)
        assert durable.used_octets >= min(number, 1000 * LEAVING_S - 1) * ring.size
        assert durable.used_octets <= 1000 * LEAVING_S * ring.size + ring.size
    while durable.used_octets:
        assert durable.trim_at is not None
        now, trims = max(now, durable.trim_at), trims + 1
        durable.trim(now)
    assert trims <= 2
    assert now <= 0.4 + LEAVING_S


def test_a_layer_wakes_for_rings_that_leave_at_most_once_in_the_time_that_they_need():
    durable = Durable(StreamMemory.volatile()._replace(shared=True), {}, 1)
    trims = 0
    for number in range(1, 401):
        now = number / 1000
        if durable.trim_at is not None and durable.trim_at <= now:
            durable.trim(now)
            trims += 1
        ring = durable.take(1)
        assert ring is not None
        durable.give(ring)
        durable.turn_stored(now)
    assert trims <= 0.4 / LEAVING_S


def test_in_time_wait_a_connection_wakes_the_layer_once():
    peer = Peer()
    handle = peer.connects()
    assert peer.write(handle, ANSWER) == ["P. 1(10) ack 1"]
    peer.host.close(handle)
    assert peer.hears() == ["F. 11(0) ack 1"]
    assert hears(peer, "F.", 1, 12) == [". 12(0) ack 2"]
    engine = peer.host.engine
    assert engine.timers.next_due == peer.now + TIME_WAIT_S
    assert engine.quiet.next_due is None
    peer.passes(TIME_WAIT_S)
    assert not engine.lookup.connections

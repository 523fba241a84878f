"""The core dies at any line and its successor goes on: every octet once and in order, no connection lost."""

from __future__ import annotations

import errno
import random
import sys
from pathlib import Path

import pytest

from bus.streams import StreamState
from layers.tcp import listing
from layers.tcp.counters import Counters as C
from tests.unit.tcp.host import KEY_HANDLES, A, B, Death, Host, World, pair
from tests.unit.tcp.test_hostile_link import hostile
from tests.unit.tcp.test_streams import octets

FILES = str(Path(__file__).parents[3] / "layers/tcp"), str(Path(__file__).parents[3] / "bus/durable")


class Mortal:
    """Kills at lines of the layer, so many lines apart."""

    def __init__(self, seed: int, apart: int) -> None:
        self._rng = random.Random(seed)
        self._apart = apart
        self._left = self._rng.randrange(apart)

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(FILES):
            return None
        return self._line

    def _line(self, frame, event, argument):
        if event == "line":
            self._left -= 1
            if self._left < 0:
                self._left = self._rng.randrange(self._apart)
                sys.settrace(None)
                raise Death
        return self._line

    def __enter__(self):
        sys.settrace(self._trace)

    def __exit__(self, *_):
        sys.settrace(None)


@pytest.mark.parametrize("loss", [0, 0.05])
@pytest.mark.parametrize("seed", range(8))
def test_every_octet_arrives_once_whatever_line_the_core_dies_at(seed, loss):
    a, b = Host(A, seed=1), Host(B, seed=2)
    world = World(a, b, 0.001, hostile(seed, loss, 0.05, 0.0005, 0.001) if loss else None)
    world.mortal = Mortal(seed, 15_000)
    b.set(5, port=80, bind=True, listen=16)
    a.set(1, peer=B, peer_port=80, connect=1)
    assert world.run(60, lambda: a.applications[1].established and bool(b.accepted_handles))
    right = b.accepted_handles[0][1]
    there, back = octets(60_000, seed), octets(40_000, seed + 1)
    a.write(1, there, end=True)
    b.write(right, back, end=True)
    done = world.run(3000, lambda: a.applications[1].ended and b.applications[right].ended)
    assert done, (world.deaths, world.hosts[A].state_of(1), world.hosts[B].state_of(right))
    assert bytes(b.applications[right].received) == there
    assert bytes(a.applications[1].received) == back
    assert a.applications[1].error is b.applications[right].error is None
    assert world.deaths > 3
    assert world.run(60, lambda: a.applications[1].finished and b.applications[right].finished)
    world.mortal = None
    a.close(1)
    b.close(right)
    world.run(200)
    assert not world.hosts[A].engine.lookup.connections
    assert not world.hosts[B].engine.lookup.connections


def test_a_window_never_shrinks_and_idle_connections_outlive_a_death():
    world, a, b, left, right = pair()
    a.write(left, octets(50_000))
    world.run(1)
    advertised = b.conn(right).advertised
    for address in (A, B):
        world.hosts[address] = world.hosts[address].successor(9)
        world.hosts[address].world = world
    world.run(10)
    assert world.hosts[B].conn(right).advertised >= advertised
    a.write(left, octets(10, 3), end=True)
    world.run(1)
    assert len(b.applications[right].received) == 50_010
    assert world.hosts[B].state_of(right) == "CLOSE-WAIT"


def test_listeners_and_time_wait_outlive_a_death():
    world, a, b, left, right = pair()
    a.write(left, b"x", end=True)
    b.write(right, b"y", end=True)
    world.run(1)
    assert a.state_of(left) == "TIME-WAIT"
    for address in (A, B):
        world.hosts[address] = world.hosts[address].successor(9)
        world.hosts[address].world = world
    assert world.hosts[A].state_of(left) == "TIME-WAIT"
    assert world.hosts[A].set(2, peer=B, peer_port=80, connect=1) == 0
    assert world.run(5, lambda: a.applications[2].established)
    world.run(61)
    assert world.hosts[A].state_of(left) == "CLOSED"


def test_slots_of_code_with_another_layout_are_not_misread():
    _, a, _, left, _ = pair()
    a.state[KEY_HANDLES + 1] = b"0"
    heir = a.successor(9)
    assert not heir.engine.lookup.connections
    assert heir.state_of(left) == "CLOSED"
    assert heir.set(2, peer=B, peer_port=80, connect=1) == 0


@pytest.mark.parametrize("bound", [False, True])
def test_a_connect_whose_turn_was_cut_short_after_the_connection_was_stored_is_not_refused(bound):
    host = Host(A)
    if bound:
        assert host.set(5, port=4000, bind=True) == 0
    before = host.state.get(5)
    wanted = {"peer": B, "peer_port": 80, "connect": 1, "port": 4000 if bound else 0}
    host.calls.set(StreamState(handle=5, request=2, **wanted))
    if before is None:
        del host.state[5]
    else:
        host.state[5] = before
    heir = host.successor(9)
    assert heir.set(5, request=2, **wanted) == 0
    assert len(heir.engine.lookup.connections) == 1
    assert heir.state_of(5) == "SYN-SENT"
    assert heir.set(5, request=3, **{**wanted, "connect": 2}) == errno.EALREADY


@pytest.mark.parametrize("asks_for_port", [False, True])
def test_connections_that_owe_nothing_are_made_when_they_are_asked_for(asks_for_port):
    world, a, b, left, _ = pair()
    lefts = [left]
    for handle in range(100, 115):
        assert a.set(handle, peer=B, peer_port=80, connect=1) == 0
        lefts.append(handle)
    assert world.run(5, lambda: all(a.applications[handle].established for handle in lefts))
    world.run(2)
    ends = a.conn(lefts[9]).ends
    world.hosts[A] = a = a.successor(9)
    a.world = world
    assert len(a.engine.lookup.connections) == 0
    a.write(lefts[7], b"still there?")
    assert world.run(0.03, lambda: any(app.received == b"still there?" for app in b.applications.values()))
    assert len(a.engine.lookup.connections) == 1
    if asks_for_port:
        assert a.set(400, port=ends.port, bind=True) == errno.EADDRINUSE
        assert a.engine.lookup.ports.sharable(ends.port)  # by a connection to another peer, as it was chosen by connect
        assert not a.engine.lookup.ports.free(ends.port)
    world.run(30)
    assert len(a.engine.lookup.connections) == 0  # it sleeps again
    assert listing.count(a.engine) == len(lefts)
    for each in lefts:
        a.write(each, b"all of you")
    assert world.run(1, lambda: sum(b"all of you" in app.received for app in b.applications.values()) == len(lefts))
    assert not a.engine.dormant.by_flow


def test_all_connections_are_listed_while_they_are_dormant():
    world, a, _, left, _ = pair()
    for handle in range(100, 115):
        assert a.set(handle, peer=B, peer_port=80, connect=1) == 0
    assert world.run(5, lambda: all(a.applications[handle].established for handle in range(100, 115)))
    world.run(2)
    world.hosts[A] = a = a.successor(9)
    a.world = world
    found, after = [], ""
    while True:
        answer = listing.page(a.engine, after, True)
        found += answer["connections"]
        if not answer["more"]:
            break
        after = found[-1]["key"]
    assert {each["handle"] for each in found} == {left, *range(100, 115)}
    assert all(each["state"] == "ESTABLISHED" and each["info"]["snd_cwnd"] > 0 for each in found)
    assert len(a.engine.lookup.connections) == 0


def test_a_dormant_connection_in_time_wait_tells_its_application_again_how_it_ended():
    world, a, b, left, right = pair()
    a.write(left, b"x", end=True)
    assert world.run(10, lambda: b.applications[right].ended)
    b.write(right, b"y", end=True)
    assert world.run(10, lambda: a.state_of(left) == "TIME-WAIT" and a.applications[left].read == 1)
    application = a.applications[left]
    application.ended = application.finished = False  # the process died before it told it
    heir = a.successor(1)
    assert left in heir.engine.dormant.by_handle
    assert application.ended
    assert application.finished


@pytest.mark.parametrize("keepalive", [False, True])
def test_a_dormant_connection_with_keep_alive_is_woken_for_it(keepalive):
    world, a, _, left, _ = pair()
    if keepalive:
        assert a.set(left, peer=B, peer_port=80, connect=1, keepalive=True, keepidle=5) == 0
    world.run(2)
    world.hosts[A] = a = a.successor(9)
    a.world = world
    before = a.counters[C.segments_out]
    world.run(6)
    assert (a.counters[C.segments_out] > before) == keepalive


def test_a_new_socket_service_is_told_of_all_connections_in_portions(monkeypatch):
    monkeypatch.setattr("layers.tcp.calls.REPEATED_AT_ONCE", 3)
    monkeypatch.setattr("layers.tcp.engine.REPEATED_THEN", 3)
    world, a, _, left, _ = pair()
    lefts = {left, *range(100, 115)}
    for handle in lefts - {left}:
        assert a.set(handle, peer=B, peer_port=80, connect=1) == 0
    assert world.run(5, lambda: all(a.applications[handle].established for handle in lefts))
    world.run(2)
    world.hosts[A] = a = a.successor(9)
    a.world = world
    a.write(left, b"awake")
    world.run(1)
    told = []
    a.engine.above.room = lambda handle, flags, *rest: told.append(handle)
    a.calls.repeat()
    assert len(told) == 3
    world.run(1)
    assert set(told) == lefts
    assert len(a.engine.lookup.connections) == 1

"""Octets in the memory of an application: what tcp accepts of it, and that none is lost or taken from elsewhere."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import pytest

from bus.durable.held import APPLICATION_MIN, Held, Holdings
from bus.durable.stream_memory import SLOTS_OCTETS, StreamMemory
from bus.messages import TRANSMIT_HELD
from layers.tcp.counters import Counters as C
from layers.tcp.durable import KEY_KEPT
from packets.tcp import Segment
from tests.unit.tcp.host import A, B, Host, World
from usernet.pipe.rings import (
    APPLICATION_OCTETS,
    BLOCK_OCTETS,
    IN_USE,
    REFERENCE_MASK,
    TOKEN,
    ApplicationRings,
    Ring,
    block_of,
    octets_for,
)

HOME = APPLICATION_MIN
TOKEN_OF = {HOME: 0x1234_5678_9ABC_DEF0, HOME + 1: 0x0FED_CBA9_8765_4321}
TEXT = random.Random(3).randbytes(400_000)


class LentHost(Host):
    """A host whose application has memory `HOME`; `HOME + 1` is that of another application."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self.holdings = Holdings(self.memory.descriptors)
        self.mine = ApplicationRings(mmap.mmap(self.memory.descriptors[HOME], APPLICATION_OCTETS))
        self.held = 0  # super-segments that left as a reference
        self.reference = 0  # the ring that ROOM has named last
        self.told: list[tuple[int, int, int]] = []  # offset, length, reference

    def transmit(self, source: bytes, destination: bytes, segment: Segment, size: int, options: object,
                 capable: bool, held: Held | None = None) -> None:
        if held is not None:
            self.held += 1
            inline = self.holdings.inline(TRANSMIT_HELD, held.pack())
            assert inline is not None
            segment = segment._replace(payload=inline[1])
        super().transmit(source, destination, segment, size, options, capable)

    def _room(self, handle: int, flags: int, taken: int, acked: int, limit: int, ring: Ring | None = None) -> None:
        if ring is not None:
            self.reference = ring.reference & REFERENCE_MASK
        super()._room(handle, flags, taken, acked, limit)

    def stream_held(self, handle: int, flags: int, offset: int, length: int, ring: Ring) -> None:
        self._turn.append((self._stream_held, handle, flags, offset, length, ring.reference & REFERENCE_MASK))

    def _stream_held(self, handle: int, flags: int, offset: int, length: int, reference: int) -> None:
        self.told.append((offset, length, reference))
        ring = self.mine.ring(reference)
        assert ring is not None
        self._stream(handle, flags, offset, ring.read(offset, length))

    def successor(self, seed: int) -> Host:
        heir = super().successor(seed)
        heir.reference = heir.reference or self.reference
        return heir

    # What the application does
    def put(self, handle: int, octets: bytes, told: bool = True) -> None:
        """Write octets into the ring, and say so."""
        application, ring = self.applications[handle], self.mine.ring(self.reference)
        assert ring is not None
        offset = len(application.written)
        application.written += octets
        ring.write(offset, octets)
        self.mine.written[block_of(self.reference)] = len(application.written)
        if told:
            self.do(lambda host: host.calls.stream_held(handle, 0, offset, len(octets), self.reference))


@pytest.fixture
def memory() -> Iterator[StreamMemory]:
    octets = [octets_for(1 << 24), BLOCK_OCTETS, APPLICATION_OCTETS, APPLICATION_OCTETS]
    descriptors = tuple(os.memfd_create(f"test {number}") for number in range(len(octets)))
    for descriptor, length in zip(descriptors, octets, strict=True):
        os.ftruncate(descriptor, length)
    for home, token in TOKEN_OF.items():
        ApplicationRings(mmap.mmap(descriptors[home], APPLICATION_OCTETS)).facts[TOKEN] = token
    yield StreamMemory(memoryview(mmap.mmap(-1, SLOTS_OCTETS)), mmap.mmap(descriptors[0], octets[0]), {}, True,
                       descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def world(memory: StreamMemory) -> World:
    """A connection of handle 7 of A to handle 2^31 of B."""
    a = LentHost(A, 9000, memory=memory, super_octets=62_720)
    b = Host(B, 9000, super_octets=62_720)
    made = World(a, b, delay=0.001)
    assert b.set(1, port=80, bind=True, listen=5) == 0
    b.do(lambda host: host.calls.accept(1, 0, 5))
    assert a.set(7, connect=1, peer=B, peer_port=80) == 0
    assert made.run(5.0, until=lambda: a.applications[7].established and b.accepted_handles)
    return made


def offer(host: LentHost, home: int = HOME, token: int = TOKEN_OF[HOME]) -> None:
    host.do(lambda each: each.calls.memory(7, home, token))


def arrived(world: World) -> bytes:
    far = world.hosts[B]
    return bytes(far.applications[far.accepted_handles[0][1]].received)


@pytest.mark.parametrize(("home", "token"), [
    (HOME, TOKEN_OF[HOME] ^ 1), (HOME, 0), (HOME + 1, TOKEN_OF[HOME]), (0, TOKEN_OF[HOME]), (1, 0), (HOME + 2, 0),
    (255, TOKEN_OF[HOME]), (1 << 31, 0)])
def test_an_offer_of_a_memory_that_is_not_the_applications_is_refused(world: World, home: int, token: int) -> None:
    host = world.hosts[A]
    offer(host, home, token)
    assert host.counters[C.memory_refused] == 1
    assert host.conn(7).home == 0
    assert not host.reference


def test_octets_from_the_ring_arrive_and_leave_as_references(world: World) -> None:
    host = world.hosts[A]
    host.write(7, TEXT[:1000])
    offer(host)
    assert host.reference
    assert host.mine.facts[IN_USE] > 0
    sent = 1000
    while sent < len(TEXT):
        host.put(7, TEXT[sent : sent + 100_000])
        sent += 100_000
        assert world.run(5.0, until=lambda: len(arrived(world)) == len(host.applications[7].written))
    assert arrived(world) == TEXT[: len(host.applications[7].written)]
    assert host.held > 0


def test_an_end_after_octets_of_the_ring(world: World) -> None:
    host = world.hosts[A]
    offer(host)
    host.put(7, TEXT[:5000])
    host.do(lambda each: each.calls.stream(7, 2, 5000, b""))
    far = world.hosts[B]
    assert world.run(5.0, until=lambda: far.applications[far.accepted_handles[0][1]].ended)
    assert arrived(world) == TEXT[:5000]


@pytest.mark.parametrize("change", [
    lambda right: right ^ 1 << 24, lambda right: right + (16 << 8), lambda right: 0, lambda right: (1 << 64) - 1,
    lambda right: right | 1 << 60])
def test_octets_in_another_ring_are_requested_again(world: World, change) -> None:
    host = world.hosts[A]
    offer(host)
    before = host.conn(7).written
    host.do(lambda each: each.calls.stream_held(7, 0, 0, 1000, change(host.reference)))
    assert host.conn(7).written == before
    assert host.counters[C.stream_gap] == 1
    assert host.again == [7]


def test_octets_in_a_ring_that_was_never_lent_are_requested_again(world: World) -> None:
    host = world.hosts[A]
    host.do(lambda each: each.calls.stream_held(7, 0, 0, 1000, 1))
    assert host.conn(7).written == 1
    assert host.counters[C.stream_gap] == 1


@pytest.mark.parametrize(("offset", "length"), [
    (0, 1 << 31), (0, (1 << 20) + 1), (1, 5), (1 << 40, 5), ((1 << 64) - 1, 5)])
def test_no_more_is_taken_than_was_permitted(world: World, offset: int, length: int) -> None:
    host = world.hosts[A]
    offer(host)
    host.do(lambda each: each.calls.stream_held(7, 0, offset, length, host.reference))
    assert host.conn(7).written - 1 <= 1 << 20
    assert host.conn(7).written - 1 <= host.applications[7].limit


@pytest.mark.parametrize("head", [3000, 0, 1 << 63, (1 << 64) - 1])
def test_octets_in_the_ring_are_sent_when_the_application_dies(world: World, head: int) -> None:
    host = world.hosts[A]
    offer(host)
    host.put(7, TEXT[:2000])
    host.put(7, TEXT[2000:3000], told=False)
    host.mine.written[block_of(host.reference)] = head
    host.close(7)
    far = world.hosts[B]
    assert world.run(20.0, until=lambda: far.applications[far.accepted_handles[0][1]].ended)
    assert len(arrived(world)) >= (3000 if head else 2000)
    assert arrived(world)[:3000] == TEXT[: len(arrived(world)[:3000])]
    assert len(arrived(world)) <= 1 << 20


def test_a_damaged_table_hurts_nobody_else(world: World) -> None:
    host = world.hosts[A]
    offer(host)
    host.put(7, TEXT[:3000])
    reference = host.reference
    for cell in range(512):
        host.mine.cells[cell] = (1 << 64) - 1
    host.do(lambda each: each.calls.stream_held(7, 0, 3000, 10, reference))
    assert world.run(5.0, until=lambda: len(arrived(world)) == 3010)


def test_a_successor_goes_on_with_the_rings(world: World) -> None:
    host = world.hosts[A]
    offer(host)
    host.put(7, TEXT[:300_000])
    heir = world.hosts[A] = host.successor(5)
    heir.world = world
    heir.put(7, TEXT[300_000:])
    assert heir.conn(7).home == HOME
    assert world.run(20.0, until=lambda: len(arrived(world)) == len(TEXT))
    assert arrived(world) == TEXT


def test_received_octets_are_in_the_ring_until_they_are_read(world: World) -> None:
    host, far = world.hosts[A], world.hosts[B]
    offer(host)
    handle = far.accepted_handles[0][1]
    far.write(handle, TEXT[:150_000])
    assert world.run(5.0, until=lambda: len(host.applications[7].received) >= 60_000, reading=False)
    assert host.told
    assert world.run(5.0, until=lambda: len(host.applications[7].received) == 150_000)
    assert bytes(host.applications[7].received) == TEXT[:150_000]


@pytest.mark.parametrize("crash", [False, True], ids=["", "over a crash"])
def test_unread_octets_stay_after_a_reset_until_the_socket_is_closed(world: World, crash: bool) -> None:
    host, far = world.hosts[A], world.hosts[B]
    offer(host)
    handle = far.accepted_handles[0][1]
    far.write(handle, TEXT[:20_000])
    assert world.run(5.0, until=lambda: len(host.applications[7].received) == 20_000, reading=False)
    reference = host.told[-1][2]
    far.close(handle, linger=0)
    assert world.run(5.0, until=lambda: host.applications[7].error != 0, reading=False)
    world.run(10.0, reading=False)
    if crash:
        heir = world.hosts[A] = host.successor(5)
        heir.world, host = world, heir
        assert heir.set(8, connect=1, peer=B, peer_port=80) == 0
        assert world.run(5.0, until=lambda: heir.applications[8].established, reading=False)
        heir.do(lambda each: each.calls.memory(8, HOME, TOKEN_OF[HOME]))  # a ring for others must be another one
    ring = host.mine.ring(reference)
    assert ring is not None
    assert ring.read(0, 20_000) == TEXT[:20_000]
    assert not crash or host.reference != reference
    host.close(7)
    assert host.mine.ring(reference) is None
    if crash:
        host.close(8, linger=0)
    assert not [key for key in host.state if key >= KEY_KEPT]
    world.run(10.0, reading=False)
    assert host.mine.facts[IN_USE] == 0

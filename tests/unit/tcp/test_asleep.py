"""Connections that sleep: nobody can see it, and nothing is lost."""

from __future__ import annotations

import gc
import sys
from typing import Any

import lengths
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layers.tcp import asleep, info, listing, quiet
from layers.tcp.connection import CLOSE_WAIT, ORPHAN, Connection
from layers.tcp.counters import Counters
from layers.tcp.counters import Counters as C
from layers.tcp.ecn import AccurateEcn
from packets.tcp import ACK, RST, Segment
from tests.unit.tcp.host import A, B, Host, World, pair
from tests.unit.tcp.test_crashes import Mortal
from tests.unit.tcp.test_hostile_link import hostile
from tests.unit.tcp.test_streams import octets
from usernet.pipe.streams import RESUME

NEVER = 1e9
PORT = 80


def sleepers(host: Host) -> int:
    assert host.engine.dormant is not None
    return len(host.engine.dormant.by_flow)


def impatient() -> pytest.MonkeyPatch:
    """Connections go to sleep at every opportunity, until `undo`."""
    patch = pytest.MonkeyPatch()
    patch.setattr(quiet, "QUIET_S", 0.0)
    patch.setattr(quiet, "SLEEP_S", 0.0)
    return patch


def many(count: int, **options: Any) -> tuple[World, Host, Host, list[int]]:
    """So many connections of A to B, at A's handles."""
    world, a, b, left, _ = pair(a_options=options, b_options=options)
    b.do(lambda host: host.calls.accept(5, 0, 1000))
    handles = [left, *range(100, 99 + count)]
    for handle in handles[1:]:
        assert a.set(handle, peer=B, peer_port=PORT, connect=1, **options) == 0
    assert world.run(5, lambda: all(a.applications[handle].established for handle in handles))
    return world, a, b, handles


def counted(host: Host) -> dict[str, int]:
    """All counters but those of sleep."""
    return {name: value for name, value in Counters.read(host.counters).items() if name not in ("slept", "woken")}


def fields(conn: Connection) -> dict[str, object]:
    """All of a TCB, but for its entries in queues and what is stored."""
    skipped = MEANINGLESS | {"small_sent", "challenge_at", "gap_told"}
    found = {name: getattr(conn, name) for name in Connection.__slots__ if name not in skipped}
    found["full_end"] = found["full_end"] > 0  # only that it has arrived
    assert found.keys() >= KEPT
    return found


def test_after_two_seconds_of_silence_the_tcb_is_gone_and_every_field_comes_back():
    world, a, b, left, right = pair()
    a.write(left, octets(30_000))
    b.write(right, octets(5_000, 2))
    assert world.run(3, lambda: a.conn(left).recovery is b.conn(right).recovery is None)
    assert world.now >= 1001
    assert a.engine.counters[C.slept] == b.engine.counters[C.slept] == 0
    before = fields(a.conn(left)), fields(b.conn(right))
    world.run(7)
    assert not a.engine.lookup.connections
    assert not b.engine.lookup.by_handle
    assert (sleepers(a), sleepers(b)) == (1, 1)
    assert (fields(a.conn(left)), fields(b.conn(right))) == before
    assert (sleepers(a), sleepers(b)) == (0, 0)
    world.run(10)
    assert (sleepers(a), sleepers(b)) == (1, 1)  # it was only looked at


ACTIONS = st.one_of(
    st.tuples(st.just("write"), st.booleans(), st.sampled_from([1, 700, 5000, 20_000])),
    st.tuples(st.just("pause"), st.just(True), st.sampled_from([0.1, 1.5, 3.0, 8.0, 31.0])),
    st.tuples(st.just("end"), st.booleans(), st.just(0)),
    st.tuples(st.just("set"), st.booleans(), st.fixed_dictionaries({}, optional={
        "keepalive": st.booleans(), "keepidle": st.sampled_from([2, 9]), "keepintvl": st.just(3), "ttl": st.just(9),
        "nodelay": st.booleans(), "cork": st.booleans(), "quickack": st.booleans(), "user_timeout": st.just(5000),
        "receive_buffer": st.sampled_from([0, 8192]), "send_buffer": st.sampled_from([0, 9216]),
        "notsent_lowat": st.sampled_from([0, 4000]), "congestion": st.sampled_from(["cubic", "reno"])})),
    st.tuples(st.sampled_from(["info", "repeat", "resume", "blind", "old", "bind", "listener", "deaf", "urgent"]),
              st.booleans(), st.just(0)))


def story(actions: list[tuple[str, bool, Any]], seed: int, loss: float, sleep_s: float) -> tuple[list[object], int]:
    """What both ends and everybody who looks see, and how often there was a connection asleep."""
    seen: list[object] = []
    slept = 0
    deaf = [False]
    bad = hostile(seed, loss, loss, 0.01, 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quiet, "SLEEP_S", sleep_s)
        world, a, b, left, right = pair(fate=lambda *which: [] if deaf[0] else bad(*which))
        ends = a.conn(left).ends
        for number, (action, ours, value) in enumerate(actions):
            host, handle = (a, left) if ours else (b, right)
            other = B if ours else A
            conn_ends = (ends.port, PORT) if ours else (PORT, ends.port)
            if action == "write" and host.applications[handle].end is None:
                host.write(handle, octets(value, number))
            elif action == "end" and host.applications[handle].end is None:
                host.write(handle, b"", end=True)
            elif action == "pause":
                world.run(value)
            elif action == "set":
                named = {"peer": B, "peer_port": PORT, "connect": 1} if ours else {}
                seen.append(host.set(handle, request=number + 2, **named, **value))
            elif action == "info":
                conn = host.engine.lookup.by_handle.get(handle)
                seen.append(conn and (info.header(host.engine, conn), info.tcp_info(host.engine, conn)))
            elif action == "repeat":
                host.do(lambda host: host.calls.repeat())
            elif action == "resume":
                have = len(host.applications[handle].received)
                host.do(lambda host, handle=handle, have=have: host.calls.read(handle, RESUME, have, have))
            elif action == "blind":
                host.arrive(other, Segment(conn_ends[1], conn_ends[0], 77, 99, RST, 0))
            elif action == "old":
                host.arrive(other, Segment(conn_ends[1], conn_ends[0], 77, 99, ACK, 1000, payload=b"old"))
            elif action == "bind":
                seen.append(host.set(1000 + number, port=conn_ends[0], bind=True, reuse_address=value > 0))
            elif action == "listener":
                seen.append(b.set(5, request=number + 2, port=PORT, bind=True, listen=8, ttl=33))
            elif action == "urgent" and host.applications[handle].error is host.applications[handle].end is None:
                host.write(handle, b"!", flags=4)
            elif action == "deaf":
                deaf[0] = not deaf[0]
            for each in (a, b):
                slept += sleepers(each)
                seen.append((world.now, listing.page(each.engine, "", True), listing.count(each.engine),
                             each.engine.history.page([("", 0)], 0), counted(each)))
        deaf[0] = False
        world.run(200)
        for host, handle in ((a, left), (b, right)):
            application = host.applications[handle]
            seen += [bytes(application.received), application.acked, application.limit, application.error,
                     application.mark]
            host.close(handle)
        world.run(300)
        seen += [(at, source, segment) for at, source, segment in world.log]
        seen += [list(a.engine.lookup.connections), list(b.engine.lookup.connections)]
    return seen, slept


@settings(max_examples=40)
@given(lengths.lists(ACTIONS, 12), st.integers(0, 1 << 16), st.sampled_from([0, 0.05]))
@example([("write", True, 700), ("pause", True, 31.0), ("write", False, 700), ("pause", True, 8.0)], 1, 0)
def test_an_engine_whose_connections_sleep_does_what_one_does_whose_connections_never_sleep(actions, seed, loss):
    awake, never = story(actions, seed, loss, NEVER)
    assert never == 0
    for sleep_s in (0.0, 1.0):
        tired, _ = story(actions, seed, loss, sleep_s)
        assert len(tired) == len(awake)
        for one, other in zip(tired, awake, strict=True):
            assert one == other


@pytest.mark.parametrize("seed", range(6))
def test_every_octet_arrives_once_whatever_line_dies_while_connections_fall_asleep_and_wake(seed):
    patch = impatient()
    try:
        a, b = Host(A, seed=1), Host(B, seed=2)
        world = World(a, b, 0.001)
        world.mortal = Mortal(seed, 4_000)
        b.set(5, port=PORT, bind=True, listen=16)
        a.set(1, peer=B, peer_port=PORT, connect=1)
        assert world.run(60, lambda: a.applications[1].established and bool(b.accepted_handles))
        right = b.accepted_handles[0][1]
        there, back, slept = bytearray(), bytearray(), 0
        for turn in range(30):
            slept += sleepers(world.hosts[A]) + sleepers(world.hosts[B])
            there += octets(3000, turn)
            back += octets(2000, turn + 99)
            world.hosts[A].write(1, octets(3000, turn))
            world.hosts[B].write(right, octets(2000, turn + 99))
            assert world.run(100, lambda: (len(b.applications[right].received), len(a.applications[1].received))
                             == (len(there), len(back)))  # noqa: B023
            world.run(1)
        assert (bytes(b.applications[right].received), bytes(a.applications[1].received)) == (there, back)
        assert a.applications[1].error is b.applications[right].error is None
        assert slept > 20
        assert world.deaths > 3
        world.mortal = None
        world.hosts[A].close(1)
        world.hosts[B].close(right)
        world.run(200)
        assert not world.hosts[A].engine.lookup.connections
        assert not world.hosts[B].engine.lookup.connections
    finally:
        patch.undo()


def half_closed(**options: Any) -> tuple[World, Host, Host, int, int]:
    """A has closed its direction (FIN-WAIT-2), B has not (CLOSE-WAIT), and both sleep."""
    world, a, b, left, right = pair(a_options=options, b_options=options)
    b.do(lambda host: host.calls.accept(5, 1, 16))
    a.write(left, octets(3000), end=True)
    b.write(right, octets(2000, 2))
    world.run(10)
    assert (sleepers(a), sleepers(b)) == (1, 1)
    return world, a, b, left, right


def test_half_closed_connections_sleep_and_every_field_comes_back():
    world, a, b, left, right = pair()
    a.write(left, octets(3000), end=True)
    b.write(right, octets(2000, 2))
    assert world.run(3, lambda: a.conn(left).recovery is b.conn(right).recovery is None)
    before = fields(a.conn(left)), fields(b.conn(right))
    world.run(7)
    assert (sleepers(a), sleepers(b)) == (1, 1)
    states = [row["state"] for host in (a, b) for row in listing.page(host.engine, "", False)["connections"]]
    assert sorted(states) == ["CLOSE-WAIT", "FIN-WAIT-2", "LISTEN"]
    assert (sleepers(a), sleepers(b)) == (1, 1)
    assert (fields(a.conn(left)), fields(b.conn(right))) == before


@pytest.mark.parametrize("heirs", [False, True])
def test_half_closed_connections_that_slept_carry_octets_and_end_as_others(heirs):
    world, a, b, left, right = half_closed()
    if heirs:
        a, b = world.hosts[A], world.hosts[B] = a.successor(9), b.successor(8)
        a.world = b.world = world
        assert (sleepers(a), sleepers(b)) == (1, 1)
    b.write(right, octets(4000, 3))  # a record wakes one end, a segment the other
    world.run(0.1)
    assert a.applications[left].received == octets(2000, 2) + octets(4000, 3)
    assert (a.state_of(left), b.state_of(right)) == ("FIN-WAIT-2", "CLOSE-WAIT")
    world.run(10)
    assert (sleepers(a), sleepers(b)) == (1, 1)
    b.close(right)
    world.run(1)
    assert a.applications[left].ended
    assert not b.engine.lookup.connections
    assert a.state_of(left) == "TIME-WAIT"


def test_the_keep_alive_timer_of_a_half_closed_connection_wakes_it():
    world, a, b, _, _ = half_closed(keepalive=True, keepidle=20)
    sent = a.counters[C.keepalives_sent] + b.counters[C.keepalives_sent]
    world.run(15)
    assert a.counters[C.keepalives_sent] + b.counters[C.keepalives_sent] > sent
    world.run(9)
    assert (sleepers(a), sleepers(b)) == (1, 1)


def test_a_half_closed_connection_whose_application_closes_while_it_sleeps_ends_after_a_minute():
    world, a, _, left, _ = half_closed()
    a.close(left)
    world.run(59)
    assert len(a.engine.lookup.connections) == 1  # an orphan does not sleep
    world.run(2)
    assert not a.engine.lookup.connections
    assert sleepers(a) == 0


def test_a_new_socket_service_is_told_the_end_of_a_stream_that_sleeps():
    _, a, b, left, right = half_closed()
    for host, handle, ended in ((a, left, False), (b, right, True)):
        host.applications[handle].ended = False
        host.applications[handle].finished = False
        host.calls.repeat()
        host.done()
        assert (host.applications[handle].ended, host.applications[handle].finished) == (ended, not ended)
        assert sleepers(host) == 1


def test_an_application_that_reads_little_before_the_end_of_a_stream_is_asked_and_its_connection_sleeps():
    world, a, b, left, right = pair()
    a.write(left, octets(100), end=True)
    world.run(1, reading=False)
    b.applications[right].read = 100  # as a library that says so after some thousand octets
    world.run(quiet.ASK_S + 5, reading=False)
    assert (sleepers(b), b.counters[C.reading_asked], b.durable.used_octets) == (1, 1, 0)


def test_a_keep_alive_timer_wakes_its_connection_at_its_time_and_it_sleeps_again():
    world, a, _, handles = many(12, keepalive=True, keepidle=20)
    world.run(10)
    assert sleepers(a) == len(handles)
    sent = a.counters[C.keepalives_sent]
    timer = listing.page(a.engine, "", False)["connections"][0]["timer"]
    assert (timer["name"], sleepers(a)) == ("keepalive", len(handles))
    world.run(timer["due_ms"] / 1000 - 0.2)
    assert a.counters[C.keepalives_sent] == sent
    world.run(0.5)
    assert a.counters[C.keepalives_sent] == sent + len(handles)
    world.run(9)
    assert sleepers(a) == len(handles)


def test_connections_that_wake_and_sleep_again_leave_no_timers_behind():
    world, a, _, handles = many(42, keepalive=True, keepidle=7200)
    awake, sleeping, *others = handles  # with the first timers: behind these, what is stale is not at hand
    for handle, options in ((awake, {"notsent_lowat": 5000, "keepidle": 7000}), (sleeping, {"keepidle": 7100})):
        assert a.set(handle, request=2, peer=B, peer_port=PORT, connect=1, keepalive=True, **options) == 0
    for turn in range(12):
        for handle in others:
            a.write(handle, octets(10, turn))
        world.run(10)
        assert sleepers(a) == 1 + len(others)
    assert len(a.engine.timers._heap) <= 100
    assert len(a.engine.dormant._alarms) <= 2 * len(handles) + 100


@pytest.mark.parametrize("heir", [False, True])
def test_what_an_application_declared_holds_while_its_connection_sleeps_and_when_it_is_closed(heir):
    """Also of a connection that a successor has inherited: its FIN and its end are those of its own options."""
    world, a, _, left, _ = pair()
    assert a.set(left, request=2, peer=B, peer_port=PORT, connect=1, ttl=9, linger2=3) == 0
    world.run(10)
    assert sleepers(a) == 1
    if heir:
        world.hosts[A] = a = a.successor(9)
        a.world = world
        assert sleepers(a) == 1
    used: list[Any] = []
    transmit = a.transmit
    a.transmit = lambda *what, **named: (used.append(what[4]), transmit(*what, **named))[1]
    a.close(left)
    world.run(1)
    assert a.engine.lookup.connections
    assert {options.ttl for options in used} == {9}
    world.run(4)
    assert not a.engine.lookup.connections  # after linger2


def test_options_of_a_listener_at_the_time_of_accepting_stay_those_of_the_connection():
    world, _, b, _, right = pair(b_options={"ttl": 21})
    options = b.conn(right).options
    assert b.set(5, request=2, port=PORT, bind=True, listen=8, ttl=44) == 0
    world.run(10)
    assert sleepers(b) == 1
    b.close(5)
    assert b.conn(right).options is options
    assert not b.engine.dormant.slots._options._kept


def test_a_new_socket_service_is_told_of_sleeping_connections_which_sleep_on():
    world, a, _, handles = many(5)
    for handle in handles:
        a.write(handle, octets(1000))
    world.run(10)
    before = {handle: a.applications[handle].limit for handle in handles}
    a.calls.repeat()
    a.done()
    limits = {handle: a.applications[handle].limit for handle in handles}
    assert all(limits[handle] > before[handle] for handle in handles)
    assert sleepers(a) == len(handles)
    assert {handle: a.conn(handle).room_said - 1 for handle in handles} == limits


def test_ports_of_sleeping_connections_are_in_use_and_connections_waiting_to_be_accepted_may_sleep():
    world, a, b, handles = many(4)
    listener = b.engine.lookup.listeners[5]
    world.run(10)
    assert sleepers(b) == len(listener.untaken) == 4  # passed up, and the socket service has not confirmed it
    port = a.conn(handles[0]).ends.port
    world.run(10)
    assert sleepers(a) == 4
    assert not a.engine.lookup.ports.free(port)
    assert a.engine.lookup.ports.sharable(port)
    accepted: list[int] = []
    b.engine.above.accepted = lambda listener, handle, number, ends: accepted.append(handle)
    b.calls.repeat()
    assert accepted == [handle for _, handle in b.accepted_handles]


def test_many_that_become_quiet_at_once_go_to_sleep_in_portions():
    world, a, _, handles = many(130)
    conns = [a.conn(handle) for handle in handles]
    assert world.run(20, lambda: sleepers(a) > 0)
    assert sleepers(a) <= quiet.SLEEP_AT_ONCE
    assert world.run(1, lambda: sleepers(a) == len(handles))
    assert not any(conn.touched for conn in conns)


def test_many_that_become_idle_at_once_release_their_memory_in_portions():
    world, a, _, handles = many(450)
    conns = [a.conn(handle) for handle in handles]
    assert world.run(5, lambda: any(conn.recovery is None for conn in conns))
    assert sum(conn.recovery is None for conn in conns) <= quiet.SHRINK_AT_ONCE
    assert world.run(0.1, lambda: all(conn.recovery is None for conn in conns))


def test_what_is_unread_or_unacknowledged_keeps_a_connection_awake():
    world, a, b, left, right = pair()
    a.write(left, octets(100))
    world.run(20, reading=False)
    assert (sleepers(a), sleepers(b)) == (1, 0)
    b.take(right)
    world.run(20)
    assert sleepers(b) == 1


KEEP_AWAKE = (
    ("state", CLOSE_WAIT), ("handle", ORPHAN), ("adopted", False), ("slot", 0), ("written", 900), ("snd_nxt", 900),
    ("end", 5), ("fin_at", 5), ("read", 0), ("last_ack_sent", 0), ("ack_now", True), ("ack_due", 9), ("out_of_order",
    [(9, 10)]), ("recent_sack", [(9, 10)]), ("duplicate_sack", (9, 10)), ("delayed_at", 5.0), ("persist_at", 5.0),
    ("cork_at", 5.0), ("wait_until", 5.0), ("accurate", AccurateEcn(5)), ("cookie", b"cookie"), ("syn_held", True),
    ("more", True), ("former_mss", 1460), ("urgent", 1), ("snd_urgent", 1), ("ecn_echo", True), ("ecn_reduced", True),
    ("error_soft", 113), ("backoffs", 1), ("keepalive_probes", 1), ("probe_count", 1), ("probes_unanswered", 1),
    ("gap_told", 1), ("small_sent", 9), ("quick", 256), ("peer_segment", 65536), ("syn_octets", 65536),
    ("segments_in", 1 << 32), ("segments_out", 1 << 32), ("out_of_order_in", 1 << 32), ("octets_resent", 1 << 32),
    ("room_said", 0), ("measured_from", 99), ("snd_wl1", 99), ("snd_wl2", 99), ("challenge_at", 1001.0))
KEPT = {
    "accept_number", "advertised", "automatic", "data_segments_in", "data_segments_out", "ecn_ok", "ends", "flow",
    "full_end", "home", "irs", "iss", "keepalive_at", "last_heard", "last_progress", "last_sent", "last_text",
    "listener", "measured_at", "mss", "options", "own_mss", "own_scale", "path_mss", "peer_mss", "peer_scale",
    "pingpong", "rcv_limit", "rcv_nxt", "receive_ring", "recovery", "sack_ok", "scale_ok", "send_limit", "send_ring",
    "snd_una", "snd_window", "timestamp_offset", "timestamps_ok", "ts_recent", "ts_recent_at", "window_max"}
# once it is established and all is read
MEANINGLESS = {"last_size", "opened_at", "pushed", "queued_at", "quiet_queued", "raise_at", "raise_end", "raise_resent",
               "read_asked", "rest_queued", "stored", "touched"}


@pytest.mark.parametrize(("field", "value"), KEEP_AWAKE)
def test_what_only_the_tcb_contains_keeps_a_connection_awake(field, value):
    world, a, _, left, _ = pair()
    conn = a.conn(left)
    assert world.run(3, lambda: conn.recovery is None)
    assert asleep.may_sleep(conn, 1001.2)
    setattr(conn, field, value)
    assert not asleep.may_sleep(conn, 1001.2)


def test_every_field_is_in_the_slot_or_in_the_note_or_keeps_a_connection_awake():
    """So that whoever adds a field to the TCB decides."""
    assert KEPT | MEANINGLESS | {field for field, _ in KEEP_AWAKE} == set(Connection.__slots__)


def test_an_application_that_has_not_said_that_it_has_read_is_asked_once():
    world, a, b, left, right = pair()
    a.write(left, octets(100))
    world.run(1, reading=False)
    b.applications[right].read = 100  # as a library that says so after some thousand octets
    world.run(quiet.ASK_S - 2, reading=False)
    assert (sleepers(b), b.counters[C.reading_asked]) == (0, 0)
    world.run(6, reading=False)
    assert (sleepers(b), b.counters[C.reading_asked], b.durable.used_octets) == (1, 1, 0)
    a.write(left, octets(100, 1))
    world.run(60, reading=False)  # and one that does not read
    assert (sleepers(b), b.counters[C.reading_asked]) == (0, 2)
    assert b.conn(right).receive_ring is not None
    b.take(right)
    world.run(3)
    assert sleepers(b) == 1


def tcbs() -> int:
    gc.collect()
    return sum(type(each) is Connection for each in gc.get_objects())


def test_no_tcb_of_a_sleeping_connection_is_left():
    before = tcbs()
    world, a, b, handles = many(200)
    for handle in handles:
        a.write(handle, b"x")
    world.run(1)
    assert tcbs() - before == 2 * len(handles)
    world.run(10)
    assert sleepers(a) == sleepers(b) == len(handles)
    assert tcbs() == before


def test_the_look_ups_become_small_again_when_many_have_gone_to_sleep():
    world, a, b, handles = many(600)
    was = sys.getsizeof(b.engine.lookup.connections)
    world.run(10)
    assert sleepers(a) == sleepers(b) == len(handles)
    lookup = b.engine.lookup
    assert sys.getsizeof(lookup.connections) < was / 10
    assert sys.getsizeof(lookup.by_handle) < was / 10
    assert sys.getsizeof(lookup.ports._claims[PORT]) < was / 10
    assert (a.engine.next_due, b.engine.next_due) == (None, None)
    for handle in handles:
        a.write(handle, b"still there")
    world.run(1)
    assert all(b.applications[handle].received == b"still there" for _, handle in b.accepted_handles)


def test_a_note_contains_what_it_says():
    _, a, _, left, _ = pair()
    conn = a.conn(left)
    conn.keepalive_at = 77.5
    note = asleep.note_of(conn, 3, True)
    assert len(note) <= 111  # with the header of an object 144 octets
    assert (asleep.slot_of(note), asleep.options_of(note), asleep.keepalive_at(note), asleep.keeps_claim(note)) == (
        conn.slot, 3, 77.5, True)
    assert asleep.room(note) == conn.room_said - conn.snd_una
    assert asleep.room(asleep.with_room(note, 12345)) == 12345
    bare = asleep.inherited(9)
    assert (asleep.slot_of(bare), asleep.options_of(bare), asleep.keepalive_at(bare), asleep.is_own(bare)) == (
        9, 0, 0.0, False)

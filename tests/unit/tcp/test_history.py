"""What `launcher.py why` reads: the events of a connection, with their clauses."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from cli.why import ends
from layers.tcp import history
from layers.tcp.connection import Ends, ends_of
from layers.tcp.history import History
from supervisor.options import UsageError
from tests.unit.tcp.host import A, B, Host, World, pair


def clauses(host: Host, wanted: list[tuple[str, int]] | None = None) -> list[str]:
    return [clause for *_, clause in host.engine.history.page(wanted or [], 0)["events"]]


def test_a_connection_from_its_syn_to_time_wait():
    world, a, b, left, right = pair()
    a.write(left, b"hello", end=True)
    world.run(1)
    b.close(right)
    world.run(1)
    assert clauses(a) == [
        "RFC 9293 section 3.10.1", "RFC 9293 section 3.10.7.3, fourth", "RFC 9293 section 3.10.4",
        "RFC 9293 section 3.10.7.4, fifth, FIN-WAIT-1", "RFC 9293 section 3.10.7.4, eighth", "RFC 9293 section 3.6"]
    assert clauses(b) == [
        "RFC 9293 section 3.10.7.2, third", "RFC 9293 section 3.10.7.4, fifth, SYN-RECEIVED",
        "RFC 9293 section 3.10.7.4, eighth", "RFC 9293 section 3.10.4",
        "RFC 9293 section 3.10.7.4, fifth, CLOSING and LAST-ACK"]


def test_why_a_connection_was_refused():
    a, b = Host(A), Host(B)
    world = World(a, b)
    assert a.set(1, peer=B, peer_port=9, connect=1) == 0
    world.run(1)
    assert clauses(a)[1:] == ["RFC 9293 section 3.10.7.3, second", "RFC 9293 section 3.10.8"]
    assert f"errno {errno.ECONNREFUSED}" in a.engine.history.page([], 0)["events"][-1][6]
    assert clauses(b) == ["RFC 9293 section 3.10.7.1"]


def test_ordinary_segments_are_no_events():
    world, a, b, left, right = pair()
    before = len(clauses(a)), len(clauses(b))
    for _ in range(20):
        a.write(left, bytes(3_000))
        world.run(1)
    assert len(b.applications[right].received) == 20 * 3_000
    assert (len(clauses(a)), len(clauses(b))) == before


def test_one_connection_in_pages_and_the_oldest_are_forgotten():
    kept, noisy, quiet = History(), Ends(A, 1, B, 2), Ends(A, 3, B, 4)
    kept.note_alone(1.0, quiet, 7, history.LISTEN_FULL)
    for number in range(history.PAGE * 3):
        kept.note_alone(float(number), noisy, 7, history.LISTEN_FULL)
    assert len(kept.page([("10.0.0.2", 4)], 0)["events"]) == 1
    assert len(kept.page([("10.0.0.1", 3), ("10.0.0.2", 4)], 0)["events"]) == 1
    assert len(kept.page([("10.0.0.2", 4), ("10.0.0.1", 3)], 0)["events"]) == 1
    assert not kept.page([("10.0.0.1", 4)], 0)["events"]
    times, page = [], {"after": 0, "more": True}
    while page["more"]:
        page = kept.page([("", 2)], page["after"])
        times += [event[0] for event in page["events"]]
    assert times == [float(number) for number in range(history.PAGE * 3)]
    for _ in range(history.KEPT):
        kept.note_alone(2.0, noisy, 7, history.LISTEN_FULL)
    assert not kept.page([("", 4)], 0)["events"]


@pytest.mark.parametrize(("text", "found"), [
    ("", []), ("80", [("", 80)]), ("10.0.0.1", [("10.0.0.1", 0)]), ("10.0.0.1:80", [("10.0.0.1", 80)]),
    ("10.0.0.1:80-10.0.0.2:5", [("10.0.0.1", 80), ("10.0.0.2", 5)])])
def test_names_of_connections(text, found):
    assert ends(text) == found


@pytest.mark.parametrize("text", ["x", "10.0.0.1:", "70000", "10.0.0.1:0", "10.0.0:80", "1-2-3"])
def test_no_names_of_connections(text):
    with pytest.raises(UsageError, match="expected a port"):
        ends(text)


@pytest.mark.parametrize("made", [Ends(A, 80, B, 4242), Ends(bytes(range(16)), 1, bytes(range(16, 32)), 65535)])
def test_a_flow_has_the_ends_of_its_connection(made):
    assert ends_of(made.flow) == made
    kept = History()
    kept.note_alone(1.5, made, 7, history.OUTSIDE, -(1 << 32))
    ((now, *shown, state, text, _),) = kept.page([], 0)["events"]
    assert (now, shown) == (1.5, [str(ip_address(made.local)), made.port, str(ip_address(made.peer)), made.peer_port])
    assert (state, text[-11:]) == ("CLOSED", "-4294967296")

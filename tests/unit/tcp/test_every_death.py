"""Short connections outlive a SIGKILL of tcp at any moment: question, answer and both ends of the stream."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from bus.durable.slots import SLOT_OCTETS
from bus.durable.stream_memory import StreamMemory
from bus.streams import StreamState
from layers.tcp.connection import ESTABLISHED, Connection, Ends
from layers.tcp.durable import Durable
from tests.unit.tcp.deaths import Deaths, torn
from tests.unit.tcp.host import A, B
from tests.unit.tcp.stage import Stage

SCENES = {
    "incoming, the server closes first": {},
    "incoming, each record is a turn": {"one_by_one": True},
    "incoming, the client closes when the server has": {"peer_waits": True},
    "incoming, the server closes when the client has": {"service_waits": True},
    "outgoing, both close": {"incoming": 0, "outgoing": 1},
    "outgoing, the server closes when the client has": {"incoming": 0, "outgoing": 1, "peer_waits": True},
    "outgoing, the client closes when the server has": {"incoming": 0, "outgoing": 1, "service_waits": True},
    "slots that were freed in another order": {"incoming": 2, "before": 2},
    "ports of connections in TIME-WAIT": {"before": 1, "reused": True, "peer_waits": True},
}
OF_MANY = {"incoming": 2, "outgoing": 2, "before": 3}


class Watched:
    """A number that is converted when it is stored, and calls `look` then."""

    def __init__(self, value: int, look: Callable[[], object]) -> None:
        self._value, self._look = value, look

    def __index__(self) -> int:
        self._look()
        return self._value


def test_while_a_connection_is_stored_each_cell_has_its_old_or_its_new_value():
    durable = Durable(StreamMemory.volatile(), {}, 1)
    conn = Connection(Ends(A, 1, B, 2), 7, StreamState(handle=7, request=0))
    assert durable.born(conn)
    numbers = ("written", "snd_nxt", "snd_una", "rcv_nxt", "advertised", "read", "ts_recent", "snd_window",
               "window_max", "rcv_limit", "send_limit", "last_ack_sent", "mss", "former_mss")

    def cells() -> list[bytes]:
        start = conn.slot * SLOT_OCTETS
        octets = bytes(durable.memory[start : start + SLOT_OCTETS])
        return [octets[at : at + 4] for at in range(0, len(octets), 4)]

    def store(first: int) -> list[bytes]:
        conn.state = ESTABLISHED
        for number, name in enumerate(numbers, first):
            setattr(conn, name, Watched(number, lambda: seen.append(cells())))
        durable.store(conn)
        return cells()

    seen: list[list[bytes]] = []
    old = store(1001)
    seen.clear()
    new = store(2001)
    assert len(seen) >= len(numbers)
    assert all(one in (before, after) for each in seen for one, before, after in zip(each, old, new, strict=True))


def differing(scene: dict[str, int | bool]) -> list[int]:
    """The lines at which a death may make a difference."""
    deaths = Deaths()
    stage = Stage(deaths=deaths, **scene)  # type: ignore[arg-type]
    deaths.seen = stage.seen
    assert stage.run() == []
    return deaths.differing


@pytest.mark.parametrize("scene", SCENES)
def test_a_short_connection_outlives_a_death_before_and_after_each_cell_is_stored(scene, monkeypatch):
    torn(monkeypatch)
    lines = differing(SCENES[scene])
    assert len(lines) > 30
    for line in lines:
        stage = Stage(deaths=Deaths(line), **SCENES[scene])
        assert stage.run() == [], (line, "\n".join(stage.log))
        assert len(stage.deaths.places) == 1


def test_a_peer_is_told_of_an_abort_whenever_the_core_dies(monkeypatch):
    torn(monkeypatch)
    deaths = Deaths()
    stage = Stage(service_aborts=True, deaths=deaths)
    deaths.seen = stage.seen
    stage.passes(1.0)
    assert stage.peer_errors == [errno.ECONNRESET]
    for line in deaths.differing:
        stage = Stage(service_aborts=True, deaths=Deaths(line))
        stage.passes(1.0)
        assert len(stage.deaths.places) == 1
        assert stage.peer_errors == [errno.ECONNRESET], (line, "\n".join(stage.log))
        stage.another_turn()
        assert stage.slots_left == []


@pytest.mark.parametrize("seed", range(4))
def test_short_connections_at_the_same_time_outlive_three_deaths_in_a_row(seed, monkeypatch):
    torn(monkeypatch)
    lines = differing(OF_MANY)
    rng = random.Random(seed)
    for _ in range(8):
        at = [rng.choice(lines), *(rng.randrange(rng.choice([100, 1000])) for _ in range(2))]
        stage = Stage(deaths=Deaths(*at), **OF_MANY)
        assert stage.run() == [], (at, "\n".join(stage.log))
        assert len(stage.deaths.places) > 1

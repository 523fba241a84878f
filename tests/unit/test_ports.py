"""The port manager, alone and against a model that lists every claim."""

from __future__ import annotations

import pickle
import random

from effort import effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layers.common.ports import (
    EPHEMERAL_PORT_MAX,
    EPHEMERAL_PORT_MIN,
    EPHEMERAL_PORTS,
    SHARE_ADDRESS,
    SHARE_NOT,
    SHARE_PORT,
    Claim,
    FreePorts,
    Ports,
)

ANY, HERE, ALIAS = 0, 0x0A000002, 0x0A000003


def ports(seed: int = 0) -> Ports:
    return Ports(random.Random(seed))


def test_one_holder_an_address_and_port():
    table = ports()
    table.hold(1, Claim(HERE, 53, SHARE_NOT))
    assert table.clashes(2, Claim(HERE, 53, SHARE_NOT))
    assert not table.clashes(2, Claim(HERE, 54, SHARE_NOT))
    assert not table.clashes(2, Claim(ALIAS, 53, SHARE_NOT))
    assert not table.clashes(1, Claim(HERE, 53, SHARE_NOT))


def test_any_address_overlaps_every_address():
    table = ports()
    table.hold(1, Claim(ANY, 53, SHARE_NOT))
    assert table.clashes(2, Claim(HERE, 53, SHARE_NOT))
    table.hold(1, Claim(HERE, 53, SHARE_NOT))
    assert table.clashes(2, Claim(ANY, 53, SHARE_NOT))


def test_sharing_takes_both_holders_and_the_same_option():
    table = ports()
    table.hold(1, Claim(ANY, 53, SHARE_ADDRESS))
    assert not table.clashes(2, Claim(ANY, 53, SHARE_ADDRESS))
    assert table.clashes(2, Claim(ANY, 53, SHARE_NOT))
    assert table.clashes(2, Claim(ANY, 53, SHARE_PORT))
    assert not table.clashes(2, Claim(ANY, 53, SHARE_PORT | SHARE_ADDRESS))


def test_a_released_port_is_free_and_releasing_twice_is_harmless():
    table = ports()
    table.hold(1, Claim(ANY, 53, SHARE_NOT))
    table.release(1)
    table.release(1)
    assert not table.clashes(2, Claim(ANY, 53, SHARE_NOT))


def test_rfc6056_3_1_ephemeral_ports_are_spread_and_follow_the_given_randomness():
    chosen = [ports(seed).choose(1, ANY) for seed in range(200)]
    assert chosen == [ports(seed).choose(1, ANY) for seed in range(200)]
    assert all(EPHEMERAL_PORT_MIN <= port <= EPHEMERAL_PORT_MAX for port in chosen)
    # 200 draws out of 28,232 leave about 0.7 pairs alike; neighbours in a row would leave nearly all in one corner.
    assert len(set(chosen)) > 190
    assert max(chosen) - min(chosen) > EPHEMERAL_PORTS * 0.9


def test_rfc6056_3_3_1_every_free_port_is_found_before_the_search_fails():
    table = ports()
    for holder in range(1, EPHEMERAL_PORTS):
        table.hold(holder, Claim(ANY, EPHEMERAL_PORT_MIN + holder, SHARE_ADDRESS))
    assert table.choose(EPHEMERAL_PORTS, ANY) == EPHEMERAL_PORT_MIN
    table.hold(EPHEMERAL_PORTS, Claim(HERE, EPHEMERAL_PORT_MIN, SHARE_NOT))
    assert table.choose(EPHEMERAL_PORTS + 1, ANY) is None
    assert table.choose(EPHEMERAL_PORTS + 1, ALIAS) == EPHEMERAL_PORT_MIN


def test_a_check_takes_no_longer_if_many_hold_the_port():
    table = ports()
    for holder in range(2000):
        table.hold(holder, Claim(0x7F000000 + holder, 53, SHARE_ADDRESS))
    few = ports()
    few.hold(1, Claim(HERE, 53, SHARE_ADDRESS))
    for address in ANY, HERE:
        wanted = Claim(address, 53, SHARE_ADDRESS)
        assert effort(lambda wanted=wanted: table.clashes(2001, wanted)) < 2 * effort(
            lambda wanted=wanted: few.clashes(2, wanted))


def test_a_search_takes_no_longer_if_all_ports_are_held():
    """256 in one frame were 5 s of udp."""
    table, some = ports(), ports()
    for port in range(EPHEMERAL_PORT_MIN, EPHEMERAL_PORT_MAX + 1):
        table.hold(port, Claim(HERE, port, SHARE_NOT))
    for address in ANY, HERE:
        assert table.choose(1, address) is None
        assert effort(lambda address=address: table.choose(1, address)) < 20_000
        assert effort(lambda address=address: some.choose(1, address)) < 20_000
    assert table.choose(1, ALIAS)


HOLDERS = st.integers(1, 6)
ADDRESSES = st.sampled_from((ANY, HERE, ALIAS))
CLAIMS = st.builds(Claim, ADDRESSES, st.integers(EPHEMERAL_PORT_MIN, EPHEMERAL_PORT_MIN + 2), st.integers(0, 3))


class PortsAgainstModel(RuleBasedStateMachine):
    """Every answer is compared with a search through the list of claims."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ports()
        self.model: dict[int, Claim] = {}

    def others(self, holder: int, port: int, address: int) -> list[Claim]:
        overlapping = {ANY, HERE, ALIAS} if address == ANY else {ANY, address}
        return [claim for other, claim in self.model.items()
                if other != holder and claim.port == port and claim.address in overlapping]

    @rule(holder=HOLDERS, claim=CLAIMS)
    def bind(self, holder, claim):
        address, port, sharing = claim
        clashes = any(
            not (sharing & SHARE_ADDRESS and other.sharing & SHARE_ADDRESS)
            and not (sharing & SHARE_PORT and other.sharing & SHARE_PORT)
            for other in self.others(holder, port, address)
        )
        assert self.table.clashes(holder, claim) == clashes
        if not clashes:
            self.table.hold(holder, claim)
            self.model[holder] = claim

    @rule(holder=HOLDERS, claim=CLAIMS)
    def hold_unasked(self, holder, claim):
        self.table.hold(holder, claim)
        self.model[holder] = claim

    @rule(holder=HOLDERS)
    def release(self, holder):
        self.table.release(holder)
        self.model.pop(holder, None)

    @rule(holder=HOLDERS, address=st.sampled_from((ANY, HERE)))
    def choose(self, holder, address):
        port = self.table.choose(holder, address)
        assert EPHEMERAL_PORT_MIN <= port <= EPHEMERAL_PORT_MAX
        assert not self.others(holder, port, address)

    @precondition(lambda self: not self.model)
    @invariant()
    def nothing_is_left_behind(self):
        assert not self.table._counts
        assert not self.table._held


TestPortsAgainstModel = PortsAgainstModel.TestCase


def test_free_ports_in_a_recording_are_small_and_the_same_afterwards():
    rng, free, held = random.Random(7), FreePorts(), []
    for _ in range(500):
        if held and rng.random() < 0.45:
            free.give(held.pop(rng.randrange(len(held))))
        else:
            held.append(free.choose(rng))
            free.take(held[-1])
    octets = pickle.dumps(free, pickle.HIGHEST_PROTOCOL)
    assert len(octets) < 10_000
    again, one, other = pickle.loads(octets), random.Random(8), random.Random(8)
    for port in held[:20]:
        for each in (free, again):
            each.give(port)
    for _ in range(500):
        port = free.choose(one)
        assert again.choose(other) == port
        free.take(port)
        again.take(port)

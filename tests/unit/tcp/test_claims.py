"""The claims on tcp's ports, and the search for a port."""

from __future__ import annotations

import errno
import random

import pytest

from layers.common.ports import EPHEMERAL_PORT_MAX, EPHEMERAL_PORT_MIN
from layers.tcp import lookup
from layers.tcp.lookup import Claim, Ports
from packets.addresses import ANY
from tests.unit.effort import effort
from tests.unit.tcp.host import A, B, Host

HERE, THERE = bytes((127, 0, 0, 1)), bytes((127, 0, 0, 2))
PORT = 40000
HOLDERS = 7


def of_linux(wanted: Claim, claim: Claim) -> bool:
    """inet_csk_bind_conflict, as it is written there: True if both cannot be."""
    if wanted.address and claim.address and wanted.address != claim.address:
        return False
    if wanted.reuse_port and claim.reuse_port:
        return False
    return not (wanted.reuse_address and claim.reuse_address and not claim.listening)


@pytest.mark.parametrize("seed", range(3))
def test_a_port_with_a_crowd_of_holders_is_judged_as_one_with_few(monkeypatch, seed):
    monkeypatch.setattr(lookup, "CROWD_MIN", 2)
    draw = random.Random(seed)
    ports, held, asleep = Ports(), dict[int, Claim](), list[Claim]()

    def drawn() -> Claim:
        return Claim(draw.choice((ANY, HERE, THERE)), *(draw.random() < 0.7 for _ in range(2)), draw.random() < 0.2,
                     draw.random() < 0.5)

    for _ in range(2000):
        holder, claim = draw.randrange(HOLDERS), drawn()
        match draw.randrange(8):
            case 0:
                asleep.append(claim)
                ports.sleeps(PORT, claim)
            case 1 if asleep:
                ports.wakes(PORT, asleep.pop())
            case 2 | 3:
                ports.release(holder, PORT)
                held.pop(holder, None)
            case 4 if holder in held and len(held) < HOLDERS:  # its socket is closed, the connection goes on
                heir = next(each for each in range(HOLDERS) if each not in held)
                passed = draw.choice((held[holder], claim))
                ports.pass_on(holder, heir, PORT, passed)
                ports.release(holder, PORT)
                held[heir] = passed
                del held[holder]
                holder = heir
            case _:
                ports.hold(holder, PORT, claim)
                held[holder] = claim
        others = [*(each for other, each in held.items() if other != holder), *asleep]
        wanted = drawn()
        assert ports.clashes(holder, PORT, wanted) == any(of_linux(wanted, each) for each in others)
        every = [*held.values(), *asleep]
        assert (ports.free(PORT), ports.sharable(PORT)) == (not every, all(each.automatic for each in every))


def test_a_check_takes_no_longer_if_many_hold_the_port():
    """256 binds to the port of 30,000 others were 1 s of tcp."""
    def checking(others: int) -> int:
        ports = Ports()
        for other in range(others):
            ports.hold(other, PORT, Claim((0x7F000001 + other).to_bytes(4, "big"), True, False, False))
        return effort(lambda: [ports.clashes("other", PORT, Claim(address, True, False, False))
                               for address in (ANY, HERE)])

    assert checking(3000) < 3 * checking(lookup.CROWD_MIN)


def test_a_search_takes_no_longer_if_all_ports_are_held():
    host = Host(A)
    for port in range(EPHEMERAL_PORT_MIN, EPHEMERAL_PORT_MAX + 1):
        host.engine.lookup.ports.hold("other", port, Claim(ANY, False, False, False))
    host.at(1.0).set(1, peer=B, peer_port=80, connect=1)  # in each turn one search of all
    for handle, fields in ((2, {"peer": B, "peer_port": 80, "connect": 1}), (3, {"bind": True}), (4, {"listen": 1})):
        said = []
        assert effort(lambda handle=handle, fields=fields, said=said: said.append(
            host.set(handle, **fields))) < 50_000
        assert said == [errno.EADDRNOTAVAIL if "connect" in fields else errno.EADDRINUSE]
    host.engine.lookup.ports.release("other", PORT)
    assert host.at(2.0).set(5, peer=B, peer_port=80, connect=1) == 0
    assert host.calls.sockets[5].port == PORT

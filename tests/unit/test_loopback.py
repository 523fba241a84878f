"""127/8: what stays in the host, and what would leave it (RFC 1122 section 3.2.1.3 (g)); errors as Linux gives them."""

from __future__ import annotations

import errno

import pytest
from glue import Stack

ME, OTHER = "10.0.0.2", "10.0.0.7"


@pytest.fixture
def stack() -> Stack:
    return Stack(ME, "02:00:5e:00:00:02")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", ME])
def test_a_closed_port_of_the_host_itself_refuses_every_time(stack: Stack, address: str) -> None:
    """Linux, icmpv4_xrlim_allow: no limit within the host."""
    assert stack.declares(1, peer=address, peer_port=9).errno == 0
    for _ in range(50):
        stack.sends(1, b"anybody?")
        assert [error[:2] for error in stack.errors()] == [(1, errno.ECONNREFUSED)]


@pytest.mark.parametrize("to", [OTHER, "198.51.100.7", "10.0.0.255", "255.255.255.255"])
def test_rfc1122_3_2_1_3_g_nothing_from_127_leaves_the_host(to: str) -> None:
    """Linux, __mkroute_output: EINVAL."""
    stack = Stack(ME, "02:00:5e:00:00:02", gateway="10.0.0.1")
    stack.declares(1, bind=True, port=5000, local="127.0.0.1", broadcast=True)
    stack.sends(1, b"out", to, 9)
    assert [error[:2] for error in stack.errors()] == [(1, errno.EINVAL)]
    assert stack.sent() == []
    refused = stack.declares(1, bind=True, port=5000, local="127.0.0.1", broadcast=True, peer=to, peer_port=9)
    assert refused.errno == errno.EINVAL
    stack.declares(2, "icmp", bind=True, port=77, local="127.0.0.1", broadcast=True)
    stack.sends(2, b"\x08\0" + bytes(6), to, layer="icmp")
    assert [error[:2] for error in stack.errors()] == [(2, errno.EINVAL)]


def test_the_broadcast_address_of_127_needs_leave_and_stays_in_the_host(stack: Stack) -> None:
    assert stack.declares(1, peer="127.255.255.255", peer_port=7).errno == errno.EACCES
    stack.declares(2, bind=True, port=7)
    stack.declares(3, bind=True, port=9, broadcast=True)
    stack.sends(3, b"all", "127.255.255.255", 7)
    assert [(handle, payload) for handle, _, _, payload in stack.received()] == [(2, b"all")]
    stack.sends(3, b"nobody", "127.255.255.255", 8)
    assert (stack.errors(), stack.sent()) == ([], [])


@pytest.mark.parametrize(("local", "to"), [({}, "127.0.0.1"), ({"local": ME}, ME)])
def test_the_address_0_is_this_host(stack: Stack, local: dict[str, str], to: str) -> None:
    stack.declares(1, bind=True, port=7)
    stack.declares(2, bind=True, port=9, **local)
    stack.sends(2, b"hello", "0.0.0.0", 7)
    assert stack.received() == [(1, to, 9, b"hello")]
    stack.declares(2, bind=True, port=9, peer_port=7, **local)
    stack.sends(2, b"again")
    assert stack.received() == [(1, to, 9, b"again")]

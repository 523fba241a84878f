"""The switch's core: the ports that get a frame, what is learnt and forgotten, and the limits."""

from __future__ import annotations

import lengths
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, LLC, STP, Dot3, Ether

from switch import core
from switch.core import AGEING_S, FRAME_MAX_OCTETS, FRAME_MIN_OCTETS, STATIONS_MAX, Switch
from switch.counters import Counters as C

A, B, X = 1 << 32, 2 << 32, 3 << 32  # ports
MAC_A, MAC_B, MAC_X = (bytes.fromhex(f"02005e00000{n}") for n in (1, 2, 3))
BROADCAST = b"\xff" * 6


def frame(destination: bytes, source: bytes, octets: int = FRAME_MIN_OCTETS) -> bytes:
    return (destination + source + b"\x08\x00").ljust(octets, b"\0")


def joined(*ports: int) -> tuple[Switch, list[int]]:
    counters = C.new()
    switch = Switch(counters)
    for port in ports or (A, B, X):
        switch.join(port)
    return switch, counters


def test_unknown_station_is_flooded_but_never_back():
    switch, counters = joined()
    sent = frame(MAC_B, MAC_A)
    assert switch.forward(A, [sent], 0.0) == {B: [sent], X: [sent]}
    assert counters[C.flooded] == 1


def test_a_frame_may_begin_behind_another_header():
    switch, counters = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    sent, short = b"\0" * 10 + frame(MAC_B, MAC_A), b"\0" * 10 + frame(MAC_B, MAC_A)[:-1]
    assert switch.forward(A, [sent, short], 0.0, start=10) == {B: [sent]}
    assert (counters[C.runt], counters[C.learnt]) == (1, 2)


def test_broadcast_and_multicast_are_flooded():
    switch, _ = joined()
    arp = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:5e:00:00:01") / ARP()).ljust(60, b"\0")
    multicast = frame(bytes.fromhex("01005e000001"), MAC_A)
    assert switch.forward(A, [arp, multicast], 0.0) == {B: [arp, multicast], X: [arp, multicast]}


def test_ieee802_1d_7_8_a_station_is_learnt_from_its_source_address():
    switch, counters = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    sent = frame(MAC_B, MAC_A)
    assert switch.forward(A, [sent], 1.0) == {B: [sent]}
    assert counters[C.learnt] == 2


def test_ieee802_1d_7_8_group_source_is_neither_learnt_nor_forwarded():
    switch, counters = joined()
    assert switch.forward(A, [frame(MAC_B, BROADCAST)], 0.0) == {}
    assert (counters[C.bad_source], counters[C.learnt]) == (1, 0)


def test_frame_to_a_station_at_its_own_port_is_dropped():
    switch, counters = joined()
    switch.forward(A, [frame(BROADCAST, MAC_B)], 0.0)
    assert switch.forward(A, [frame(MAC_B, MAC_A)], 0.0) == {}
    assert counters[C.same_port] == 1


def test_station_that_moves_is_found_at_its_new_port():
    switch, counters = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    switch.forward(X, [frame(BROADCAST, MAC_B)], 1.0)
    sent = frame(MAC_B, MAC_A)
    assert switch.forward(A, [sent], 2.0) == {X: [sent]}
    assert counters[C.moved] == 1


def test_ieee802_1d_7_9_2_silent_station_ages_out():
    switch, counters = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    sent = frame(MAC_B, MAC_A)
    assert switch.forward(A, [sent], AGEING_S) == {B: [sent]}
    assert switch.forward(A, [sent], AGEING_S + 0.1) == {B: [sent], X: [sent]}
    assert counters[C.aged] == 1


def test_ieee802_1d_7_9_2_every_frame_of_a_station_makes_it_young_again():
    switch, counters = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    switch.forward(B, [frame(MAC_A, MAC_B)], AGEING_S)
    sent = frame(MAC_B, MAC_A)
    assert switch.forward(A, [sent], 2 * AGEING_S) == {B: [sent]}
    assert counters[C.learnt] == 2


def test_ieee802_1d_7_12_6_reserved_addresses_are_not_relayed():
    switch, counters = joined()
    bpdu = bytes(Dot3(dst="01:80:c2:00:00:00", src="02:00:5e:00:00:01") / LLC() / STP()).ljust(60, b"\0")
    beyond = frame(bytes.fromhex("0180c2000010"), MAC_A)
    assert switch.forward(A, [bpdu, beyond], 0.0) == {B: [beyond], X: [beyond]}
    assert counters[C.reserved] == 1


def test_runts_and_oversized_frames_are_dropped_at_the_boundary():
    switch, counters = joined()
    sizes = (0, 13, FRAME_MIN_OCTETS - 1, FRAME_MIN_OCTETS, FRAME_MAX_OCTETS, FRAME_MAX_OCTETS + 1)
    frames = [frame(MAC_B, MAC_A, size)[:size] for size in sizes]
    assert switch.forward(A, frames, 0.0) == {B: frames[3:5], X: frames[3:5]}
    assert (counters[C.frames_in], counters[C.runt], counters[C.oversize]) == (6, 3, 1)


def test_port_that_left_gets_nothing_and_its_stations_are_sought_anew():
    switch, _ = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    switch.leave(B)
    sent = frame(MAC_B, MAC_A)
    assert switch.forward(A, [sent], 1.0) == {X: [sent]}


def test_port_that_invents_addresses_displaces_only_its_own():
    switch, counters = joined()
    switch.forward(B, [frame(BROADCAST, MAC_B)], 0.0)
    invented = [b"\x02\x00" + number.to_bytes(4, "big") for number in range(STATIONS_MAX + 10)]
    switch.forward(X, [frame(BROADCAST, mac) for mac in invented], 1.0)
    assert counters[C.evicted] == 10
    assert set(switch.forward(A, [frame(MAC_B, MAC_A)], 2.0)) == {B}
    assert set(switch.forward(A, [frame(invented[9], MAC_A)], 2.0)) == {B, X}
    assert set(switch.forward(A, [frame(invented[10], MAC_A)], 2.0)) == {X}


def test_frames_of_a_single_port_go_nowhere():
    switch, _ = joined(A)
    assert switch.forward(A, [frame(BROADCAST, MAC_A)], 0.0) == {}


MACS = [MAC_A, MAC_B, MAC_X, BROADCAST, bytes.fromhex("01005e000001")]
EVENTS = st.tuples(st.sampled_from([A, B, X]), st.sampled_from(MACS), st.sampled_from(MACS), st.floats(0.0, 200.0))


@given(lengths.lists(EVENTS, 40))
def test_agrees_with_a_plain_model(events):
    """The model remembers every sighting and looks at the last."""
    switch, _ = joined()
    sightings: dict[bytes, tuple[int, float]] = {}
    now = 0.0
    for port, destination, source, pause in events:
        now += pause
        sent = frame(destination, source)
        expected = set()
        if not source[0] & 1:
            sightings[source] = (port, now)
            at, seen = sightings.get(destination, (None, -1e9))
            expected = {at} if now - seen <= core.AGEING_S else {A, B, X}
        assert switch.forward(port, [sent], now) == {other: [sent] for other in expected - {port}}


@given(lengths.lists(st.tuples(st.sampled_from([A, B, X]), lengths.octets(80) | lengths.damaged(
    st.builds(frame, st.sampled_from(MACS), st.sampled_from(MACS)))), 12))
def test_any_octets_are_forwarded_or_counted(frames):
    switch, counters = joined()
    passed = 0
    for port, octets in frames:
        forwarded = switch.forward(port, [octets], 0.0)
        passed += bool(forwarded)
        assert port not in forwarded
        assert all(sent == [octets] for sent in forwarded.values())
        assert not forwarded or (len(octets) >= FRAME_MIN_OCTETS and not octets[6] & 1)
    dropped = sum(counters[index] for index, counter in enumerate(C.declared.values()) if counter.role == "drop")
    assert passed + dropped == len(frames) == counters[C.frames_in]

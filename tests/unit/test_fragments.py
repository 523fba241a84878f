"""Fragments that we send: against scapy, and put together again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP, IPOption_Router_Alert, IPOption_RR, defragment
from scapy.layers.inet import fragment as scapy_fragment
from scapy.packet import Raw

from layers.ip.counters import Counters
from layers.ip.reassembly import Reassembly
from packets.checksum import verifies
from packets.fragments import parse, split

MTU_MIN = 68  # RFC 791 section 3.2


def packet(payload: bytes, **fields) -> bytes:
    return bytes(IP(src="10.0.0.2", dst="10.0.0.1", proto=17, id=777, ttl=9, tos=0x28, **fields) / Raw(payload))


@pytest.mark.parametrize("size", [1473, 1480, 1481, 2960, 2961, 65507, 65515])
def test_fragments_are_those_that_scapy_would_make(size):
    whole = packet(random.Random(size).randbytes(size))
    expected = [bytes(each) for each in scapy_fragment(IP(whole), fragsize=1480)]
    assert split(whole, 1500) == expected


def test_rfc791_3_2_df_is_not_set_in_a_fragment():
    assert not any(IP(each).flags.DF for each in split(packet(bytes(3000), flags="DF"), 1500))


def test_rfc791_3_1_the_first_fragment_has_all_options_the_others_those_to_be_copied():
    options = [IPOption_RR(pointer=8, routers=["10.0.0.2"]), IPOption_NOP(), IPOption_Router_Alert()]
    first, *others = [IP(each) for each in split(packet(bytes(3000), options=options), 1500)]
    assert [option.option for option in first.options] == [7, 1, 20]
    assert [[option.option for option in each.options] for each in others] == [[20]] * 2
    assert [each.frag * 8 for each in others] == [len(first.payload), len(first.payload) + len(others[0].payload)]


PAYLOADS = st.binary(min_size=1, max_size=200) | st.builds(
    lambda size, seed: random.Random(seed).randbytes(size), st.integers(200, 4000), st.integers(0, 255))


@given(PAYLOADS, st.integers(MTU_MIN, 1500), st.integers(0, 10), st.randoms())
def test_whatever_is_split_fits_verifies_and_comes_together_in_any_order(payload, mtu, words, rng):
    whole = packet(payload)
    whole = bytes([0x45 + words]) + whole[1:20] + b"\x01" * (4 * words) + whole[20:]
    fragments = split(whole, mtu)
    assert all(len(each) <= mtu and len(each) == each[2] << 8 | each[3] for each in fragments)
    assert all(verifies(each[: (each[0] & 15) * 4]) for each in fragments)
    assert all((len(each) - (each[0] & 15) * 4) % 8 == 0 for each in fragments[:-1])
    if len(fragments) == 1:
        return
    rng.shuffle(fragments)
    reassembly = Reassembly(Counters.new())
    *nothing, made = [reassembly.add(parse(each), 0.0) for each in fragments]
    assert nothing == [None] * (len(fragments) - 1)
    assert made is not None
    assert made[20 + 4 * words :] == payload
    assert verifies(made[: 20 + 4 * words])


def test_scapy_puts_them_together():
    payload = random.Random(1).randbytes(20000)
    (made,) = defragment([IP(each) for each in split(packet(payload), 576)])
    assert bytes(made.payload) == payload

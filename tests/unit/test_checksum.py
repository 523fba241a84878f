"""The Internet checksum, against RFC 1071's own recipe and against scapy's."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from packets.checksum import checksum, verifies

WORDS = st.lists(st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])).map(
    lambda words: b"".join(word.to_bytes(2, "big") for word in words))
DATA = st.binary(max_size=200) | WORDS  # the second kind finds the two zeros of one's complement
INITIAL = st.integers(0, 0xFFFF * 8)


def rfc1071(data: bytes, initial: int = 0) -> int:
    """RFC 1071 section 4.1, word by word."""
    total = initial
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(DATA, INITIAL)
@example(b"", 0)
@example(b"\0\0", 0)
@example(b"\xff\xff", 0)
@example(b"\0\0", 0xFFFF)
def test_rfc1071_4_1_any_data(data, initial):
    assert checksum(data, initial) == rfc1071(data, initial)


@given(DATA)
def test_scapy_agrees(data):
    assert checksum(data) == scapy_checksum(data)


def test_rfc1071_3_the_numerical_example():
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@given(DATA.filter(lambda data: len(data) % 2 == 0), INITIAL)
def test_rfc1071_1_data_with_its_checksum_verifies_and_with_any_other_does_not(data, initial):
    given_sum = checksum(data, initial)
    assert verifies(data + given_sum.to_bytes(2, "big"), initial) is bool(any(data) or initial or given_sum)
    wrong = (given_sum + 1) % 0xFFFF  # 0 and 0xffff are the same number
    assert not verifies(data + wrong.to_bytes(2, "big"), initial)


def test_nothing_but_zeros_does_not_verify():
    assert not verifies(bytes(20))


@pytest.mark.parametrize("odd", [b"\x01", b"\x45\x00\xff"])
def test_odd_data_counts_as_padded_with_zero(odd):
    assert checksum(odd) == checksum(odd + b"\0")
    assert verifies(odd, checksum(odd)) is verifies(odd + b"\0", checksum(odd)) is True

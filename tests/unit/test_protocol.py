"""Frames: what is packed comes back, and no octets do any harm."""

from __future__ import annotations

import lengths
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usernet.pipe.frame import (
    HEADER,
    HEADER_OCTETS,
    MAX_RECORDS,
    VERSION,
    FrameError,
    pack_frame,
    unpack_frame,
    with_incarnation,
)
from usernet.pipe.messages import inbox_name

OCTET = st.integers(0, 0xFF)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
RECORD = st.binary(max_size=40)
RECORDS = st.lists(RECORD, max_size=MAX_RECORDS) | st.lists(RECORD, min_size=1, max_size=1) | st.builds(
    lambda count, record: [record] * count, st.integers(2, MAX_RECORDS), RECORD)  # many, one, very many
FRAMES = st.builds(pack_frame, OCTET, U64, U32, U64, RECORDS)


@given(OCTET, U64, U32, U64, RECORDS)
def test_a_packed_record_is_unpacked_again(kind, sender, incarnation, sequence, records):
    frame = pack_frame(kind, sender, incarnation, sequence, records)
    assert unpack_frame(frame) == (kind, incarnation, sender, sequence, records)


def test_a_frame_is_laid_out_as_documented():
    frame = pack_frame(1, 0x0102030405060708, 0x0A0B0C0D, 0x1112131415161718, [b"abc", b"", b"d"])
    assert frame == bytes.fromhex(
        "02 01 0300  0d0c0b0a  0807060504030201  1817161514131211  03000000 00000000 01000000  616263 64"
    )


@pytest.mark.parametrize("count", [0, 1, 2, MAX_RECORDS])
def test_a_frame_carries_0_to_256_records(count):
    records = [bytes([number % 256]) * (number % 5) for number in range(count)]
    assert unpack_frame(pack_frame(9, 1, 2, 3, records))[4] == records


@given(FRAMES, U32)
def test_a_repetition_differs_in_nothing_but_its_incarnation(frame, incarnation):
    kind, _, sender, sequence, records = unpack_frame(frame)
    assert unpack_frame(with_incarnation(frame, incarnation)) == (kind, incarnation, sender, sequence, records)


@given(st.one_of(
    lengths.octets(200),
    lengths.damaged(st.builds(pack_frame, OCTET, U64, U32, U64, st.lists(RECORD, max_size=3))),
    st.builds(lambda count, rest: HEADER.pack(VERSION, 1, count, 1, 1, 1) + rest,
              st.integers(0, 3) | st.integers(0, 0xFFFF), lengths.octets(1200)),
))
@example(b"")
@example(HEADER.pack(VERSION, 1, 1, 1, 1, 1))
@example(HEADER.pack(VERSION, 1, 2, 1, 1, 1) + b"\xff" * 8)
def test_any_octets_are_a_frame_or_a_frame_error(octets):
    try:
        kind, incarnation, sender, sequence, records = unpack_frame(octets)
    except FrameError:
        return
    assert pack_frame(kind, sender, incarnation, sequence, records) == octets


@given(FRAMES, st.data())
def test_a_frame_cut_short_or_with_octets_after_it_is_refused(frame, data):
    kept = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(FrameError):
        unpack_frame(frame[:kept])
    with pytest.raises(FrameError):
        unpack_frame(frame + data.draw(st.binary(min_size=1, max_size=9)))


@pytest.mark.parametrize(("count", "text"), [(MAX_RECORDS + 1, "at most"), (0xFFFF, "at most"), (2, "shorter")])
def test_frame_errors_say_why(count, text):
    with pytest.raises(FrameError, match=text):
        unpack_frame(HEADER.pack(VERSION, 1, count, 1, 1, 1))


def test_another_version_is_refused():
    frame = pack_frame(1, 1, 1, 1, [b"x"])
    with pytest.raises(FrameError, match="version 1, expected 2"):
        unpack_frame(b"\x01" + frame[1:])


def test_header_is_24_octets_and_inboxes_are_named_in_hexadecimal():
    assert HEADER_OCTETS == 24
    assert inbox_name(0x1ABCDEF012) == "app-1abcdef012.sock"

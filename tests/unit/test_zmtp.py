"""ZMTP's octets: cut in any way, the same messages; whatever they are, no more than an error that says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usernet.pipe import zmtp

LIMIT = 1000
MESSAGES = st.lists(st.binary(max_size=LIMIT), max_size=8)
CUTS = st.lists(st.integers(1, 400), max_size=12)


def pieces(octets: bytes, cuts: list[int]) -> list[bytes]:
    """The octets, cut after so many each time."""
    found = []
    for length in cuts:
        found.append(octets[:length])
        octets = octets[length:]
    return [*found, octets]


def greeted() -> zmtp.Reader:
    reader = zmtp.Reader(LIMIT)
    assert reader.feed(zmtp.opening(b"PUSH")) == []
    return reader


@given(MESSAGES, CUTS)
def test_messages_come_whole_however_their_octets_are_cut(messages, cuts):
    reader = zmtp.Reader(LIMIT)
    octets = zmtp.opening(b"PUSH") + b"".join(map(zmtp.message, messages))
    assert [message for piece in pieces(octets, cuts) for message in reader.feed(piece)] == messages
    assert reader.ready


@given(st.binary(max_size=300), CUTS, st.booleans())
def test_any_octets_are_messages_or_an_error(octets, cuts, after_greeting):
    reader = greeted() if after_greeting else zmtp.Reader(LIMIT)
    for piece in pieces(octets, cuts):
        assert all(len(message) <= LIMIT for message in reader.feed(piece))


@pytest.mark.parametrize(("octets", "says"), [
    (b"GET / HTTP/1.1\r\n", "not a ZMTP greeting"),
    (b"\xff" + bytes(8) + b"\x7e", "not a ZMTP greeting"),
    (b"\xff" + bytes(8) + b"\x7f\x01", "a version before 3.0"),
    (zmtp.opening(b"PUSH").replace(b"NULL", b"PLAIN\0"[:4]), "a security mechanism other than NULL"),
])
def test_anything_but_zmtp_is_refused(octets, says):
    reader = zmtp.Reader(LIMIT)
    assert reader.feed(octets) == []
    assert reader.error == says


@pytest.mark.parametrize(("octets", "says"), [
    (zmtp.message(bytes(LIMIT + 1)), "a frame that is too long"),
    (b"\x02" + (1 << 60).to_bytes(8, "big"), "a frame that is too long"),
    (b"\x01\x01x", "a message of several parts"),
    (b"\x80\x00", "a flag that ZMTP does not have"),
])
def test_messages_that_no_pipe_carries_are_refused(octets, says):
    reader = greeted()
    assert reader.feed(zmtp.message(b"one before") + octets + zmtp.message(b"one after")) == [b"one before"]
    assert reader.error == says
    assert reader.feed(zmtp.message(b"one more")) == []


def test_a_later_minor_version_and_commands_are_taken():
    greeting = bytearray(zmtp.opening(b"PUSH"))
    greeting[11] = 1  # ZMTP 3.1: PING and the like
    reader = zmtp.Reader(LIMIT)
    assert reader.feed(bytes(greeting) + b"\x04\x05\x04PING" + zmtp.message(b"one")) == [b"one"]


def test_not_ready_before_it_says_so():
    reader = zmtp.Reader(LIMIT)
    opening = zmtp.opening(b"PULL")
    reader.feed(opening[:-1])
    assert not reader.ready
    reader.feed(opening[-1:])
    assert reader.ready

"""ZMTP's octets: cut in any way, the same messages; whatever they are, no more than an error that says why."""

import lengths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usernet.pipe import zmtp

LIMIT = 1000
MESSAGES = st.lists(lengths.octets(LIMIT) | st.sampled_from([bytes(zmtp.SHORT_MAX), bytes(zmtp.SHORT_MAX + 1)]),
                    max_size=8)
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


FRAMES = st.builds(
    lambda flags, length, body: bytes((flags,)) + length + body, st.sampled_from([0, 0, 2, 4, 6]) | st.integers(0, 255),
    st.integers(0, 40).map(lambda octets: bytes((octets,)))
    | st.integers(0, LIMIT + 1).map(lambda octets: octets.to_bytes(8)), lengths.octets(40))
SPOKEN = lengths.damaged(st.lists(lengths.octets(300).map(zmtp.message) | FRAMES, max_size=4).map(b"".join))


@given(lengths.octets(300) | lengths.damaged(st.just(zmtp.opening(b"PUSH"))), SPOKEN, CUTS)
def test_any_octets_are_messages_or_an_error_the_same_however_they_are_cut(before, after, cuts):
    octets = before + after
    whole, reader = zmtp.Reader(LIMIT), zmtp.Reader(LIMIT)
    messages = whole.feed(octets)
    assert [message for piece in pieces(octets, cuts) for message in reader.feed(piece)] == messages
    assert (reader.error, reader.ready) == (whole.error, whole.ready)
    assert all(len(message) <= LIMIT for message in messages)
    if whole.error:
        assert whole.feed(zmtp.message(b"then")) == []


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

"""ICMP messages: against scapy, and checksums against RFC 1071 done word by word."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP

from layers.common.icmp_errors import errno_of
from packets import icmp as wire
from packets import ipv4


def plain_sum(octets: bytes) -> int:
    """RFC 1071 section 4.1, in the words of its C code."""
    total = 0
    padded = octets + b"\0" * (len(octets) % 2)
    for position in range(0, len(padded), 2):
        total += padded[position] << 8 | padded[position + 1]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_checksum(octets: bytes) -> bytes:
    return octets[:2] + (~plain_sum(octets[:2] + b"\0\0" + octets[4:]) & 0xFFFF).to_bytes(2, "big") + octets[4:]


@given(st.integers(0, 255), st.binary(min_size=4, max_size=3000))
def test_rfc792_echo_reply_differs_in_type_and_checksum_only(code, rest):
    request = with_checksum(bytes((8, code, 0, 0)) + rest)
    reply = wire.echo_reply(request)
    assert reply[:2] == bytes((0, code))
    assert reply[4:] == rest
    assert plain_sum(reply) == 0xFFFF


@pytest.mark.parametrize("rest", [bytes(4), b"\xff\xff\0\0", b"\xf7\xff\0\0", b"\0\0\xf7\xff", b"\xf8\0\0\0",
                                  b"\xff\xff\xf8\0", b"\0\0\0\0\x01"])
def test_rfc1624_echo_reply_where_the_sum_comes_near_zero(rest):
    request = with_checksum(b"\x08\0\0\0" + rest)
    assert plain_sum(wire.echo_reply(request)) == 0xFFFF
    if request[2:4] == b"\0\0":  # the other way to write zero
        assert plain_sum(wire.echo_reply(request[:2] + b"\xff\xff" + request[4:])) == 0xFFFF


@given(st.integers(6, 15), st.binary(min_size=19, max_size=80), st.lists(st.integers(0, 60), max_size=3))
def test_no_options_upset_the_way_back_to_what_was_received(words, rest, starts):
    octets = bytearray(bytes((0x40 | words,)) + rest)
    for start in starts:  # so that some are record routes and timestamps
        octets[20 + start : 21 + start] = (b"\x07", b"\x44")[start & 1] if 20 + start < len(octets) else b""
    packet = bytes(octets)
    before = wire.as_received(packet)
    assert len(before) == len(packet)
    assert (before[:10], before[12:20], before[words * 4 :]) == (packet[:10], packet[12:20], packet[words * 4 :])


@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=2000))
def test_rfc792_echo_request(identifier, sequence, data):
    request = wire.echo_request(identifier, sequence.to_bytes(2, "big") + data)
    parsed = ICMP(request)
    assert (parsed.type, parsed.code, parsed.id, parsed.seq, bytes(parsed.payload)) == (
        8, 0, identifier, sequence, data)
    assert plain_sum(request) == 0xFFFF


@given(st.sampled_from([3, 11, 12]), st.integers(0, 15), st.integers(0, 65535), st.binary(min_size=20, max_size=548))
def test_rfc792_error(icmp_type, code, info, quote):
    message = wire.error(icmp_type, code, info, quote)
    parsed = ICMP(message)
    assert (parsed.type, parsed.code, message[8:]) == (icmp_type, code, quote)
    assert plain_sum(message) == 0xFFFF
    if (icmp_type, code) == (3, 4):
        assert parsed.nexthopmtu == info  # RFC 1191 section 4
    elif icmp_type == 12:
        assert message[4:8] == bytes((info & 0xFF, 0, 0, 0))
    else:
        assert message[4:8] == bytes(4)


@given(st.sampled_from([3, 11, 12]), st.integers(0, 15), st.integers(0, 255))
def test_info_comes_back_where_the_error_has_a_place_for_it(icmp_type, code, info):
    expected = info if icmp_type == 12 or (icmp_type, code) == (3, 4) else 0
    assert wire.info_of(wire.error(icmp_type, code, info, bytes(28))) == expected


def offset_of(packet: bytes) -> int:
    """Where the payload of a quoted packet begins; 0 where it is no packet whose sender could be told."""
    quoted = ipv4.quoted(packet)
    return quoted.header_octets if quoted is not None else 0


def test_rfc1122_3_2_2_a_quote_holds_the_header_and_8_octets():
    plain = bytes(IP(src="10.0.0.2", dst="10.0.0.1") / b"12345678")
    assert offset_of(plain) == 20
    assert offset_of(plain[:-1]) == 0
    assert offset_of(b"") == 0
    options = b"\x46" + plain[1:20] + bytes(4) + b"12345678"
    assert offset_of(options) == 24
    assert offset_of(options[:-1]) == 0
    assert offset_of(b"\x44" + plain[1:]) == 0
    assert offset_of(b"\x65" + plain[1:]) == 0
    assert offset_of(bytes(IP(frag=1) / b"12345678")) == 0
    assert offset_of(bytes(IP(flags="MF") / b"12345678")) == 20


@pytest.mark.parametrize(("icmp_type", "code", "number", "fatal"), [
    (3, 0, errno.ENETUNREACH, False), (3, 1, errno.EHOSTUNREACH, False), (3, 2, errno.ENOPROTOOPT, True),
    (3, 3, errno.ECONNREFUSED, True), (3, 4, errno.EMSGSIZE, True), (3, 5, errno.EOPNOTSUPP, False),
    (3, 6, errno.ENETUNREACH, True), (3, 7, errno.EHOSTDOWN, True), (3, 8, errno.ENONET, True),
    (3, 9, errno.ENETUNREACH, True), (3, 10, errno.EHOSTUNREACH, True), (3, 11, errno.ENETUNREACH, False),
    (3, 12, errno.EHOSTUNREACH, False), (3, 13, errno.EHOSTUNREACH, True), (3, 14, errno.EHOSTUNREACH, True),
    (3, 15, errno.EHOSTUNREACH, True), (3, 16, errno.EHOSTUNREACH, False), (11, 0, errno.EHOSTUNREACH, False),
    (11, 1, errno.EHOSTUNREACH, False), (12, 0, errno.EPROTO, True),
])
def test_errno_of_an_error_is_that_of_linux(icmp_type, code, number, fatal):
    assert errno_of(icmp_type, code) == (number, fatal)

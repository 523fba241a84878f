"""Segments in octets, against scapy and against whatever may come."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from packets.checksum import checksum, verifies
from packets.tcp import (
    ACK,
    AE,
    CHECKSUM_AT,
    PSH,
    SYN,
    Options,
    Segment,
    header_octets,
    parse,
    parse_options,
    pseudo_sum,
)
from tests.unit.tcp.host import A, B

SYN_OPTIONS = Options(1460, 7, True, (1, 2))


def test_rfc9293_3_1_what_is_sent_is_what_scapy_reads_its_checksum_included():
    segment = Segment(80, 1234, 1 << 31, 5, SYN | ACK, 65535, 0, SYN_OPTIONS, b"odd")
    octets = segment.pack()
    total = checksum(octets, pseudo_sum(A, B, len(octets)))
    whole = octets[:CHECKSUM_AT] + total.to_bytes(2, "big") + octets[CHECKSUM_AT + 2 :]
    theirs = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(whole)
    assert theirs[TCP].options[:3] == [("MSS", 1460), ("NOP", None), ("NOP", None)]
    del theirs[TCP].chksum
    assert bytes(theirs)[20:] == whole
    assert verifies(whole, pseudo_sum(A, B, len(whole)))


LINUX_SYN = bytes.fromhex("020405b4 0402 080a 01020304 05060708 01 030307")
OPTION = st.sampled_from([b"\0", b"\1", LINUX_SYN, LINUX_SYN[:4], b"\5\x0a" + bytes(8), b"\x22\x06abcd"]) | st.builds(
    lambda kind, length, body: bytes((kind, length)) + body, st.sampled_from([2, 3, 4, 5, 8, 34, 253]),
    st.integers(0, 20), st.binary(max_size=18)) | st.binary(max_size=4)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Any header with the length of its options in it, in most cases."""
    options = b"".join(draw(st.lists(OPTION, max_size=5)))[:40]
    options += bytes(-len(options) % 4)
    words = draw(st.sampled_from([5 + len(options) // 4] * 4 + [0, 4, 5, 8, 15]))
    fixed = draw(st.binary(min_size=20, max_size=20))
    return fixed[:12] + bytes((words << 4 | fixed[12] & 15,)) + fixed[13:] + options


@given(st.binary(max_size=80) | st.builds(lambda header, payload: header + payload, headers(), st.binary(max_size=20)))
@example(bytes(12) + b"\xf0" + bytes(7) + b"\1" * 39 + b"\2")
def test_any_octets_are_refused_or_are_the_header_and_the_payload_that_were_read(octets):
    segment = parse(octets)
    if segment is None:
        assert len(octets) < 20 or not 20 <= header_octets(octets) <= len(octets)
        return
    again = segment._replace(packed=octets[20 : header_octets(octets)]).pack()
    assert again == octets[:12] + bytes((octets[12] & 0xF1,)) + octets[13:16] + bytes(2) + octets[18:]


U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
PAIR = st.tuples(U32, U32)
PACKABLE = st.builds(
    Options, st.none() | U16, st.none() | st.integers(0, 14), st.booleans(), st.none() | PAIR,
    st.lists(PAIR, max_size=4).map(tuple), st.sampled_from([None, b"", b"1234", b"12345678"]),
).filter(lambda options: len(options.pack()) <= 40)


@given(U16, U16, U32, U32, st.integers(0, 511), U16, U16, PACKABLE, st.binary(max_size=20))
@example(80, 1234, 5, 9, ACK, 7, 0, Options(timestamps=(1, 2)), b"text")
@example(80, 1234, 5, 9, SYN | AE, 7, 0, SYN_OPTIONS, b"")
def test_a_packed_segment_is_read_back(source, destination, sequence, acknowledgment, flags, window, urgent, options,
                                       payload):
    segment = Segment(source, destination, sequence, acknowledgment, flags, window, urgent, options, payload)
    octets = segment.pack()
    assert len(octets) % 4 == len(payload) % 4
    assert parse(octets) == segment


@pytest.mark.parametrize(("octets", "options"), [
    (b"\x02\x04\x05\xb4", Options(1460)),
    (b"\x01\x02\x04\x05\xb4", Options(1460)),  # MUST-64: whatever the alignment
    (b"\xfd\x06abcd\x02\x04\x05\xb4", Options(1460)),  # MUST-6: an unknown option
    (b"\x02\x04\x05\xb4\xfd", Options(1460)),  # MUST-7: a length that is not there
    (b"\x02\x04\x05\xb4\xfd\x00", Options(1460)),
    (b"\x02\x04\x05\xb4\xfd\x01", Options(1460)),
    (b"\x02\x04\x05\xb4\xfd\x09ab", Options(1460)),
    (b"\x02\x03\x05", Options()),
    (b"\x00\x02\x04\x05\xb4", Options()),
    (b"\x03\x03\xff", Options(window_scale=14)),  # RFC 7323 section 2.3
    (b"\x05\x0a\0\0\0\1\0\0\0\2", Options(sack=((1, 2),))),
    # A SYN of Linux, then the same with other kinds or lengths at one place
    (LINUX_SYN, Options(1460, 7, True, (0x01020304, 0x05060708))),
    (LINUX_SYN[:-1] + b"\xff", Options(1460, 14, True, (0x01020304, 0x05060708))),
    (b"\x13" + LINUX_SYN[1:], Options(None, 7, True, (0x01020304, 0x05060708))),
    (LINUX_SYN[:1] + b"\x03" + LINUX_SYN[2:], Options()),
    (LINUX_SYN[:4] + b"\x01\x01" + LINUX_SYN[6:], Options(1460, 7, False, (0x01020304, 0x05060708))),
    (LINUX_SYN[:16] + b"\x00" + LINUX_SYN[17:], Options(1460, None, True, (0x01020304, 0x05060708))),
])
def test_rfc9293_3_2_options_whatever_their_octets(octets, options):
    assert parse_options(octets) == options


def test_a_header_longer_than_its_segment_is_refused():
    assert parse(Segment(1, 2, 3, 4, PSH, 5).pack()[:19]) is None
    assert parse(b"\0" * 12 + b"\xf0" + b"\0" * 7) is None
    assert parse(b"\0" * 12 + b"\x40" + b"\0" * 7) is None

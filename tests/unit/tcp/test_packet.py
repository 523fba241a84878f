"""Segments in octets, against scapy and against whatever may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from packets.checksum import checksum, verifies
from packets.tcp import ACK, CHECKSUM_AT, PSH, SYN, Options, Segment, parse, parse_options, pseudo_sum
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


@given(st.binary(max_size=80))
def test_no_octets_raise(octets):
    segment = parse(octets)
    if segment is not None:
        assert parse(segment.pack()) is not None


@given(st.integers(0, 65535), st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.binary(max_size=20),
       st.builds(Options, st.none() | st.integers(0, 65535), st.none() | st.integers(0, 14), st.booleans(),
                 st.none() | st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)), st.just(()),
                 st.sampled_from([None, b"", b"1234", b"12345678"])))
def test_a_packed_segment_is_read_back(port, number, flags, payload, options):
    segment = Segment(port, port, number, number, flags, port, port, options, payload)
    octets = segment.pack()
    assert len(octets) % 4 == len(payload) % 4
    assert parse(octets) == segment


LINUX_SYN = bytes.fromhex("020405b4 0402 080a 01020304 05060708 01 030307")


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

"""What `capture --control` says of records of control."""

from __future__ import annotations

from bus import messages
from bus.messages import Route, Routes, SocketState, encode
from cli.capture import said
from packets.ip_options import OCTETS_MAX

ME = bytes((10, 0, 0, 2))
ME_6 = bytes((0x20, 1, 0x0D, 0xB8)) + bytes(11) + b"\1"


def test_addresses_are_text_whatever_their_family():
    told = encode(Routes([(ME, 24), (ME_6, 64)], [Route(bytes(4), 0, b"", ME, 1500)]))
    assert said(messages.ROUTES, told) == (
        'ROUTES {"addresses":[["10.0.0.2",24],["2001:db8::1",64]],"routes":[["0.0.0.0",0,"","10.0.0.2",1500,0]]}')
    assert said(messages.RESOLVE, ME_6) == "RESOLVE 2001:db8::1"
    assert said(messages.NEIGHBOR, ME + b"\2\0\0\0\0\1") == "NEIGHBOR 10.0.0.2 is-at 02:00:00:00:00:01"


def test_ip_options_are_no_addresses():
    declared = encode(SocketState(handle=1, request=2, local=ME, ip_options=b"\7\3\4\0"))
    assert '"local":"10.0.0.2"' in said(messages.SOCKET_SET, declared)
    assert '"ip_options":"07030400"' in said(messages.SOCKET_SET, declared)


def test_octets_that_are_no_record_are_shown_in_hexadecimal():
    for octets in (b"\xc1", b"\x91" * 5000, b"", b"\x81\x90", bytes(OCTETS_MAX)):
        assert said(messages.ROUTES, octets).startswith("ROUTES")
    assert said(messages.NEIGHBOR, b"\1\2") == "NEIGHBOR 0102"

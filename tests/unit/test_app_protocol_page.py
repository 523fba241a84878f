"""The frames that docs/app-protocol.md shows octet by octet are frames, and are what it says they are."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from usernet.pipe.frame import pack_frame, unpack_frame
from usernet.pipe.messages import (
    DATAGRAM_HEADER,
    DATAGRAM_HEADER_6,
    FAMILY_4,
    HELLO,
    REFUSAL,
    SEND,
    SocketError,
    datagram_header,
    inbox_number,
)
from usernet.pipe.numbering import decode_hello

PAGE = Path(__file__).parents[2] / "docs" / "app-protocol.md"


def shown(name: str) -> bytes:
    """The octets of the block of code `name`: hexadecimal pairs, up to two spaces and words."""
    block = re.search(rf"```{name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block, f"no block {name} in {PAGE}"
    return b"".join(bytes.fromhex(re.split("  +", line, maxsplit=1)[0]) for line in block[1].splitlines())


def test_the_hello_that_is_shown():
    frame = shown("hello")
    kind, incarnation, number, sequence, records = unpack_frame(frame)
    assert (kind, incarnation, number, sequence) == (HELLO, 1, 0, 0)
    assert json.loads(records[0]) == {"version": 2, "inbox": "app-1f.sock", "done": 0}
    hello = decode_hello(records[0])
    assert (hello.version, inbox_number(hello.inbox), hello.done) == (2, 0x1F, 0)
    assert pack_frame(HELLO, 0, 1, 0, records) == frame


def test_the_send_that_is_shown():
    frame = shown("send")
    kind, incarnation, number, sequence, (record,) = unpack_frame(frame)
    assert (kind, incarnation, sequence, frame[8:16]) == (SEND, 1, 3, number.to_bytes(8, "little"))
    assert f"{frame[8:16].hex(' ')} in its octets 8 to 15" in PAGE.read_text()
    own, peer = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))
    assert DATAGRAM_HEADER.unpack_from(record) == (5, FAMILY_4, 0, 0, 0, 7, 0, peer, own)
    assert record == datagram_header(5, peer, 7, own) + b"hi"


def test_heads_are_as_long_and_as_aligned_as_documented():
    page = PAGE.read_text()
    assert f"{DATAGRAM_HEADER.size} octets of family 4 and {DATAGRAM_HEADER_6.size} of family 6" in page
    errors = [SocketError(1, 2, 0, 0, 0, 0, bytes(width), bytes(width), 0) for width in (4, 16)]
    assert "is {} octets of family 4 and {} of family 6".format(*(len(error.pack()) for error in errors)) in page
    assert [error.octets for error in errors] == [len(error.pack()) for error in errors]
    for layout in (DATAGRAM_HEADER, DATAGRAM_HEADER_6):  # "<" pads nothing; with "=" neither, were it not aligned
        assert struct.calcsize(layout.format.replace("<", "@")) == layout.size


def test_an_error_comes_back_as_it_was_packed_in_either_family():
    for width in (4, 16):
        error = SocketError(7, 111, 2, 3, 4, 1480, bytes(range(width)), bytes(range(1, width + 1)), 53)
        assert SocketError.of(error.pack() + b"start") == error


def test_kinds_are_the_documented_ones():
    page = PAGE.read_text()
    for number, name in ((SEND, "SEND"), (HELLO, "HELLO"), (REFUSAL, "REFUSAL")):
        assert f"| {number} | {name} |" in page

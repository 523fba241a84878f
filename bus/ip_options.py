"""IP options (RFC 791 section 3.1): what ip and icmp both need of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

END, NO_OPERATION = 0, 1  # these two are a single octet
RECORD_ROUTE = 7
TIMESTAMP = 68
LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE = 131, 137
COPIED = 0x80  # in an option's type: every fragment carries it
OCTETS_MAX = 40


def walk(options: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, option) for each of more than one octet, up to the end of the list.

    An empty option stands for nonsense at that offset; nothing follows it.
    """
    offset = 0
    while offset < len(options) and options[offset] != END:
        if options[offset] == NO_OPERATION:
            offset += 1
            continue
        length = options[offset + 1] if offset + 1 < len(options) else 0
        if not 2 <= length <= len(options) - offset:
            yield offset, b""
            return
        yield offset, options[offset : offset + length]
        offset += length


def join(options: Iterable[bytes]) -> bytes:
    """A list of options, as a header carries it: padded to words of 4 octets by END."""
    joined = b"".join(options)
    return joined + bytes(-len(joined) % 4)

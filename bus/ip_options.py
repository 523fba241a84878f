"""IP options (RFC 791 section 3.1), as layers read them, and as they stand in a TRANSMIT record."""

from __future__ import annotations

from usernet.ip_options import (  # noqa: F401  (shared with applications)
    COPIED,
    END,
    LOOSE_SOURCE_ROUTE,
    NO_OPERATION,
    OCTETS_MAX,
    RECORD_ROUTE,
    STRICT_SOURCE_ROUTE,
    TIMESTAMP,
    before,
    checked,
    echoed,
    join,
    split,
    walk,
)

TRANSMIT_WORDS = 0x7F  # of the octet that stands before options in a TRANSMIT record: how many words they are
TRANSMIT_RECORD = 0x80  # ip shall record our address and the time in those that ask for it


def to_transmit(options: bytes, record: bool = False) -> bytes:
    """What stands behind the TRANSMIT_HEADER, with TRANSMIT_OPTIONS; empty for none. Options are whole words."""
    return bytes((len(options) // 4 | (TRANSMIT_RECORD if record else 0),)) + options if options else b""

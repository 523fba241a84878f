"""IP options in received packets (RFC 791 section 3.1, RFC 1122 section 3.2.1.8, RFC 7126).

As Linux with accept_source_route=0: source-routed packets are dropped; record route and timestamp are filled in if they
have room; malformed options are answered by an error; all others are ignored.
"""

from __future__ import annotations

from typing import NamedTuple

from packets.ip_options import (
    LOOSE_SOURCE_ROUTE,
    RECORD_ROUTE,
    ROUTER_ALERT,
    STRICT_SOURCE_ROUTE,
    TIMESTAMP,
    walk,
)
from packets.ipv4 import HEADER_OCTETS, with_checksum
from packets.recorded_options import record_route, timestamp

ROUTER_ALERT_OCTETS = 4  # RFC 2113 section 2.1


class Examined(NamedTuple):
    """The result of processing the options of a header."""

    header: bytes  # updated
    problem: int = 0  # offset in the header of a malformed option; 0: none
    source_routed: bool = False


def examine(header: bytes, ours: bytes | None, epoch_s: float, ours_to_send: bool = False) -> Examined:
    """Check the options of `header` and record the own address `ours` in them; None: record nothing.

    `epoch_s`: the time in seconds since 1970. `ours_to_send`: the packet is sent by this host, so a full timestamp is
    not counted as an overflow.
    """
    changed = bytearray(header)
    seen = set()
    for offset, option in walk(header[HEADER_OCTETS:]):
        at = HEADER_OCTETS + offset
        if not option:
            return Examined(header, at)
        kind = option[0]
        if kind in (LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE):  # RFC 7126 sections 4.3.5 and 4.4.5
            return Examined(header, source_routed=True)
        if kind == RECORD_ROUTE:
            problem = record_route(changed, at, len(option), ours)
        elif kind == ROUTER_ALERT:
            problem = at + 1 if len(option) < ROUTER_ALERT_OCTETS else 0
        elif kind == TIMESTAMP:
            problem = timestamp(changed, at, len(option), ours, epoch_s, ours_to_send)
        else:  # RFC 1122 section 3.2.1.8: silently ignore unknown options
            continue
        if problem or (kind in seen and kind != ROUTER_ALERT):  # RFC 791: each appears at most once in a datagram
            return Examined(header, problem or at)
        seen.add(kind)
    return Examined(with_checksum(bytes(changed)) if changed != header else header)

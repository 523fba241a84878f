"""The records and frames that `sendmany` makes of many datagrams.

A *run* is consecutive datagrams of equal size to one address, of which the last may be shorter. It is one record, which
costs the stack as much as one datagram (SEND_SEGMENTS, Linux's UDP_SEGMENT).
"""

from __future__ import annotations

from collections.abc import Iterator

from usernet.pipe.messages import SEGMENT_SIZE, SEGMENTS_MAX, SEND, SEND_SEGMENTS

FRAME_DATAGRAMS_MAX = 64
FRAME_OCTETS_MAX = 1 << 17
RUN_OCTETS_MAX = 65535 - 20 - 8  # RFC 791, RFC 768: maximum payload of a packet


class Runs:
    """Datagrams in order, by runs. `segmenting`: the service accepts SEND_SEGMENTS."""

    def __init__(self, segmenting: bool) -> None:
        self._runs: list[tuple[bytes, list[bytes]]] = []  # (head of a SEND, payloads)
        self._most = SEGMENTS_MAX if segmenting else 1
        self._header = b""  # of the last run
        self._payloads: list[bytes] = []
        self._size = 0
        self._room = 0  # number of datagrams of that size that still fit

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, header: bytes, data: bytes) -> None:
        """Add one more datagram."""
        octets = len(data)
        if self._room and header == self._header and 0 < octets <= self._size:
            self._payloads.append(data)
            self._room = self._room - 1 if octets == self._size else 0  # a shorter one is the last
            return
        self._header, self._payloads, self._size = header, [data], octets
        self._room = min(self._most, RUN_OCTETS_MAX // octets) - 1 if octets else 0
        self._runs.append((header, self._payloads))

    def frames(self) -> Iterator[tuple[int, list[bytes], int]]:
        """(kind, records, number of datagrams), with as much per frame as fits."""
        frame: list[bytes] = []
        frame_kind = octets = datagrams = 0
        for header, payloads in self._runs:
            count = len(payloads)
            if count == 1:
                kind, record = SEND, header + payloads[0]
            else:
                kind = SEND_SEGMENTS
                record = b"".join((header, SEGMENT_SIZE.pack(len(payloads[0])), *payloads))
            octets += len(record)
            if frame and (kind != frame_kind or len(frame) == FRAME_DATAGRAMS_MAX or octets > FRAME_OCTETS_MAX):
                yield frame_kind, frame, datagrams
                frame, datagrams, octets = [], 0, len(record)
            frame_kind = kind
            frame.append(record)
            datagrams += count
        if frame:
            yield frame_kind, frame, datagrams

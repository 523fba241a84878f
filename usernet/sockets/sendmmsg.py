"""The records and frames that `sendmany` makes of many datagrams.

A *run* is consecutive datagrams of equal size to one address, of which the last may be shorter. It is one record, which
costs the stack as much as one datagram (SEND_SEGMENTS, Linux's UDP_SEGMENT). The payloads of a long run go into a
buffer in shared memory (SEND_SEGMENTS_HELD).
"""

from __future__ import annotations

from collections.abc import Iterator

from usernet.client.buffers import HELD_OCTETS_MIN, Buffers
from usernet.pipe.messages import SEGMENT_SIZE, SEGMENTS_MAX, SEND, SEND_SEGMENTS, SEND_SEGMENTS_HELD

FRAME_DATAGRAMS_MAX = 64
FRAME_OCTETS_MAX = 1 << 17
FRAME_OCTETS_HELD = 1 << 18  # in buffers, so that the stack begins to send meanwhile
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

    @property
    def long(self) -> bool:
        """True if there is a run that should go into a buffer."""
        return any(_is_long(payloads) for _, payloads in self._runs)

    def frames(self, buffers: Buffers | None = None,
               patience_s: float = 0.0) -> Iterator[tuple[int, list[bytes], int]]:
        """(kind, records, number of datagrams), with as much per frame as fits. `patience_s`: for a free buffer."""
        frame: list[bytes] = []
        frame_kind = octets = datagrams = 0
        for header, payloads in self._runs:
            count = len(payloads)
            reference = None
            if buffers is not None and _is_long(payloads):
                reference = buffers.put(payloads)
                if reference is None:
                    if frame:  # it may have all of them
                        yield frame_kind, frame, datagrams
                        frame, datagrams, octets = [], 0, 0
                    reference = buffers.put_soon(payloads, patience_s)
            if count == 1:
                kind, record = SEND, header + payloads[0]
                added, most = len(record), FRAME_OCTETS_MAX
            elif reference is not None:
                kind, record = SEND_SEGMENTS_HELD, header + SEGMENT_SIZE.pack(len(payloads[0])) + reference
                added, most = count * len(payloads[0]), FRAME_OCTETS_HELD
            else:
                kind, record = SEND_SEGMENTS, b"".join((header, SEGMENT_SIZE.pack(len(payloads[0])), *payloads))
                added, most = len(record), FRAME_OCTETS_MAX
            octets += added
            if frame and (kind != frame_kind or len(frame) == FRAME_DATAGRAMS_MAX or octets > most):
                yield frame_kind, frame, datagrams
                frame, datagrams, octets = [], 0, added
            frame_kind = kind
            frame.append(record)
            datagrams += count
        if frame:
            yield frame_kind, frame, datagrams


def _is_long(payloads: list[bytes]) -> bool:
    return len(payloads) > 1 and (len(payloads) - 1) * len(payloads[0]) + len(payloads[-1]) >= HELD_OCTETS_MIN

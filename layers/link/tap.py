"""The TAP, through a descriptor that the keeper opened (Linux tuntap.rst)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bus.durable import layout
from bus.durable.frames import WINDOW
from bus.durable.rx_log import BLANK, OCTETS_MAX, RxLog
from bus.layer import CounterWords
from layers.link.counters import Counters as C
from layers.link.references import REFERRED_OCTETS_MIN, refer
from packets import ethernet, ipv4, vnet

FRAME_OCTETS_MAX = 65536 + 64
# A batch ends with one of these. Larger batches cost less per frame, but the layers on the other core wait meanwhile
# (docs/decisions/placement.md has the figures).
BATCH_FRAMES = 48
BATCH_OCTETS = 45_000
BATCH_OCTETS_HELD = 200_000  # with segments whose text is not copied further

assert BATCH_OCTETS + FRAME_OCTETS_MAX <= OCTETS_MAX
assert BATCH_OCTETS_HELD + FRAME_OCTETS_MAX + len(BLANK) <= WINDOW


class Tap:
    """A device for a TAP descriptor, which is non-blocking."""

    edge_triggered = False
    writes_through = True

    def __init__(self, descriptor: int, counters: CounterWords, offload: bool = False) -> None:
        self._head = vnet.HEADER_OCTETS if offload else 0
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._counters = counters

    def fileno(self) -> int:
        """Readable when the kernel has sent a frame."""
        return self._descriptor

    def read(self, batch: RxLog) -> list[bytes]:
        """The frames that the kernel has queued, at most a batch."""
        descriptor, read, octets, ends, words = self._descriptor, os.readv, batch.octets, batch.ends, batch.words
        frames: list[bytes] = []
        start = count = 0
        most, windows = BATCH_OCTETS, batch.windows
        try:
            while count < BATCH_FRAMES and start < most:
                end = start + read(descriptor, (octets[start:] if start else octets,))
                octets[end : end + len(BLANK)] = BLANK
                ends[count] = end
                count += 1
                words[layout.BATCH_FRAMES] = count
                if windows is not None and end - start > REFERRED_OCTETS_MIN and (
                        record := refer(batch, windows, count - 1, start, end)):
                    frames.append(record)
                    most = min(most + end - start, BATCH_OCTETS_HELD)
                else:
                    frames.append(bytes(octets[start:end]))
                start = end
        except OSError:
            pass  # EAGAIN: no more frames; EIO, EBADFD: the interface is down at the moment
        return frames

    def length(self, octets: memoryview) -> int:
        """The length by the frame's own fields; 0: a type that link drops anyway."""
        start = self._head + ethernet.HEADER_OCTETS
        kind = bytes(octets[start - 2 : start])
        if kind == ethernet.TYPE_IPV4:
            return start + int.from_bytes(octets[start:][ipv4.LENGTH], "big")
        if kind == ethernet.TYPE_ARP:
            return start + ethernet.ARP_OCTETS
        octets_said = int.from_bytes(kind, "big")
        return start + octets_said if octets_said <= ethernet.LENGTH_MAX else 0

    def write(self, frame: bytes) -> None:
        """Write one frame to the kernel, which accepts or drops it at once."""
        try:
            os.write(self._descriptor, frame)
        except OSError:  # EIO: the interface is down; EINVAL: shorter than a header
            self._counters[C.device_refused] += 1

    def write_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write one frame in several parts."""
        try:
            os.writev(self._descriptor, parts)
        except OSError:
            self._counters[C.device_refused] += 1

    def flush(self) -> None:
        """Nothing to do: `write` sends at once."""

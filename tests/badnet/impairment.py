"""What a cable does to the frames of one direction: pure, time is an argument."""

from __future__ import annotations

import random
from dataclasses import dataclass

HEADERS_OCTETS = 14 + 20  # Ethernet's and IP's: what is damaged lies behind them, or no transport would see it


@dataclass(frozen=True)
class Path:
    """Of one direction. Shares are 0..1; a queue holds what waits for the rate, in octets."""

    rate_mbit: float = 30.0
    queue_octets: int = 150_000
    delay_ms: float = 10.0
    jitter_ms: float = 0.0  # of the delay, both ways; the order stays
    loss: float = 0.0
    reorder: float = 0.0  # a frame that comes `late_ms` late, and is overtaken
    late_ms: float = 4.0
    duplicate: float = 0.0
    corrupt: float = 0.0  # one bit
    frame_octets_max: int = 1 << 16  # what is longer vanishes, and no ICMP says so


class Impairment:
    """One direction of a cable."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._rng = path, random.Random(seed)
        self._free_at = self._last_due = 0.0

    def take(self, frame: bytes, now: float) -> list[tuple[float, bytes]]:
        """What becomes of a frame that is sent at `now` (seconds): frames, each with when it arrives."""
        path, rng = self._path, self._rng
        if len(frame) > path.frame_octets_max or rng.random() < path.loss:
            return []
        octets_per_s = path.rate_mbit * 1e6 / 8
        waiting = max(0.0, self._free_at - now) * octets_per_s
        if waiting + len(frame) > path.queue_octets:
            return []
        self._free_at = max(now, self._free_at) + len(frame) / octets_per_s
        due = self._free_at + (path.delay_ms + rng.uniform(-path.jitter_ms, path.jitter_ms)) / 1000
        due = self._last_due = max(due, self._last_due)
        if rng.random() < path.corrupt and len(frame) > HEADERS_OCTETS:
            damaged = bytearray(frame)
            damaged[rng.randrange(HEADERS_OCTETS, len(frame))] ^= 1 << rng.randrange(8)
            frame = bytes(damaged)
        if rng.random() < path.reorder:
            return [(due + path.late_ms / 1000, frame)]
        return [(due, frame)] * (2 if rng.random() < path.duplicate else 1)

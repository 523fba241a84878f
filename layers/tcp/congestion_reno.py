"""NewReno (RFC 5681 section 3.1): the window grows by a segment per round trip, and is halved after a loss."""

from __future__ import annotations

from typing import ClassVar

from layers.tcp.congestion import CongestionControl


class Control(CongestionControl):
    """RFC 5681, with RFC 3465's count of octets."""

    name: ClassVar[str] = "reno"
    beta_ecn: ClassVar[float] = 0.8  # RFC 8511 section 3 for Reno

    __slots__ = ()

    def avoid(self, octets: int, now: float, rtt_s: float) -> float:
        """RFC 5681 section 3.1 (equation 3): cwnd += SMSS * SMSS / cwnd for each segment."""
        return self.cwnd + self.mss * octets / self.cwnd

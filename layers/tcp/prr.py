"""Proportional rate reduction (RFC 6937, as revised by RFC 9937): the window during a recovery.

Acknowledgments keep clocking the sender while the window shrinks: for ten delivered octets seven are sent (CUBIC),
instead of none for half a round trip and then all. If the losses leave less in the network than the new threshold
allows, it is refilled at the rate of slow start, as long as acknowledgments show no further loss.
"""

from __future__ import annotations


class ProportionalRateReduction:
    """Of one recovery. Octets."""

    __slots__ = ("_delivered", "_flight", "_out")

    def __init__(self, flight: int) -> None:
        self._flight = max(1, flight)  # RecoverFS
        self._delivered = 0  # prr_delivered
        self._out = 0  # prr_out

    def acknowledged(self, delivered: int, pipe: int, ssthresh: float, mss: int, safe: bool) -> float:
        """The window after an acknowledgment of so many octets. `safe`: SND.UNA advanced and nothing more is lost."""
        self._delivered += delivered
        if pipe > ssthresh:
            send = -(-self._delivered * ssthresh // self._flight) - self._out
        else:
            send = max(self._delivered - self._out, delivered)  # the conservative bound (CRB)
            if safe:
                send += mss  # the slow-start bound (SSRB)
            send = min(ssthresh - pipe, send)
        if not self._out and send < mss:
            send = mss  # RFC 9937: the first retransmission leaves at once
        return max(pipe + max(0.0, send), float(mss))

    def sent(self, octets: int) -> None:
        """This many octets were sent since the recovery began, new or again."""
        self._out += octets

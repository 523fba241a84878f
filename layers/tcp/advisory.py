"""Advice for a successor, which it does not need but starts better with: round trips and congestion window, in 44
octets.

It is written at most once per round trip and INTERVAL_S, and may be torn by a crash, so every number is checked when it
is read.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING
from zlib import crc32

from layers.tcp.congestion import CongestionControl, clamp
from layers.tcp.retransmission import RTO_MAX_S

if TYPE_CHECKING:
    from layers.tcp.recovery import Recovery

# CRC of the algorithm's name; retransmitted segments; SRTT, RTTVAR, minimum round trip; what the congestion control
# saved
_STATE = Struct("<II3f6f")
OCTETS = _STATE.size
INTERVAL_S = 0.1  # so that exchanges with a host nearby, whose round trips take less, do not write it each time


def pack(recovery: Recovery) -> bytes:
    """OCTETS octets."""
    timer, control = recovery.timer, recovery.control
    numbers = [*control.saved(), 0.0, 0.0, 0.0, 0.0][:6]
    return _STATE.pack(_name(control), recovery.retransmits & 0xFFFFFFFF, timer.rtt_s, timer.rtt_variance_s,
                       timer.min_rtt_s, *numbers)


def unpack(recovery: Recovery, octets: bytes | memoryview) -> None:
    """Restore what `pack` returned; impossible numbers, and those of another algorithm, are ignored."""
    timer, control = recovery.timer, recovery.control
    whose, recovery.retransmits, rtt_s, variance_s, least_s, *numbers = _STATE.unpack(octets)
    timer.rtt_s = clamp(rtt_s, 0.0, RTO_MAX_S, 0.0)
    timer.rtt_variance_s = clamp(variance_s, 0.0, RTO_MAX_S, 0.0)
    timer.min_rtt_s = clamp(least_s, 0.0, RTO_MAX_S, 0.0)
    timer.derive()
    if whose == _name(control):
        control.restore(tuple(numbers))
    else:
        CongestionControl.restore(control, tuple(numbers[:2]))


def _name(control: CongestionControl) -> int:
    return crc32(control.name.encode())

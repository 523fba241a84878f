"""Resets and challenge ACKs (RFC 9293 section 3.5.2, RFC 5961), and how many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp.connection import Connection
from layers.tcp.counters import Counters as C
from packets.tcp import ACK, FIN, RST, SYN, Segment

if TYPE_CHECKING:
    from layers.tcp.engine import Arrival, Engine

CHALLENGES_PER_S = 100  # RFC 5961 section 7; of all connections. Linux: net.ipv4.tcp_challenge_ack_limit
RESETS_PER_S = 1000  # Linux: net.ipv4.icmp_msgs_per_sec is what limits its resets; ours are limited alike
OUT_OF_WINDOW_INTERVAL_S = 0.5  # Linux net.ipv4.tcp_invalid_ratelimit; of one connection, never of answers to data


class Allowance:
    """So many a second, all at once if need be."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more is allowed."""
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def answer(engine: Engine, arrival: Arrival) -> None:
    """A reset to a segment that belongs to no connection."""
    segment = arrival.segment
    if segment.flags & RST:  # RFC 9293 section 3.10.7.1: never answered, or two stacks would go on for ever
        engine.counters[C.reset_unanswered] += 1
        return
    engine.counters[C.no_port] += 1
    if not engine.resets.take(engine.now):
        engine.counters[C.reset_limited] += 1
        return
    # RFC 9293 section 3.5.2, group 1: the sequence number is what the other end acknowledged; else 0, and we
    # acknowledge
    if segment.flags & ACK:
        reset = Segment(segment.destination_port, segment.source_port, segment.acknowledgment, 0, RST, 0)
    else:
        length = len(segment.payload) + (segment.flags & SYN > 0) + (segment.flags & FIN)
        acknowledged = (segment.sequence + length) & 0xFFFFFFFF
        reset = Segment(segment.destination_port, segment.source_port, 0, acknowledged, RST | ACK, 0)
    engine.counters[C.resets_sent] += 1
    engine.transmit_alone(arrival, reset)


def unacceptable(engine: Engine, arrival: Arrival) -> None:
    """RFC 9293 section 3.5.2, group 2: <SEQ=SEG.ACK><CTL=RST>, to an ACK that acknowledges what was never sent."""
    segment = arrival.segment
    if segment.flags & RST:
        return
    engine.counters[C.resets_sent] += 1
    engine.transmit_alone(
        arrival, Segment(segment.destination_port, segment.source_port, segment.acknowledgment, 0, RST, 0))


def challenge(engine: Engine, conn: Connection) -> None:
    """A challenge ACK (RFC 5961 sections 3.2, 4.2, 5.2), if the limits let it."""
    if engine.challenges.take(engine.now):
        engine.counters[C.challenges_sent] += 1
        engine.acknowledge(conn)
    else:
        engine.counters[C.reset_limited] += 1


def out_of_window(engine: Engine, conn: Connection, has_text: bool) -> None:
    """RFC 9293 section 3.10.7.4: an unacceptable segment is answered by an ACK.

    One without text is not, where another was half a second ago, or two ends that disagree would answer each other for
    ever. One with text always is: it may be a retransmission, and its sender waits for nothing else.
    """
    if not has_text:
        if engine.now - conn.challenge_at < OUT_OF_WINDOW_INTERVAL_S:
            engine.counters[C.reset_limited] += 1
            return
        conn.challenge_at = engine.now
    engine.acknowledge(conn)

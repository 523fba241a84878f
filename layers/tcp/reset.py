"""Resets and challenge ACKs (RFC 9293 section 3.5.2, RFC 5961), and their rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp import history
from layers.tcp.connection import CLOSED, Connection, Ends
from layers.tcp.counters import Counters as C
from layers.tcp.sequence import from_wire
from packets.tcp import ACK, FIN, RST, SYN, Segment

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.interfaces import Arrival

CHALLENGES_PER_S = 100  # RFC 5961 section 7; of all connections. Linux: net.ipv4.tcp_challenge_ack_limit
RESETS_PER_S = 1000  # Linux limits resets by net.ipv4.icmp_msgs_per_sec; the same limit here
OUT_OF_WINDOW_INTERVAL_S = 0.5  # Linux net.ipv4.tcp_invalid_ratelimit; for each connection, never for answers to data


class Allowance:
    """A number of events per second, which may all come at once."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """True if one more is allowed."""
        if now != self._at:
            self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
            self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def answer(engine: Engine, arrival: Arrival) -> None:
    """Send a reset to a segment without a connection."""
    segment = arrival.segment
    # RFC 9293 section 3.10.7.1: never answered; otherwise two stacks would answer each other for ever
    if segment.flags & RST:
        engine.counters[C.reset_unanswered] += 1
        return
    engine.counters[C.no_port] += 1
    if not engine.resets.take(engine.now):
        engine.counters[C.reset_limited] += 1
        return
    ends = Ends(arrival.destination, segment.destination_port, arrival.source, segment.source_port)
    engine.history.note_alone(engine.now, ends, CLOSED, history.REFUSED_NO_PORT)
    # RFC 9293 section 3.5.2, group 1: the sequence number is the other end's acknowledgment; without one 0, with an ACK
    if segment.flags & ACK:
        reset = Segment(segment.destination_port, segment.source_port, segment.acknowledgment, 0, RST, 0)
    else:
        length = len(segment.payload) + (segment.flags & SYN > 0) + (segment.flags & FIN)
        acknowledged = (segment.sequence + length) & 0xFFFFFFFF
        reset = Segment(segment.destination_port, segment.source_port, 0, acknowledged, RST | ACK, 0)
    engine.counters[C.resets_sent] += 1
    engine.transmit_alone(arrival, reset)


def unacceptable(engine: Engine, arrival: Arrival) -> None:
    """RFC 9293 section 3.5.2, group 2: <SEQ=SEG.ACK><CTL=RST>, to an ACK of octets that were never sent."""
    segment = arrival.segment
    if segment.flags & RST:
        return
    engine.counters[C.resets_sent] += 1
    engine.transmit_alone(
        arrival, Segment(segment.destination_port, segment.source_port, segment.acknowledgment, 0, RST, 0))


def challenge(engine: Engine, conn: Connection) -> None:
    """Send a challenge ACK (RFC 5961 sections 3.2, 4.2, 5.2), if the limits permit it."""
    if engine.challenges.take(engine.now):
        engine.counters[C.challenges_sent] += 1
        engine.acknowledge(conn)
    else:
        engine.counters[C.reset_limited] += 1


def out_of_window(engine: Engine, conn: Connection, segment: Segment, has_text: bool) -> None:
    """RFC 9293 section 3.10.7.4: an unacceptable segment is answered by an ACK, at the number that its ACK expects.

    A segment without text is not answered if another was in the last half second, because two ends that disagree would
    answer each other for ever. A segment with text always is, because it may be a retransmission whose sender waits for
    the ACK.
    """
    if not has_text:
        if engine.now - conn.challenge_at < OUT_OF_WINDOW_INTERVAL_S:
            engine.counters[C.reset_limited] += 1
            return
        conn.challenge_at = engine.now
    engine.acknowledge(conn, from_wire(conn.iss, segment.acknowledgment, conn.snd_una) if segment.flags & ACK else 0)

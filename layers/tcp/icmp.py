"""ICMP errors about sent segments (RFC 9293 section 3.9.2.2), checked by RFC 5927.

An error counts only if the segment that it quotes is in flight. A hard error ends a connection that is not established
yet. Later it is soft: it is remembered, and reported if the connection times out (RFC 5927 section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.common.icmp_errors import errno_of
from layers.tcp import closing, history
from layers.tcp.connection import SYN_RECEIVED, SYN_SENT, Connection
from layers.tcp.counters import Counters as C
from layers.tcp.sequence import from_wire
from packets.icmp import DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

SOURCE_QUENCH, REDIRECT = 4, 5
MTU_MIN = 68 + 484  # Linux net.ipv4.route.min_pmtu, 552: an error with less is forged, or of an unrealistic link


def error(engine: Engine, conn: Connection, icmp_type: int, code: int, mtu: int, sequence: int, local: bool) -> bool:
    """An error about the segment with that sequence number (32 bits). False: not plausible."""
    number = from_wire(conn.iss, sequence, conn.snd_una)
    if not conn.snd_una <= number < conn.snd_nxt and not local:
        engine.counters[C.error_forged] += 1
        engine.history.note(engine.now, conn, history.ICMP_FORGED)
        return False
    if icmp_type in (SOURCE_QUENCH, REDIRECT):
        return True  # RFC 6633: SHOULD be discarded silently
    if (icmp_type, code) == (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED):
        if conn.state not in (SYN_SENT, SYN_RECEIVED) or conn.snd_nxt > 1:
            path_mtu(engine, conn, mtu)
        return True
    reason, _ = errno_of(icmp_type, code)
    if conn.state == SYN_SENT or (conn.state == SYN_RECEIVED and not conn.listener):
        # Linux, tcp_v4_err: any unreachable ends a connection that is not established yet
        engine.counters[C.attempt_fails] += 1
        engine.history.note(engine.now, conn, history.ICMP_HARD, reason)
        closing.abandon(engine, conn, reason)
    else:
        conn.error_soft = reason
        engine.history.note(engine.now, conn, history.ICMP_SOFT, reason)
    return True


def path_mtu(engine: Engine, conn: Connection, mtu: int) -> None:
    """RFC 1191 section 6.4: send smaller segments from now on, and retransmit those that were too big."""
    headers = 40 if len(conn.ends.peer) == 4 else 60
    known = engine.below.mtu(conn.ends.peer)
    if mtu < MTU_MIN:
        mtu = max(mtu, MTU_MIN)
    if conn.options.mtu_discover in (0, 4, 5):  # ip(7): DONT, INTERFACE, OMIT ignore routers
        return
    closing.lower_mss(engine, conn, min(mtu, known) - headers)



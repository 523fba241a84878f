"""Explicit congestion notification: RFC 3168, and accurate feedback (AccECN, RFC 9768).

A SYN asks for it, and the SYN-ACK agrees. By RFC 3168 a receiver echoes a router's mark (CE) by ECE until the sender
says by CWR that it has reduced its window: one signal in a round trip. With accurate feedback the flags AE, CWR and ECE
are one field, ACE, the number of packets that arrived marked, modulo 8; in the handshake it says how the other's SYN or
SYN-ACK arrived, so that a path that spoils the ECN field is noticed: then no packet of ours may be marked.

The AccECN option of section 3.2.3, which adds octet counts, is optional; it is neither sent nor read. Our SYNs and
SYN-ACKs are not ECN-capable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layers.tcp import history
from packets.tcp import AE, CWR, ECE, SYN

if TYPE_CHECKING:
    from layers.tcp.connection import Connection
    from layers.tcp.engine import Engine
    from layers.tcp.interfaces import Arrival

NOT_ECT, ECT_1, ECT_0, CE = range(4)  # the ECN field of a packet: RFC 3168 section 5
# By Linux's net.ipv4.tcp_ecn (0: not at all): what a SYN asks for, and where accurate feedback is agreed to
REQUESTS = {1: ECE | CWR, 3: AE | CWR | ECE, 4: ECE | CWR}
ACCURATE = (3, 4, 5)
ACE = AE | CWR | ECE
ACE_START = 5  # RFC 9768 section 3.2.1: the counters' initial value, not 0, so that cleared flags are noticed
# Section 3.1.2, table 2, and section 3.2.2.1, table 3: ACE in a SYN-ACK or in the ACK of one, by the field of what it
# answers
HANDSHAKE = {NOT_ECT: 0b010, ECT_1: 0b011, ECT_0: 0b100, CE: 0b110}
UNSPOILT = (HANDSHAKE[NOT_ECT], 0b001, 0b101, 0b111)  # what says that a packet that was not ECN-capable stayed so
MARKS_PER_ACK, MARKS_PER_ACK_OF_ACKS = 2, 3  # section 3.2.2.5.1: an ACK is due after so many marks


class AccurateEcn:
    """The accurate feedback of one connection."""

    __slots__ = ("answers", "capable", "counted", "delivered_marked", "fresh", "last_marked", "received", "syn",
                 "unreported")

    def __init__(self, syn: int = NOT_ECT, answers: int | None = None) -> None:
        self.syn = syn  # ECN field of the peer's SYN
        self.answers = answers  # ECN field of its SYN-ACK, until that is acknowledged
        self.capable = True  # our packets with text may be marked
        self.received = ACE_START  # r.cep: packets that arrived marked, modulo 8
        self.counted = ACE_START  # s.cep: what the peer has reported, modulo 8
        self.delivered_marked = 0  # the same in full, for TCP_INFO
        self.unreported = 0  # marks since the last segment that we sent
        self.last_marked = False  # the last packet with text was marked
        self.fresh = True  # no segment after the handshake has arrived

    @property
    def field(self) -> int:
        """The flags of a segment that is sent now."""
        return flags_of(self.received if self.answers is None else HANDSHAKE[self.answers])

    def sent(self) -> int:
        """The flags of a segment that is sent now, which reports all marks."""
        flags = self.field
        self.answers, self.unreported = None, 0
        return flags

    @property
    def octet(self) -> int:
        """What a successor needs."""
        return self.received | self.counted << 3 | self.capable << 6

    @classmethod
    def restored(cls, octet: int) -> AccurateEcn:
        """From `octet`."""
        made = cls()
        made.fresh = False
        made.received, made.counted, made.capable = octet & 7, octet >> 3 & 7, bool(octet >> 6 & 1)
        return made


def flags_of(ace: int) -> int:
    """The flags for a value of ACE."""
    return ((ace & 4) and AE) | ((ace & 2) and CWR) | (ace & 1 and ECE)


def ace_of(flags: int) -> int:
    """The value of ACE in a header."""
    return (flags & AE > 0) << 2 | (flags & CWR > 0) << 1 | (flags & ECE > 0)


def request(conn: Connection) -> int:
    """The flags of a SYN. None in one that is sent again, because they may be why the first was lost: RFC 3168 section
    6.1.1.1, RFC 9768 section 3.1.4.1."""
    return 0 if conn.backoffs else REQUESTS.get(conn.options.ecn, 0)


def agreement(conn: Connection) -> int:
    """The flags of a SYN-ACK."""
    if conn.accurate is not None:
        return flags_of(HANDSHAKE[conn.accurate.syn])
    return ECE if conn.ecn_ok else 0


def asked(conn: Connection, flags: int, field: int) -> None:
    """A SYN has arrived; `field` is the ECN field of its packet."""
    wanted = flags & ACE
    conn.accurate, conn.ecn_ok = None, False
    if not wanted or not conn.options.ecn:
        return
    # RFC 9768 section 3.1.3: values that have no meaning yet ask for accurate feedback, too
    if conn.options.ecn in ACCURATE and wanted != ECE | CWR:
        conn.accurate = AccurateEcn(syn=field)
    else:
        conn.ecn_ok = wanted & (ECE | CWR) == ECE | CWR


def answered(conn: Connection, flags: int, field: int) -> None:
    """A SYN-ACK has arrived: RFC 3168 section 6.1.1, RFC 9768 section 3.1.2, table 2."""
    ace = ace_of(flags)
    conn.accurate, conn.ecn_ok = None, False
    wanted = REQUESTS.get(conn.options.ecn, 0)
    if wanted & AE and ace not in (0b000, 0b001, 0b111):
        conn.accurate = AccurateEcn(answers=field)
        conn.accurate.capable = ace in UNSPOILT
    elif wanted:
        conn.ecn_ok = ace & 0b011 == 0b001


def handshake_acknowledged(conn: Connection, flags: int) -> None:
    """The first segment after our SYN-ACK: section 3.2.2.1, table 4."""
    accurate = conn.accurate
    if accurate is not None:
        accurate.fresh = False
        accurate.capable = ace_of(flags) in UNSPOILT
        if ace_of(flags) == HANDSHAKE[CE]:
            accurate.counted = ACE_START + 1


def is_progress(conn: Connection, arrival: Arrival, seq: int, ack: int) -> bool:
    """True if a segment was sent after all others that have arrived; the field of an older one says nothing."""
    segment = arrival.segment
    stamps = segment.options.timestamps
    return (ack > conn.snd_una or seq + segment.length > conn.rcv_nxt
            or (stamps is not None and conn.timestamps_ok and 0 < (stamps[0] - conn.ts_recent & 0xFFFFFFFF) < 1 << 31))


def arrived(engine: Engine, conn: Connection, arrival: Arrival, segments: int, progress: bool) -> None:
    """An acceptable segment of a connection with ECN; `segments` as they were on the wire.

    `progress`: as `is_progress` said before the segment was processed.
    """
    accurate, flags, text = conn.accurate, arrival.segment.flags, arrival.segment.payload
    if accurate is None:
        _arrived_3168(engine, conn, flags, bool(text) and arrival.ecn == CE)
        return
    marked = arrival.ecn == CE
    if marked:
        accurate.received = accurate.received + segments & 7
        accurate.unreported += segments
        if (accurate.unreported >= (MARKS_PER_ACK if text else MARKS_PER_ACK_OF_ACKS)
                or (text and not accurate.last_marked)):  # section 3.2.2.5.1
            conn.ack_now = True
            engine.touch(conn)
    if text:
        accurate.last_marked = marked
    if not progress or flags & SYN:
        return
    ace = ace_of(flags)
    if accurate.fresh:
        accurate.fresh = False
        if not ace:  # section 3.2.2.4: the path clears the flags
            accurate.capable = False
            accurate.counted = 0
    reported = ace - accurate.counted & 7
    if reported:
        accurate.counted = ace
        accurate.delivered_marked += reported
        if conn.recovery is not None:
            engine.history.note(engine.now, conn, history.MARKED, reported)
            conn.recovery.congestion_experienced(engine.now)


def _arrived_3168(engine: Engine, conn: Connection, flags: int, marked: bool) -> None:
    """RFC 3168 section 6.1: marks of routers, to us (CE) and reported by the peer (ECE)."""
    if flags & CWR:
        conn.ecn_echo = False
    if marked:
        conn.ecn_echo = conn.ack_now = True
        engine.touch(conn)
    if flags & ECE and conn.recovery is not None:
        engine.history.note(engine.now, conn, history.CONGESTION)
        conn.recovery.congestion_experienced(engine.now)
        conn.ecn_reduced = True

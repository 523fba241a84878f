"""The state of a connection for applications: STREAM_INFO, and Linux's struct tcp_info (include/uapi/linux/tcp.h)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from layers.tcp import acknowledgment
from layers.tcp.congestion import UNLIMITED
from layers.tcp.connection import SENDING, Connection
from usernet.pipe.streams import INFO_ANSWER

if TYPE_CHECKING:
    from layers.tcp.engine import Engine

# As Linux has it since 5.4, up to tcpi_snd_wnd: 8 octets, 24 words, rates and octets (4 times 64 bits), segments (6
# words), delivery (4 times 64 bits, 2 words), octets sent and sent again, 4 words.
TCP_INFO = Struct("=8B24I4Q6I4Q2I2Q4I")
FIELDS = (  # as linux/tcp.h names them, without tcpi_
    "state", "ca_state", "retransmits", "probes", "backoff", "options", "wscale", "flags",
    "rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets",
    "last_data_sent", "last_ack_sent", "last_data_recv", "last_ack_recv", "pmtu", "rcv_ssthresh", "rtt", "rttvar",
    "snd_ssthresh", "snd_cwnd", "advmss", "reordering", "rcv_rtt", "rcv_space", "total_retrans",
    "pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received",
    "segs_out", "segs_in", "notsent_bytes", "min_rtt", "data_segs_in", "data_segs_out",
    "delivery_rate", "busy_time", "rwnd_limited", "sndbuf_limited", "delivered", "delivered_ce",
    "bytes_sent", "bytes_retrans", "dsack_dups", "reord_seen", "rcv_ooopack", "snd_wnd")
OPTION_TIMESTAMPS, OPTION_SACK, OPTION_SCALE, OPTION_ECN, OPTION_SYN_DATA = 1, 2, 4, 8, 32
NO_TIMER, RETRANSMIT, KEEPALIVE, WAITING, PERSIST = range(5)
CA_OPEN = 0  # TCP_CA_Open
_UNLIMITED = 0x7FFFFFFF


def header(engine: Engine, conn: Connection) -> bytes:
    """State, timer and queues, for `ss`."""
    timer, due = NO_TIMER, None
    recovery = conn.recovery
    if conn.persist_at is not None:
        timer, due = PERSIST, conn.persist_at
    elif recovery is not None and recovery.deadline is not None:
        timer, due = RETRANSMIT, recovery.deadline
    elif conn.wait_until is not None:
        timer, due = WAITING, conn.wait_until
    elif conn.keepalive_at is not None:
        timer, due = KEEPALIVE, conn.keepalive_at
    milliseconds = max(0, int((due - engine.now) * 1000)) if due is not None else 0
    return INFO_ANSWER.pack(conn.state, timer, 0, min(milliseconds, 0xFFFFFFFF), conn.backoffs, 0,
                            acknowledgment.unread(conn), max(0, min(conn.snd_nxt, conn.written) - max(conn.snd_una, 1)),
                            max(0, conn.written - max(conn.snd_nxt, 1)))


def tcp_info(engine: Engine, conn: Connection) -> bytes:
    """struct tcp_info up to tcpi_snd_wnd (232 octets). Times in microseconds where Linux has those, else
    milliseconds."""
    recovery = conn.recovery
    if recovery is None and conn.state in SENDING:
        recovery = engine.advised_recovery(conn)
    options = (conn.timestamps_ok * OPTION_TIMESTAMPS | conn.sack_ok * OPTION_SACK | conn.scale_ok * OPTION_SCALE
               | (conn.ecn_ok or conn.accurate is not None) * OPTION_ECN | (conn.syn_octets > 0) * OPTION_SYN_DATA)
    mss = conn.mss - (12 if conn.timestamps_ok else 0)
    now = engine.now

    def ago(at: float) -> int:
        return max(0, int((now - at) * 1000)) if at else 0

    rtt, variance, cwnd, ssthresh, rto, backoffs, again = 0.0, 0.0, 0, _UNLIMITED, 0.0, 0, 0
    rate, pace, reordered = 0, 0, 0
    state, least_us, unacked, sacked, lost, resent = CA_OPEN, 0xFFFFFFFF, 0, 0, 0, 0
    if recovery is not None:
        rtt, variance, cwnd = recovery.rtt_s, recovery.rtt_variance_s, max(1, recovery.cwnd // mss)
        ssthresh = min(_UNLIMITED, recovery.ssthresh // mss) if recovery.ssthresh < UNLIMITED else _UNLIMITED
        rto, backoffs, again = recovery.rto_s, recovery.backoffs, recovery.retransmits
        state = recovery.congestion_state
        rate, pace, reordered = int(recovery.delivery_rate), int(recovery.pacing.rate), int(recovery.reordering_seen)
        if recovery.min_rtt_s:
            least_us = int(recovery.min_rtt_s * 1e6)
        board = recovery.board
        unacked, sacked, lost, resent = (
            -(-octets // mss) for octets in (board.flight, board.sacked, board.lost, board.resent))
    acked, received = max(conn.snd_una - 1, 0), max(conn.rcv_nxt - 1, 0)
    unsent = max(0, conn.written - max(conn.snd_nxt, 1))
    return TCP_INFO.pack(
        conn.state, state, min(conn.backoffs, 255), min(conn.keepalive_probes + conn.probes_unanswered, 255),
        min(backoffs, 255), options, (conn.peer_scale | conn.own_scale << 4) if conn.scale_ok else 0, 0,
        int(rto * 1e6), int(acknowledgment.DELAY_S * 1e6), mss, conn.peer_segment,
        unacked, sacked, lost, resent, 0,
        ago(conn.last_sent), 0, ago(conn.last_text), ago(conn.last_heard),
        conn.path_mss + 40, max(0, conn.advertised - conn.rcv_nxt), int(rtt * 1e6), int(variance * 1e6),
        ssthresh, cwnd, conn.own_mss - (12 if conn.timestamps_ok else 0), 3,
        0, conn.rcv_limit, again,
        pace, 0, acked, received,
        conn.segments_out, conn.segments_in, unsent, least_us, conn.data_segments_in, conn.data_segments_out,
        rate, 0, 0, 0, -(-acked // mss) + sacked,
        conn.accurate.delivered_marked if conn.accurate is not None else 0,
        max(conn.snd_nxt - 1, 0) + conn.octets_resent, conn.octets_resent,
        0, reordered, conn.out_of_order_in, min(conn.snd_window, 0xFFFFFFFF))



def named(octets: bytes) -> dict[str, int]:
    """What is not zero of a struct tcp_info, by name; times as in there (microseconds or milliseconds)."""
    return {name: value for name, value in zip(FIELDS, TCP_INFO.unpack(octets), strict=True) if value}

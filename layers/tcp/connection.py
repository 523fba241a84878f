"""The transmission control block (RFC 9293 section 3.3.1): the fields of a connection.

All sequence numbers are relative and unbounded (`layers.tcp.sequence`): 0 is the SYN, n + 1 is the octet at stream
offset n. `written`, `end`, `read` and so on are also such numbers, so they can be compared with SND.UNA and RCV.NXT.
Times are seconds of CLOCK_MONOTONIC.

The interface to loss recovery and congestion control
-----------------------------------------------------
The engine uses only `connection.recovery`, an object with these methods and attributes. `layers.tcp.recovery` composes
it of scoreboard, RACK, retransmission timer and congestion control, which can be exchanged without changing the engine:

    sent(start, end, now, limited)
        Numbers [start, end) are sent now, for the first time or again (SYN and FIN count one each). `limited`: the
        application or the peer's window was the limit, not the congestion window.
    acknowledged(una, sack, now, duplicate, echoed_s)
        A segment with an acceptable ACK arrived: the cumulative acknowledgment (may be unchanged), SACK blocks as
        relative numbers, whether it is a duplicate ACK (RFC 5681 section 2), the round trip by its timestamp, or None.
    lost() -> (start, end) | None
        The first range to retransmit, before new data.
    allowance(now) -> int
        Number of octets that may be sent now (cwnd minus what is in flight, or what PRR permits); at least a segment
        if nothing is in flight.
    deadline: float | None
        The time of the next `expire`: RTO, TLP or RACK's reordering timer. None: nothing is in flight.
    expire(now) -> bool
        The deadline has come: mark what is lost, back off. True: it was an RTO.
    probe(start, end)
        [start, end) is beyond the peer's window: the persist timer sends it. Not in flight; lost; no deadline.
    window_closed(now)
        The RTO came while the peer's window is closed: everything is lost, no congestion signal, no deadline.
    reduce_mss(mss)
        The new size of a segment's text, without options; if it is smaller than before, longer ranges are lost.
    advises, store(memory, at), load(octets), restored(una, nxt, now)
        48 octets of advice for a successor, which may be torn or old; `store` is due if `advises` is true. `restored`
        is called in the successor, for which the state of octets in flight is unknown, and which therefore treats them
        as lost.
    freed, in_flight, rtt_s, rtt_variance_s, rto_s, backoffs, cwnd, ssthresh, retransmits
        Values for TCP_INFO and for the slot.

Sizes are octets, times are float seconds.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bus.durable.arena import Ring
    from bus.streams import StreamState
    from layers.tcp.ecn import AccurateEcn
    from layers.tcp.recovery import Recovery

# States, with Linux's numbers (include/net/tcp_states.h). SYN_RECEIVED covers both ways into it, which `listener`
# distinguishes.
(ESTABLISHED, SYN_SENT, SYN_RECEIVED, FIN_WAIT_1, FIN_WAIT_2, TIME_WAIT, CLOSED, CLOSE_WAIT, LAST_ACK, LISTEN,
 CLOSING) = range(1, 12)
STATE_NAMES = ("", "ESTABLISHED", "SYN-SENT", "SYN-RECEIVED", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSED",
               "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING")

SYNCHRONIZED = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK, TIME_WAIT})
RECEIVING = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2})  # text still comes
# states that may last for hours without a segment or a timer (`layers.tcp.quiet`), but for those of an orphan
LASTING = frozenset({ESTABLISHED, CLOSE_WAIT, FIN_WAIT_2})
SENDING = frozenset({ESTABLISHED, CLOSE_WAIT, FIN_WAIT_1, CLOSING, LAST_ACK})  # segments of ours may be in flight

PORTS = Struct("!HH")
ORPHAN = 0  # as a handle: the connection has no owner any more
CORK_OVER = 0.0  # as the time until which corked octets wait: it has come


class Ends(NamedTuple):
    """Addresses (octets) and ports of a connection; the local end comes first."""

    local: bytes
    port: int
    peer: bytes
    peer_port: int

    @property
    def flow(self) -> bytes:
        """The key of a connection: peer's address, own address, peer's port, own port, as in a received segment."""
        return self.peer + self.local + PORTS.pack(self.peer_port, self.port)

    @property
    def octets(self) -> bytes:
        """For keyed hashes."""
        return b"".join((self.local, self.port.to_bytes(2, "big"), self.peer, self.peer_port.to_bytes(2, "big")))


def ends_of(flow: bytes) -> Ends:
    """The ends of a flow."""
    width = (len(flow) - 4) // 2
    return Ends(flow[width : 2 * width], int.from_bytes(flow[-2:], "big"), flow[:width],
                int.from_bytes(flow[-4:-2], "big"))


class Connection:
    """One connection. It has only fields; the other modules contain the behaviour."""

    __slots__ = (
        "accept_number", "accurate", "ack_due", "ack_now", "adopted", "advertised", "automatic", "backoffs",
        "challenge_at", "cookie", "cork_at", "data_segments_in", "data_segments_out", "delayed_at", "duplicate_sack",
        "ecn_echo", "ecn_ok", "ecn_reduced", "end", "ends", "error_soft", "fin_at", "flow", "former_mss", "full_end",
        "gap_told", "handle", "home", "irs", "iss", "keepalive_at", "keepalive_probes", "last_ack_sent", "last_heard",
        "last_progress", "last_sent", "last_size", "last_text", "listener", "measured_at", "measured_from", "more",
        "mss", "octets_resent", "opened_at", "options", "out_of_order", "out_of_order_in", "own_mss", "own_scale",
        "path_mss", "peer_mss", "peer_scale", "peer_segment", "persist_at", "pingpong", "probe_count",
        "probes_unanswered", "pushed", "queued_at", "quick", "quiet_queued", "raise_at", "raise_end", "raise_resent",
        "rcv_limit", "rcv_nxt", "read", "read_asked", "receive_ring", "recent_sack", "recovery", "rest_queued",
        "room_said", "sack_ok", "scale_ok", "segments_in", "segments_out", "send_limit", "send_ring", "slot",
        "small_sent", "snd_nxt", "snd_una", "snd_urgent", "snd_window", "snd_wl1", "snd_wl2", "state", "stored",
        "syn_held", "syn_octets", "timestamp_offset", "timestamps_ok", "touched", "ts_recent", "ts_recent_at",
        "urgent", "wait_until", "window_max", "written",
    )

    def __init__(self, ends: Ends, handle: int, options: StreamState) -> None:
        self.ends = ends
        self.flow = ends.flow
        self.handle = handle
        self.options = options
        self.state = CLOSED
        self.slot = 0  # in durable memory; 0: none
        self.stored: tuple[int, ...] | None = None  # the identity that is stored in the slot
        self.listener = 0  # handle of its listener; 0: an outgoing connection
        self.accept_number = 0  # its number among those that the listener passed up; 0: not passed up yet
        self.adopted = True  # False: the socket service does not know it yet
        self.home = 0  # number of the memory of its application; 0: none, its octets travel in records
        self.automatic = False  # its port was chosen by connect
        self.opened_at = 0.0
        # Send sequence variables (RFC 9293 section 3.3.1)
        self.iss = 0
        self.snd_una = 0
        self.snd_nxt = 0  # the highest that was ever sent; retransmission does not decrease it
        self.snd_window = 0  # octets
        self.snd_wl1 = 0
        self.snd_wl2 = 0
        self.window_max = 0  # the largest that the peer has offered
        self.snd_urgent = 0  # number after the urgent octet; 0: none
        self.written = 1  # number after the last octet that the application wrote and we have stored
        self.end: int | None = None  # number of our FIN, after the application has closed the sending direction
        self.send_limit = 0  # maximum of octets that are written but not acknowledged
        self.gap_told = 0  # `written` when the application was last asked to send again
        self.more = False  # the last octet written came with MSG_MORE
        self.small_sent = 0  # number after the last sent segment that was not full (Minshall)
        self.send_ring: Ring | None = None
        # Receive sequence variables
        self.irs = 0
        self.rcv_nxt = 0
        self.advertised = 0  # right edge of the promised window; it never moves back
        self.rcv_limit = 0  # size of the receive buffer in octets
        self.read = 1  # number after the last octet that the application has taken
        self.read_asked = 0  # RCV.NXT when the application was last asked for that (`layers.tcp.quiet`)
        self.fin_at: int | None = None  # number of the peer's FIN, if it has arrived
        self.urgent = 0  # number after the peer's urgent octet; 0: none
        self.receive_ring: Ring | None = None
        self.out_of_order: list[tuple[int, int]] | None = None  # ranges beyond RCV.NXT that are in the ring, ascending
        self.duplicate_sack: tuple[int, int] | None = None  # repeated octets, for the next ACK (RFC 2883)
        self.recent_sack: list[tuple[int, int]] | None = None  # blocks to report, the latest first (RFC 2018 section 4)
        # For TCP_INFO (RFC 4898)
        self.segments_in = self.data_segments_in = self.segments_out = self.data_segments_out = 0
        self.octets_resent = 0
        self.out_of_order_in = 0  # segments that arrived beyond a gap
        # Fast Open (`layers.tcp.fast_open`)
        self.cookie: bytes | None = None  # for our SYN or SYN-ACK; empty: a request
        self.syn_held = False  # the SYN waits for the first text
        self.syn_octets = 0  # of text in a SYN, ours or the peer's, that its receiver took
        # What both ends agreed on
        self.mss = 536  # maximum payload that we send, with options included
        self.full_end = 0  # number after the first full segment with this `mss`; 0: none was sent
        self.former_mss = 0  # `mss` before the path was taken for a black hole, to be tried again; 0: none
        self.raise_at = 0.0  # when
        self.raise_end = 0  # number after the segment that tries it; 0: none is in flight
        self.raise_resent = 0  # `octets_resent` when it was sent
        self.peer_mss = 536  # the MSS of the peer
        self.own_mss = 536  # the MSS that we sent
        self.path_mss = 536  # the maximum for the path
        self.peer_segment = 536  # the text of the peer's full segments, as far as known
        self.last_size = 0  # the text of the last segment, if it was shorter and may be full all the same
        self.scale_ok = False
        self.peer_scale = 0  # shift of windows that the peer sends
        self.own_scale = 0
        self.timestamps_ok = False
        self.sack_ok = False
        self.ecn_ok = False  # explicit congestion notification of RFC 3168
        self.accurate: AccurateEcn | None = None  # that of RFC 9768
        self.ecn_echo = False  # our ACKs report a mark until the peer has reduced its window
        self.ecn_reduced = False  # the next new segment reports that we have reduced our window (CWR)
        self.timestamp_offset = 0
        self.ts_recent = 0
        self.ts_recent_at = 0.0
        # Acknowledgments owed
        self.ack_now = False
        self.ack_due = 0  # octets received since the last ACK left
        self.pushed = False  # the end of a write was among them: a segment with PSH that is not full
        self.last_ack_sent = 0
        self.delayed_at: float | None = None
        self.quick = 16  # number of ACKs that will not be delayed
        self.pingpong = False
        # Timers: None, or the time; `layers.tcp.timers` knows the earliest
        self.persist_at: float | None = None
        self.cork_at: float | None = None  # CORK_OVER: it has come, and the octets could not leave yet
        self.keepalive_at: float | None = None
        self.wait_until: float | None = None  # the end of TIME-WAIT, or of an orphan's FIN-WAIT-2
        self.quiet_queued = self.rest_queued = False  # it is in one of the queues of `layers.tcp.quiet`
        self.queued_at: float | None = None
        self.backoffs = 0
        self.keepalive_probes = 0
        self.probe_count = 0  # number of zero-window probes since the window closed
        self.probes_unanswered = 0
        self.last_heard = 0.0
        self.last_sent = 0.0  # text
        self.last_text = 0.0  # received
        self.measured_at = 0.0  # of the receive buffer's tuning
        self.measured_from = 1
        self.last_progress = 0.0  # time of the last acknowledgment, or when nothing was in flight
        self.error_soft = 0  # errno of the last soft error
        self.challenge_at = 0.0
        self.room_said = 0  # the limit in the last ROOM
        self.touched = False
        self.recovery: Recovery | None = None

    @property
    def buffer_octets(self) -> int:
        """How many octets the application may have written that are not acknowledged."""
        ring = self.send_ring
        return min(self.send_limit, ring.size) if ring is not None and ring.home else self.send_limit

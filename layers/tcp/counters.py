"""What the TCP layer counts. Linux's name, where it has the counter (`nstat`), stands in brackets."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.transport import TransportCounters


class Counters(TransportCounters):
    """One sentence for everything that can happen to a segment or a connection here."""

    segments_in = In("Segments from ip [TcpInSegs].")
    segments_out = Out("Segments handed to ip; one that the medium cuts counts once [TcpOutSegs].")
    retransmitted = Event("Segments sent again [TcpRetransSegs].")
    timeouts = Event("Retransmission time-outs [TcpExtTCPTimeouts].")
    active_opens = Event("Connections that an application opened [TcpActiveOpens].")
    passive_opens = Event("Connections that came to a listener [TcpPassiveOpens].")
    attempt_fails = Event("Connections that failed before they were established [TcpAttemptFails].")
    established_resets = Event("Established connections that were reset, by either end [TcpEstabResets].")
    resets_sent = Event("Resets sent [TcpOutRsts].")
    challenges_sent = Event("Challenge ACKs sent, RFC 5961 [TcpExtTCPChallengeACK].")
    probes_sent = Event("Zero-window probes sent [TcpExtTCPWinProbe].")
    keepalives_sent = Event("Keep-alive probes sent [TcpExtTCPKeepAlive].")
    delayed_acks = Event("ACKs that a timer sent [TcpExtDelayedACKs].")
    cookies_sent = Event("SYN cookies sent [TcpExtSyncookiesSent].")
    cookies_received = Event("SYN cookies that came back [TcpExtSyncookiesRecv].")
    cookies_failed = Drop("ACKs to a listener that carry no SYN cookie of ours [TcpExtSyncookiesFailed].")
    time_wait_reused = Event("Connections in TIME-WAIT that a new one took the place of, RFC 6191 [TcpExtTWRecycled].")
    time_wait_ended = Event("Connections in TIME-WAIT ended early: there are too many [TcpExtTCPTimeWaitOverflow].")
    out_of_order = Event("Segments that came before one that is missing [TcpExtTCPOFOQueue].")
    duplicates = Event("Segments that brought nothing new.")
    mtu_lowered = Event("Connections whose path was found to take less.")
    errors_in = Event("ICMP errors about segments of ours.")
    resumed = Event("Connections taken over from a former incarnation.")
    accept_waits = Event("Handshakes that wait because the accept queue is full [TcpExtListenOverflows].")

    packet_truncated = Drop("The packet ends before its TCP header does [TcpInErrs].")
    bad_checksum = Drop("The TCP checksum does not verify [TcpInCsumErrors].")
    to_group = Drop("A segment to or from a broadcast or multicast address.")
    no_port = Drop("A segment to no connection and no listener; it was answered by a reset.")
    reset_unanswered = Drop("A reset to no connection.")
    outside_window = Drop("A segment outside the receive window; it was answered by an ACK where RFC 9293 says so.")
    old_timestamp = Drop("A segment with an old timestamp, RFC 7323 [TcpExtPAWSEstab].")
    unacceptable_ack = Drop("A segment that acknowledges what was never sent or is too old, RFC 5961.")
    unexpected_syn = Drop("A SYN for a connection that is synchronized, RFC 5961.")
    blind_reset = Drop("A reset that does not stand exactly at the window's start, RFC 5961.")
    no_ack = Drop("A segment without ACK to a connection.")
    listen_dropped = Drop("SYNs dropped because a queue is full [TcpExtListenDrops].")
    listen_bad = Drop("Segments to a listener that are neither a SYN, without FIN, nor an answer to a SYN cookie.")
    no_memory = Drop("Octets that came while there was no memory for them.")
    beyond_window = Drop("Octets beyond the receive window [TcpExtTCPZeroWindowDrop].")
    reset_limited = Drop("Resets and challenge ACKs that the limit kept back [TcpExtTCPACKSkippedChallenge].")
    stream_no_socket = Drop("A stream record for a handle that has no connection.")
    stream_malformed = Drop("A stream record that does not parse.")
    stream_gap = Drop("Octets to send that came before those that precede them; they were asked for again.")
    stream_over = Drop("Octets to send beyond the limit or behind the end.")
    error_malformed = Drop("An ICMP error that does not quote enough of a segment.")
    error_no_connection = Drop("An ICMP error about a segment of no connection.")
    error_forged = Drop("An ICMP error that quotes a sequence number not in flight, RFC 5927.")

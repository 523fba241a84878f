"""The counters of tcp, with the names of Linux's counters (`nstat`) in brackets."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.transport import TransportCounters


class Counters(TransportCounters):
    """One sentence for each counter."""

    segments_in = In("Segments from ip [TcpInSegs].")
    segments_out = Out("Segments passed to ip; a super-segment counts once [TcpOutSegs].")
    retransmitted = Event("Segments retransmitted [TcpRetransSegs].")
    timeouts = Event("Retransmission timeouts [TcpExtTCPTimeouts].")
    active_opens = Event("Connections that an application opened [TcpActiveOpens].")
    passive_opens = Event("Connections to a listener [TcpPassiveOpens].")
    attempt_fails = Event("Connections that failed before they were established [TcpAttemptFails].")
    established_resets = Event("Established connections that were reset, by either end [TcpEstabResets].")
    resets_sent = Event("Resets sent [TcpOutRsts].")
    challenges_sent = Event("Challenge ACKs sent (RFC 5961) [TcpExtTCPChallengeACK].")
    probes_sent = Event("Zero-window probes sent [TcpExtTCPWinProbe].")
    keepalives_sent = Event("Keep-alive probes sent [TcpExtTCPKeepAlive].")
    delayed_acks = Event("ACKs that a timer sent [TcpExtDelayedACKs].")
    cookies_sent = Event("SYN cookies sent [TcpExtSyncookiesSent].")
    cookies_received = Event("Valid SYN cookies received [TcpExtSyncookiesRecv].")
    cookies_failed = Drop("ACKs to a listener without a valid SYN cookie (RFC 4987 section 3.6) "
                          "[TcpExtSyncookiesFailed].")
    fast_opens = Event("Connections opened by text in a SYN with a valid cookie, RFC 7413 [TcpExtTCPFastOpenPassive].")
    fast_open_cookies = Event("Cookies for Fast Open sent, to peers without a valid one [TcpExtTCPFastOpenCookieReqd].")
    fast_open_refused = Event("SYNs with a valid cookie whose text was left to be sent again: none, or too many wait.")
    time_wait_reused = Event("Connections in TIME-WAIT replaced by a new one, RFC 6191 [TcpExtTWRecycled].")
    time_wait_ended = Event("Connections in TIME-WAIT ended early: there are too many [TcpExtTCPTimeWaitOverflow].")
    out_of_order = Event("Segments received out of order [TcpExtTCPOFOQueue].")
    duplicates = Event("Segments with no new octets.")
    mtu_lowered = Event("Connections whose segment size was reduced because of the path.")
    errors_in = Event("ICMP errors about sent segments.")
    resumed = Event("Connections restored from a former process.")
    slept = Event("Idle connections of which only the slot and a note were kept.")
    reading_asked = Event("Idle connections whose application was asked how far it has read.")
    woken = Event("Connections of which more was needed again after that.")
    poison_resets = Event("Connections reset because a segment that had killed this layer came again.")
    closes_incomplete = Event("Connections reset when they were closed, because octets that the application had "
                              "written were lost on their way to this layer.")
    accept_waits = Event("Handshakes that wait because the accept queue is full [TcpExtListenOverflows].")

    packet_truncated = Drop("Packets shorter than a TCP header or than their data offset (RFC 9293 section 3.1) "
                            "[TcpInErrs].")
    bad_checksum = Drop("Segments with a wrong checksum (RFC 9293 section 3.1) [TcpInCsumErrors].")
    to_group = Drop("Segments to or from a broadcast or multicast address (RFC 9293 section 3.9.2.3).")
    no_port = Drop("Segments without a connection or listener, answered by a reset (RFC 9293 section 3.10.7.1).")
    reset_unanswered = Drop("Resets without a connection (RFC 9293 section 3.10.7.1).")
    outside_window = Drop("Segments outside the receive window, most of which are answered by an ACK (RFC 9293 "
                          "section 3.10.7.4, first).")
    old_timestamp = Drop("Segments with an old timestamp (RFC 7323 section 5.3, R1) [TcpExtPAWSEstab].")
    unacceptable_ack = Drop("Segments that acknowledge octets that were never sent, or very old ones (RFC 5961 "
                            "section 5.2).")
    unexpected_syn = Drop("SYNs for a synchronized connection, answered by a challenge ACK (RFC 5961 section 4.2).")
    blind_reset = Drop("Resets not exactly at the start of the window (RFC 5961 section 3.2).")
    no_ack = Drop("Segments of a connection without ACK (RFC 9293 section 3.10.7.4).")
    cookies_limited = Drop("SYNs that were not answered because the limit of SYN cookies a second is reached; a client "
                           "repeats its SYN, and that has priority [TcpExtTCPReqQFullDrop].")
    listen_dropped = Drop("SYNs dropped because a queue is full [TcpExtListenDrops].")
    listen_bad = Drop("Segments to a listener that are neither a SYN, without FIN, nor an answer to a SYN cookie (RFC "
                      "9293 section 3.10.7.2).")
    text_overwritten = Drop("Segments whose text link had overwritten before it was copied.")
    no_memory = Drop("Octets dropped for lack of memory.")
    beyond_window = Drop("Octets beyond the receive window (RFC 9293 section 3.10.7.4) [TcpExtTCPZeroWindowDrop].")
    reset_limited = Drop("Resets and challenge ACKs not sent because of the rate limit (RFC 5961 section 7) "
                         "[TcpExtTCPACKSkippedChallenge].")
    stream_no_socket = Drop("Stream records for a handle without a connection.")
    stream_malformed = Drop("Stream records that cannot be decoded.")
    stream_gap = Drop("Octets to send after a gap, which were requested again.")
    memory_refused = Drop("Offers of a memory that is not the application's.")
    stream_over = Drop("Octets to send beyond the limit or after the end.")
    error_malformed = Drop("ICMP errors that do not quote enough of a segment (RFC 1122 section 3.2.2).")
    error_no_connection = Drop("ICMP errors about a segment without a connection (RFC 9293 section 3.9.2.2).")
    error_forged = Drop("ICMP errors that quote a sequence number not in flight (RFC 5927 section 4.1).")

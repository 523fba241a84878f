"""The counters of icmp."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.raw_transport import DirectCounters


class Counters(DirectCounters):
    """One sentence for each counter."""

    received = In("ICMP packets from ip.")
    echo_replies_sent = Out("Replies to echo requests.")
    timestamp_replies_sent = Out("Replies to timestamp requests.")
    errors_sent = Out("Errors sent about received packets.")
    requests_sent = Out("Echo requests sent for ping sockets.")

    replies_delivered = Event("Echo replies passed to ping sockets.")
    errors_to_transports = Event("Errors about packets of the stack, passed to their transport.")
    errors_to_raw = Event("Errors about packets of the stack of any protocol, passed to raw.")
    redirects_to_ip = Event("Redirects about packets of the stack, passed to ip (`up --accept-redirects`).")
    errors_to_sockets = Event("Errors about echo requests of the stack, reported to ping sockets.")
    sends = Event("Echo requests of ping sockets.")

    malformed = Drop("Packets shorter than an ICMP header (RFC 792).")
    bad_checksum = Drop("Messages with a wrong ICMP checksum (RFC 792).")
    to_group = Drop("Messages to a broadcast or multicast address, which are not answered, as on Linux (RFC 1122 "
                    "section 3.2.2.6).")
    reply_no_socket = Drop("Echo replies whose identifier is not that of a ping socket (RFC 1122 section 3.2.2.6).")
    unknown_type = Drop("Messages of an unknown type (RFC 1122 section 3.2.2).")
    source_quench = Drop("Source quench messages, which are deprecated (RFC 6633) and ignored.")
    redirect = Drop("Redirects (RFC 1122 section 3.2.2.2), which are ignored without `up --accept-redirects`.")
    router_discovery = Drop("Router advertisements and solicitations (RFC 1256), which are ignored, as on Linux.")
    information = Drop("Information requests and replies, which are obsolete (RFC 6918) and must not be answered (RFC "
                       "1122 section 3.2.2.7).")
    address_mask = Drop("Address mask requests and replies, which only an authoritative agent answers (RFC 1122 "
                        "section 3.2.2.9).")
    timestamp_reply = Drop("Timestamp replies (RFC 1122 section 3.2.2.8); only raw sockets send requests, and they "
                           "get a copy of the reply.")

    error_unknown_code = Drop("Destination unreachable with a code above 15, or redirects with a code above 3 (RFC "
                              "1122 section 3.2.2.1).")
    error_bad_quote = Drop("Errors that do not quote an IP header and 8 octets of payload (RFC 1122 section 3.2.2).")
    error_not_ours = Drop("Errors about a packet whose source is not an own address (RFC 1122 section 3.2.2).")
    error_about_group = Drop("Errors about a packet to a broadcast or multicast address, which are forbidden (RFC "
                             "1122 section 3.2.2).")
    error_no_transport = Drop("Errors about a packet of a protocol without a layer (RFC 1122 section 3.2.2).")
    error_no_socket = Drop("Errors about an ICMP message whose ping socket does not exist.")
    error_ignored = Drop("Errors that are not reported to this ping socket, as on Linux.")

    report_malformed = Drop("Invalid requests to send an error.")
    report_about_icmp = Drop("Errors not sent about an ICMP message that is not a query (RFC 1122 section 3.2.2).")
    report_to_group = Drop("Errors not sent about a packet whose destination is not an own address (RFC 1122 section "
                           "3.2.2).")
    report_from_group = Drop("Errors not sent to a source that is not a single host (RFC 1122 section 3.2.2).")
    report_fragment = Drop("Errors not sent about a fragment other than the first (RFC 1122 section 3.2.2).")
    report_limited = Drop("Errors not sent because of the rate limit for this host or for all (RFC 1812 section "
                          "4.3.2.8).")

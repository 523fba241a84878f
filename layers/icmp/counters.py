"""What the ICMP layer counts."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.raw_transport import DirectCounters


class Counters(DirectCounters):
    """One sentence for everything that can happen to a message here."""

    received = In("ICMP packets from ip.")
    echo_replies_sent = Out("Replies to echo requests.")
    timestamp_replies_sent = Out("Replies to timestamp requests.")
    errors_sent = Out("Errors sent about packets that we received.")
    requests_sent = Out("Echo requests sent for ping sockets.")

    replies_delivered = Event("Echo replies handed to ping sockets.")
    errors_to_transports = Event("Errors about packets of ours, handed to their transport.")
    errors_to_raw = Event("Errors about packets of ours of any protocol, handed to raw.")
    redirects_to_ip = Event("Redirects about packets of ours, handed to ip (`up --accept-redirects`).")
    errors_to_sockets = Event("Errors about echo requests of ours, told to ping sockets.")
    sends = Event("Echo requests that ping sockets asked to send.")

    malformed = Drop("The packet ends before its ICMP header does.")
    bad_checksum = Drop("The ICMP checksum does not verify.")
    to_group = Drop("The message was sent to a broadcast or multicast address; such are not answered, as on Linux.")
    reply_no_socket = Drop("An echo reply with the identifier of no ping socket here.")
    unknown_type = Drop("A message of a type that is not handled.")
    source_quench = Drop("A source quench; deprecated (RFC 6633) and ignored.")
    redirect = Drop("A redirect; ignored, without `up --accept-redirects`: routes are the operator's.")
    router_discovery = Drop("A router advertisement or solicitation (RFC 1256); ignored, as by Linux.")
    information = Drop("An information request or reply; obsolete (RFC 6918), and no host may answer (RFC 1122).")
    address_mask = Drop("An address mask request or reply; ignored: we are no authority for masks (RFC 1122).")
    timestamp_reply = Drop("A timestamp reply; nothing here sends requests but raw sockets, which have their own copy.")

    error_unknown_code = Drop("A destination unreachable with a code above 15, or a redirect with one above 3.")
    error_bad_quote = Drop("An error that does not quote a packet's IP header and first 8 octets of payload.")
    error_not_ours = Drop("An error about a packet that was not sent from an address of ours.")
    error_about_group = Drop("An error about a packet to a broadcast or multicast address: nobody may send such.")
    error_no_transport = Drop("An error about a packet of a protocol that nobody here speaks.")
    error_no_socket = Drop("An error about an ICMP message that is of no ping socket that is still here.")
    error_ignored = Drop("An error that Linux would not tell this ping socket of either.")

    report_malformed = Drop("A packet to complain of, or an error to complain with, that makes no sense.")
    report_about_icmp = Drop("No error about an ICMP message that is not a query (RFC 1122 section 3.2.2).")
    report_to_group = Drop("No error about a packet that was not sent to an address of ours.")
    report_from_group = Drop("No error to a source that is no single host.")
    report_fragment = Drop("No error about a fragment other than the first.")
    report_limited = Drop("No error now: too many in a short time, to this host or to all.")

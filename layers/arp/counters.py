"""What the ARP layer counts."""

from __future__ import annotations

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """ARP packets in and out, and what became of neighbours."""

    received = In("ARP packets from the link.")
    requests_sent = Out("Requests sent, by broadcast or to the MAC that is verified again.")
    replies_sent = Out("Replies to requests for an address of ours.")
    probes_sent = Out("Probes that ask whether a new address of ours is used already (RFC 5227 section 2.1.1).")
    announcements_sent = Out("Announcements of an address that was probed (RFC 5227 section 2.3).")
    defences_sent = Out("Announcements sent because somebody else used our address (RFC 5227 section 2.4).")

    too_short = Drop("ARP packets of fewer than 28 octets.")
    not_ethernet_ipv4 = Drop("ARP packets for other hardware or another protocol than Ethernet and IPv4.")
    unknown_operation = Drop("ARP packets that are neither request nor reply.")
    own_packet = Drop("ARP packets that carry our own MAC as their sender's: our packets came back.")
    bad_sender_mac = Drop("ARP packets whose sender claims a broadcast, multicast or zero MAC.")
    bad_sender_address = Drop("ARP packets whose sender claims an address that no single neighbour can have.")
    conflict = Drop("ARP packets by which somebody else claims our address.")
    permanent_kept = Drop("ARP packets by which a neighbour with a permanent entry claims another MAC.")
    learn_limited = Drop("New neighbours or MACs that nobody had asked for, not learnt: too many in a short time.")
    resolve_malformed = Drop("Requests to resolve that are not an address, or the address of no neighbour.")
    routes_malformed = Drop("Announcements from ip that do not parse, or whose addresses are none.")
    resolve_refused = Drop("Requests to resolve answered by unreachable at once: too many at a time.")

    probes = Event("ARP probes for an address of ours (sender's address 0.0.0.0), answered but not learnt from.")
    learnt = Event("Neighbours learnt without having been asked for: they had asked for us.")
    changed = Event("Neighbours that turned up with another MAC, without having been asked.")
    resolved = Event("Resolutions and verifications that found their neighbour.")
    unanswered = Event("Resolutions and verifications that nobody answered.")
    evicted = Event("Neighbours forgotten because the table was full.")
    managed = Event("Neighbours that were set or deleted by hand.")
    reloaded = Event("Neighbours read back after a start.")

"""The counters of arp."""

from __future__ import annotations

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """ARP packets in and out, and changes of neighbours."""

    received = In("ARP packets from the link.")
    requests_sent = Out("Requests sent, by broadcast or to the MAC that is being verified.")
    replies_sent = Out("Replies to requests for an own address.")
    probes_sent = Out("Probes for a new own address (RFC 5227 section 2.1.1).")
    announcements_sent = Out("Announcements of a probed address (RFC 5227 section 2.3).")
    defences_sent = Out("Announcements sent because another host used an own address (RFC 5227 section 2.4).")

    too_short = Drop("ARP packets of fewer than 28 octets (RFC 826).")
    not_ethernet_ipv4 = Drop("ARP packets for other hardware or another protocol than Ethernet and IPv4 (RFC 826).")
    unknown_operation = Drop("ARP packets that are neither request nor reply (RFC 826).")
    own_packet = Drop("ARP packets with the own MAC as sender: own packets that came back.")
    bad_sender_mac = Drop("ARP packets whose sender claims a broadcast, multicast (RFC 1812 section 3.3.2) or zero "
                          "MAC.")
    bad_sender_address = Drop("ARP packets whose sender claims an address that no single host can have.")
    conflict = Drop("ARP packets in which another host claims an own address (RFC 5227 section 2.4).")
    permanent_kept = Drop("ARP packets in which a neighbour with a permanent entry claims another MAC.")
    learn_limited = Drop("Unsolicited neighbours or MACs not learnt, because there were too many in a short time.")
    resolve_malformed = Drop("Requests of ip whose address is malformed or cannot be a neighbour's.")
    routes_malformed = Drop("Routes from ip that cannot be decoded or contain invalid addresses.")
    resolve_refused = Drop("Requests of ip answered by unreachable at once, because too many were pending.")

    probes = Event("ARP probes for an own address (sender 0.0.0.0), which were answered but not learnt from.")
    learnt = Event("Neighbours learnt from their requests for an own address.")
    changed = Event("Neighbours whose MAC changed by an unsolicited packet.")
    resolved = Event("Resolutions and verifications that were answered.")
    unanswered = Event("Resolutions and verifications without an answer.")
    evicted = Event("Neighbours deleted because the table was full.")
    managed = Event("Neighbours set or deleted by the user.")
    reloaded = Event("Neighbours restored at a start.")

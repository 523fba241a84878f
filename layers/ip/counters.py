"""What ip counts."""

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Packets in, packets out, packets dropped and why."""

    packets_in = In("Packets from link.")
    packets_out = Out("Packets handed to link.")
    copied = Event("Packets of which raw got a copy, on the way in or looped.")
    looped = Event("Packets to an own address, delivered without link.")
    truncated = Drop("Packets shorter than a header, or than their header says.")
    bad_version = Drop("Packets whose version is not 4.")
    bad_header_length = Drop("Packets whose header length is below 5 words or beyond the packet.")
    bad_header_checksum = Drop("Packets whose header checksum does not verify.")
    bad_source = Drop("Packets from a source that no host may use on a wire: loopback, broadcast, multicast, our own.")
    other_destination = Drop("Packets to an address that is not ours.")
    unicast_in_group_frame = Drop("Packets to our address in a link-layer broadcast (RFC 1122 section 3.3.6).")
    bad_options = Drop("Packets with malformed IP options; the sender was told.")
    source_routed = Drop("Packets with a source route (RFC 7126 sections 4.3 and 4.4).")
    unknown_protocol = Drop("Packets of a protocol that no layer here speaks.")

    fragments_in = Event("Fragments that came for us.")
    reassembled = Event("Packets put together from fragments.")
    fragment_malformed = Drop("Fragments without data, or not a multiple of 8 octets long and not the last.")
    fragment_beyond = Drop("Fragments that reach beyond the 65,535 octets that a packet can have.")
    fragment_repeated = Drop("Fragments that were there already.")
    fragment_spoilt = Drop("Fragments that contradict others of their packet, and what else came of such packets.")
    reassembly_ecn = Drop("Packets some of whose fragments say that they know ECN, others that they do not.")
    reassembly_timeout = Drop("Packets that were not whole in time; the sender was told, if the first fragment came.")
    reassembly_evicted = Drop("Packets whose fragments gave way to others: their source, or all sources, had too many.")

    fragmented = Event("Packets that we sent in fragments.")
    no_route = Drop("Packets to send for which there is no route.")
    broadcast_denied = Drop("Packets to send to a broadcast address by a socket without leave.")
    no_lifetime = Drop("Packets to send with a TTL of 0, which must not leave the host (RFC 1122 section 3.2.1.7).")
    bad_transmit = Drop("Requests to send that carry no header, or a source that is not ours.")
    bad_crafted = Drop("Packets to send with a header of their sender's that is no header, or that cannot loop so.")
    over_mtu = Drop("Packets to send that are longer than the MTU, by a sender that does not want fragments.")
    over_length = Drop("Packets to send that are longer than a packet can be.")
    neighbor_queue_full = Drop("Packets that waited for a neighbour's address and gave way to newer ones.")
    neighbor_unreachable = Drop("Packets to send to a neighbour that does not answer.")
    bad_announcement = Drop("Announcements from arp that do not parse.")

    gateway_failed = Event("Gateways that stopped to answer arp; others took their place, where there are any.")
    gateway_back = Event("Gateways that answered again.")
    rerouted = Event("Packets that waited for a gateway in vain and left through another.")
    path_mtu_lowered = Event("Destinations that a router told us a smaller MTU for.")
    path_mtu_expired = Event("Path MTUs forgotten by age: the way may have changed.")
    path_mtu_refused = Drop("MTUs told by a router that change nothing, or about a destination that we do not send to.")
    path_mtu_limited = Drop("MTUs told by routers, not looked at: too many in a short time.")
    igmp_in = Event("IGMP messages from the network.")
    igmp_out = Event("IGMP reports and leaves that we sent.")
    igmp_malformed = Drop("IGMP messages too short, with a wrong checksum, or queries shorter than they say.")
    igmp_not_for_hosts = Drop("IGMP messages that concern routers only.")
    other_group = Drop("Packets to a multicast group, or from a source of it, that no socket here asked for.")
    bad_membership = Drop("Memberships of sockets that do not parse or name what is no group.")
    state_unreadable = Drop("Stored records that a start could not read.")

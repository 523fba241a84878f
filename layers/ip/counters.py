"""The counters of ip."""

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Packets in, packets out, and dropped packets by reason."""

    packets_in = In("Packets from link.")
    packets_out = Out("Packets passed to link.")
    copied = Event("Packets copied to raw, received or looped back.")
    looped = Event("Packets to an own address, delivered without link.")
    truncated = Drop("Packets shorter than a header or than their total length (RFC 791 section 3.1).")
    bad_version = Drop("Packets whose version is not 4 (RFC 1122 section 3.2.1.1).")
    bad_header_length = Drop("Packets whose header length is below 5 words or beyond the packet (RFC 791 section 3.1).")
    bad_header_checksum = Drop("Packets with a wrong header checksum (RFC 1122 section 3.2.1.2).")
    bad_source = Drop("Packets from a loopback, broadcast, multicast or own address (RFC 1122 section 3.2.1.3).")
    other_destination = Drop("Packets to an address of another host (RFC 1122 section 3.2.1.3).")
    unicast_in_group_frame = Drop("Packets to an own unicast address in a link-layer broadcast (RFC 1122 section "
                                  "3.3.6).")
    bad_options = Drop("Packets with malformed IP options, answered by an error (RFC 1122 section 3.2.1.8).")
    source_routed = Drop("Packets with a source route (RFC 7126 sections 4.3 and 4.4).")
    unknown_protocol = Drop("Packets of a protocol without a layer (RFC 1122 section 3.2.2.1).")

    fragments_in = Event("Fragments to an own address.")
    reassembled = Event("Packets reassembled from fragments.")
    fragment_malformed = Drop("Fragments without data, or not a multiple of 8 octets long and not the last (RFC 791 "
                              "section 3.2).")
    fragment_beyond = Drop("Fragments that extend beyond the 65,535 octets of a packet (RFC 791 section 3.2).")
    fragment_repeated = Drop("Repeated fragments.")
    fragment_spoilt = Drop("Fragments that contradict others of their packet, and further fragments of such packets "
                           "(as Linux; RFC 5722).")
    reassembly_ecn = Drop("Packets with ECN in some fragments and not in others (RFC 3168 section 5.3).")
    reassembly_timeout = Drop("Packets that were incomplete at the timeout, answered by an error if the first "
                              "fragment had arrived (RFC 1122 section 3.3.2).")
    reassembly_evicted = Drop("Packets whose fragments were dropped because their source, or all sources, had too "
                              "many.")

    fragmented = Event("Packets sent in fragments.")
    no_route = Drop("Packets to send without a route.")
    broadcast_denied = Drop("Packets to send to a broadcast address, by a socket without SO_BROADCAST.")
    no_lifetime = Drop("Packets to send with a TTL of 0, which must not leave the host (RFC 1122 section 3.2.1.7).")
    bad_transmit = Drop("Requests to send without a head, or with a source that is not an own address.")
    bad_crafted = Drop("Packets to send with an invalid IP header, or one that cannot be looped back.")
    over_mtu = Drop("Packets to send that are longer than the MTU and must not be fragmented (RFC 1191 section 3).")
    over_length = Drop("Packets to send that are longer than 65,535 octets (RFC 791 section 3.1).")
    neighbor_queue_full = Drop("Packets dropped while waiting for a neighbour's address, because newer ones arrived "
                               "(RFC 1122 section 2.3.2.2).")
    neighbor_unreachable = Drop("Packets to send to a neighbour that does not answer.")
    bad_announcement = Drop("Records from arp that cannot be decoded.")

    gateway_failed = Event("Gateways that stopped answering arp; other gateways are used instead, if there are any.")
    gateway_back = Event("Gateways that answered again.")
    rerouted = Event("Packets that waited for a dead gateway and left through another.")
    advised = Event("Destinations of which a transport reported that answers stay out.")
    redirected = Event("Destinations that the gateway redirected to another gateway.")
    redirect_expired = Event("Redirects deleted because of their age or because the new gateway does not answer.")
    redirect_refused = Drop("Redirects that are not from the gateway, to an invalid gateway, or about an unused "
                            "destination (RFC 1122 section 3.2.2.2).")
    redirect_limited = Drop("Redirects ignored because of the rate limit.")
    path_mtu_lowered = Event("Destinations for which a router reported a smaller MTU.")
    path_mtu_expired = Event("Path MTUs deleted because of their age.")
    path_mtu_refused = Drop("MTUs from routers that change nothing, or about an unused destination (RFC 1191 section "
                            "3).")
    path_mtu_limited = Drop("MTUs from routers ignored because of the rate limit.")
    igmp_in = Event("IGMP messages from the network.")
    igmp_out = Event("IGMP reports and leave messages sent.")
    igmp_malformed = Drop("IGMP messages that are too short or have a wrong checksum (RFC 3376 section 4).")
    igmp_not_for_hosts = Drop("IGMP messages that concern routers only, or of an unknown type (RFC 3376 section 4).")
    other_group = Drop("Packets to a multicast group, or from a source, that no socket has joined (RFC 1112 section "
                       "7.2, RFC 3376 section 3).")
    bad_membership = Drop("Memberships from sockets that cannot be decoded or contain an invalid group.")
    state_unreadable = Drop("Stored records that could not be read at a start.")

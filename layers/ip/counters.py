"""What ip counts."""

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Packets in, packets out, packets dropped and why."""

    packets_in = In("Packets from link.")
    packets_out = Out("Packets handed to link.")
    looped = Event("Packets to an own address, delivered without link.")
    truncated = Drop("Packets shorter than a header, or than their header says.")
    bad_version = Drop("Packets whose version is not 4.")
    bad_header_length = Drop("Packets whose header length is below 5 words or beyond the packet.")
    bad_header_checksum = Drop("Packets whose header checksum does not verify.")
    bad_source = Drop("Packets from a source that no host may use on a wire: loopback, broadcast, multicast, our own.")
    other_destination = Drop("Packets to an address that is not ours.")
    unicast_in_group_frame = Drop("Packets to our address in a link-layer broadcast (RFC 1122 section 3.3.6).")
    fragment = Drop("Fragments: reassembly is not supported yet.")
    unknown_protocol = Drop("Packets of a protocol that no layer here speaks.")
    no_route = Drop("Packets to send for which there is no route.")
    broadcast_denied = Drop("Packets to send to a broadcast address by a socket without leave.")
    bad_transmit = Drop("Requests to send that carry no header, or a source that is not ours.")
    over_mtu = Drop("Packets to send that are longer than the MTU.")
    neighbor_queue_full = Drop("Packets that waited for a neighbour's address and gave way to newer ones.")
    neighbor_unreachable = Drop("Packets to send to a neighbour that does not answer.")
    bad_announcement = Drop("Announcements from arp that do not parse.")

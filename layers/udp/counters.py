"""The counters of udp."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.transport import TransportCounters


class Counters(TransportCounters):
    """One sentence for each counter."""

    packets_in = In("UDP packets from ip.")
    packets_out = Out("UDP datagrams passed to ip.")
    delivered = Event("Datagrams passed to sockets; a broadcast counts once for each socket that gets it.")
    sends = Event("Datagrams sent by sockets.")
    errors_in = Event("ICMP errors about datagrams of the stack.")
    errors_told = Event("ICMP errors reported to a socket.")
    report_port_unreachable = Event("Packets to a closed port, passed to icmp for an error.")

    packet_truncated = Drop("Packets shorter than a UDP header (RFC 768).")
    bad_length = Drop("Packets whose UDP length is below 8 or more than the packet contains (RFC 768).")
    bad_checksum = Drop("Packets with a wrong UDP checksum (RFC 1122 section 4.1.3.4).")
    no_port = Drop("Packets to a port without a socket (RFC 1122 section 4.1.3.1).")
    no_port_group = Drop("Broadcast or multicast datagrams without a matching socket (RFC 1122 section 3.2.2).")

    send_malformed = Drop("Datagrams to send that are shorter than their header.")
    send_misplaced = Drop("Datagrams to send of an unsupported family or interface, refused with an error to the "
                          "socket.")
    send_no_socket = Drop("Datagrams to send from an unknown handle.")
    send_no_port = Drop("Datagrams to send from a socket without a port.")
    send_no_destination = Drop("Datagrams to send without a destination, from a socket that is not connected.")
    send_bad_options = Drop("Datagrams to send with forbidden IP options, refused with EINVAL or EPERM.")
    send_no_route = Drop("Datagrams to send without a route or from a foreign address, refused with an error to the "
                         "socket.")
    send_too_long = Drop("Datagrams to send that are too long for an IPv4 packet.")

    error_malformed = Drop("ICMP errors that do not quote enough of a UDP packet (RFC 1122 section 3.2.2).")
    error_no_socket = Drop("ICMP errors about a datagram whose socket does not exist (RFC 1122 section 4.1.3.3).")
    error_ignored = Drop("ICMP errors that are not reported to this socket, as on Linux.")

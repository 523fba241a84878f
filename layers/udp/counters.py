"""What the UDP layer counts."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.transport import TransportCounters


class Counters(TransportCounters):
    """One sentence for everything that can happen to a datagram here."""

    packets_in = In("UDP packets from ip.")
    packets_out = Out("UDP segments handed to ip.")
    delivered = Event("Datagrams handed to sockets; a broadcast counts once for each socket that gets it.")
    sends = Event("Datagrams that sockets asked to send.")
    errors_in = Event("ICMP errors about datagrams of ours.")
    errors_told = Event("ICMP errors that a socket was told.")
    report_port_unreachable = Event("Packets to a closed port that icmp was asked to complain of.")

    packet_truncated = Drop("The packet ends before its UDP header does.")
    bad_length = Drop("The UDP length is below 8 or more than the packet carries.")
    bad_checksum = Drop("The UDP checksum does not verify.")
    no_port = Drop("No socket is bound to the destination.")
    no_port_group = Drop("No socket wants this broadcast or multicast datagram.")

    send_malformed = Drop("A datagram to send that is shorter than its header.")
    send_misplaced = Drop("A datagram of a family or over an interface that is not there; the socket was told.")
    send_no_socket = Drop("A datagram to send from a handle that is not declared.")
    send_no_port = Drop("A datagram to send from a socket without a port.")
    send_no_destination = Drop("A datagram to send without a destination, from a socket that is not connected.")
    send_bad_options = Drop("IP options that may not be sent; the socket was told EINVAL or EPERM.")
    send_no_route = Drop("A datagram to where no route leads, or from an address not ours; the socket was told.")
    send_too_long = Drop("A datagram to send that does not fit an IPv4 packet.")

    error_malformed = Drop("An ICMP error that does not quote enough of a UDP packet.")
    error_no_socket = Drop("An ICMP error about a datagram of no socket that is still here.")
    error_ignored = Drop("An ICMP error that Linux would not tell this socket of either.")

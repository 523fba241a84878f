"""What raw counts."""

from __future__ import annotations

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Copies in, packets out, and why something was not passed on."""

    received = In("Packets of which ip sent a copy.")
    sent = Out("Payloads and whole packets handed to ip.")

    delivered = Event("Copies handed to raw sockets; one packet may go to several.")
    errors_in = Event("Errors about packets of ours, from icmp and ip.")
    errors_told = Event("Errors told to raw sockets.")
    sets = Event("Socket declarations worked off, refused ones included.")
    set_refused = Event("Socket declarations answered with an error.")
    closes = Event("Raw sockets closed.")

    malformed = Drop("A packet, or an error's quote, that ends before its IP header does.")
    unwanted = Drop("A packet that no raw socket wanted: named otherwise, filtered by type, or just closed.")
    error_no_socket = Drop("An error about a packet that no raw socket here can have sent, or wants to hear of.")

    send_malformed = Drop("A record to send that is shorter than its header.")
    send_no_socket = Drop("Something to send from a handle that is not declared.")
    send_refused = Drop("Something that may not be sent like this; the socket was told the error.")

    control_malformed = Drop("A control record that does not parse or makes no sense.")
    state_unreadable = Drop("A stored record that a start could not read.")

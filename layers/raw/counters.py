"""What raw counts."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.raw_transport import DirectCounters


class Counters(DirectCounters):
    """Copies in, packets out, and why something was not passed on."""

    received = In("Packets of which ip sent a copy.")
    sent = Out("Payloads and whole packets handed to ip.")

    delivered = Event("Copies handed to raw sockets; one packet may go to several.")
    errors_in = Event("Errors about packets of ours, from icmp and ip.")
    errors_told = Event("Errors told to raw sockets.")

    malformed = Drop("A packet, or an error's quote, that ends before its IP header does.")
    unwanted = Drop("A packet that no raw socket wanted: named otherwise, filtered by type, or just closed.")
    error_no_socket = Drop("An error about a packet that no raw socket here can have sent, or wants to hear of.")

"""The counters of raw."""

from __future__ import annotations

from bus.counters import Drop, Event, In, Out
from layers.common.raw_transport import DirectCounters


class Counters(DirectCounters):
    """Copies in, packets out, and dropped packets by reason."""

    received = In("Packets copied by ip.")
    sent = Out("Payloads and whole packets passed to ip.")

    delivered = Event("Copies passed to raw sockets; one packet may go to several.")
    errors_in = Event("Errors about packets of the stack, from icmp and ip.")
    errors_told = Event("Errors reported to raw sockets.")

    malformed = Drop("Packets, or quotes in errors, that are shorter than their IP header.")
    unwanted = Drop("Packets without a raw socket: other addresses, filtered type, or just closed.")
    error_no_socket = Drop("Errors about a packet that no raw socket can have sent, or for which none wants errors.")

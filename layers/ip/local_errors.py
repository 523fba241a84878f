"""Errors that ip finds: about packets that came, for icmp to tell their sender; about our own, for their transport."""

from __future__ import annotations

from collections.abc import Container

from bus import messages, topology
from bus.layer import Send

UPPER = topology.transports()
UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 11, 12  # RFC 792: types
NET_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, FRAGMENTATION_NEEDED = 0, 1, 2, 4
REASSEMBLY_TIMEOUT = 1  # RFC 792: code of a time exceeded
QUOTE_OCTETS = 576  # more of a packet never goes into an ICMP error

_FRAGMENT_OFFSET = 0x1FFF


def complaint(icmp_type: int, code: int, received: bytes, info: int = 0) -> Send:
    """For icmp: tell the sender of `received`. `info`: the pointer of a parameter problem."""
    header = messages.ICMP_ERROR_HEADER.pack(icmp_type, code, 0, 0, info, bytes(4))
    return (topology.ICMP, messages.REPORT_ERROR, header + received[:QUOTE_OCTETS])


def local_error(code: int, built: bytes, wanted: Container[int], info: int = 0) -> list[Send]:
    """Tell the transport that sent `built` what the network would have told it by ICMP. `info`: an MTU.

    raw is told, too, of the protocols that it wants. Of a fragment but the first nobody could tell whose it was.
    """
    if (built[6] << 8 | built[7]) & _FRAGMENT_OFFSET:
        return []
    header = messages.ICMP_ERROR_HEADER.pack(UNREACHABLE, code, messages.ORIGIN_LOCAL, 0, info, built[12:16])
    told = [UPPER.get(built[9]), topology.RAW if built[9] in wanted else None]
    return [(upper, messages.ICMP_ERROR, header + built[:QUOTE_OCTETS]) for upper in told if upper is not None]

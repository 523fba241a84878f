"""Errors that ip detects: about received packets, to be sent by icmp; about sent packets, to their transport."""

from __future__ import annotations

from collections.abc import Container

from bus import messages, topology
from bus.layer import Send
from layers.ip.records import HEAD_OCTETS
from packets import ipv4

UPPER = topology.transports()
UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 11, 12  # RFC 792: types
NET_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, FRAGMENTATION_NEEDED = 0, 1, 2, 4
REASSEMBLY_TIMEOUT = 1  # RFC 792: code of a time exceeded


def complaint(icmp_type: int, code: int, record: bytes, info: int = 0) -> Send:
    """REPORT_ERROR for icmp: send an error about a packet, a PACKET record.

    `info`: the pointer of a parameter problem.
    """
    report = messages.REPORT_HEAD.pack(icmp_type, code, info)
    return (topology.ICMP, messages.REPORT_ERROR, report + record[: HEAD_OCTETS + messages.QUOTE_OCTETS])


def local_error(code: int, built: bytes, wanted: Container[int], info: int = 0) -> list[Send]:
    """ICMP_ERROR to the transport that sent `built`, as if the network had sent the error. `info`: an MTU.

    raw also gets it for the protocols that it wants. Nothing is sent for a fragment other than the first, because its
    transport header is missing.
    """
    version, _, total, _, fragment, _, protocol, _, source, destination = ipv4.HEADER.unpack_from(built)
    if fragment & ipv4.FRAGMENT_OFFSET:
        return []
    head = messages.ERROR_HEAD.pack(UNREACHABLE, code, messages.ORIGIN_LOCAL, messages.FAMILY_4, info, total, protocol,
                                    (version & 15) << 2, source, source, destination)
    told = [UPPER.get(protocol), topology.RAW if protocol in wanted else None]
    return [(upper, messages.ICMP_ERROR, head + built[: messages.QUOTE_OCTETS]) for upper in told if upper is not None]

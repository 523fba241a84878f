"""Large super-packets of TCP as references: their text stays where link has read it (bus.durable.frames)."""

from __future__ import annotations

from bus.durable.frames import Windows
from bus.durable.held import FRAMES, Held
from bus.durable.rx_log import RxLog
from packets import ethernet, ipv4, tcp, vnet

REFERRED_OCTETS_MIN = 8192  # a longer super-packet of TCP is passed on as a reference to its text
_IP_AT = vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS
_TCP_AT = _IP_AT + ipv4.HEADER_OCTETS


def refer(batch: RxLog, windows: Windows, number: int, start: int, end: int) -> bytes:
    """The ETHERNET_HELD record of frame `number` of the batch, at [start, end) of it; empty: it has to be a frame."""
    octets = batch.octets
    head = _head_of_segment(octets, start)
    if not head:
        return b""
    batch.held.append(number)
    reference = Held(0, windows.keep(start + head, end), end - start - head, FRAMES)
    return bytes(octets[start : start + head]) + reference.pack()


def _head_of_segment(octets: memoryview, start: int) -> int:
    """The octets before the text of a super-packet of TCP without IP options; 0: the frame is something else."""
    if octets[start + 1] != vnet.GSO_TCPV4 or octets[start + _IP_AT] != ipv4.VERSION_4_NO_OPTIONS:
        return 0
    header = tcp.header_octets(octets[start + _TCP_AT : start + _TCP_AT + tcp.HEADER_OCTETS])
    return _TCP_AT + header if header >= tcp.HEADER_OCTETS else 0

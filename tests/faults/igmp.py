"""A router's part in IGMP version 3 (RFC 3376), as far as the campaign needs one."""

from __future__ import annotations

import socket as kernel
import struct

from packets.checksum import checksum, verifies

PROTOCOL = 2
ALL_SYSTEMS, REPORTS_TO = "224.0.0.1", "224.0.0.22"  # section 4.1.12, section 4.2.14
REPORT = 0x22
IS_EXCLUDE, TO_INCLUDE, TO_EXCLUDE = 2, 3, 4  # section 4.2.12
ROUTER_ALERT = bytes((0x94, 4, 0, 0))  # RFC 2113
JOINED, LEFT = "joined", "left"
_QUERY = struct.Struct("!BBH4sBBH")
RESPONSE_TENTHS = 1  # of a second, to answer in
ROBUSTNESS = 2


def socket(address: str) -> kernel.socket:
    """One to ask with, on the link of that address."""
    made = kernel.socket(kernel.AF_INET, kernel.SOCK_RAW, PROTOCOL)
    made.setsockopt(kernel.IPPROTO_IP, kernel.IP_MULTICAST_IF, kernel.inet_aton(address))
    made.setsockopt(kernel.IPPROTO_IP, kernel.IP_MULTICAST_TTL, 1)
    made.setsockopt(kernel.IPPROTO_IP, kernel.IP_MULTICAST_LOOP, 0)
    made.setsockopt(kernel.IPPROTO_IP, kernel.IP_OPTIONS, ROUTER_ALERT)
    return made


def ask(router: kernel.socket) -> None:
    """A general query (section 4.1)."""
    blank = _QUERY.pack(0x11, RESPONSE_TENTHS, 0, bytes(4), ROBUSTNESS, 125, 0)
    router.sendto(blank[:2] + checksum(blank).to_bytes(2, "big") + blank[4:], (ALL_SYSTEMS, 0))


def read(packet: bytes) -> tuple[str, dict[str, str]]:
    """What is wrong with an IGMP packet of a host's ("": nothing), and the groups that it says it joined or left."""
    header, message = packet[: (packet[0] & 15) * 4], packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
    if not verifies(header) or not verifies(message):
        return "a checksum is wrong", {}
    if packet[8] != 1 or header[20:] != ROUTER_ALERT or kernel.inet_ntoa(packet[16:20]) != REPORTS_TO:
        return "TTL, option or destination is not a report's", {}
    if message[0] != REPORT:
        return "it is no report of version 3", {}
    groups, at = {}, 8
    for _ in range(int.from_bytes(message[6:8], "big")):
        kind, auxiliary, sources, group = struct.unpack_from("!BBH4s", message, at)
        at += 8 + 4 * sources + 4 * auxiliary
        if kind in (IS_EXCLUDE, TO_EXCLUDE):
            groups[kernel.inet_ntoa(group)] = JOINED
        elif kind == TO_INCLUDE and not sources:
            groups[kernel.inet_ntoa(group)] = LEFT
    return ("" if at == len(message) else "its length is not that of its records"), groups

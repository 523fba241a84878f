"""One line of text for a packet, in the style of tcpdump(1) with -n.

Any octets give a line and no exception; truncation is shown. Numbers are as on the wire: names are not looked up,
sequence numbers are not relative.
"""

from __future__ import annotations

from struct import Struct

_ETHERNET_OCTETS = 14
_ARP = Struct("!HHBBH6s4s6s4s")  # RFC 826, for Ethernet and IPv4
_IPV4 = Struct("!BBHHHBBH4s4s")  # RFC 791 section 3.1
_UDP = Struct("!HHHH")  # RFC 768
_TCP = Struct("!HHIIBBHHH")  # RFC 9293 section 3.1
_ICMP_ECHO = Struct("!BBHHH")
_TYPE_IPV4, _TYPE_ARP, _TYPE_VLAN, _TYPE_IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
_ETHERTYPES = {_TYPE_IPV6: "IPv6", _TYPE_VLAN: "802.1Q", 0x88CC: "LLDP"}
_TCP_FLAGS = ((1, "F"), (2, "S"), (4, "R"), (8, "P"), (16, "."), (32, "U"), (64, "E"), (128, "W"))
_UNREACHABLE = {  # RFC 792, RFC 1122 section 3.2.2.1
    0: "net {0} unreachable", 1: "host {0} unreachable", 2: "{0} protocol {1} unreachable",
    3: "{0} {2} port {3} unreachable", 4: "{0} unreachable - need to frag", 5: "{0} unreachable - source route failed",
    6: "net {0} unreachable - unknown", 7: "host {0} unreachable - unknown",
    8: "{0} unreachable - source host isolated", 9: "net {0} unreachable - admin prohibited",
    10: "host {0} unreachable - admin prohibited",
    11: "net {0} unreachable - tos prohibited", 12: "host {0} unreachable - tos prohibited",
    13: "host {0} unreachable - admin prohibited filter"}
_REDIRECT = {0: "to net", 1: "to host", 2: "to net for tos", 3: "to host for tos"}
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP"}


def ethernet(frame: bytes) -> str:
    """A frame with its Ethernet header; for 802.3 frames and unknown types, the length or the type."""
    if len(frame) < _ETHERNET_OCTETS:
        return f"[|ether] {len(frame)} octets"
    ethertype = frame[12] << 8 | frame[13]
    content = frame[_ETHERNET_OCTETS:]
    if ethertype == _TYPE_IPV4:
        return ipv4(content)
    if ethertype == _TYPE_ARP:
        return arp(content)
    ends = f"{frame[6:12].hex(':')} > {frame[:6].hex(':')}"
    if ethertype < 0x600:
        return f"{ends}, 802.3, length {ethertype}"
    return f"{ends}, ethertype {_ETHERTYPES.get(ethertype, 'Unknown')} (0x{ethertype:04x}), length {len(frame)}"


def arp(packet: bytes) -> str:
    """An ARP packet without its Ethernet header (RFC 826)."""
    if len(packet) < _ARP.size:
        return f"ARP, [|arp], length {len(packet)}"
    hardware, protocol, hardware_octets, protocol_octets, operation, sha, spa, tha, tpa = _ARP.unpack_from(packet)
    if (hardware, protocol, hardware_octets, protocol_octets) != (1, _TYPE_IPV4, 6, 4):
        return f"ARP, hardware {hardware}, protocol 0x{protocol:04x}, operation {operation}, length {len(packet)}"
    sender, target, length = address(spa), address(tpa), f", length {len(packet)}"
    if operation == 1:
        to = f" ({tha.hex(':')})" if any(tha) and tha != b"\xff" * 6 else ""
        if not any(spa):
            return f"ARP, Probe {target}{length}"  # RFC 5227 section 1.1
        if spa == tpa:
            return f"ARP, Announcement {target}{to}{length}"
        return f"ARP, Request who-has {target}{to} tell {sender}{length}"
    if operation == 2:
        return f"ARP, Reply {sender} is-at {sha.hex(':')}{length}"
    return f"ARP, operation {operation}, {sender} > {target}{length}"


def address(octets: bytes) -> str:
    """An IPv4 address of 4 octets, dotted."""
    return ".".join(map(str, octets))


def ipv4(packet: bytes) -> str:
    """An IPv4 packet; padding beyond its total length is ignored."""
    if len(packet) < _IPV4.size:
        return f"IP, [|ip], length {len(packet)}"
    first, _, length, identification, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    header_octets = (first & 15) * 4
    if first >> 4 != 4:
        return f"IP, version {first >> 4}, length {len(packet)}"
    if header_octets < _IPV4.size or length < header_octets:
        return f"IP, bad-hlen {header_octets} of {length}, length {len(packet)}"
    payload = packet[header_octets:length]
    missing = length - len(packet)
    ends = address(source), address(destination)
    offset = (fragment & 0x1FFF) * 8
    if offset:
        name = _PROTOCOLS.get(protocol, f"ip-proto-{protocol}")
        text = f"{ends[0]} > {ends[1]}: {name}"
    elif protocol in _PRINTERS:
        text = _PRINTERS[protocol](payload, *ends, length - header_octets)
    else:
        text = f"{ends[0]} > {ends[1]}:  ip-proto-{protocol} {length - header_octets}"
    if offset or fragment & 0x2000:
        text += f" (frag {identification}:{length - header_octets}@{offset}{'+' if fragment & 0x2000 else ''})"
    if missing > 0:
        text += f" [{missing} octets missing]"
    return f"IP {text}"


def _udp(segment: bytes, source: str, destination: str, octets: int) -> str:
    if len(segment) < _UDP.size:
        return f"{source} > {destination}: [|udp]"
    from_port, to_port, length, _ = _UDP.unpack_from(segment)
    text = f"{source}.{from_port} > {destination}.{to_port}: UDP, "
    return text + (f"bad length {length} > {octets}" if length > octets or length < 8 else f"length {length - 8}")


def _tcp(segment: bytes, source: str, destination: str, octets: int) -> str:
    if len(segment) < _TCP.size:
        return f"{source} > {destination}: [|tcp]"
    from_port, to_port, number, ack, offset, bits, window, _, urgent = _TCP.unpack_from(segment)
    header_octets = (offset >> 4) * 4
    ends = f"{source}.{from_port} > {destination}.{to_port}: "
    if not _TCP.size <= header_octets <= octets:
        return f"{ends}Flags [bad hdr length {header_octets}]"
    flags = "".join(letter for bit, letter in _TCP_FLAGS if bits & bit) or "none"
    payload = octets - header_octets
    parts = [f"Flags [{flags}]"]
    if payload or bits & 7:  # SYN, FIN and RST have relevant numbers
        parts.append(f"seq {number}" + (f":{(number + payload) & 0xFFFFFFFF}" if payload else ""))
    if bits & 16:
        parts.append(f"ack {ack}")
    parts.append(f"win {window}")
    if bits & 32:
        parts.append(f"urg {urgent}")
    options = segment[_TCP.size : header_octets]
    if options:
        parts.append(f"options [{','.join(_tcp_options(options))}]")
    return f"{ends}{', '.join(parts)}, length {payload}"


def _tcp_options(octets: bytes) -> list[str]:
    """RFC 9293 section 3.2, RFC 7323, RFC 2018."""
    found, at = [], 0
    while at < len(octets):
        kind = octets[at]
        if kind < 2:
            found.append("eol" if kind == 0 else "nop")
            if kind == 0:
                break
            at += 1
            continue
        length = octets[at + 1] if at + 1 < len(octets) else 0
        value = octets[at + 2 : at + length]
        if length < 2 or len(value) != length - 2:
            return [*found, "bad opt"]
        number = int.from_bytes(value, "big")
        if kind == 2 and length == 4:
            found.append(f"mss {number}")
        elif kind == 3 and length == 3:
            found.append(f"wscale {number}")
        elif kind == 4 and length == 2:
            found.append("sackOK")
        elif kind == 5 and length > 2 and length % 8 == 2:
            edges = [int.from_bytes(value[i : i + 4], "big") for i in range(0, len(value), 4)]
            blocks = "".join(f"{{{left}:{right}}}" for left, right in zip(edges[::2], edges[1::2], strict=True))
            found.append(f"sack {len(edges) // 2} {blocks}")
        elif kind == 8 and length == 10:
            found.append(f"TS val {number >> 32} ecr {number & 0xFFFFFFFF}")
        else:
            found.append(f"unknown-{kind} 0x{value.hex()}" if value else f"unknown-{kind}")
        at += length
    return found


def _icmp(message: bytes, source: str, destination: str, octets: int) -> str:
    ends = f"{source} > {destination}: ICMP "
    if len(message) < 8:
        return f"{ends}[|icmp], length {octets}"
    kind, code, _, identifier, number = _ICMP_ECHO.unpack_from(message)
    if kind in (8, 0):
        text = f"echo {'request' if kind else 'reply'}, id {identifier}, seq {number}"
    elif kind == 3:
        text = _unreachable(code, number, message[8:])
    elif kind == 11:
        text = "time exceeded in-transit" if code == 0 else "ip reassembly time exceeded"
    elif kind == 5:
        quoted = address(message[24:28]) if len(message) >= 28 else "?"
        text = f"redirect {quoted} {_REDIRECT.get(code, f'code {code}')} {address(message[4:8])}"
    elif kind == 12:
        text = f"parameter problem - octet {message[4]}"
    elif kind == 4:
        text = "source quench"
    elif kind in (13, 14):
        text = f"time stamp {'query' if kind == 13 else 'reply'} id {identifier} seq {number}"
    else:
        text = f"type-#{kind}, code {code}"
    return f"{ends}{text}, length {octets}"


def _unreachable(code: int, mtu: int, quoted: bytes) -> str:
    target = address(quoted[16:20]) if len(quoted) >= 20 else "?"
    protocol = quoted[9] if len(quoted) > 9 else 0
    at = (quoted[0] & 15) * 4 + 2 if quoted else 0
    port = int.from_bytes(quoted[at : at + 2], "big")
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}").lower()
    text = _UNREACHABLE.get(code, "{0} unreachable - #" + str(code)).format(target, protocol, name, port)
    return f"{text} (mtu {mtu})" if code == 4 and mtu else text


def _igmp(message: bytes, source: str, destination: str, octets: int) -> str:
    ends = f"{source} > {destination}: igmp "
    if len(message) < 8:
        return f"{ends}[|igmp]"
    kind, group = message[0], address(message[4:8])
    if kind == 0x11:  # RFC 3376 section 7.1: the version depends on the length
        version = "v3" if octets >= 12 else "v2" if message[1] else "v1"
        return f"{ends}query {version}" + (f" [gaddr {group}]" if any(message[4:8]) else "")
    if kind in (0x12, 0x16):
        return f"{ends}v{1 if kind == 0x12 else 2} report {group}"
    if kind == 0x17:
        return f"{ends}leave {group}"
    if kind == 0x22:
        return f"{ends}v3 report, {message[6] << 8 | message[7]} group record(s)"
    return f"{ends}type-#{kind}"


_PRINTERS = {1: _icmp, 2: _igmp, 6: _tcp, 17: _udp}

"""The same frames to Linux's own stack, in a namespace of its own, and to ours: both make the same of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from glue import Stack

from bus.messages import SourceFilter

ME, PEER, MAC, PEER_MAC = "10.0.0.2", "10.0.0.7", "02:00:5e:00:00:02", "02:00:5e:00:00:07"
GROUP, ALL = "224.0.0.251", "255.255.255.255"
GROUP_MAC = "01:00:5e:00:00:fb"
WHOLE = bytes(UDP(sport=9, dport=7, chksum=0) / Raw(bytes(range(72))))  # 80 octets: ten units of a fragment offset


def framed(packet: Packet, to: str = MAC) -> bytes:
    return bytes(Ether(dst=to, src=PEER_MAC) / packet)


def datagram(payload: bytes, to: str = MAC, **fields: object) -> bytes:
    return framed(IP(**{"src": PEER, "dst": ME, "id": 5, **fields}) / UDP(sport=9, dport=7) / Raw(payload), to)


def pieces(number: int, *spans: tuple[int, int], spoil: int | None = None) -> list[bytes]:
    """Fragments of WHOLE, [first, end) in units of 8 octets; `spoil`: the one whose octets are others."""
    frames = []
    for at, (first, end) in enumerate(spans):
        data = WHOLE[first * 8 : end * 8]
        data = bytes(octet ^ 0xFF for octet in data) if at == spoil else data
        frames.append(framed(IP(src=PEER, dst=ME, id=number, proto=17, frag=first, flags="MF" if end < 10 else 0)
                             / Raw(data)))
    return frames


def echo(options: bytes) -> bytes:
    plain = bytes(IP(src=PEER, dst=ME, id=1) / ICMP(type=8, id=77) / Raw(b"data"))
    header = bytearray(bytes([0x45 + len(options) // 4]) + plain[1:20] + options)
    header[2:4] = (len(options) + len(plain)).to_bytes(2, "big")
    packet = IP(bytes(header) + plain[20:])
    del packet.chksum
    return framed(packet)


def asks(hardware: int, operation: int = 1) -> bytes:
    packet = bytearray(bytes(ARP(op=operation, hwsrc=PEER_MAC, psrc=PEER, pdst=ME)))
    packet[:2] = hardware.to_bytes(2, "big")  # afterwards: scapy writes no MAC for hardware that it does not know
    return bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC, type=0x0806) / Raw(bytes(packet)))


CASES = {
    "whole": [datagram(b"plain")],
    "source 0.0.0.0 to all": [datagram(b"discover", "ff:ff:ff:ff:ff:ff", src="0.0.0.0", dst=ALL)],
    "source 0.1.2.3 to all": [datagram(b"discover", "ff:ff:ff:ff:ff:ff", src="0.1.2.3", dst=ALL)],
    "source 0.0.0.0 to a local group": [datagram(b"mdns", GROUP_MAC, src="0.0.0.0", dst=GROUP)],
    "source 0.0.0.0 to us": [datagram(b"no", src="0.0.0.0")],
    "source 0.0.0.0 to the network": [datagram(b"no", "ff:ff:ff:ff:ff:ff", src="0.0.0.0", dst="10.0.0.255")],
    "source 127.0.0.1": [datagram(b"no", src="127.0.0.1")],
    "in order": pieces(1, (0, 4), (4, 10)),
    "a repetition": pieces(2, (0, 4), (0, 4), (4, 10)),
    "contained at the start": pieces(3, (0, 4), (0, 2), (4, 10)),
    "contained in the middle": pieces(4, (0, 4), (1, 3), (4, 10)),
    "contained at the end": pieces(5, (0, 4), (2, 4), (4, 10)),
    "contained in two": pieces(6, (0, 4), (4, 6), (2, 5), (6, 10)),
    "contained, with other octets": pieces(7, (0, 4), (1, 3), (4, 10), spoil=1),
    "containing at the start": pieces(8, (0, 2), (0, 4), (4, 10)),
    "containing in the middle": pieces(9, (1, 3), (0, 4), (4, 10)),
    "containing all": pieces(10, (4, 6), (0, 10)),
    "containing at the end": pieces(11, (8, 10), (4, 10), (0, 4)),
    "overlapping": pieces(12, (0, 4), (3, 10)),
    "overlapping from below": pieces(13, (4, 10), (0, 5)),
    "the last contained": pieces(14, (4, 10), (8, 10), (0, 4)),
    "echo": [echo(b"")],
    "router alert": [echo(b"\x94\x04\0\0")],
    "router alert of 3 octets": [echo(b"\x94\x03\0\0")],
    "router alert of 2 octets": [echo(b"\x94\x02\0\0")],
    "router alert of 5 octets": [echo(b"\x94\x05\0\0\0\0\0\0")],
    "timestamp with flag 2": [echo(b"\x44\x08\x05\x02" + bytes(4))],
    "timestamp with flag 2 and no room": [echo(b"\x44\x04\x05\x02")],
    "timestamp with flag 15": [echo(b"\x44\x08\x05\x0f" + bytes(4))],
    "ARP of hardware type 1": [asks(1)],
    "ARP of hardware type 6": [asks(6)],
    "ARP of hardware type 7": [asks(7)],
}


def ours(frames: list[bytes]) -> list:
    stack = Stack(ME, MAC)
    group = (SourceFilter(bytes(map(int, GROUP.split(".")))),)
    stack.joins(1, *group)
    stack.declares(1, bind=True, port=7, groups=group)
    stack.hears(asks(1))
    out = stack.hears(*frames)
    got = [payload.hex() for _, _, _, payload in stack.received()]
    icmp = [frame[14:].hex() for frame in out if frame[12:14] == b"\x08\0" and frame[23] == 1]
    return [got, icmp, any(frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2" for frame in out)]


def essence(made: list) -> tuple:
    """What was delivered, (type, code, pointer) of what was answered, with the options of echo replies; ARP."""
    got, icmp, arp = made
    answers = []
    for packet in map(bytes.fromhex, icmp):
        start = (packet[0] & 15) * 4
        kind, code, pointer = packet[start], packet[start + 1], packet[start + 4] if packet[start] == 12 else 0
        answers.append((kind, code, pointer))
    return got, answers, arp


@pytest.fixture(scope="module")
def linux() -> dict[str, list]:
    """What Linux makes of all cases."""
    script = Path(__file__).with_name("linux_host.py")
    mark = datagram(b"mark").hex()
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--net", sys.executable, str(script), mark],
                          input=json.dumps([[frame.hex() for frame in frames] for frames in CASES.values()]),
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("hardware", "answered"), [(1, True), (6, True), (7, False)])
def test_linux_answers_arp_of_hardware_types_1_and_6(linux: dict[str, list], hardware: int, answered: bool) -> None:
    """RFC 1042 hosts say 6: that the cases below are what their names say."""
    assert linux[f"ARP of hardware type {hardware}"][2] == answered


@pytest.mark.parametrize("case", CASES)
def test_both_make_the_same_of_it(linux: dict[str, list], case: str) -> None:
    assert essence(ours(CASES[case])) == essence(linux[case])

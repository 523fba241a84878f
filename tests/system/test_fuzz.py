"""Frames of any octets, into the cable: nothing dies, everything is counted, and what is valid is served as before."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator

from scapy.layers.inet import ICMP, IP, UDP, IPOption_Timestamp
from scapy.layers.l2 import ARP, Ether

from packets.checksum import checksum

from .peers import KERNEL, STACK, Stack, received, wait_for

FRAMES = 20_000
UNDER_WAY_MAX = 400  # frames between us and link: the kernel queues 1000 for a TAP's reader
# What ICMP errors become on Linux (icmp_err_convert).
TOLD = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
        errno.EPROTO, errno.EHOSTDOWN, errno.ENONET, errno.EACCES}
FRAME_MIN, FRAME_MAX = 14, 1514  # what a packet socket takes


def valid_frames(mac: str, own: str, port: int) -> list[bytes]:
    """One of everything that the stack understands, and of some things that it does not."""
    ether = Ether(src=own, dst=mac)
    ip = IP(src=KERNEL, dst=STACK)
    udp = UDP(sport=9, dport=port)
    quoted = IP(src=STACK, dst=KERNEL) / UDP(sport=port, dport=9) / b"quoted"
    packets = [
        ether / ip / udp / b"data", ether / ip / udp, ether / ip / udp / bytes(1400),
        ether / ip / UDP(sport=9, dport=10) / b"nobody there",
        ether / ip / ICMP(id=1, seq=2) / b"echo", ether / ip / ICMP(type=0, id=1, seq=2) / b"reply",
        ether / ip / ICMP(type=13), ether / ip / ICMP(type=5, gw="10.0.0.9") / quoted,
        *(ether / ip / ICMP(type=3, code=code, nexthopmtu=576) / quoted for code in range(16)),
        ether / ip / ICMP(type=11) / quoted, ether / ip / ICMP(type=12) / quoted, ether / ip / ICMP(type=4) / quoted,
        ether / IP(src=KERNEL, dst=STACK, flags="MF", frag=0, id=7) / udp / bytes(64),
        ether / IP(src=KERNEL, dst=STACK, frag=9, id=7) / bytes(64),
        ether / IP(src=KERNEL, dst=STACK, options=[IPOption_Timestamp()]) / udp / b"options",
        ether / IP(src=KERNEL, dst=STACK, proto=132) / bytes(40),
        Ether(src=own, dst="ff:ff:ff:ff:ff:ff") / IP(src=KERNEL, dst="10.0.0.255") / udp / b"to all",
        Ether(src=own, dst="01:00:5e:00:00:01") / IP(src=KERNEL, dst="224.0.0.1") / udp / b"to a group",
        Ether(src=own, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=own, psrc=KERNEL, pdst=STACK),
        ether / ARP(op=2, hwsrc=own, psrc=KERNEL, hwdst=mac, pdst=STACK),
        Ether(src=own, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=own, psrc="0.0.0.0", pdst=STACK),
        ether / ARP(op=2, hwsrc="02:00:00:00:00:99", psrc="10.0.0.99", hwdst=mac, pdst=STACK),
        Ether(src=own, dst=mac, type=0x86DD) / bytes(60),
    ]
    return [bytes(packet) for packet in packets]


def repaired(frame: bytearray, rng: random.Random) -> None:
    """Often, make the checksums right again, so that what is wrong reaches the code behind them."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 34:
        return
    header_end = 14 + 4 * (frame[14] & 15)
    if rng.random() < 0.8:
        frame[24:26] = b"\0\0"
        frame[24:26] = checksum(bytes(frame[14:header_end])).to_bytes(2, "big")
    if rng.random() < 0.8 and len(frame) >= header_end + 8:
        if frame[23] == socket.IPPROTO_ICMP:
            frame[header_end + 2 : header_end + 4] = b"\0\0"
            frame[header_end + 2 : header_end + 4] = checksum(bytes(frame[header_end:])).to_bytes(2, "big")
        elif frame[23] == socket.IPPROTO_UDP:
            frame[header_end + 6 : header_end + 8] = b"\0\0"


def mutated(frame: bytes, rng: random.Random) -> bytes:
    """A few changes of the kinds that break parsers."""
    octets = bytearray(frame)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(octets))
        if rng.random() < 0.7:  # headers are where it hurts
            at = min(at, rng.randrange(12, 64), len(octets) - 1)
        match rng.randrange(7):
            case 0:
                octets[at] ^= 1 << rng.randrange(8)
            case 1:
                octets[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                octets[at] = rng.randrange(256)
            case 3:
                octets[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\0\x07", b"\x80\0"))
            case 4 if len(octets) > FRAME_MIN + 1:
                del octets[rng.randrange(FRAME_MIN, len(octets)) :]
            case 5:
                octets += rng.randbytes(rng.randrange(1, 64))
            case 6:
                octets[at:at] = octets[at : at + rng.randrange(1, 9)]
    repaired(octets, rng)
    return bytes(octets[:FRAME_MAX])


def fuzz(mac: str, own: str, port: int) -> Iterator[bytes]:
    """FRAMES frames, the same ones every time but for the addresses."""
    rng = random.Random(20260101)
    valid = valid_frames(mac, own, port)
    head = bytes.fromhex(mac.replace(":", "") + own.replace(":", ""))
    for _ in range(FRAMES):
        if rng.random() < 0.1:
            kind = rng.choice((b"\x08\x00", b"\x08\x06", rng.randbytes(2)))
            yield head + kind + rng.randbytes(rng.randrange(0, 200))
        else:
            yield mutated(rng.choice(valid), rng)


def drain(app) -> None:
    """Read what the fuzz has brought: datagrams, so that the buffer stays open, and errors, each told once."""
    app.setblocking(False)
    while True:
        try:
            app.recv(2048)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in TOLD:
                raise


def test_twenty_thousand_mutated_frames_kill_no_layer(stack: Stack, quiet) -> None:
    before = stack.status()
    with stack.bound() as app, stack.kernel.packet() as cable:
        app.connect((KERNEL, 9))  # so that errors about what it sent would be told
        port = app.getsockname()[1]

        def taken() -> int:
            return stack.counters("link")["frames_in"] - before["layers"]["link"]["counters"]["frames_in"]

        own = stack.kernel.mac().hex(":")
        for number, frame in enumerate(fuzz(before["mac"], own, port), 1):
            cable.send(frame)
            if number % (UNDER_WAY_MAX // 2) == 0:
                wait_for("link to take the frames", lambda number=number: taken() >= number - UNDER_WAY_MAX // 2)
                drain(app)
        wait_for("link to take all frames", lambda: taken() >= FRAMES)
    after = stack.status()
    assert [event for event in stack.events() if event["event"] in ("died", "poison")] == []
    assert {name: layer["incarnation"] for name, layer in after["layers"].items()} == {
        name: layer["incarnation"] for name, layer in before["layers"].items()}
    assert after["state"] == "up"
    # The fuzz has told the stack wrong neighbours, too; it learns the right one from the kernel's next request.
    stack.execute("ip", "neigh", "flush", "dev", "tap0")
    wait_for("an answered ping", lambda: received(
        stack.execute("ping", "-c", 1, "-W", 2, STACK, status=None).stdout) == 1)
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(b"as before", app.getsockname())
        data, sender = app.recvfrom(100)
        app.sendto(data, sender)
        assert peer.recv(100) == b"as before"
    counters = {name: layer["counters"] for name, layer in after["layers"].items()}
    # Proof that it got through to the code: every one of these has met something.
    for layer, reasons in {
        "link": ["other_host", "unknown_type"], "arp": ["too_short", "not_ethernet_ipv4", "unknown_operation"],
        "ip": ["truncated", "bad_version", "bad_header_checksum", "other_destination", "unknown_protocol"],
        "icmp": ["bad_checksum", "unknown_type", "error_not_ours", "error_bad_quote"],
        "udp": ["bad_length", "no_port", "delivered"],
    }.items():
        assert [reason for reason in reasons if not counters[layer][reason]] == [], layer


"""Linux's own stack as a host that frames are given to: `unshare --user --map-root-user --net python linux_host.py`.

Reads a JSON list of cases from standard input, each a list of Ethernet frames in hex, and writes what Linux made of
each: [[payloads that a UDP socket at port 7 got, in hex], [ICMP packets that it sent, in hex], whether it answered by
ARP].
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

ADDRESS, MAC, PEER, PEER_MAC = "10.0.0.2", "02:00:5e:00:00:02", "10.0.0.7", "02:00:5e:00:00:07"
GROUP, PORT = "224.0.0.251", 7


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def configure() -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "far", "type", "veth", "peer", "name", "near")
    ip("link", "set", "near", "address", MAC)
    for name in ("far", "near"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip("link", "set", name, "up")
    ip("address", "add", f"{ADDRESS}/24", "dev", "near")
    for name, value in (("icmp_ratelimit", "0"), ("icmp_ratemask", "0"), ("icmp_msgs_per_sec", "100000")):
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)
    ip("neighbor", "replace", PEER, "lladdr", PEER_MAC, "dev", "near", "nud", "permanent")


def main() -> None:
    configure()
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    cable.bind(("far", 3))
    cable.setblocking(False)
    app = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    app.bind(("0.0.0.0", PORT))
    app.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton(ADDRESS))
    app.setblocking(False)
    made = []
    for frames in json.load(sys.stdin):
        _drain(cable)
        for frame in frames:
            cable.send(bytes.fromhex(frame))
        got: list[str] = []
        icmp: list[str] = []
        arp = False
        # A last datagram says that Linux is done with those before: it works them off in order.
        mark = bytes.fromhex(MARK)
        cable.send(mark)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                payload = app.recv(65536)
            except BlockingIOError:
                time.sleep(0.001)
                continue
            if payload == b"mark":
                break
            got.append(payload.hex())
        for frame_out in _drain(cable):
            if frame_out[12:14] == b"\x08\x06":
                arp = arp or frame_out[20:22] == b"\0\2"
            elif frame_out[12:14] == b"\x08\0" and frame_out[23] == 1:
                icmp.append(frame_out[14:].hex())
        made.append([got, icmp, arp])
    json.dump(made, sys.stdout)


def _drain(cable: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frame, origin = cable.recvfrom(65536)
        except BlockingIOError:
            return frames
        if origin[2] != socket.PACKET_OUTGOING:
            frames.append(frame)


MARK = sys.argv[1] if len(sys.argv) > 1 else ""

if __name__ == "__main__":
    main()

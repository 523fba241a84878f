"""What the stack puts on the cable, judged by Wireshark's dissectors."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import wrpcap

from .conftest import require_program
from .peers import KERNEL, NOBODY, PATIENCE_S, STACK, TAP, Stack, received

FAULTY = ("_ws.malformed || _ws.expert.severity == error || ip.checksum.status == Bad"
          " || udp.checksum.status == Bad || icmp.checksum.status == Bad")
FRAME_MAX = 2048  # octets of each place in tcpdump's ring; by default 8 places of 256 KiB: too few on a busy machine
PORTS_MEAN_NOTHING = ("-d", "udp.port==1-65535,data")  # else the payloads would be read as whatever lives on the port


def judged(capture: Path, mac: str, condition: str) -> list[str]:
    """The frames from `mac` for which a display filter holds, one line each."""
    tshark = require_program("tshark")
    done = subprocess.run(
        [tshark, "-r", str(capture), "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
         *PORTS_MEAN_NOTHING, "-Y", f"eth.src == {mac} && ({condition})"],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def session(stack: Stack) -> None:
    """Something of everything that the stack can say."""
    for size in (0, 1, 57, 1472):
        for _ in range(2):
            assert received(stack.execute("ping", "-c", 1, "-W", 30, "-s", size, STACK).stdout) == 1
        assert received(stack.run("ping", "-c", 1, "-W", 10, "-s", size, KERNEL).stdout) == 1
    with stack.bound() as app, stack.kernel.udp() as peer:
        for size in (*range(40), 1471, 1472):
            peer.sendto(bytes(range(size % 251)) * 6, app.getsockname())
            data, sender = app.recvfrom(2048)
            app.sendto(data[:size], sender)
            assert peer.recv(2048) == data[:size]
        app.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        app.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x2E << 2)
        app.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 3)
        app.sendto(b"to all", ("10.0.0.255", 9))
        app.sendto(b"to all", ("255.255.255.255", 9))
    with stack.kernel.udp() as peer:
        peer.connect((STACK, 9))
        for size in (0, 1, 600, 1472):  # errors that quote the whole of a packet, and as much as there is room for
            peer.send(bytes(size))
            try:
                peer.recv(100)
            except ConnectionRefusedError:
                pass
    stack.run("ping", "-c", 1, "-W", 10, NOBODY, status=1)
    stack.run("restart", "all")
    stack.execute("arping", "-f", "-c", 20, "-w", 20, "-I", TAP, STACK)


def test_wireshark_finds_no_fault_in_what_the_stack_sends(new_stack: Callable[[], Stack], tmp_path: Path) -> None:
    stack = new_stack().up("--no-offload")  # else the sums are Linux's, and not made yet where it captures
    tcpdump = require_program("tcpdump")
    require_program("arping")
    capture = stack.home / f"{stack.name}.pcap"
    recorder = stack.start(tcpdump, "-i", TAP, "-s", FRAME_MAX, "-U", "-w", capture, "-Z", "root",
                           "--immediate-mode")
    for line in recorder.stdout:
        if "listening on" in line:
            break
    session(stack)
    recorder.send_signal(signal.SIGINT)
    output, _ = recorder.communicate(timeout=PATIENCE_S)
    assert "0 packets dropped by kernel" in output
    mac = stack.mac
    assert judged(capture, mac, FAULTY) == []
    # It did look at what it was to look at:
    assert len(judged(capture, mac, "icmp.type == 0 && icmp.checksum.status == Good")) == 8
    assert len(judged(capture, mac, "icmp.type == 8 && icmp.checksum.status == Good")) == 4
    assert len(judged(capture, mac, "icmp.type == 3 && ip.checksum.status == Good")) >= 1
    assert len(judged(capture, mac, "udp && !icmp && udp.checksum.status == Good")) == 44
    assert len(judged(capture, mac, "arp.opcode == 1")) >= 1
    assert len(judged(capture, mac, "arp.opcode == 2")) >= 1


def test_wireshark_would_find_faults(tmp_path: Path) -> None:
    mac = "02:00:00:00:00:02"
    ether, ip, udp = Ether(src=mac, dst="02:00:00:00:00:01"), IP(src=STACK, dst=KERNEL), UDP(sport=5000, dport=5001)
    faulty = [
        ether / IP(src=STACK, dst=KERNEL, chksum=1) / ICMP(),
        ether / ip / ICMP(chksum=1),
        ether / ip / UDP(sport=5000, dport=5001, chksum=1) / b"data",
        Ether(bytes(ether / ip / udp / b"data")[:38]),
        Ether(bytes(ether / ARP())[:34]),
    ]
    faultless = [ether / ip / ICMP(), ether / ip / udp / b"data", ether / ARP()]
    wrpcap(str(tmp_path / "faulty.pcap"), [bytes(frame) for frame in faulty + faultless], linktype=1)
    assert len(judged(tmp_path / "faulty.pcap", mac, FAULTY)) == len(faulty)

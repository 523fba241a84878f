"""packets.summary: never raises, and says what tcpdump says."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import lengths
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.l2 import ARP, Ether

from packets import pcapng, summary

A, B = "10.0.0.1", "10.0.0.2"
MAC = "02:00:00:00:00:02"
IPV4 = IP(src=A, dst=B, id=77)
FRAMES = [Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, psrc=A, pdst=B, hwsrc=MAC),
          Ether(src=MAC, dst=MAC) / ARP(op=2, psrc=A, pdst=B, hwsrc=MAC, hwdst=MAC),
          *(Ether(src=MAC, dst=MAC) / packet for packet in [
              IPV4 / UDP(sport=5000, dport=6000) / b"hello",
              IPV4 / ICMP(id=4, seq=9) / b"ping",
              IPV4 / ICMP(type=0, id=4, seq=9) / b"ping",
              IPV4 / ICMP(type=3, code=3) / IPerror(src=B, dst=A) / UDPerror(sport=1, dport=9999),
              IPV4 / ICMP(type=3, code=1) / IPerror(src=B, dst=A) / UDPerror(sport=1, dport=2),
              IPV4 / ICMP(type=3, code=2) / IPerror(src=B, dst=A, proto=99) / b"12345678",
              IPV4 / ICMP(type=3, code=4, nexthopmtu=576) / IPerror(src=B, dst=A) / UDPerror(sport=1, dport=2),
              IPV4 / ICMP(type=11, code=0) / IPerror(src=B, dst=A) / UDPerror(sport=1, dport=2),
              IPV4 / ICMP(type=5, code=1, gw="10.0.0.9") / IPerror(src=B, dst=A) / UDPerror(sport=1, dport=2),
              IPV4 / TCP(sport=7777, dport=4000, seq=5, flags="S", window=1000, options=[
                  ("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]),
              IPV4 / TCP(sport=7777, dport=4000, seq=5, ack=9, flags="PA", window=1000) / b"data",
              IPV4 / TCP(sport=7777, dport=4000, seq=5, ack=9, flags="A", options=[("SAck", (11, 20, 30, 40))]),
              IPV4 / TCP(sport=7777, dport=4000, seq=5, ack=9, flags="FA"),
              IPV4 / TCP(sport=7777, dport=4000, seq=5, flags="R"),
              IP(src=A, dst="224.0.0.251", proto=2) / struct.pack("!BBH4s", 0x16, 0, 0, bytes([224, 0, 0, 251])),
              IP(src=A, dst="224.0.0.1", proto=2) / struct.pack("!BBH4s", 0x11, 100, 0, bytes(4)),
              IPV4.__class__(src=A, dst=B, proto=99) / b"abc"])]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.summary()[:60])
def test_same_words_as_tcpdump(frame, tmp_path: Path):
    if shutil.which("tcpdump") is None:
        pytest.skip("no tcpdump here")
    path = tmp_path / "one.pcapng"
    path.write_bytes(pcapng.section() + pcapng.interface("x", 1) + pcapng.packets(0, 0, [bytes(frame)]))
    said = subprocess.run(["tcpdump", "-n", "-S", "-t", "-r", path], capture_output=True, check=True, text=True).stdout
    ours = summary.ethernet(bytes(frame))
    # tcpdump pads the kind of IGMP report with a space that only -v makes use of
    assert " ".join(ours.split()) == " ".join(said.split())


def test_fragments_say_which_part():
    first = bytes(IP(src=A, dst=B, id=5, flags="MF") / UDP(sport=1, dport=2, len=108) / bytes(92))
    later = bytes(IP(src=A, dst=B, id=5, frag=185, proto=17) / b"rest")
    assert summary.ipv4(first) == "IP 10.0.0.1.1 > 10.0.0.2.2: UDP, bad length 108 > 100 (frag 5:100@0+)"
    assert summary.ipv4(later) == "IP 10.0.0.1 > 10.0.0.2: UDP (frag 5:4@1480)"


def test_the_summary_of_a_truncated_packet_says_so():
    whole = bytes(IPV4 / UDP(sport=1, dport=2) / b"hello")
    assert summary.ipv4(whole[:-2]).endswith("UDP, length 5 [2 octets missing]")
    assert summary.ethernet(b"abc") == "[|ether] 3 octets"


@given(lengths.octets(120), st.sampled_from(FRAMES), st.integers(0, 120))
@example(b"", FRAMES[0], 15)
def test_any_octets_have_a_line(octets, frame, kept):
    for attempt in (octets, bytes(frame)[:kept] + octets, bytes(frame)[:kept], octets + bytes(frame)[len(octets):]):
        for line in (summary.ethernet(attempt), summary.ipv4(attempt), summary.arp(attempt)):
            assert line
            assert line.isprintable()

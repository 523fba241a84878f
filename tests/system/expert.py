"""Wireshark's expert analysis of what passed the cable, of every test of TCP against the kernel.

A module with `pytestmark = pytest.mark.tcp` has all TAPs of its stacks captured, and is judged at its end: a test that
provokes something says so by `@pytest.mark.provokes("zero window", ...)`.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Wireshark's words for what it finds, and ours for a kind of them. Everything else (SYN, FIN, window updates) is its
# report of what a connection does; `lost` and `unseen` are also what a busy machine's tcpdump has missed.
KINDS = {
    "malformed": r"Malformed|Bogus|exceeds|is too short|is too long",
    "checksum": r"[Bb]ad checksum|[Cc]hecksum.*(incorrect|bad)",
    "retransmission": r"[Rr]etransmission",
    "out of order": r"[Oo]ut-[Oo]f-[Oo]rder",
    "lost": r"[Pp]revious segment",
    "duplicate ACK": r"Duplicate ACK",
    "zero window": r"[Zz]ero ?[Ww]indow",
    "window full": r"window specified by the receiver is now completely full|[Ww]indow [Ff]ull",
    "unseen": r"ACKed segment that wasn't captured|ACKed unseen segment",
}
MUST_BE_PROVOKED = ("malformed", "checksum", "retransmission", "out of order", "zero window", "window full")
# A process that waits for the processor is late with its ACK: both ends send their last segment again after some ms
# (RFC 8985 section 7), which a test on a busy machine cannot rule out: so many in a test, and in each second of it.
PROBES_MAX, PROBES_A_SECOND = 10, 3
_FIELDS = ("frame.time_epoch", "ip.src", "ip.dst", "ip.len", "ip.hdr_len", "tcp.checksum", "_ws.expert.message")


@dataclass(frozen=True)
class Finding:
    """A frame: when it passed, who sent it, what kinds of KINDS were found."""

    at: float
    source: str
    kinds: frozenset[str]


def findings(tshark: str, capture: Path, only: str = "tcp") -> Iterator[Finding]:
    """What is found in the frames of that display filter. A sum that the cable leaves to its other end is not bad."""
    fields = [word for field in _FIELDS for word in ("-e", field)]
    done = subprocess.run(
        [tshark, "-r", str(capture), "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
         "--disable-protocol", "http", "-Y", f"_ws.expert and {only}", "-T", "fields", "-E", "occurrence=a", *fields],
        capture_output=True, text=True)
    # tcpdump ends with its stack, perhaps in the middle of the last frame
    assert not done.returncode or "cut short in the middle of a packet" in done.stderr, done.stderr
    for line in done.stdout.splitlines():
        at, source, destination, octets, header, checksum, messages = line.split("\t")
        kinds = {kind for kind, pattern in KINDS.items() if re.search(pattern, messages)}
        if "checksum" in kinds and checksum and "," not in source:
            partial = _pseudo_header(source, destination, int(octets) - int(header))
            kinds -= {"checksum"} if int(checksum, 16) == partial else set()
        if kinds:
            yield Finding(float(at), source, frozenset(kinds))


def counted(found: Iterator[Finding]) -> Counter[str]:
    """How often each kind was found."""
    return Counter(kind for finding in found for kind in finding.kinds)


def _pseudo_header(source: str, destination: str, octets: int) -> int:
    """CHECKSUM_PARTIAL of Linux: the sum of the pseudo header, RFC 9293 section 3.1, which the device completes."""
    pseudo = struct.pack("!4s4sHH", socket.inet_aton(source), socket.inet_aton(destination), 6, octets)
    total = sum(struct.unpack("!6H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass
class Ran:
    """A test of the module: when it ran, and what it says that it provokes."""

    name: str
    begun: float
    ended: float
    provokes: frozenset[str]


def objections(tshark: str, captures: list[Path], tests: list[Ran]) -> list[str]:
    """What was found that no test provoked, by test."""
    per_test: dict[str, Counter[str]] = {}
    probes_max = {ran.name: PROBES_MAX + PROBES_A_SECOND * (ran.ended - ran.begun) for ran in tests}
    for capture in captures:
        for finding in findings(tshark, capture):
            ran = next((each for each in tests if each.begun <= finding.at <= each.ended), None)
            kinds = (finding.kinds & set(MUST_BE_PROVOKED)) - (ran.provokes if ran else set())
            if "window full" in (ran.provokes if ran else ()):  # a window that stays full closes
                kinds -= {"zero window"}
            per_test.setdefault(ran.name if ran else "between tests", Counter()).update(kinds)
    for name, counts in per_test.items():
        if counts["retransmission"] + counts["out of order"] <= probes_max.get(name, PROBES_MAX):
            del counts["retransmission"], counts["out of order"]
    return [f"{name}: {dict(counts)}" for name, counts in per_test.items() if counts]

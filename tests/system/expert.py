"""Wireshark's expert analysis of what passed the cable, of every test of TCP against the kernel.

A module with `pytestmark = pytest.mark.tcp` has all TAPs of its stacks captured, and is judged at its end: a test that
provokes something says so by `@pytest.mark.provokes("zero window", ...)`.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .peers import KERNEL
from .resent import Again, Judge, Segment

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
AGAIN = {"retransmission", "out of order"}
# A process that waits for a processor is late with its ACK: both ends send their last segment again after some ms (RFC
# 8985 section 7). There may be so many for each second in which a process waited (of 24 in a test that waited for 4.5 s
# each was for want of an ACK for 4 to 10 ms); two and 20 ms in all are of machines whose hosts are busy.
PROBES_MIN, PROBES_A_STARVED_SECOND, WAITED_S = 2, 20, 0.02
_FIELDS = ("frame.time_epoch", "ip.src", "ip.dst", "ip.len", "ip.hdr_len", "tcp.checksum", "_ws.expert.message",
           "tcp.stream", "tcp.flags", "tcp.seq", "tcp.len", "tcp.ack", "tcp.window_size_value", "tcp.options.sack_le",
           "tcp.options.sack_re", "tcp.options.mss_val")


@dataclass(frozen=True)
class Frame:
    """A frame: when it passed, who sent it, what kinds of KINDS were found, and its segment, unless it is malformed."""

    at: float
    source: str
    kinds: frozenset[str]
    segment: Segment | None


def findings(tshark: str, capture: Path, only: str = "tcp") -> Iterator[Frame]:
    """The frames of that display filter in which something is found."""
    return (frame for frame in frames(tshark, capture, only) if frame.kinds)


def frames(tshark: str, capture: Path, only: str = "tcp") -> Iterator[Frame]:
    """The frames of that display filter. A sum that the cable leaves to its other end is not bad."""
    fields = [word for field in _FIELDS for word in ("-e", field)]
    done = subprocess.run(
        [tshark, "-r", str(capture), "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
         "-o", "tcp.relative_sequence_numbers:FALSE", "--disable-protocol", "http", "-Y", only, "-T", "fields",
         "-E", "occurrence=a", *fields], capture_output=True, text=True)
    # tcpdump ends with its stack, perhaps in the middle of the last frame
    assert not done.returncode or "cut short in the middle of a packet" in done.stderr, done.stderr
    for line in done.stdout.splitlines():
        at, source, destination, octets, header, checksum, messages, *segment = line.split("\t")
        kinds = {kind for kind, pattern in KINDS.items() if re.search(pattern, messages)} if messages else set()
        if "checksum" in kinds and checksum and "," not in source:
            partial = _pseudo_header(source, destination, int(octets) - int(header))
            kinds -= {"checksum"} if int(checksum, 16) == partial else set()
        yield Frame(float(at), source, frozenset(kinds), _segment(float(at), source, *segment))


def _segment(at: float, source: str, connection: str, *fields: str) -> Segment | None:
    flags, sequence, text, acknowledgment, window, left, right, mss = fields
    if not flags or not text or "," in source:  # malformed, or quoted by ICMP
        return None
    sack = tuple(zip(map(int, left.split(",")), map(int, right.split(",")), strict=True)) if left else ()
    return Segment(at, source, connection, int(flags, 16), int(sequence), int(text), int(acknowledgment or 0),
                   int(window), sack, int(mss or 0))


def counted(found: Iterator[Frame]) -> Counter[str]:
    """How often each kind was found."""
    return Counter(kind for frame in found for kind in frame.kinds)


def _pseudo_header(source: str, destination: str, octets: int) -> int:
    """CHECKSUM_PARTIAL of Linux: the sum of the pseudo header, RFC 9293 section 3.1, which the device completes."""
    pseudo = struct.pack("!4s4sHH", socket.inet_aton(source), socket.inet_aton(destination), 6, octets)
    total = sum(struct.unpack("!6H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Moment:
    """When, and for how long, since the boot, a process has waited for a processor; all in seconds."""

    at: float
    starved: float

    @classmethod
    def now(cls) -> Moment:
        """Linux's pressure stall information. Where the kernel has none it is not known when the machine was idle."""
        at, pressure = time.time(), Path("/proc/pressure/cpu")
        try:
            return cls(at, int(pressure.read_text().partition("total=")[2].split()[0]) / 1e6)
        except OSError:
            return cls(at, at)


@dataclass
class Ran:
    """A test of the module: when it ran, and what it says that it provokes."""

    name: str
    begun: Moment
    ended: Moment
    provokes: frozenset[str]


def objections(tshark: str, captures: list[Path], tests: list[Ran]) -> list[str]:
    """What was found that no test provoked, by test."""
    if not tests:
        return []
    others = Ran("between tests", tests[0].begun, tests[-1].ended, frozenset())
    found: dict[str, Counter[str]] = {ran.name: Counter() for ran in (*tests, others)}
    again: dict[str, list[Again]] = {ran.name: [] for ran in (*tests, others)}
    for capture in captures:
        judge = Judge(KERNEL)
        for frame in frames(tshark, capture):
            wrong = judge.take(frame.segment) if frame.segment is not None else None
            if not frame.kinds:
                continue
            ran = next((each for each in tests if each.begun.at <= frame.at <= each.ended.at), others)
            kinds = (frame.kinds & set(MUST_BE_PROVOKED)) - ran.provokes
            if "window full" in ran.provokes:  # a window that stays full closes
                kinds -= {"zero window"}
            if kinds & AGAIN and frame.segment is not None:
                kinds -= AGAIN
                again[ran.name] += [wrong] if wrong is not None else []
            found[ran.name].update(kinds)
    said = []
    for ran in (*tests, others):
        kinds_found, starved_s = found[ran.name], ran.ended.starved - ran.begun.starved
        each = [str(dict(kinds_found))] if kinds_found else []
        each += _not_explained(again[ran.name], starved_s)
        said += [f"{ran.name}: {'; '.join(each)}"] if each else []
    return said


def _not_explained(again: list[Again], starved_s: float) -> list[str]:
    """What was sent again that no process that waited explains."""
    said = [f"retransmission: {each.what}" for each in again if each.waited is None]
    waits = sorted(each.waited for each in again if each.waited is not None)
    waited_s = reached = 0.0
    for begun, ended in waits:
        waited_s += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    most = PROBES_MIN + PROBES_A_STARVED_SECOND * starved_s
    if len(waits) > most or waited_s > WAITED_S + starved_s:
        said.append(f"{len(waits)} retransmissions, for {waited_s:.3f} s, where processes waited for a processor for "
                    f"{starved_s:.3f} s: " + ", ".join(each.what for each in again if each.waited is not None))
    return said

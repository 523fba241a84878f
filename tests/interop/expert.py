"""Wireshark's expert analysis of a capture: what it finds wrong with the TCP in it.

A stack whose segments are right, on a cable that loses nothing, gives it nothing to find; what a test provokes by loss
or by a reader that sleeps, it names.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.system.conftest import require_program

from .worlds import World

# Wireshark's words for what it finds, and ours for a kind of them. Everything else (SYN, FIN, window updates) is its
# report of what a connection does.
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


def findings(capture: Path, only: str = "tcp") -> Counter[str]:
    """How often each kind was found, of KINDS, in the frames of that display filter."""
    done = subprocess.run(
        [require_program("tshark"), "-r", str(capture), "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
         "--disable-protocol", "http", "-Y", f"_ws.expert and {only}", "-T", "fields", "-e", "_ws.expert.message"],
        capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        found.update(kind for kind, pattern in KINDS.items() if re.search(pattern, line))
    return found


@contextlib.contextmanager
def captured(world: World, capture: Path) -> Iterator[None]:
    """What passes the kernel's end of the cable meanwhile. AssertionError where tcpdump could not keep up."""
    dump = world.kernel(require_program("tcpdump"), "-i", world.device, "-U", "-B", "65536", "-w", capture, "tcp")
    for line in dump.stdout:
        if "listening on" in line:
            break
    yield
    world.on_kernel("sleep", "0.3")  # for the last ACK
    dump.send_signal(signal.SIGINT)
    said = dump.communicate(timeout=20)[0]
    assert re.search(r"\b0 packets dropped by kernel", said), said

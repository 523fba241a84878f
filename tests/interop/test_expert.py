"""Captures of ordinary exchanges hold nothing that Wireshark's experts object to; of a bad cable, they do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .expert import captured, findings
from .test_servers import PORT, serve
from .worlds import World

# A bulk sender fills the window wherever the reader is slower than the cable.
FULL = {"window full", "zero window"}
# Both send their last segment again after some ms without an ACK (RFC 8985 section 7): a busy machine is late with it.
PROBED = {"retransmission", "duplicate ACK"}


@pytest.fixture
def small(world: World) -> Path:
    """A file of 3 MB, in a directory of its own."""
    directory = world.home / "small"
    directory.mkdir(exist_ok=True)
    (directory / "data").write_bytes(random.Random(2).randbytes(3_000_000))
    return directory / "data"


def test_many_short_connections(world: World, small: Path, program, tmp_path: Path) -> None:
    serve(world, "http_server.py", world.subject_address, PORT, small.parent)
    (small.parent / "tiny").write_text("tiny\n")
    with captured(world, tmp_path / "pcap"):
        world.on_kernel(program("ab"), "-q", "-n", 200, "-c", 8, f"http://{world.subject_address}:{PORT}/tiny")
    _check(world, tmp_path / "pcap", set())


def test_transfers_both_ways(world: World, small: Path, program, tmp_path: Path) -> None:
    serve(world, "http_server.py", world.subject_address, PORT, small.parent)
    url = f"http://{world.subject_address}:{PORT}"
    with captured(world, tmp_path / "pcap"):
        world.on_kernel(program("curl"), "-sSf", "-o", small.parent / "back", f"{url}/data")
        world.on_kernel(program("curl"), "-sSf", "-T", small, f"{url}/put")
    _check(world, tmp_path / "pcap", FULL)


@pytest.mark.provokes("retransmission", "out of order")
def test_experts_see_a_cable_that_loses(world: World, small: Path, program, tmp_path: Path) -> None:
    """Without this the other tests could not fail. The kernel drops what comes after tcpdump has seen it."""
    serve(world, "http_server.py", world.subject_address, PORT, small.parent)
    nft = program("nft")
    world.on_kernel(nft, "add table ip lossy; add chain ip lossy input { type filter hook input priority 0; }; "
                         f"add rule ip lossy input tcp sport {PORT} numgen inc mod 10 0 drop")
    try:
        with captured(world, tmp_path / "pcap"):
            world.on_kernel(program("curl"), "-sSf", "-o", small.parent / "back",
                            f"http://{world.subject_address}:{PORT}/data")
    finally:
        world.on_kernel(nft, "delete table ip lossy")
    assert findings(tmp_path / "pcap")["retransmission"] > 0


def _check(world: World, capture: Path, provoked: set[str]) -> None:
    """Nothing but what was provoked, and a probe or two; some more of the kernel, which does not wait for a process."""
    subject = findings(capture, f"ip.src == {world.subject_address}")
    kernel = findings(capture, f"ip.src == {world.kernel_address}")
    for found in subject, kernel:
        assert set(found) - provoked - PROBED == set(), found
    assert subject["retransmission"] + kernel["duplicate ACK"] <= 3, (subject, kernel)
    assert kernel["retransmission"] + subject["duplicate ACK"] <= 10, (subject, kernel)

"""TCP watched and disturbed: its segments on each pipe as on a wire, a transfer through a bad network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from .peers import KERNEL, PATIENCE_S, Stack, wait_for
from .test_watching import capturing, fields

pytestmark = [pytest.mark.tcp, pytest.mark.provokes("window full")]

OCTETS = 300_000


@contextlib.contextmanager
def connected(stack: Stack) -> Iterator[tuple]:
    """A connection from an application of the stack to the kernel."""
    with stack.kernel.socket(kind=socket.SOCK_STREAM) as listener:
        listener.bind((KERNEL, 0))
        listener.listen()
        with stack.socket(socket.SOCK_STREAM) as ours:
            ours.connect(listener.getsockname())
            theirs, _ = listener.accept()
            with theirs:
                theirs.settimeout(PATIENCE_S)
                yield ours, theirs


def transfer(stack: Stack, octets: int = OCTETS) -> int:
    """Some octets each way at the same time, compared; the kernel's port."""
    sent = bytes(number % 251 for number in range(octets))
    with connected(stack) as (ours, theirs):
        back: list[bytes] = []

        def kernels_side() -> None:
            theirs.sendall(sent)
            while sum(map(len, back)) < octets and (part := theirs.recv(65536)):
                back.append(part)

        peer = threading.Thread(target=kernels_side)
        peer.start()
        writer = threading.Thread(target=ours.sendall, args=(sent,))
        writer.start()
        got = b""
        while len(got) < octets and (part := ours.recv(65536)):
            got += part
        writer.join(PATIENCE_S)
        peer.join(PATIENCE_S)
        assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
        assert hashlib.sha256(b"".join(back)).digest() == hashlib.sha256(sent).digest()
        return theirs.getsockname()[1]


def test_segments_on_every_pipe_with_their_checksums(stack, tmp_path):
    path = tmp_path / "tcp.pcapng"
    with capturing(stack, "device", "ip", "-w", path) as capture:
        port = transfer(stack)
    rows = fields(path, "frame.interface_name", "tcp.checksum.status", "frame.len", condition=f"tcp.port == {port}")
    for pipe in ("device:link", "link:ip", "ip:tcp", "tcp:ip", "ip:link", "link:device"):
        assert any(row[0] == pipe for row in rows), pipe
    assert max(int(row[2]) for row in rows) <= 1514  # super-segments are shown as their segments
    if ", 0 lost" in capture.said:
        command = ["tshark", "-r", path, "-o", "tcp.check_checksum:TRUE", "-Y", "tcp.checksum.status == Bad"]
        assert not subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.provokes("retransmission", "out of order")
def test_why_tells_much_of_one_kind_in_two_lines(stack):
    stack.run("impair", "device:link", "--loss", "10%", "--seed", "3")
    try:
        port = transfer(stack)
    finally:
        stack.run("impair", "--clear")
    connection = f"{KERNEL}:{port}"
    ended = re.compile("TIME-WAIT begins|CLOSING and LAST-ACK")
    wait_for("the end of the connection", lambda: ended.search(stack.run("why", connection).stdout))
    said = stack.run("why", connection).stdout.splitlines()
    events = stack.run("why", connection, "--json").stdout.splitlines()
    more = [int(line.split()[2]) for line in said if line.startswith("  ... and ")]
    assert more
    assert len(said) - 1 - len(more) + sum(more) == len(events)
    kinds = [re.sub(r"\d+", "", line[18:]) for line in said[1:]]
    assert not any(first == second == third
                   for first, second, third in zip(kinds, kinds[1:], kinds[2:], strict=False))


@pytest.mark.provokes("retransmission", "out of order")
def test_a_transfer_comes_whole_through_a_bad_network(stack):
    stack.run("impair", "device", "--loss", "2%", "--delay", "5ms", "2ms", "--duplicate", "1%", "--seed", "3")
    try:
        transfer(stack, 100_000)
    finally:
        stack.run("impair", "--clear")
    counters = stack.counters("link")
    assert counters["bus_impaired_lost"] > 0
    assert counters["bus_impaired_duplicated"] > 0


def test_why_tells_the_clauses_that_a_connection_took(stack):
    port = transfer(stack)
    said = stack.run("why", f"{KERNEL}:{port}").stdout.splitlines()
    assert said[0].endswith(f" - {KERNEL}:{port}")
    assert said[1].endswith("SYN-SENT     OPEN: sent a SYN [RFC 9293 section 3.10.1]")
    assert said[2].endswith("ESTABLISHED  the SYN-ACK arrived; sent an ACK [RFC 9293 section 3.10.7.3, fourth]")
    with stack.socket(socket.SOCK_STREAM) as refused, contextlib.suppress(ConnectionRefusedError):
        refused.connect((KERNEL, 9))
    events = [json.loads(line) for line in stack.run("why", f"{KERNEL}:9", "--json").stdout.splitlines()]
    assert [event["clause"] for event in events] == [
        "RFC 9293 section 3.10.1", "RFC 9293 section 3.10.7.3, second", "RFC 9293 section 3.10.8"]
    last = stack.run("why", f"{KERNEL}:9", "--count", 1).stdout.splitlines()
    assert len(last) == 2
    assert "no events" in stack.run("why", f"{KERNEL}:2", status=1).stdout
    for wrong in ("x", "1-2-3", "10.0.0.1:99999", "10.0.0.1-", "-"):
        assert "expected a port, ADDRESS" in stack.run("why", wrong, status=2).stderr
    assert "'0': must be a whole number, 1 or more" in stack.run("why", "--count", 0, status=2).stderr

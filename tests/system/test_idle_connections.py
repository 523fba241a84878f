"""Many connections are idle: tcp keeps little of each, shows them as before, and each goes on where it was."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Iterator

import pytest

from .peers import PATIENCE_S, STACK, Stack, wait_for

CONNECTIONS = 1000
PORT = 5099
# Ten seconds until an application is asked how far it has read, and a machine that does something else, too
SLEEP_PATIENCE_S = 60.0
STEADY = ("congestion", "options", "wscale", "snd_mss", "rcv_mss", "unacked", "pmtu", "rcv_ssthresh", "snd_ssthresh",
          "snd_cwnd", "advmss", "rcv_space", "total_retrans", "bytes_acked", "bytes_received", "segs_out", "segs_in",
          "data_segs_in", "data_segs_out", "bytes_sent", "bytes_retrans", "rcv_ooopack", "snd_wnd")
pytestmark = [pytest.mark.long, pytest.mark.tcp(snaplen=128), pytest.mark.provokes("retransmission", "out of order")]


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def exchange(pairs: list[tuple[socket.socket, socket.socket]], turn: int) -> None:
    """On every connection, in both directions, octets of its own."""
    for number, (ours, theirs) in enumerate(pairs):
        ours.sendall(b"%d to the kernel, %d" % (number, turn))
        theirs.sendall(b"%d to the stack, %d" % (number, turn))
    for number, (ours, theirs) in enumerate(pairs):
        for sock, wanted in ((theirs, b"%d to the kernel, %d"), (ours, b"%d to the stack, %d")):
            expected = wanted % (number, turn)
            got = b""
            while len(got) < len(expected):
                part = sock.recv(len(expected) - len(got))
                assert part, (number, turn)
                got += part
            assert got == expected


def connections(stack: Stack) -> dict[tuple, dict]:
    """What `ss` shows of each, by the peer's end."""
    rows = json.loads(stack.run("ss", "-ti", "--json").stdout)
    return {tuple(row["peer"]): row for row in rows if row["state"] == "ESTAB"}


def shown(row: dict) -> tuple:
    """What does not change while a connection is idle."""
    return row["handle"], row["send_q"], {name: row["info"].get(name) for name in STEADY}


def test_a_thousand_idle_connections_sleep_are_shown_as_before_and_exchange_octets(
        new_stack, many_descriptors: None) -> None:
    stack = new_stack().up()
    pairs = []
    with stack.socket(socket.SOCK_STREAM) as listener:
        listener.bind((STACK, PORT))
        listener.listen(64)
        for _ in range(CONNECTIONS):
            theirs = stack.kernel.socket(kind=socket.SOCK_STREAM)
            theirs.settimeout(PATIENCE_S)
            theirs.connect((STACK, PORT))
            ours, _ = listener.accept()
            ours.settimeout(PATIENCE_S)
            pairs.append((ours, theirs))
        alive, _ = pairs[7]
        alive.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        alive.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 9)
        exchange(pairs, 0)
        before: dict[tuple, dict] = {}

        def settled() -> bool:
            nonlocal before
            former, before = before, connections(stack)
            return len(before) == CONNECTIONS and all(shown(former.get(end, row)) == shown(row) and not row["send_q"]
                                                      for end, row in before.items()) and before.keys() == former.keys()

        wait_for("the last ACKs", settled, PATIENCE_S)

        def asleep() -> bool:
            listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)  # in a call the library answers tcp, which asks
            counters = stack.counters("tcp")
            return counters["slept"] - counters["woken"] >= CONNECTIONS

        wait_for("all to sleep", asleep, SLEEP_PATIENCE_S)
        woken = stack.counters("tcp")["woken"]
        slept = connections(stack)
        assert stack.counters("tcp")["woken"] <= woken + 1  # listing them wakes none; the one has a keep-alive timer
        assert slept.keys() == before.keys()
        assert slept[alive.getpeername()]["timer"]["name"] == "keepalive"
        for end, row in slept.items():
            assert shown(row) == shown(before[end]) or end == alive.getpeername()
            assert row["recv_q"] == 0
            assert row["info"]["rtt"] > 0
        wait_for("a keep-alive", lambda: stack.counters("tcp")["keepalives_sent"], SLEEP_PATIENCE_S)
        exchange(pairs, 1)
        assert stack.counters("tcp")["woken"] >= CONNECTIONS
        wait_for("all to sleep again", asleep, SLEEP_PATIENCE_S)
        former = stack.ask()
        os.kill(former["sockets"]["pid"], signal.SIGKILL)
        wait_for("sockets", lambda: stack.serves(sockets=former["sockets"]["incarnation"] + 1))
        exchange(pairs, 2)
        os.kill(former["tcp"]["pid"], signal.SIGKILL)
        wait_for("tcp", lambda: stack.serves(tcp=former["tcp"]["incarnation"] + 1))
        exchange(pairs, 3)
        for ours, theirs in pairs:
            theirs.close()
            assert ours.recv(1) == b""
            ours.close()

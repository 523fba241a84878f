"""Datagrams by reference in a running stack: what arrives while layers are killed, and after its program has ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from time import monotonic

import pytest

from .peers import PATIENCE_S, Stack, wait_for

SIZE, RUN = 1472, 40
LAYERS = ("sockets", "udp", "ip", "link")
GROUPS, KILLS = 200, 3  # of datagrams; a layer is killed beside the 20th
LOST_AFTER_S = 5  # what a SIGKILL has not cost arrives long before

PARTING = """
import os, usernet
with usernet.socket(type=usernet.SOCK_DGRAM) as endpoint:
    endpoint.connect({address})
    some = [b"%5d" % number + bytes({size} - 5) for number in range({run})]
    endpoint.sendto(b"", {address})
    for group in range({groups}):
        endpoint.sendmany([(each, None) for each in some])
    os._exit(0)
"""


def datagram(number: int) -> bytes:
    return b"%9d" % number * (SIZE // 9) + bytes(SIZE % 9)


def refers(endpoint) -> bool:
    """True if its process has used a buffer."""
    buffers = endpoint._connection.buffers()
    return buffers is not None and any(buffers._memory.cells.tolist())


def arrived(peer: socket.socket, app, within_s: float) -> list[bytes]:
    """The next datagrams, at most a run. The application hears of restarts meanwhile, as it does in any call."""
    peer.settimeout(0.05)
    got: list[bytes] = []
    deadline = monotonic() + within_s
    while len(got) < RUN and monotonic() < deadline:
        try:
            got.append(peer.recv(2048))
        except TimeoutError:
            app._connection.look()
    return got


@pytest.mark.parametrize("pipes", ["zmq", "direct"])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_sent_over_the_death_of_a_layer_arrives(new_stack: Callable[[], Stack], layer: str,
                                                        pipes: str) -> None:
    stack = new_stack().up("--pipes", pipes)
    numbers, lost = count(), 0
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        app.connect(peer.getsockname())
        app.send(b"hello")
        assert peer.recv(2048) == b"hello"
        for _ in range(KILLS):
            for group in range(GROUPS):
                some = [datagram(next(numbers)) for _ in range(RUN)]
                assert app.sendmany([(each, None) for each in some]) == RUN
                if group == 20:
                    before = stack.incarnations()[layer]
                    os.kill(stack.pids()[layer], signal.SIGKILL)
                got = arrived(peer, app, LOST_AFTER_S if layer == "link" else PATIENCE_S)
                lost += RUN - len(got)
                assert got == [each for each in some if each in set(got)], "each once, whole, and in order"
            wait_for("its successor", lambda before=before: stack.incarnations()[layer] > before)
        assert refers(app)
        assert lost <= (KILLS * RUN if layer == "link" else 0), "a SIGKILL of link during a write costs that frame"
        assert stack.counters("link")["bus_held_gone"] == 0


def test_what_a_program_has_sent_arrives_though_it_ends_in_the_next_line(new_stack: Callable[[], Stack]) -> None:
    stack = new_stack().up()
    with stack.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        address = peer.getsockname()
        for groups in (1, 3, 8):
            program = PARTING.format(address=address, size=SIZE, run=RUN, groups=groups)
            subprocess.run([sys.executable, "-c", program], env=stack.env, check=True, timeout=60)
            got = [peer.recv(2048) for _ in range(1 + groups * RUN)]
            assert [each[:5] for each in got] == [b"", *[b"%5d" % number for number in range(RUN)] * groups]

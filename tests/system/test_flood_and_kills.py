"""An application that sends as fast as it can while layers are killed: what that costs another application."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import pytest

from .peers import KERNEL, PATIENCE_S, ROOT, STACK, TAP, wait_for

pytestmark = pytest.mark.long

KILLS, ROUND_TRIPS, WINDOW = 4, 50, 10
SINK_PORT = 9999  # where the kernel's end takes what floods link, and does not read it

# Sends to itself, or to an address, without a pause and without reading. The frames are as long as any, and what is
# under way to a layer is several times what a journal of 1 MiB holds.
FULL_RATE = """
import sys, usernet
with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as flooder:
    flooder.bind((sys.argv[1], 0))
    to = (sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else flooder.getsockname()
    print("floods", flush=True)
    while True:
        flooder.sendto(bytes(9000), to)
"""


def lost(sender, receiver, kill: int, killed: int) -> int:
    """Kill a process between two of several windows of datagrams; returns how many did not arrive."""
    missing = 0
    for start in range(0, ROUND_TRIPS, WINDOW):
        window = {b"%d %d" % (kill, number) for number in range(start, start + WINDOW)}
        for octets in sorted(window):
            sender.sendto(octets, receiver.getsockname())
        if start == WINDOW:
            os.kill(killed, 9)
        with suppress(TimeoutError):
            while window:
                window.discard(receiver.recv(100))
        missing += len(window)
    return missing


def tap_drops(stack) -> int:
    """What the kernel dropped at its end of the cable, because link did not read in time."""
    words = stack.execute("cat", "/proc/net/dev").stdout.replace(":", " ").split("\n")
    return next(int(line.split()[12]) for line in words if line.split()[:1] == [TAP])


@pytest.mark.parametrize("layer", ["ip", "udp", "sockets", "link"])
@pytest.mark.parametrize("pipes", ["direct", "zmq"])
def test_kills_beside_a_flood_at_full_rate_cost_a_quiet_application_nothing(new_stack, pipes, layer):
    """Its datagrams go ahead of what waits behind a full pipe, so they are in the journals, whatever else is sent."""
    booted = new_stack().up("--pipes", pipes)
    far = booted.kernel.udp()
    sink = booted.kernel.udp(SINK_PORT)
    to = ["127.0.0.9"] if layer != "link" else [STACK, KERNEL, SINK_PORT]
    flood = booted.spawn([sys.executable, "-c", FULL_RATE, *map(str, to)], env=booted.env | {"PYTHONPATH": str(ROOT)})
    assert (said := flood.stdout.readline()) == "floods\n", said + flood.stdout.read()
    with booted.bound(address="127.0.0.4") as own, booted.bound() as near, far, sink:
        for each in (own, near, far):
            each.settimeout(PATIENCE_S)
        near.sendto(b"resolved", far.getsockname())
        far.recv(100)
        losses = []
        for kill in range(KILLS):
            before, dropped = booted.ask()[layer], tap_drops(booted)
            sender, receiver = (own, own) if layer != "link" else ((near, far), (far, near))[kill % 2]
            missing = lost(sender, receiver, kill, before["pid"])
            wait_for("the layer", lambda: booted.serves(**{layer: before["incarnation"] + 1}))  # noqa: B023
            losses.append(max(0, missing - (tap_drops(booted) - dropped)))
        # A SIGKILL of link in the read of a frame costs it, rarely (docs/recovery.md)
        assert sum(losses) <= (1 if layer == "link" else 0), (losses, booted.events())
    assert flood.poll() is None

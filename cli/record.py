"""`record`: record the calls of a layer's core, so that `replay` can repeat them."""

from __future__ import annotations

import argparse
import select
import signal
import sys
import time
from io import RawIOBase
from struct import Struct

from bus.runtime import ring
from cli.watching import open_taps
from supervisor.control import Client
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "record all calls of a layer's core, from a planned restart on, for replay"
MAGIC = b"usernet recording 1\n"
LENGTH = Struct("<I")
_POLL_S = 0.005
_CALL = b"\x93\xa4call"  # msgpack: an array of three, whose first item is "call"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument("-w", dest="file", metavar="FILE", help="default LAYER.rec")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds (default: Ctrl-C stops)")


def run(given: argparse.Namespace) -> int:
    """Record until the time is over, Ctrl-C is pressed, or the stack ends."""
    if given.seconds is not None and given.seconds <= 0:
        raise UsageError(f"--seconds {given.seconds}: must be more than zero")
    path = given.file or f"{given.layer}.rec"
    with Client(run_dir(given.name)) as client:
        layers = client.request("status")["layers"]
        if given.layer not in layers:
            raise UsageError(f"record: no layer {given.layer!r}; the layers are {', '.join(layers)}")
        if given.layer == "tcp":
            raise UsageError("record: tcp cannot be recorded, because its connections are in memory that a recording "
                             "does not contain")
        with open(path, "wb", buffering=0) as out:
            return _write(client, given.layer, out, path, given.seconds or float("inf"))


def _write(client: Client, layer: str, out: RawIOBase, path: str, seconds: float) -> int:
    """Write the recording to the file; returns the exit status."""
    out.write(MAGIC)
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    reader = ring.RingReader(open_taps(client, {layer: {"record": True}})[layer])
    print(f"recording {layer}, which was restarted for this; Ctrl-C ends the recording", file=sys.stderr)
    until, calls, last = time.monotonic() + seconds, 0, False
    while not last:
        last = bool(stop or reader.lost or time.monotonic() >= until or select.select([client], [], [], _POLL_S)[0])
        for entry in reader.read():
            for octets in entry.records:
                out.write(LENGTH.pack(len(octets)) + octets)
                calls += octets.startswith(_CALL)
    if reader.lost:
        print(f"launcher.py: this process could not keep up; {path} ends with call {calls}", file=sys.stderr)
        return 1
    print(f"{calls} calls in {path}", file=sys.stderr)
    return 0

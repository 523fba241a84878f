"""`record`: write down what a layer does, so that `replay` can do it again."""

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

TEXT = "write down all that a layer does, from a planned restart on, for replay"
MAGIC = b"usernet recording 1\n"
LENGTH = Struct("<I")
_POLL_S = 0.005
_CALL = b"\x93\xa4call"  # msgpack: an array of three, the first of them "call"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its part of the command line."""
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument("-w", dest="file", metavar="FILE", help="default LAYER.rec")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after this time (else: Ctrl-C)")


def run(given: argparse.Namespace) -> int:
    """Record until the time is over, Ctrl-C, or the stack's end."""
    if given.seconds is not None and given.seconds <= 0:
        raise UsageError(f"--seconds {given.seconds}: more than zero")
    path = given.file or f"{given.layer}.rec"
    with Client(run_dir(given.name)) as client:
        layers = client.request("status")["layers"]
        if given.layer not in layers:
            raise UsageError(f"record: no layer {given.layer!r}; there are {', '.join(layers)}")
        if given.layer == "tcp":
            raise UsageError("record: tcp's connections lie in memory that a recording does not hold yet")
        with open(path, "wb", buffering=0) as out:
            return _write(client, given.layer, out, path, given.seconds or float("inf"))


def _write(client: Client, layer: str, out: RawIOBase, path: str, seconds: float) -> int:
    """Until the time is over, and so on; how it ended is the status."""
    out.write(MAGIC)
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    reader = ring.RingReader(open_taps(client, {layer: {"record": True}})[layer])
    print(f"recording {layer}, which was started anew for it; Ctrl-C ends it", file=sys.stderr)
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

"""A bad cable between two ends: `python -m tests.badnet.cable END END PATH SEED`, until its standard input ends.

An END is `tap:DESCRIPTOR` or `wire:DIRECTORY`; PATH is JSON, as tests.badnet.impairment.Path has it, for both ways.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path as File

import zmq

from tests.tcpcases.station import Cable, Tap, WirePort

from .impairment import Impairment, Path

FRAMES_AT_ONCE = 64
FRAME_OCTETS_MIN = 60


class End:
    """An end, without waiting."""

    def __init__(self, written: str) -> None:
        kind, _, where = written.partition(":")
        self.cable: Cable
        if kind == "tap":
            self.cable, self.source = Tap(int(where)), int(where)
            os.set_blocking(self.source, False)
        else:
            self.cable = port = WirePort(File(where))
            self.source = port.inbox

    def frames(self) -> list[bytes]:
        """What is there."""
        return self.cable.receive() if not isinstance(self.source, int) else self._read()

    def _read(self) -> list[bytes]:
        taken: list[bytes] = []
        try:
            while len(taken) < FRAMES_AT_ONCE:
                taken.append(os.read(self.source, 1 << 17))
        except BlockingIOError:
            pass
        return taken

    def send(self, frame: bytes) -> None:
        """A full TAP drops, as a switch would."""
        try:
            self.cable.send(frame.ljust(FRAME_OCTETS_MIN, b"\0"))  # a TAP's are not padded
        except BlockingIOError:
            pass


def main() -> None:
    """See above."""
    near, far = End(sys.argv[1]), End(sys.argv[2])
    path, seed = Path(**json.loads(sys.argv[3])), int(sys.argv[4])
    ways = [(near, far, Impairment(path, seed)), (far, near, Impairment(path, seed + 1))]
    poller = zmq.Poller()
    for end in (near, far):
        poller.register(end.source, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    waiting: list[tuple[float, int, bytes, End]] = []
    order = itertools.count()
    print("ready", flush=True)
    while True:
        timeout = None if not waiting else max(0, math.ceil((waiting[0][0] - time.monotonic()) * 1000))
        ready = dict(poller.poll(timeout))
        if sys.stdin.fileno() in ready:
            return
        now = time.monotonic()
        for source, target, impairment in ways:
            if source.source in ready:
                for frame in source.frames():
                    for due, arriving in impairment.take(frame, now):
                        heapq.heappush(waiting, (due, next(order), arriving, target))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, frame, target = heapq.heappop(waiting)
            target.send(frame)


if __name__ == "__main__":
    main()

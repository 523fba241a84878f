"""`record`: record the calls of a layer's core, so that `replay` can repeat them."""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import stat
import sys
import time
from collections import deque
from io import FileIO

from bus.runtime import ring
from bus.runtime.crash_log import LENGTH, MAGIC
from cli.failures import naming
from cli.main import program
from cli.numbers import seconds
from cli.watching import open_taps
from supervisor.control import Client
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "record all calls of a layer's core, from a planned restart on, for replay"
_POLL_S = 0.005
RING_OCTETS_MIN = 10**6
_CALL = b"\x93\xa4call"  # msgpack: an array of three, whose first item is "call"
_START, _CHECKPOINT = b"\x92\xa5start", b"\x94\xaacheckpoint"
_SIZE = re.compile(r"(\d+)(kB|MB|GB)")
_SCALES = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument("-w", dest="file", metavar="FILE", help="default LAYER.rec")
    parser.add_argument("--ring", metavar="SIZE", help="keep only the last calls, about SIZE of them, such as 64MB, "
                        "and write them at the end")
    parser.add_argument("--seconds", type=seconds(above=True), metavar="S", help="stop after S seconds "
                        "(default: Ctrl-C stops)")


def run(given: argparse.Namespace) -> int:
    """Record until the time is over, Ctrl-C is pressed, or the stack ends."""
    ring_octets = _octets(given.ring) if given.ring else 0
    path = given.file or f"{given.layer}.rec"
    with Client(run_dir(given.name)) as client:
        layers = client.request("status")["layers"]
        if given.layer not in layers:
            raise UsageError(f"record: no layer {given.layer!r}; the layers are {', '.join(layers)}")
        with open(path, "wb", buffering=0, opener=_private) as out:
            file = LastOnes(out, ring_octets) if ring_octets else Everything(out)
            return _write(client, given.layer, file, path, given.seconds or float("inf"))


def _private(path: str, flags: int) -> int:
    """Open the file for its owner only: a recording contains packets, and the keys of the layer's random numbers."""
    descriptor = os.open(path, flags, 0o600)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        os.fchmod(descriptor, 0o600)  # it may have existed
    return descriptor


def _octets(text: str) -> int:
    match = _SIZE.fullmatch(text)
    octets = int(match[1]) * _SCALES[match[2]] if match else 0
    if octets < RING_OCTETS_MIN:
        raise UsageError(f"--ring {text}: expected a size of at least 1MB, like 64MB")
    return octets


class Everything:
    """A file with all entries of a recording. OSError, with the file's name: it cannot be written."""

    every = 0

    def __init__(self, out: FileIO) -> None:
        self._out = out
        self._path = str(out.name)
        self._write(MAGIC)

    def _write(self, octets: bytes) -> None:
        with naming(self._path):
            while octets:
                octets = octets[self._out.write(octets) :]

    def add(self, entry: bytes) -> int:
        """Add an entry; returns the number of calls by which the file has grown."""
        self._write(LENGTH.pack(len(entry)) + entry)
        return int(entry.startswith(_CALL))

    def close(self) -> None:
        """Write what is not in the file yet."""


class LastOnes(Everything):
    """The last entries, in memory until the end: whole stretches, each from a process's start or a checkpoint on."""

    def __init__(self, out: FileIO, octets: int) -> None:
        super().__init__(out)
        self._limit = octets
        self.every = octets // 8
        self._stretches: deque[list[bytes]] = deque()
        self._octets = 0

    def add(self, entry: bytes) -> int:
        """See Everything."""
        if entry.startswith((_START, _CHECKPOINT)):
            self._stretches.append([])
        self._stretches[-1].append(entry)
        self._octets += len(entry)
        gone = 0
        while self._octets > self._limit and len(self._stretches) > 1:
            stretch = self._stretches.popleft()
            self._octets -= sum(map(len, stretch))
            gone += sum(each.startswith(_CALL) for each in stretch)
        return int(entry.startswith(_CALL)) - gone

    def close(self) -> None:
        """See Everything."""
        for stretch in self._stretches:
            for entry in stretch:
                super().add(entry)


def _write(client: Client, layer: str, file: Everything, path: str, seconds: float) -> int:
    """Write the recording to the file; returns the exit status."""
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    reader = ring.RingReader(open_taps(client, {layer: {"record": True, "every": file.every}})[layer])
    print(f"recording {layer}, which was restarted for this; Ctrl-C ends the recording", file=sys.stderr)
    until, calls, last = time.monotonic() + seconds, 0, False
    ended = False  # the stack
    while not last:
        ended = bool(select.select([client], [], [], _POLL_S)[0])
        last = bool(ended or stop or reader.lost or time.monotonic() >= until)
        for entry in reader.read():
            for octets in entry.records:
                calls += file.add(octets)
    file.close()
    if reader.lost:
        print(f"{program()}: this process could not keep up; {path} ends with call {calls}", file=sys.stderr)
        return 1
    print(f"{'the stack has ended; ' if ended else ''}{calls} calls in {path}", file=sys.stderr)
    return 0

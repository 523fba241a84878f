"""Encoding later: what `capture -w FILE` does while no processor is free.

To encode packets takes ten times as long as to take them out of the layers' rings, and when all processors are busy,
it takes this time from the stack that is watched. So what the rings contain is then copied, as it is, into unlinked
temporary files, and encoded when this process has taken little of the processors (`Budget`), and at the end. Who reads
the file meanwhile sees packets late, but in order of time. A SIGKILL of this process loses what it has not encoded.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cli.watching import Look, Merger, Seen

# Of one processor, while none is free. To copy what 40,000 echoes/s leave in the rings takes half of it. More would be
# the stack's, and would not help for long: with 0.1 the spool is full after 18 s of them instead of 14.
SHARE = 0.03
_SAVED_S = 0.02  # processor time that can be saved up
_OWED_S = 1.0  # that must be saved at most, whatever was taken: to encode what full rings contain takes about as long
_WINDOW_S = 0.1  # for which it is measured whether a processor is free; its unit is 10 ms
_FREE = 1.25  # processors without work, but for this process, of which it may have one

_SEGMENT_OCTETS = 1 << 24
_SEGMENTS_MAX = 32  # 512 MB: 14 s of 40,000 echoes/s, encoded in 5 s
_ROOM_LEFT = 2  # times what the spool occupies stays free on its disk, for the file itself and for others


class Budget:
    """The processor time that this process may take: SHARE of one processor, and without limit while one is free."""

    def __init__(self, used_s: Callable[[], float] = time.process_time, now_s: Callable[[], float] = time.monotonic,
                 idle_s: Callable[[], float] | None = None) -> None:
        """`idle_s`: for how long processors had nothing to do, summed up over all of them."""
        self._used_s, self._now_s, self._idle_s = used_s, now_s, idle_s or _idle_s
        self._at, self._used = now_s(), used_s()
        self._left = _SAVED_S
        self._free = False
        self._window = self._at, self._used, self._idle_s()

    def left(self) -> bool:
        """True if it may take more."""
        now, used = self._now_s(), self._used_s()
        saved = min(self._left + SHARE * (now - self._at), _SAVED_S)
        self._left = max(saved - (used - self._used), -_OWED_S)
        self._at, self._used = now, used
        began, used_before, idle_before = self._window
        if now - began >= _WINDOW_S:
            idle = self._idle_s()
            self._free = idle - idle_before + used - used_before >= _FREE * (now - began)
            self._window = now, used, idle
        if self._free:
            self._left = max(self._left, 0.0)  # what it takes now need not be saved later
            return True
        return self._left > 0


def _idle_s() -> float:
    """See Budget; 0 if it is not known of the processors that this process may use."""
    try:
        if len(os.sched_getaffinity(0)) == os.cpu_count():
            return float(Path("/proc/uptime").read_text().split()[1])  # proc_uptime(5)
    except OSError:
        pass  # a /proc with processes only
    return 0.0


class _Kept(NamedTuple):
    """A look, whose octets are in a temporary file."""

    look: Look  # without spans
    lengths: list[list[int]]  # of its spans
    file: BinaryIO
    at: int


class Spool:
    """Looks in temporary files, first in, first out. Each file is removed when it has been read."""

    def __init__(self, folder: str | None, files_max: int = _SEGMENTS_MAX, file_octets: int = _SEGMENT_OCTETS) -> None:
        """`folder`: None is that for temporary files."""
        self.folder = folder
        self._files_max, self._file_octets = files_max, file_octets
        self._files: deque[BinaryIO] = deque()
        self._end = 0  # of the last file
        self._kept: deque[_Kept] = deque()
        self.octets = 0  # that wait

    def __len__(self) -> int:
        """Number of looks."""
        return len(self._kept)

    def put(self, look: Look) -> bool:
        """Copy what a look found; False: there is no room for it."""
        parts = [span for spans in look.spans for span in spans]
        octets = sum(map(len, parts))
        if (not self._files or self._end >= self._file_octets) and not self._begin():
            return False
        file = self._files[-1]
        try:
            if parts and os.pwritev(file.fileno(), parts, self._end) < octets:
                return False
        except OSError:
            return False
        lengths = [list(map(len, spans)) for spans in look.spans]
        self._kept.append(_Kept(look._replace(spans=[]), lengths, file, self._end))
        self._end += octets
        self.octets += octets
        return True

    def _begin(self) -> bool:
        """Begin another file, if there may be one."""
        if len(self._files) == self._files_max:
            return False
        try:
            file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  (until it has been read)
            disk = os.fstatvfs(file.fileno())
        except OSError:
            return False
        if disk.f_bavail * disk.f_frsize < _ROOM_LEFT * (len(self._files) + 1) * self._file_octets:
            file.close()
            return False
        self._files.append(file)
        self._end = 0
        return True

    def get(self) -> Look:
        """Remove and return the oldest look."""
        look, lengths, file, at = self._kept.popleft()
        octets = sum(map(sum, lengths))
        read = memoryview(os.pread(file.fileno(), octets, at))
        self.octets -= octets
        while self._files and (not self._kept or self._kept[0].file is not self._files[0]):
            self._files.popleft().close()
        spans: list[list[memoryview]] = []
        at = 0
        for each in lengths:
            spans.append([])
            for length in each:
                spans[-1].append(read[at : at + length])
                at += length
        return look._replace(spans=spans)


def batches(merger: Merger, looks: Iterable[Look], spool: Spool, budget: Budget,
            ending: Callable[[int], object], given_up: Callable[[int], bool]) -> Iterator[list[Seen]]:
    """What the looks found, in order of time: at once while the budget allows it, else later.

    `ending` is called with the number of octets that wait when there are no more looks. Then `given_up` is called with
    it before each of those that wait; True: these are left out.
    """
    for look in looks:
        kept = False
        if spool or not budget.left():
            while not (kept := spool.put(look)) and spool:
                yield merger.merged(spool.get())  # until there is room
        if kept:
            merger.release()
        else:
            yield merger.taken(look)
        while spool and budget.left():
            yield merger.merged(spool.get())
    if spool:
        ending(spool.octets)
    while spool and not given_up(spool.octets):
        yield merger.merged(spool.get())

"""The last calls of a layer's core, in memory that outlives the process: `up --record-crashes`.

The memory has two halves, each with its own number and its own valid length. Recording begins in one; when it is a
quarter full, a checkpoint begins the other, and so on. So at any time the halves together are a recording of the last
moments (`bus.runtime.recorder`), however the process ends. The successor of a process writes into other memory, so that
the keeper has time to store this one (`supervisor.crashes`).
"""

from __future__ import annotations

from struct import Struct

MAGIC = b"usernet recording 2\n"  # the beginning of a file; entries follow, each after its length
LENGTH = Struct("<I")
_HEAD = Struct("<QQ")  # number of the half (0: empty), valid octets after this head


class CrashLog:
    """The writer: a `bus.runtime.recorder.Sink`."""

    patience_s = 0.0

    def __init__(self, memory: memoryview) -> None:
        half = len(memory) // 2
        self._halves = (memory[:half], memory[half:])
        self._room = half - _HEAD.size
        self.every = self._room // 4
        self.most = self._room // 2
        self._number = self._used = 0
        for each in self._halves:
            _HEAD.pack_into(each, 0, 0, 0)
        self.turn()

    def turn(self) -> None:
        """Begin the other half."""
        self._number += 1
        self._used = 0
        _HEAD.pack_into(self._halves[self._number % 2], 0, self._number, 0)

    def put(self, octets: bytes) -> bool:
        """Add an entry; False: it does not fit."""
        end = self._used + LENGTH.size + len(octets)
        if end > self._room:
            return False
        half, at = self._halves[self._number % 2], _HEAD.size + self._used
        LENGTH.pack_into(half, at, len(octets))
        half[at + LENGTH.size : _HEAD.size + end] = octets
        self._used = end
        _HEAD.pack_into(half, 0, self._number, end)  # the entry counts from here on
        return True


def entries(memory: memoryview) -> bytes:
    """The entries of both halves, the older half first; empty: nothing was recorded."""
    size = len(memory) // 2
    halves = sorted((_HEAD.unpack_from(half), bytes(half)) for half in (memory[:size], memory[size:]))
    return b"".join(half[_HEAD.size : _HEAD.size + used] for (number, used), half in halves
                    if number and used <= size - _HEAD.size)

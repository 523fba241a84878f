"""The layout of a layer's durable memory: one memfd, created and held by the keeper, mapped by each process of the
layer.

   words     64-bit cells: life sign, record in hand, positions in pipes, counters
   journal   the last sent frames, to send them again (bus.durable.journal)
   scratch   the frames from the device that are being processed (bus.durable.rx_log)
   store     records by key, for the layer's core (bus.durable.key_value_log)
   taps      rings of records that a capture reads (bus.runtime.ring)
   crashes   the last calls of the core, if they are recorded (bus.runtime.crash_log)

A SIGKILL can arrive between any two machine instructions. One instruction writes an aligned 64-bit cell, so a cell is
never torn; everything longer is written first and then published by a cell.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

PAGE = 4096
_MADV_POPULATE_WRITE = 23  # linux/mman.h

# Indices of the words.
LONG_WORK = 0  # above 0: work that takes as long as restoring the state (see `Memory.begin_long_work`)
INCARNATION = 1  # of the process that maps it now
BEAT = 2  # a double: the time of the loop's last turn, in seconds of CLOCK_MONOTONIC
IN_HAND_SENDER = 3  # sender of the frame being processed; 0: none
IN_HAND_SEQUENCE = 4
IN_HAND_RECORD = 5  # 1-based, while records are processed one by one; else 0
SUSPECT_SENDER = 6  # the frame that was being processed when the layer died
SUSPECT_SEQUENCE = 7
SUSPECT_RECORD = 8
SUSPECT_DEATHS = 9
JOURNAL_TAIL = 10
JOURNAL_HEAD = 11
STORE_STATE = 12  # number of the arena, and its valid length
BATCH_FRAMES = 13  # number of frames from the device in the rx log (bus.durable.rx_log)
SABOTAGE = 14  # a fault to commit at the next turn (bus.runtime.sabotage); 0: none
WAITING = 15  # data records in this process that wait for room in a pipe (bus.runtime.outbox)
DONE = 32  # + layer id: last processed frame of that sender
SENT = 48  # + layer id: last frame sent to that consumer
BATCH_NUMBER = 62  # number of the batch of these frames
BLAMELESS = 63  # 1: the keeper knows that the layer did not cause its last death (a SIGKILL from outside)
BUS_COUNTERS = 64  # bus.counters.PipeCounters
BUS_COUNTERS_MAX = 48
WRITTEN = 112  # + layer id: the frames written to the device for the last frame from there (WRITTEN_SHIFT)
COUNTERS = 128  # the layer's own
COUNTERS_MAX = 320
# + pipe_cell(id): records of that pipe, from where they came or where they go
PIPE_WAITING = 448  # wait for room, of those in WAITING
PIPE_DROPPED = 465  # found no room, or were dropped by an impairment on the way out
PIPE_DROPPED_IN = 482  # dropped by an impairment on the way in
PIPE_CELLS = 17
UNDONE = 499  # deaths in a row of a layer that may have caused them, after which it found deletions to undo
WIRE_SWITCH = 500  # incarnation of the switch from which the messages on a wire come (bus.wire)
WIRE_TAKEN = 501  # number of the last message from it
CLIENTS = 512  # + CLIENT_WORDS * place: see the CLIENT_ offsets
CLIENT_WORDS = 8
CLIENTS_MAX = 1984
WORDS = CLIENTS + CLIENT_WORDS * CLIENTS_MAX
CLIENT_ID, CLIENT_PID, CLIENT_DONE, CLIENT_SENT, CLIENT_INBOX = range(5)  # CLIENT_ID 0: the place is free
OFFENDERS = 504  # + n: processes whose records were set aside, latest first: pid << 8 | number of records
OFFENDERS_MAX = 8
POISON = 16  # + n: digests of records set aside; the oldest is overwritten first
POISON_MAX = 16
WRITTEN_SHIFT = 16  # the number of that frame is shifted by this; below it is the number of its written records

# For what is under way in a pipe full of the longest frames; in a layer that streams pass, also for what comes while a
# neighbour is away: closes and other control follow the octets, which must not push them out.
JOURNAL_OCTETS = 1 << 24
LAP_OCTETS = 1 << 20  # of the journal, which are enough for small frames, if no streams pass the layer
SCRATCH_OCTETS = 1 << 17
STORE_ARENA_OCTETS = 1 << 26  # of address space; a page uses memory only after it is written

_WORDS_OCTETS = 8 * WORDS
_JOURNAL_AT = _WORDS_OCTETS
_SCRATCH_AT = _JOURNAL_AT + JOURNAL_OCTETS
_STORE_AT = _SCRATCH_AT + SCRATCH_OCTETS
_TAPS_AT = _STORE_AT + 2 * STORE_ARENA_OCTETS
TAPS_MAX = 8  # maximum number of captures and meters
TAP_OCTETS = 1 << 23  # for records that a capture has not read yet; uses memory only during a capture
_CRASHES_AT = _TAPS_AT + TAPS_MAX * TAP_OCTETS
CRASH_LOGS_MAX = 2  # of a process and of its predecessor (bus.runtime.crash_log)
TOTAL_OCTETS = _CRASHES_AT + CRASH_LOGS_MAX * TAP_OCTETS
STREAMS_OCTETS = 1 << 24  # beyond the rest: address space for the slots of bus.durable.stream_memory
assert _WORDS_OCTETS % PAGE == 0


def create(name: str) -> int:
    """Create an empty durable memory; returns its descriptor (close-on-exec, kept over fork)."""
    descriptor = os.memfd_create(f"usernet-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, TOTAL_OCTETS + STREAMS_OCTETS)
    # If a layer could truncate it, the keeper would get a SIGBUS (memfd_create(2)).
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def _beat(view: memoryview) -> memoryview[float]:
    return view[8 * BEAT : 8 * BEAT + 8].cast("d")


class Memory:
    """A mapping of one durable memory. Every process of a layer uses the same number of octets for the journal."""

    def __init__(self, descriptor: int, journal_octets: int = JOURNAL_OCTETS, lap_octets: int = LAP_OCTETS) -> None:
        self.lap_octets = lap_octets
        self.deleted_at = -1  # the head of the journal when something was last deleted from the store
        self._map = mmap.mmap(descriptor, TOTAL_OCTETS)
        view = memoryview(self._map)
        self.words = view[:_WORDS_OCTETS].cast("Q")
        self.beat = _beat(view)
        self.bus_counters = self.words[BUS_COUNTERS : BUS_COUNTERS + BUS_COUNTERS_MAX]
        self.counters = self.words[COUNTERS : COUNTERS + COUNTERS_MAX]
        self.journal = view[_JOURNAL_AT : _JOURNAL_AT + journal_octets]
        self.scratch = view[_SCRATCH_AT:_STORE_AT]
        self.arenas = (
            view[_STORE_AT : _STORE_AT + STORE_ARENA_OCTETS],
            view[_STORE_AT + STORE_ARENA_OCTETS : _TAPS_AT],
        )

    def begin_long_work(self) -> None:
        """What follows, until `end_long_work`, grows with the state of the layer, cannot be done in portions, and is no
        hang, however much it is: the keeper is more patient. It may be nested."""
        self.words[LONG_WORK] += 1

    def end_long_work(self) -> None:
        """That is done, which is a life sign."""
        self.beat[0] = time.monotonic()
        self.words[LONG_WORK] -= 1

    def release_arena(self, number: int) -> None:
        """Return the memory of an arena that is no longer used to the system; it reads as zeros afterwards."""
        self._map.madvise(mmap.MADV_REMOVE, _STORE_AT + number * STORE_ARENA_OCTETS, STORE_ARENA_OCTETS)

    def release_journal(self, start: int) -> None:
        """Return the memory of the journal from offset `start` on, which is not used now, to the system."""
        start = -(-start // PAGE) * PAGE
        self._map.madvise(mmap.MADV_REMOVE, _JOURNAL_AT + start, len(self.journal) - start)

    def tap(self, number: int, populate: bool) -> memoryview:
        """The ring of a capture, with its pages allocated, because page faults would cost more than the copying."""
        start = _TAPS_AT + number * TAP_OCTETS
        try:
            if populate:
                self._map.madvise(_MADV_POPULATE_WRITE, start, TAP_OCTETS)
        except OSError:
            pass  # before Linux 5.14
        return memoryview(self._map)[start : start + TAP_OCTETS]


def pipe_cell(peer: int) -> int:
    """The place of a pipe in PIPE_WAITING and so on: that of its other end; all applications have one place."""
    return min(peer, PIPE_CELLS - 1)


def crash_log_of(incarnation: int) -> int:
    """The number of the crash log of a process, for `tap` and `map_tap`."""
    return TAPS_MAX + incarnation % CRASH_LOGS_MAX


def map_tap(descriptor: int, number: int) -> mmap.mmap:
    """The ring of a capture, for its reader and for the keeper."""
    return mmap.mmap(descriptor, TAP_OCTETS, offset=_TAPS_AT + number * TAP_OCTETS)


class Words:
    """Only the words, for the keeper, which reads life signs and counters of every layer."""

    def __init__(self, descriptor: int) -> None:
        view = memoryview(mmap.mmap(descriptor, _WORDS_OCTETS))
        self.words = view.cast("Q")
        self.beat = _beat(view)
        self.bus_counters = self.words[BUS_COUNTERS : BUS_COUNTERS + BUS_COUNTERS_MAX]
        self.counters = self.words[COUNTERS : COUNTERS + COUNTERS_MAX]

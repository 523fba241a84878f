"""Poison records: records that crash a layer are found and set aside.

The loop notes in durable memory which frame it is processing (`bus.durable.layout`, IN_HAND_*); for a run of frames
that it processes together, the last of them. After a crash, the frames up to that one are processed record by record,
each noted before. A record that crashes the layer again is set aside: it is sent to the keeper, which writes it into a
capture, and dropped whenever it is seen again.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from bus import topology
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.runtime.control import Control


class PoisonFilter:
    """The frame that was being processed when this layer died, if any, and the records that were set aside."""

    def __init__(self, durable: layout.Memory, control: Control) -> None:
        self._words = durable.words
        self._counters = durable.bus_counters
        self._control = control
        self.found = False  # a record of the present frame has just been set aside
        self.dropped: list[bytes] = []  # records of the present frame that were set aside, now or earlier
        self.watching = False  # False: nothing is suspected, so records need not be processed one by one

    def inherit(self, done: dict[int, int]) -> None:
        """Read which frame the former process was processing, unless it was `done` and only the note of that is
        missing."""
        words = self._words
        sender, sequence = words[layout.IN_HAND_SENDER], words[layout.IN_HAND_SEQUENCE]
        if done.get(sender, 0) >= sequence:
            sender = 0
        if words[layout.BLAMELESS]:
            words[layout.BLAMELESS] = words[layout.IN_HAND_RECORD] = words[layout.IN_HAND_SENDER] = 0
            self.watching = bool(words[layout.SUSPECT_DEATHS] or words[layout.POISON])
            return
        if words[layout.BATCH_FRAMES]:
            sender, sequence = topology.DEVICE, 0
        elif not sender:
            words[layout.SUSPECT_DEATHS] = 0
            self.watching = bool(words[layout.POISON])
            return
        same = (words[layout.SUSPECT_SENDER], words[layout.SUSPECT_SEQUENCE]) == (sender, sequence)
        words[layout.SUSPECT_DEATHS] = words[layout.SUSPECT_DEATHS] + 1 if same else 1
        words[layout.SUSPECT_SENDER] = sender
        words[layout.SUSPECT_SEQUENCE] = sequence
        words[layout.SUSPECT_RECORD] = words[layout.IN_HAND_RECORD]
        words[layout.IN_HAND_RECORD] = words[layout.IN_HAND_SENDER] = 0
        self.watching = True

    def sift(self, sender: int, sequence: int, kind: int, records: list[bytes]) -> Iterator[bytes]:
        """Yield the records one by one, without those set aside, and note each as being processed."""
        words = self._words
        self.found = False
        self.dropped = []
        related = words[layout.SUSPECT_DEATHS] and words[layout.SUSPECT_SENDER] == sender
        suspected = related and words[layout.SUSPECT_SEQUENCE] == sequence
        for number, record in enumerate(records, 1):
            digest = self._digest(kind, record)
            if suspected and words[layout.SUSPECT_DEATHS] >= 2 and words[layout.SUSPECT_RECORD] == number:
                self._set_aside(digest, sender, kind, record)
                words[layout.SUSPECT_RECORD] = 0
            if self._known(digest):
                self._counters[C.bus_poison] += 1
                self.dropped.append(record)
                continue
            words[layout.IN_HAND_RECORD] = number
            yield record
        words[layout.IN_HAND_RECORD] = 0
        # the suspected frame was harmless or is lost: this one is later
        if related and words[layout.SUSPECT_SEQUENCE] <= sequence:
            words[layout.SUSPECT_DEATHS] = 0
            self.watching = bool(words[layout.POISON])

    @staticmethod
    def _digest(kind: int, record: bytes) -> int:
        return int.from_bytes(blake2b(record, digest_size=8, salt=bytes([kind])).digest(), "little") or 1

    def _known(self, digest: int) -> bool:
        return digest in self._words[layout.POISON : layout.POISON + layout.POISON_MAX].tolist()

    def _set_aside(self, digest: int, sender: int, kind: int, record: bytes) -> None:
        cells = self._words[layout.POISON : layout.POISON + layout.POISON_MAX].tolist()
        for place, value in enumerate([digest, *cells[:-1]]):
            self._words[layout.POISON + place] = value
        self.found = True
        self._control.tell("poison", sender=sender, kind=kind, record=record)

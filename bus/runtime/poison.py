"""Poison: the frame that was in hand when a layer died, and the records set aside for killing it twice.

Between taking a frame and recording it as done, the loop marks it in durable memory (`bus.durable.layout`, IN_HAND_*);
of a run of frames that it takes together, the last. After a death, frames up to the one that was in hand are taken one
by one and record by record, each marked; the record that kills again is set aside, told to the keeper, which writes it
into a capture, and dropped whenever it is seen again.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from bus import topology
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.runtime.control import Control


class PoisonFilter:
    """The frame that was in hand when this layer died, if it did; and the records set aside for killing it twice."""

    def __init__(self, durable: layout.Memory, control: Control) -> None:
        self._words = durable.words
        self._counters = durable.bus_counters
        self._control = control
        self.found = False  # a record of the frame in hand was set aside just now
        self.watching = False  # False: nothing ever happened, records need not be looked at one by one

    def inherit(self, done: dict[int, int]) -> None:
        """Read what the former incarnation left in hand, unless it was `done` and only the note of that is missing."""
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
        """The records one by one, each marked as in hand while the caller works on it, less those set aside."""
        words = self._words
        self.found = False
        related = words[layout.SUSPECT_DEATHS] and words[layout.SUSPECT_SENDER] == sender
        suspected = related and words[layout.SUSPECT_SEQUENCE] == sequence
        for number, record in enumerate(records, 1):
            digest = self._digest(kind, record)
            if suspected and words[layout.SUSPECT_DEATHS] >= 2 and words[layout.SUSPECT_RECORD] == number:
                self._set_aside(digest, sender, kind, record)
                words[layout.SUSPECT_RECORD] = 0
            if self._known(digest):
                self._counters[C.bus_poison] += 1
                continue
            words[layout.IN_HAND_RECORD] = number
            yield record
        words[layout.IN_HAND_RECORD] = 0
        if related and words[layout.SUSPECT_SEQUENCE] <= sequence:  # it was harmless, or is lost: this one is later
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

"""Counters: every event that someone may ask for has a name and a sentence.

A layer's `counters.py` is one class:

    class Counters(CounterSet):
        received = Counter("Packets from the link.", "in")
        bad_checksum = Drop("The header checksum does not verify.")

After the class statement `Counters.received` is an index into the layer's counter words, which live in memory that the
keeper holds: they survive the layer, and `status` reads them without asking it. In a test any list of integers will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

Role = Literal["in", "out", "drop", "event"]


class Counter(NamedTuple):
    """One counter. `role` says in which of `status`'s columns it adds up."""

    sentence: str
    role: Role = "event"


def Drop(sentence: str) -> int:  # noqa: N802  (reads as a declaration; typed as the index that it becomes)
    """A counter of things thrown away; the sentence says why."""
    return Counter(sentence, "drop")  # type: ignore[return-value]


def In(sentence: str) -> int:  # noqa: N802
    """A counter of packets that came in."""
    return Counter(sentence, "in")  # type: ignore[return-value]


def Out(sentence: str) -> int:  # noqa: N802
    """A counter of packets that went out."""
    return Counter(sentence, "out")  # type: ignore[return-value]


def Event(sentence: str) -> int:  # noqa: N802
    """A counter of anything else."""
    return Counter(sentence, "event")  # type: ignore[return-value]


class CounterSet:
    """Base of the counter classes; turns each declaration into its index. Subclasses inherit their base's counters."""

    declared: ClassVar[dict[str, Counter]] = {}

    def __init_subclass__(cls) -> None:
        cls.declared = dict(cls.declared)
        for name, value in list(vars(cls).items()):
            if isinstance(value, Counter):
                setattr(cls, name, len(cls.declared))
                cls.declared[name] = value

    @classmethod
    def new(cls) -> list[int]:
        """Fresh counter words, for a core without a bus."""
        return [0] * len(cls.declared)

    @classmethod
    def read(cls, words: Sequence[int]) -> dict[str, int]:
        """Counter values by name."""
        return {name: words[index] for index, name in enumerate(cls.declared)}


class PipeCounters(CounterSet):
    """What the bus counts for every layer, whatever its own counters are."""

    bus_frames_in = Event("Frames taken from the inbox.")
    bus_frames_out = Event("Frames handed to a pipe.")
    bus_malformed = Drop("Frames that do not parse as a frame of this protocol.")
    bus_foreign = Drop("Frames of a sender or a kind that the table of pipes does not allow here.")
    bus_stale = Drop("Frames of a former incarnation of their sender.")
    bus_repeated = Event("Frames that had been processed before and came again after a restart.")
    bus_early = Event("Frames ahead of their turn while a repetition is awaited; they come again.")
    bus_lost = Drop("Frames that a restart lost: no longer in their sender's journal.")
    bus_pipe_full = Drop("Records that did not fit the next layer's pipe.")
    bus_poison = Drop("Records set aside because they killed this layer twice.")
    bus_replayed = Event("Frames sent again to a neighbour that restarted.")
    bus_state_damaged = Drop("Starts at which durable state did not verify: what was stored from there on is gone.")
    bus_impaired_lost = Drop("Records that an impairment lost, as it was told to.")
    bus_impaired_full = Drop("Records that found the queue of an impairment full.")
    bus_impaired_duplicated = Event("Records that an impairment doubled.")
    bus_impaired_corrupted = Event("Records in which an impairment turned a bit over.")
    bus_impaired_reordered = Event("Records that an impairment sent before those that waited.")
    bus_turned_away = Event("HELLOs of applications that were not let in; each was told why.")
    bus_refused = Event("Connections of another user, of too many, or of what does not speak ZMTP: hung up on.")

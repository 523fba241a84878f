"""Counters: every event of interest has a name and a sentence.

The `counters.py` of a layer is one class:

   class Counters(CounterSet):
       received = In("Packets from the link.")
       bad_checksum = Drop("The header checksum does not verify.")

After the class statement `Counters.received` is an index into the layer's counter words. They are in memory that the
keeper holds, so they survive the layer, and `status` reads them without asking the layer. In tests any list of integers
can take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

Role = Literal["in", "out", "drop", "event"]


class Counter(NamedTuple):
    """One counter. `role` selects the column of `status` to which it is added."""

    sentence: str
    role: Role = "event"


def Drop(sentence: str) -> int:  # noqa: N802  (reads as a declaration; typed as the index that it becomes)
    """A counter of dropped packets or records; the sentence gives the reason."""
    return Counter(sentence, "drop")  # type: ignore[return-value]


def In(sentence: str) -> int:  # noqa: N802
    """A counter of received packets."""
    return Counter(sentence, "in")  # type: ignore[return-value]


def Out(sentence: str) -> int:  # noqa: N802
    """A counter of sent packets."""
    return Counter(sentence, "out")  # type: ignore[return-value]


def Event(sentence: str) -> int:  # noqa: N802
    """A counter of anything else."""
    return Counter(sentence, "event")  # type: ignore[return-value]


class CounterSet:
    """Base of the counter classes: turns each declaration into its index.

    Subclasses inherit the counters of their base.
    """

    declared: ClassVar[dict[str, Counter]] = {}

    def __init_subclass__(cls) -> None:
        cls.declared = dict(cls.declared)
        for name, value in list(vars(cls).items()):
            if isinstance(value, Counter):
                setattr(cls, name, len(cls.declared))
                cls.declared[name] = value

    @classmethod
    def new(cls) -> list[int]:
        """Counter words with zeros, for a core without a bus."""
        return [0] * len(cls.declared)

    @classmethod
    def read(cls, words: Sequence[int]) -> dict[str, int]:
        """{name: value}."""
        return {name: words[index] for index, name in enumerate(cls.declared)}


class PipeCounters(CounterSet):
    """The counters that the bus has for every layer, in addition to the layer's own."""

    bus_frames_in = Event("Frames taken from the inbox.")
    bus_frames_out = Event("Frames written to a pipe.")
    bus_malformed = Drop("Frames that cannot be decoded.")
    bus_foreign = Drop("Frames of a sender or kind that the table of pipes does not allow here.")
    bus_stale = Drop("Frames of an earlier incarnation of their sender.")
    bus_repeated = Event("Frames that were repeated after a restart and had been processed before.")
    bus_early = Event("Frames that arrived early while a repetition was pending; they are sent again.")
    bus_lost = Drop("Frames lost in a restart because their sender's journal no longer had them.")
    bus_pipe_full = Drop("Records dropped because the next layer's pipe was full.")
    bus_poison = Drop("Records set aside because they killed this layer twice.")
    bus_replayed = Event("Frames sent again to a neighbour that restarted.")
    bus_state_damaged = Drop("Starts at which a part of the durable state was damaged; the records from there on are "
                             "lost.")
    bus_impaired_lost = Drop("Records dropped by an impairment.")
    bus_impaired_full = Drop("Records dropped because the queue of an impairment was full.")
    bus_impaired_duplicated = Event("Records duplicated by an impairment.")
    bus_impaired_corrupted = Event("Records in which an impairment flipped a bit.")
    bus_impaired_reordered = Event("Records that an impairment sent before delayed ones.")
    bus_turned_away = Event("HELLOs of applications that were not let in; each was told why.")
    bus_cut_off = Event("Applications disconnected because they did not read the answers to their requests.")
    bus_refused = Event("Connections closed because of another user, too many connections, an invalid ZMTP "
                        "handshake, or too much memory for what they had sent and was not processed.")
    bus_starved = Event("Times that connections had to wait because of missing descriptors or memory.")
    bus_held_gone = Drop("Records that refer to octets in shared memory which are not there any more.")

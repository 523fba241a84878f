"""When to start a dead layer again, and when to call a silent one hung. Pure: times are arguments.

docs/decisions/restart-policy.md says why these numbers.
"""

from __future__ import annotations

from typing import NamedTuple

AT_ONCE = 3  # quick deaths in a row that are answered by an immediate restart
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 2.0
GIVE_UP_AFTER = 12  # quick deaths in a row
STABLE_S = 1.0  # a process that has served this long is forgiven what was before

SUSPECT_AFTER_S = 0.18  # a life sign is due every 0.1 s
HUNG_AFTER_S = 0.12  # of the layer's own time, once suspected
STARTING_S = 2.0  # the same for one that is still reading back what it stored


class Restarts:
    """Counts deaths that come quickly after a start."""

    def __init__(self) -> None:
        self.quick_deaths = 0

    def pause_s(self, served_s: float) -> float | None:
        """A process that served for `served_s` has died: the pause before the next; None: give up."""
        self.quick_deaths = self.quick_deaths + 1 if served_s < STABLE_S else 1
        if self.quick_deaths > GIVE_UP_AFTER:
            return None
        beyond = self.quick_deaths - AT_ONCE
        return 0.0 if beyond <= 0 else min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (beyond - 1))

    def forgive(self) -> None:
        """Somebody asked for a restart: start counting anew."""
        self.quick_deaths = 0


class Sample(NamedTuple):
    """What the kernel says of a process at one moment (proc(5): stat, schedstat)."""

    state: str  # R running or runnable, S sleeping, D in the kernel, T stopped, Z dead
    ran_s: float  # processor time that its main thread used
    waited_s: float  # time that it was runnable and another had the processor


class Watch:
    """Tells a hung layer from one that only lacks a processor.

    A layer whose life sign is late is suspected. From then on its own time counts: what it ran, if it is running (an
    endless loop), else the clock less what it waited for a processor (stopped, or asleep where it should not be). A
    layer that is runnable and gets no processor is starved, not hung.
    """

    def __init__(self) -> None:
        self._since: tuple[float, Sample] | None = None

    def suspicious(self, now: float, beat: float) -> bool:
        """True where the last life sign is so old that the process should be sampled."""
        if now - beat < SUSPECT_AFTER_S:
            self._since = None
            return False
        return True

    def hung(self, now: float, sample: Sample, serving: bool = True) -> bool:
        """Judge a suspected process by a new sample; one that is not `serving` yet may take longer, but not stop."""
        if self._since is None:
            self._since = (now, sample)
            return False
        then, first = self._since
        allowed_s = HUNG_AFTER_S if serving or sample.state == "T" else STARTING_S
        if sample.state == "R":
            return sample.ran_s - first.ran_s >= allowed_s
        return now - then - (sample.waited_s - first.waited_s) >= allowed_s

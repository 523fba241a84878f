"""When to start a dead layer again, and when to call a silent one hung. Pure: times are arguments.

docs/decisions/restart-policy.md says why these numbers.
"""

from __future__ import annotations

from typing import NamedTuple

AT_ONCE = 3  # quick deaths in a row that are answered by an immediate restart
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 2.0
GIVE_UP_AFTER = 12  # quick deaths in a row
RETRY_S, RETRY_MAX_S = 30.0, 300.0  # after that many: until the next try; doubled each time
# SIGKILLs from outside that are answered at once: so many a second, and so many in a row.
KILLS_PER_S, KILLS_AT_ONCE = 20.0, 40
STABLE_S = 1.0  # a process that has served this long is forgiven what was before

SUSPECT_AFTER_S = 0.18  # a life sign is due every 0.1 s
HUNG_AFTER_S = 0.12  # without what it waited for a processor, once suspected
LOOP_S = 0.05  # of processor time since its last life sign: a turn of a healthy layer's loop takes less
PATIENCE_MAX = 32  # so many times that, for one that was called an endless loop time and again
STARTING_S = 2.0  # in place of both, for one that is still reading back what it stored


class Restarts:
    """Counts deaths that come quickly after a start, but for those that nothing in the layer had a part in."""

    def __init__(self) -> None:
        self.quick_deaths = 0
        self._patience = 1
        self._looped = False  # it is being killed for an endless loop
        self._kills_left = float(KILLS_AT_ONCE)
        self._killed_at = 0.0

    @property
    def given_up(self) -> bool:
        """True where it died so often that only a try now and then is left."""
        return self.quick_deaths > GIVE_UP_AFTER

    def pause_s(self, served_s: float, now: float, from_outside: bool = False) -> float:
        """A process that served for `served_s` has died: the pause before the next.

        `from_outside`: by a SIGKILL that was not ours. It says nothing of the layer, so it is not counted; the bound
        protects the machine, to which each start is some milliseconds of work.
        """
        if from_outside:
            return self._pause_after_kill_s(now)
        if not self._looped:
            self._patience = 1  # whatever the former ones were at, this one got past it
        self._looped = False
        self.quick_deaths = self.quick_deaths + 1 if served_s < STABLE_S else 1
        if self.given_up:
            return min(RETRY_MAX_S, RETRY_S * 2 ** (self.quick_deaths - GIVE_UP_AFTER - 1))
        beyond = self.quick_deaths - AT_ONCE
        return 0.0 if beyond <= 0 else min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (beyond - 1))

    def _pause_after_kill_s(self, now: float) -> float:
        left = min(KILLS_AT_ONCE, self._kills_left + (now - self._killed_at) * KILLS_PER_S) - 1
        self._kills_left, self._killed_at = left, now
        return max(0.0, -left / KILLS_PER_S)

    def patience(self, served_s: float) -> int:
        """How many times LOOP_S one that has served for `served_s` may run without a sign of life.

        What was taken for an endless loop may have been a long piece of work, and the successor may be at it again.
        """
        return self._patience if served_s < STABLE_S else 1

    def looped(self, served_s: float) -> None:
        """It is killed for an endless loop; `pause_s` is due when it has died."""
        self._looped = True
        self._patience = min(PATIENCE_MAX, 2 * self.patience(served_s))

    def forgive(self) -> None:
        """Somebody asked for a restart: start counting anew."""
        self.quick_deaths = 0


class Sample(NamedTuple):
    """What the kernel says of a process at one moment (proc(5): stat, schedstat)."""

    state: str  # R running or runnable, S sleeping, D in the kernel, T stopped, Z dead
    waited_s: float  # time that it was runnable and another had the processor


class Watch:
    """Tells a hung layer from one that only lacks a processor.

    A layer whose life sign is late is suspected. Then its own time counts: the processor time that it has used since
    that sign, if it is running (an endless loop), else the clock since the suspicion less what it waited for a
    processor (stopped, or asleep where it should not be). A layer that is runnable and gets no processor is starved,
    not hung.
    """

    def __init__(self) -> None:
        self._since: tuple[float, Sample] | None = None
        self._beat = 0.0
        self._used_s = 0.0  # processor time that it had used when that life sign was first seen

    def suspicious(self, now: float, beat: float, used_s: float) -> bool:
        """True where the last life sign is so old that the process should be sampled."""
        if beat != self._beat:
            self._beat, self._used_s = beat, used_s
        if now - beat < SUSPECT_AFTER_S:
            self._since = None
            return False
        return True

    def hung(self, now: float, sample: Sample, used_s: float, serving: bool = True, patience: int = 1) -> bool:
        """Judge a suspected process by a new sample; one that is not `serving` yet may take longer, but not stop."""
        if self._since is None:
            self._since = (now, sample)
            return False
        then, first = self._since
        if sample.state == "R":
            allowed_s = patience * LOOP_S if serving else STARTING_S
            return now - then >= HUNG_AFTER_S and used_s - self._used_s >= allowed_s
        allowed_s = HUNG_AFTER_S if serving or sample.state == "T" else STARTING_S
        return now - then - (sample.waited_s - first.waited_s) >= allowed_s

"""The restart policy: when to restart a dead layer, and when a silent layer counts as hung. Pure: times are arguments.

docs/decisions/restart-policy.md explains the numbers.
"""

from __future__ import annotations

from typing import NamedTuple

AT_ONCE = 3  # quick deaths in a row that are followed by an immediate restart
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 2.0
GIVE_UP_AFTER = 12  # quick deaths in a row
RETRY_S, RETRY_MAX_S = 30.0, 300.0  # after that many: until the next try; doubled each time
# SIGKILLs from outside that are followed by an immediate restart: per second, and in a row.
KILLS_PER_S, KILLS_AT_ONCE = 20.0, 40
STABLE_S = 1.0  # earlier deaths do not count for a process that has served this long

SUSPECT_AFTER_S = 0.18  # a life sign is due every 0.1 s
HUNG_AFTER_S = 0.12  # of its own time, without waiting for a processor, once suspected
LOOP_S = 0.05  # of processor time once suspected; a turn of a healthy layer takes less
PATIENCE_MAX = 32  # multiple of that, for a layer that was repeatedly killed for an endless loop
STARTING_S = 4.0  # instead of both, while it restores its state, or tells it all to a neighbour that has started


class Restarts:
    """Counts quick deaths, those soon after a start, without SIGKILLs from outside."""

    def __init__(self) -> None:
        self.quick_deaths = 0
        self._patience = 1
        self._looped = False  # it is being killed for an endless loop
        self._kills_left = float(KILLS_AT_ONCE)
        self._killed_at = 0.0

    @property
    def given_up(self) -> bool:
        """True if it died so often that it is only tried from time to time."""
        return self.quick_deaths > GIVE_UP_AFTER

    def pause_s(self, served_s: float, now: float, from_outside: bool = False) -> float:
        """The pause in seconds before the restart of a process that served for `served_s` and has died.

        `from_outside`: by a SIGKILL that the keeper did not send. It does not count, because it says nothing about the
        layer; its limit protects the machine, on which each start costs some milliseconds.
        """
        if from_outside:
            return self._pause_after_kill_s(now)
        if not self._looped:
            self._patience = 1  # it got past the work that its predecessors were killed for
        self._looped = False
        self.quick_deaths = self.quick_deaths + 1 if served_s < STABLE_S else 1
        if self.given_up:
            return min(RETRY_MAX_S, RETRY_S * 2.0 ** (self.quick_deaths - GIVE_UP_AFTER - 1))
        beyond = self.quick_deaths - AT_ONCE
        return 0.0 if beyond <= 0 else min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (beyond - 1))

    def _pause_after_kill_s(self, now: float) -> float:
        left = min(KILLS_AT_ONCE, self._kills_left + (now - self._killed_at) * KILLS_PER_S) - 1
        self._kills_left, self._killed_at = left, now
        return max(0.0, -left / KILLS_PER_S)

    def patience(self, served_s: float) -> int:
        """How many times LOOP_S a process that has served for `served_s` may run without a life sign.

        What looked like an endless loop may have been a long piece of work, which the successor may repeat.
        """
        return self._patience if served_s < STABLE_S else 1

    def looped(self, served_s: float) -> None:
        """It is being killed for an endless loop; `pause_s` follows when it has died."""
        self._looped = True
        self._patience = min(PATIENCE_MAX, 2 * self.patience(served_s))

    def forgive(self) -> None:
        """A restart was requested: start counting again."""
        self.quick_deaths = 0


class Sample(NamedTuple):
    """What the kernel reports about a process at one moment, without its other threads (proc(5): stat, schedstat)."""

    state: str  # R running or runnable, S sleeping, D in the kernel, T stopped, Z dead
    ran_s: float
    waited_s: float  # time that it was runnable but did not run


class Watch:
    """Distinguishes a layer that hangs from one that gets no processor.

    A layer whose life sign is late is suspected. From then on its own time counts: if it is running, the processor time
    (an endless loop); otherwise the elapsed time minus the time that it waited for a processor (stopped, or asleep
    inside a turn). A layer that is runnable but gets no processor is starved, not hung. What libzmq's thread uses does
    not count: the more others send, the more that is.

    A turn may consist of many frames. To take the next one up is a life sign, too, but has no time: all of this begins
    anew when the keeper sees it.
    """

    def __init__(self) -> None:
        self._since: tuple[float, Sample] | None = None
        self._sign: tuple[float, tuple[int, ...]] = (0.0, ())

    def suspicious(self, now: float, beat: float, in_hand: tuple[int, ...] = ()) -> bool:
        """True if the last life sign is so old that the process should be sampled. `in_hand`: what it processes."""
        if (beat, in_hand) != self._sign:
            self._sign, self._since = (beat, in_hand), None
        if now - beat < SUSPECT_AFTER_S:
            self._since = None
            return False
        return True

    def hung(self, now: float, sample: Sample, serving: bool = True, patience: int = 1) -> bool:
        """Judge a suspected process by a new sample.

        A process that is not `serving` yet may take longer, but must not be stopped.
        """
        if self._since is None:
            self._since = (now, sample)
            return False
        then, first = self._since
        if sample.state == "R":
            allowed_s = patience * LOOP_S if serving else STARTING_S
            return now - then >= HUNG_AFTER_S and sample.ran_s - first.ran_s >= allowed_s
        allowed_s = HUNG_AFTER_S if serving or sample.state == "T" else STARTING_S
        return now - then - (sample.waited_s - first.waited_s) >= allowed_s

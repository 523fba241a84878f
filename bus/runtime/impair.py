"""The model of a bad network for one pipe, that of tc-netem(8), without a clock.

`Impairment` owns the held packets and its random numbers. The same settings, seed, packets and times give the same
result. The order of the steps is Linux's (net/sched/sch_netem.c, netem_enqueue): duplication and loss are drawn first
and cancel each other; then corruption; then the limit of the queue; then reordering or delay, and the rate. The caller
is notified of every effect, to count it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

import msgspec

T = TypeVar("T")
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
_RANDOM_END = 1 << 32  # of Linux's random numbers
LIMIT_DEFAULT = 1000  # tc-netem(8): maximum number of packets in the queue
_NEVER = -1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The settings of one impairment.

    Shares are 0 to 1; `..._correlation` is how much a random number depends on the previous one.
    """

    loss: Share = 0.0
    loss_correlation: Share = 0.0
    # Gilbert-Elliott: probabilities of good to bad, bad to good, loss while bad, loss while good. Empty: not used.
    gemodel: tuple[Share, ...] = ()
    delay: Seconds = 0.0
    jitter: Seconds = 0.0
    delay_correlation: Share = 0.0
    distribution: str = "uniform"  # of the jitter: uniform or normal
    duplicate: Share = 0.0
    duplicate_correlation: Share = 0.0
    reorder: Share = 0.0  # share of packets that is sent at once while the others are delayed
    reorder_correlation: Share = 0.0
    gap: Annotated[int, msgspec.Meta(ge=0)] = 0  # only every gap-th packet may be reordered; 0: any
    corrupt: Share = 0.0
    corrupt_correlation: Share = 0.0
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # bits/s; 0: no limit
    limit: Annotated[int, msgspec.Meta(ge=1)] = LIMIT_DEFAULT
    drop_nth: Annotated[int, msgspec.Meta(ge=0)] = 0  # drop every n-th packet; 0: none
    seed: int | None = None  # None: random

    def __post_init__(self) -> None:
        if self.distribution not in ("uniform", "normal"):
            raise ValueError(f"no distribution {self.distribution!r}: must be uniform or normal")
        if len(self.gemodel) not in (0, 4):
            raise ValueError(f"gemodel {self.gemodel}: needs four shares")
        if self.reorder and not self.delay:
            raise ValueError("reorder needs a delay for the others to wait")  # the message of tc

    @property
    def idle(self) -> bool:
        """True if the settings change nothing."""
        return msgspec.structs.replace(self, seed=None, limit=LIMIT_DEFAULT) == Settings()


class _Correlated:
    """Random numbers from 0 to 1, each correlated with the previous one (get_crandom)."""

    def __init__(self, rng: random.Random, correlation: float) -> None:
        self._random = rng.random
        self._correlation = correlation
        self._last = 0.0

    def __call__(self) -> float:
        drawn = self._random()
        if not self._correlation:
            return drawn
        self._last = drawn * (1 - self._correlation) + self._last * self._correlation
        return self._last


class Impairment(Generic[T]):
    """The impairment of one direction of one pipe, or of one flow in it.

    `size` returns the octets of an item, `corrupted` a copy with one random bit flipped. `noted` is called with an item
    and the effect: loss, nth or limit, which drop it; duplicate, corrupt, reorder.
    """

    def __init__(self, settings: Settings, size: Callable[[T], int], corrupted: Callable[[T, random.Random], T],
                 noted: Callable[[T, str], None]) -> None:
        self.settings = settings
        self._size = size
        self._corrupted = corrupted
        self._noted = noted
        self._rng = rng = random.Random(settings.seed)
        self._loss = _Correlated(rng, settings.loss_correlation)
        self._delay = _Correlated(rng, settings.delay_correlation)
        self._duplicate = _Correlated(rng, settings.duplicate_correlation)
        self._reorder = _Correlated(rng, settings.reorder_correlation)
        self._corrupt = _Correlated(rng, settings.corrupt_correlation)
        self._bad = False  # the state of the Gilbert-Elliott model
        self._offered = 0
        self._in_order = 0  # packets since the last reordered one
        self._held: list[tuple[float, int, T]] = []  # a heap; the number keeps items of the same time in order
        self._number = 0
        self._last_leaves = _NEVER  # the time when the last item of the queue leaves

    @property
    def next_wake(self) -> float | None:
        """The time when the next item leaves; None: none is held."""
        return self._held[0][0] if self._held else None

    def __len__(self) -> int:
        """The number of held items."""
        return len(self._held)

    def offered(self, item: T, now: float) -> list[T]:
        """An item arrives at `now`.

        Returns what leaves at once: items that are due, and this one unless it is dropped or held.
        """
        settings = self.settings
        self._offered += 1
        copies = 1
        if settings.duplicate and self._duplicate() < settings.duplicate:
            copies += 1
            self._noted(item, "duplicate")
        why = self._lost()
        if why:
            copies -= 1
            self._noted(item, why)
        for copy in range(copies):
            self._enqueue(item, now, duplicate=copy > 0)
        return self.due(now)

    def _lost(self) -> str:
        settings = self.settings
        if settings.drop_nth and self._offered % settings.drop_nth == 0:
            return "nth"
        if settings.gemodel:
            to_bad, to_good, while_bad, while_good = settings.gemodel
            was_bad, draw = self._bad, self._rng.random
            if draw() < (to_good if was_bad else to_bad):
                self._bad = not was_bad
            if draw() < (while_bad if was_bad else while_good):
                return "loss"
        return "loss" if settings.loss and self._loss() < settings.loss else ""

    def _enqueue(self, item: T, now: float, duplicate: bool) -> None:
        settings = self.settings
        if settings.corrupt and not duplicate and self._corrupt() < settings.corrupt:
            item = self._corrupted(item, self._rng)
            self._noted(item, "corrupt")
        if len(self._held) >= settings.limit:
            self._noted(item, "limit")
            return
        gap = settings.gap or (1 if settings.reorder else 0)
        if gap and self._in_order >= gap - 1 and self._reorder() <= settings.reorder:
            self._in_order = 0
            self._noted(item, "reorder")
            self._hold(_NEVER, item)  # before all that wait
            return
        self._in_order += 1
        at = now + self._drawn_delay()
        if settings.rate:
            if self._held:  # it waits behind the last of the queue, and its own delay starts then
                at = max(at, self._last_leaves)
            at += self._size(item) * 8 / settings.rate
        self._last_leaves = max(at, self._last_leaves if self._held else at)
        self._hold(at, item)

    def _drawn_delay(self) -> float:
        settings = self.settings
        if not settings.jitter:
            return settings.delay
        if settings.distribution == "normal":
            return max(0.0, settings.delay + settings.jitter * self._rng.gauss(0, 1))
        # As on Linux (tabledist), where the remainder hides most of the correlation.
        span_ns = max(1, round(2e9 * settings.jitter))
        return max(0.0, settings.delay - settings.jitter + int(self._delay() * _RANDOM_END) % span_ns / 1e9)

    def _hold(self, at: float, item: T) -> None:
        self._number += 1
        heapq.heappush(self._held, (at, self._number, item))

    def due(self, now: float) -> list[T]:
        """The items that leave by `now`, in order."""
        held, leaving = self._held, []
        while held and held[0][0] <= now:
            leaving.append(heapq.heappop(held)[2])
        return leaving

    def flush(self) -> list[T]:
        """All held items, in the order in which they would have left, because the impairment ends."""
        return self.due(float("inf"))

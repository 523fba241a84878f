"""Where the layers run: on one core, where a message need not wake another, or on all."""

from __future__ import annotations

import os


class Placement:
    """`mode`: compact, spread, auto, or a list of cores."""

    def __init__(self, mode: str, cores: list[int] | None) -> None:
        self._mode = mode
        self._all = sorted(os.sched_getaffinity(0))
        self._cores = set(cores) if cores else None
        if mode in ("compact", "auto"):
            self._cores = {self._all[-1]}

    def cores(self) -> set[int] | None:
        """The cores of a layer that starts now; None: all."""
        return self._cores

    def apply_to_self(self) -> None:
        """The keeper runs anywhere: it must not wait behind a layer that has gone wild."""

    def balance(self, now: float, pids: list[int]) -> None:
        """Move the layers where the mode says so."""

    def describe(self) -> str:
        """For `status`."""
        return f"{self._mode} ({','.join(map(str, sorted(self._cores or self._all)))})"

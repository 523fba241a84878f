"""Congestion control: how much may be in the network (RFC 5681), and the interface of an algorithm.

An algorithm is a module `layers.tcp.congestion_NAME` with a class `Control` that extends CongestionControl, selected by
TCP_CONGESTION. It owns the congestion window: its growth without losses, and its value after a loss. During recovery
PRR determines the window (`layers.tcp.prr`); the scoreboard and RACK determine what is lost.

Slow start is common: the window doubles per round trip until `ssthresh`, or until HyStart++ detects an increased delay
(`layers.tcp.hystart`). The window grows only by acknowledgments of segments sent while it was the limit (RFC 7661
section 4.2: an unused window says nothing about the path), and decays while nothing is sent.

Units: octets (floats, so that small increments add up) and float seconds.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from typing import ClassVar

from layers.tcp.hystart import HyStart

INITIAL_SEGMENTS = 10  # RFC 6928 section 2
INITIAL_OCTETS = 14600
LOSS_WINDOW_SEGMENTS = 1  # RFC 5681 section 3.1: LW
MINIMUM_SEGMENTS = 2  # RFC 5681 section 3.1 (equation 4)
UNLIMITED = float(1 << 31)  # no threshold yet; also the maximum window
DEFAULT = "cubic"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,14}")  # include/net/tcp.h of Linux: TCP_CA_NAME_MAX is 16, with the NUL

# Reasons for a reduction of the window.
LOSS, ECN, TIMEOUT = range(3)


@lru_cache(64)
def initial_window(mss: int) -> int:
    """RFC 6928 section 2, equation 1."""
    return min(INITIAL_SEGMENTS * mss, max(2 * mss, INITIAL_OCTETS))


class CongestionControl:
    """The attributes of an algorithm, and the methods that it may override. `mss`: octets of a full segment's text."""

    name: ClassVar[str] = ""
    beta: ClassVar[float] = 0.5  # share of the window that is left after a loss
    beta_ecn: ClassVar[float] = 0.5  # the same after an ECN mark, which precedes a loss (RFC 8511)

    __slots__ = ("_undo", "cwnd", "hystart", "mss", "ssthresh")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = float(initial_window(mss))
        self.ssthresh = UNLIMITED
        self.hystart = HyStart()
        self._undo: tuple[float, ...] = ()

    @property
    def in_slow_start(self) -> bool:
        """RFC 5681 section 3.1."""
        return self.cwnd < self.ssthresh

    def acknowledged(self, octets: int, now: float, rtt_s: float, limited: bool) -> None:
        """This many octets were delivered outside of a recovery.

        `rtt_s` is smoothed. `limited`: something else than this window was the limit.
        """
        if limited:
            self.unused(now)
            return
        if self.cwnd < self.ssthresh:
            # RFC 5681 section 3.1, by octets (RFC 3465) and without its limit L, because acknowledgments of 64 kB are
            # common. RFC 9406: less if the delay has increased.
            grown = self.cwnd + octets / self.hystart.divisor
            if grown <= self.ssthresh:
                self.cwnd = min(grown, UNLIMITED)
                return
            octets = int((grown - self.ssthresh) * self.hystart.divisor)
            self.cwnd = self.ssthresh
        self.cwnd = min(self.avoid(octets, now, rtt_s), UNLIMITED)

    def avoid(self, octets: int, now: float, rtt_s: float) -> float:
        """The new window after this many octets were delivered in congestion avoidance."""
        raise NotImplementedError

    def round_trip(self, rtt_s: float, una: int, nxt: int) -> None:
        """A round trip was measured: check whether the delay increases (RFC 9406)."""
        if self.cwnd < self.ssthresh and self.hystart.sample(rtt_s, una, nxt):
            self.ssthresh = self.cwnd

    def unused(self, now: float) -> None:
        """Octets were delivered, but this window was not the limit."""

    def reduce(self, used: float, cause: int, now: float) -> None:
        """A loss, mark or timeout: set `ssthresh`.

        `used`: the part of the window that was in use (RFC 7661 section 4.4.1).
        """
        self._undo = self.saved()
        beta = self.beta_ecn if cause == ECN else self.beta
        self.ssthresh = max(min(self.cwnd, used) * beta, MINIMUM_SEGMENTS * self.mss)
        self.hystart.end()

    def timed_out(self) -> None:
        """After `reduce`: RFC 5681 section 3.1, the loss window."""
        self.cwnd = float(LOSS_WINDOW_SEGMENTS * self.mss)

    def recovered(self) -> None:
        """The recovery is over."""
        self.cwnd = self.ssthresh

    def undo(self) -> None:
        """The last reduction was spurious (RFC 5682, 3522, 3708): restore the window."""
        if self._undo:
            cwnd = self.cwnd
            self.restore(self._undo)
            self.cwnd = max(self.cwnd, cwnd)
            self._undo = ()

    def saved(self) -> tuple[float, ...]:
        """At most six numbers, the window and the threshold first, for `restore` and for a successor."""
        return self.cwnd, self.ssthresh

    def restore(self, saved: tuple[float, ...]) -> None:
        """Restore the result of `saved`; impossible numbers are corrected."""
        self.cwnd = clamp(saved[0], LOSS_WINDOW_SEGMENTS * self.mss, UNLIMITED, initial_window(self.mss))
        self.ssthresh = clamp(saved[1], MINIMUM_SEGMENTS * self.mss, UNLIMITED, UNLIMITED)

    def idle(self, seconds: float, rto_s: float) -> None:
        """Nothing was sent for this time (RFC 5681 section 4.1): halve the window for each RTO, as on Linux, not below
        the initial window."""
        if seconds <= rto_s:
            return
        restart = min(self.cwnd, float(initial_window(self.mss)))
        if self.cwnd > restart:
            self.ssthresh = max(self.ssthresh, 0.75 * self.cwnd)
            self.cwnd = max(restart, self.cwnd / 2.0 ** min(64.0, seconds // rto_s))

    def set_mss(self, mss: int, anew: bool) -> None:
        """The segment size has changed; `anew`: before anything was sent, so the initial window changes, too."""
        self.mss = mss
        self.cwnd = float(initial_window(mss)) if anew else max(self.cwnd, float(mss))


def clamp(value: float, least: float, most: float, otherwise: float) -> float:
    """`value` limited to its range; `otherwise` if it is not a number."""
    return min(max(value, least), most) if value == value else otherwise


@lru_cache(16)
def find(name: str) -> type[CongestionControl] | None:
    """The algorithm with that name; None: there is none (TCP_CONGESTION: ENOENT)."""
    if not _NAME.fullmatch(name):
        return None
    module = f"layers.tcp.congestion_{name}"
    try:
        return importlib.import_module(module).Control  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None

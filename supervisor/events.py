"""The event log of a stack, kept by the keeper and sent to followers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

KEPT_MAX = 5000


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. `at`: seconds since the epoch; `gap_ms`: how long the layer did not serve; `detail`: the reason."""

    at: float
    event: str
    layer: str = ""
    pid: int = 0
    incarnation: int = 0
    detail: str = ""
    gap_ms: float = 0.0


class EventLog:
    """The last events, and the followers of new ones."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._followers: list[Callable[[Event], bool]] = []

    def add(self, event: str, **fields: Any) -> None:
        """Add an event with the present time."""
        entry = Event(at=time.time(), event=event, **fields)
        self._kept.append(entry)
        self._followers = [follower for follower in self._followers if follower(entry)]

    def all(self) -> list[Event]:
        """All stored events, oldest first."""
        return list(self._kept)

    def follow(self, follower: Callable[[Event], bool]) -> None:
        """Call `follower` for every new event until it returns False."""
        self._followers.append(follower)


def describe(event: Event, date: bool = True) -> str:
    """One line of text for an event, with or without the date; a traceback in `detail` follows on further lines."""
    clock = datetime.fromtimestamp(event.at).strftime(f"{'%Y-%m-%d ' if date else ''}%H:%M:%S.%f")[:-3]
    who = f"{event.layer}[{event.pid}]" if event.pid else event.layer
    gap = f" after {event.gap_ms:.1f} ms" if event.gap_ms else ""
    head, _, rest = event.detail.partition("\n")
    line = f"{clock}  {who:<16} {event.event}{gap}" + (f": {head}" if head else "")
    return line + ("\n" + "\n".join("    " + text for text in rest.rstrip().splitlines()) if rest.strip() else "")

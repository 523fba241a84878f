"""What happened to the stack: kept by the keeper, told to whoever follows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

import msgspec

KEPT_MAX = 5000


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. `at` is seconds since the epoch; `gap_ms`: how long the layer was away; `detail`: why."""

    at: float
    event: str
    layer: str = ""
    pid: int = 0
    incarnation: int = 0
    detail: str = ""
    gap_ms: float = 0.0


class EventLog:
    """The last events, and the followers of the next."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._followers: list[Callable[[Event], bool]] = []

    def add(self, event: str, **fields) -> None:
        """Something happened now."""
        entry = Event(at=time.time(), event=event, **fields)
        self._kept.append(entry)
        self._followers = [follower for follower in self._followers if follower(entry)]

    def all(self) -> list[Event]:
        """Everything that is kept, oldest first."""
        return list(self._kept)

    def follow(self, follower: Callable[[Event], bool]) -> None:
        """Call `follower` for every event to come, until it returns False."""
        self._followers.append(follower)


def describe(event: Event) -> str:
    """One line for a person; a traceback in `detail` follows on lines of its own."""
    clock = datetime.fromtimestamp(event.at).strftime("%H:%M:%S.%f")[:-3]
    who = f"{event.layer}[{event.pid}]" if event.pid else event.layer
    gap = f" after {event.gap_ms:.1f} ms" if event.gap_ms else ""
    head, _, rest = event.detail.partition("\n")
    line = f"{clock}  {who:<16} {event.event}{gap}" + (f": {head}" if head else "")
    return line + ("\n" + "\n".join("    " + text for text in rest.rstrip().splitlines()) if rest.strip() else "")

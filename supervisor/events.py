"""The event log of a stack, kept by the keeper and sent to followers.

Each event has a level, and the log has a level for each layer and for the keeper, which can be changed while the stack
runs (`launcher.py log`): events that are less urgent than it are not added. At the level "debug" a layer's event log
also reports, once a second, what the layer has dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

KEPT_MAX = 5000
LEVELS = ("error", "warning", "info", "debug")  # from the most urgent one
DEFAULT_LEVEL = "info"
KEEPER = "keeper"  # instead of a layer: events about the stack as a whole
_LEVEL_OF = {"died": "error", "failed": "error", "poison": "error", "trouble": "error", "no process": "warning",
             "offence": "warning", "refused": "warning", "rolled back": "warning", "run directory": "warning",
             "starved": "warning", "unlocked": "warning", "dropped": "debug"}


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. `at`: seconds since the epoch; `gap_ms`: how long the layer did not serve; `detail`: the reason."""

    at: float
    event: str
    layer: str = ""
    pid: int = 0
    incarnation: int = 0
    detail: str = ""
    gap_ms: float = 0.0
    level: str = DEFAULT_LEVEL


class EventLog:
    """The last events, and the followers of new ones."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._followers: list[Callable[[Event], bool]] = []
        self._levels: dict[str, str] = {}  # by layer or KEEPER, where it is not the default

    def level(self, source: str) -> str:
        """The level of a layer or of KEEPER."""
        return self._levels.get(source, DEFAULT_LEVEL)

    def set_level(self, source: str, level: str) -> None:
        """Set it. ValueError: there is no such level."""
        if level not in LEVELS:
            raise ValueError(f"level {level!r}: expected {', '.join(LEVELS)}")
        self._levels[source] = level

    def add(self, event: str, **fields: Any) -> None:
        """Add an event with the present time, unless the level of its layer excludes it."""
        level = _LEVEL_OF.get(event, DEFAULT_LEVEL)
        if LEVELS.index(level) > LEVELS.index(self.level(fields.get("layer") or KEEPER)):
            return
        entry = Event(at=time.time(), event=event, level=level, **fields)
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

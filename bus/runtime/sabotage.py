"""Faults on request: a layer commits them when the keeper asks (`launcher.py sabotage`)."""

from __future__ import annotations

import time

from bus.durable import layout
from bus.layer import CounterWords

LOOP, RAISE, EXHAUST, SLEEP = range(1, 5)
FAULTS = {"loop": LOOP, "raise": RAISE, "memory": EXHAUST, "sleep": SLEEP}


class Sabotaged(Exception):
    """The requested exception."""


def commit(words: CounterWords) -> None:
    """Commit the fault in the cell once; the cell is cleared for the successor."""
    fault = words[layout.SABOTAGE]
    words[layout.SABOTAGE] = 0
    if fault == LOOP:
        while True:
            pass
    if fault == RAISE:
        raise Sabotaged("the exception that sabotage asked for")
    if fault == EXHAUST:
        hoard = []
        while True:
            hoard.append(bytearray(1 << 20))
    if fault == SLEEP:
        time.sleep(3600)

"""Numeric arguments: types for argparse, whose errors name the wrong value and what is allowed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

SECONDS_MAX = 1e9  # thirty years


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for argparse: a whole number from `least` to `most`."""
    allowed = f"{least} or more" if most is None else f"{least} to {most}"

    def convert(text: str) -> int:
        try:
            number = int(text) if len(text) <= 20 else None
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, {allowed}")
        return number

    return convert


def seconds(least: float = 0.0, most: float = SECONDS_MAX, above: bool = False) -> Callable[[str], float]:
    """A type for argparse: seconds, finite, from `least` to `most`; with `above`, more than `least`."""
    bounded = f"{least:g} to {most:g}" if most < SECONDS_MAX else f"{least:g} or more"
    allowed = f"above {least:g}" if above else bounded

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most or (above and number == least):  # also refuses what is not a number
            raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds, {allowed}")
        return number

    return convert

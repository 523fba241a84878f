"""Impairments in the words of tc-netem(8), to and from `bus.runtime.impair.Settings`.

Units are those of tc(8): shares in percent; times in s, ms, us, without a unit microseconds; rates in bit, kbit, mbit,
gbit (bits per second) or bps, kbps, mbps (octets per second), without a unit bits per second.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from bus.runtime.impair import LIMIT_DEFAULT, Settings

PROFILES = Path(__file__).with_name("profiles.toml")

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)", re.IGNORECASE)
_TIMES = {"s": 1.0, "sec": 1.0, "secs": 1.0, "ms": 1e-3, "msec": 1e-3, "msecs": 1e-3, "us": 1e-6, "usec": 1e-6,
          "usecs": 1e-6, "": 1e-6}
_RATES = {"": 1.0} | {f"{prefix}{unit}": scale * octets
                      for prefix, scale in {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 1024.0,
                                            "mi": 1024.0**2, "gi": 1024.0**3}.items()
                      for unit, octets in {"bit": 1.0, "bps": 8.0}.items()}


def _quantity(text: str, units: Mapping[str, float], example: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r}: expected a value like {example}")
    return float(match[1]) * units[match[2].lower()]


def share(text: str) -> float:
    """'5%' to 0.05. ValueError: not a percentage from 0 to 100."""
    value = _quantity(text, {"%": 0.01}, "5%")
    if value > 1:
        raise ValueError(f"{text!r}: must be at most 100%")
    return value


def seconds(text: str) -> float:
    """'20ms' to 0.02. ValueError: not a time."""
    return _quantity(text, _TIMES, "20ms, 1.5s or 300us")


def rate(text: str) -> float:
    """'10mbit' to 1e7 bits per second. ValueError: not a rate."""
    return _quantity(text, _RATES, "10mbit, 64kbit or 1mbps (octets)")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r}: must be a whole number")
    return int(text)


# The keywords of tc-netem, and the fields that the words after each set, in order.
WORDS: dict[str, tuple[tuple[str, Callable[[str], object]], ...]] = {
    "loss": (("loss", share), ("loss_correlation", share)),
    "delay": (("delay", seconds), ("jitter", seconds), ("delay_correlation", share)),
    "jitter": (("jitter", seconds), ("delay_correlation", share)),
    "distribution": (("distribution", str),),
    "duplicate": (("duplicate", share), ("duplicate_correlation", share)),
    "reorder": (("reorder", share), ("reorder_correlation", share)),
    "gap": (("gap", _number),),
    "corrupt": (("corrupt", share), ("corrupt_correlation", share)),
    "rate": (("rate", rate),),
    "queue": (("limit", _number),),
    "drop_nth": (("drop_nth", _number),),
    "seed": (("seed", _number),),
}


def settings(given: Mapping[str, Sequence[str]]) -> Settings:
    """Settings from the words after each keyword, as {"delay": ["20ms", "5ms"], "loss": ["gemodel", "1%", "25%"]}.

    ValueError: an invalid value; the message names the keyword.
    """
    fields: dict[str, object] = {}
    for keyword, words in given.items():
        try:
            if keyword == "loss" and words and words[0] == "gemodel":
                fields["gemodel"] = _gemodel(words[1:])
                continue
            if keyword == "loss" and words and words[0] == "random":
                words = words[1:]
            wanted = WORDS.get(keyword)
            if wanted is None:
                raise ValueError(f"there are {', '.join(WORDS)}")
            if not 1 <= len(words) <= len(wanted):
                raise ValueError(f"1 to {len(wanted)} values" if len(wanted) > 1 else "one value")
            fields |= {field: parse(word) for (field, parse), word in zip(wanted, words, strict=False)}
        except ValueError as error:
            raise ValueError(f"{keyword}: {error}") from error
    return msgspec.convert(fields, Settings)


def _gemodel(words: Sequence[str]) -> tuple[float, ...]:
    """p [r [1-h [1-k]]]; the defaults of missing values are those of tc-netem(8)."""
    if not 1 <= len(words) <= 4:
        raise ValueError("gemodel takes P [R [1-H [1-K]]]")
    shares = [share(word) for word in words]
    defaults = [shares[0], 1 - shares[0], 1.0, 0.0]
    return tuple(shares + defaults[len(shares) :])


def _percent(value: float) -> str:
    return f"{value * 100:.4g}%"


def _time(value: float) -> str:
    return f"{value:.4g}s" if value >= 1 else f"{value * 1e3:.4g}ms" if value >= 1e-3 else f"{value * 1e6:.4g}us"


def _rate(value: float) -> str:
    for scale, unit in ((1e9, "gbit"), (1e6, "mbit"), (1e3, "kbit")):
        if value >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}bit"


def describe(settings: Settings) -> str:
    """Settings in tc's words."""
    s = settings
    parts = []

    def part(word: str, shown: str, correlation: float = 0.0) -> None:
        parts.append(f"{word} {shown}" + (f" {_percent(correlation)}" if correlation else ""))

    if s.loss:
        part("loss", _percent(s.loss), s.loss_correlation)
    if s.gemodel:
        part("loss gemodel", " ".join(map(_percent, s.gemodel)))
    if s.delay or s.jitter:
        shown = _time(s.delay) + (f" {_time(s.jitter)}" if s.jitter else "")
        part("delay", shown, s.delay_correlation)
    if s.distribution != "uniform":
        part("distribution", s.distribution)
    if s.duplicate:
        part("duplicate", _percent(s.duplicate), s.duplicate_correlation)
    if s.reorder:
        part("reorder", _percent(s.reorder), s.reorder_correlation)
    if s.gap:
        part("gap", str(s.gap))
    if s.corrupt:
        part("corrupt", _percent(s.corrupt), s.corrupt_correlation)
    if s.rate:
        part("rate", _rate(s.rate))
    if s.limit != LIMIT_DEFAULT:
        part("queue", str(s.limit))
    if s.drop_nth:
        part("drop-nth", str(s.drop_nth))
    if s.seed is not None:
        part("seed", str(s.seed))
    return " ".join(parts) or "nothing"


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named network: a description, and the settings for packets that the stack sends (up) and receives (down)."""

    about: str
    up: dict[str, str]
    down: dict[str, str]

    def settings(self) -> tuple[Settings, Settings]:
        """(up, down)."""
        up, down = ({word: values.split() for word, values in side.items()} for side in (self.up, self.down))
        return settings(up), settings(down)


def profiles(path: Path = PROFILES) -> dict[str, Profile]:
    """{name: profile} of a file."""
    return msgspec.convert(tomllib.loads(path.read_text()), dict[str, Profile])

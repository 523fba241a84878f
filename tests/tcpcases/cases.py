"""The cases as they are read: lists of steps, each a call, a segment in or out, or a setting."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("state-event-engine", "rcv-data-segments", "snd-syn", "rcv-icmp", "socket-api")


@dataclass(frozen=True)
class Segment:
    """A TCP segment of a case. `seq` and `ack` are relative, a SYN's `seq` is 0; `options` by kind."""

    flags: str
    seq: int
    length: int
    ack: int | None
    window: int | None
    options: dict[str, tuple]
    urgent: int = 0


@dataclass(frozen=True)
class Icmp:
    """An ICMP error, which quotes the subject's segment with that relative sequence number."""

    kind: str
    code: str
    seq: int


@dataclass(frozen=True)
class Call:
    """A socket call. `arguments` as written; descriptors count from 3."""

    name: str
    arguments: tuple[str, ...]
    result: int
    errno: str | None


@dataclass(frozen=True)
class Knob:
    """A setting of FreeBSD's."""

    name: str
    value: int


@dataclass(frozen=True)
class Step:
    """What happens, in seconds from the start. `kind`: call, in, out or knob."""

    at: float
    kind: str
    what: Segment | Icmp | Call | Knob


@dataclass(frozen=True)
class Case:
    """A case: its settings hold from the start; a later one is a step."""

    name: str
    group: str
    steps: tuple[Step, ...]
    knobs: dict[str, int] = field(default_factory=dict)


def directory() -> Path:
    """Where the cases are: $USERNET_TCP_CASES, else `shared/tcp-cases` beside the checkout or the one it came from."""
    if given := os.environ.get("USERNET_TCP_CASES"):
        return Path(given)
    beside = (parent / "shared" / "tcp-cases" for parent in ROOT.parents)
    return next((path for path in beside if path.is_dir()), ROOT.parent / "shared" / "tcp-cases")


def load(where: Path) -> list[Case]:
    """Every case of that directory, in the order of its files."""
    return [_case(json.loads(line), group) for group in GROUPS
            for line in (where / f"{group}.jsonl").read_text().splitlines() if line.strip()]


def _case(written: dict, group: str) -> Case:
    steps = [_step(step) for step in written["steps"]]
    while steps and steps[-1].kind == "knob":
        steps.pop()  # which put FreeBSD's settings back
    begun = next((number for number, step in enumerate(steps) if step.kind != "knob"), 0)
    knobs = {step.what.name: step.what.value for step in steps[:begun]}
    return Case(written["name"], group, tuple(steps[begun:]), knobs)


def _step(written: dict) -> Step:
    at = written["at"]
    if "knob" in written:
        return Step(at, "knob", Knob(written["knob"], int(written["value"])))
    if "call" in written:
        arguments = tuple(re.split(r",\s*(?![^\[]*\])", written["args"])) if written["args"] else ()
        return Step(at, "call", Call(written["call"], arguments, written["result"], written["errno"]))
    way = "in" if "in" in written else "out"
    inside = written[way]
    if "icmp" in inside:
        kind, code = inside["icmp"][:2]
        return Step(at, way, Icmp(kind, code, inside["quotes"]["seq"]))
    return Step(at, way, Segment(
        inside["flags"], inside["seq"], inside["len"], inside.get("ack"), inside.get("win"),
        dict(_option(option) for option in inside["options"] if option[0] not in ("nop", "eol")),
        inside.get("urg", 0)))


def _option(written: list) -> tuple[str, tuple]:
    kind, *values = written
    if kind == "sack":
        return kind, tuple(tuple(map(int, block.split(":"))) for block in values)
    return kind, tuple(value for value in values if isinstance(value, int))

"""The ledger: what the RFCs demand of a host, whether it is met, and the test that shows it.

Every docs/rfc/N.toml has the requirements of RFC N, from which `python -m tests.ledger` makes docs/rfcN.md.
tests/unit/test_ledger.py holds both to what they say.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "docs" / "rfc"
LEVELS = ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY")  # RFC 2119; those before it say it in lower case
STATES = ("met", "not met", "does not apply")


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One requirement, in our words. `tests`: from tests/ on, without parameters."""

    section: str
    level: str
    says: str
    state: Literal["met", "not met", "does not apply"]
    tests: tuple[str, ...] = ()
    remark: str = ""


class Chapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requirements that belong together."""

    title: str
    row: tuple[Row, ...]


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One RFC."""

    title: str
    chapter: tuple[Chapter, ...]

    def rows(self) -> list[Row]:
        """All requirements, in order."""
        return [row for chapter in self.chapter for row in chapter.row]


def sources() -> list[Path]:
    """The ledgers' files, by the RFC's number."""
    return sorted(SOURCES.glob("*.toml"), key=lambda path: int(path.stem))


def load(source: Path) -> Ledger:
    """A ledger; msgspec.ValidationError where it does not have the form."""
    return msgspec.toml.decode(source.read_text(), type=Ledger)


def page_of(source: Path) -> Path:
    """Where the page belongs that is made of `source`."""
    return ROOT / "docs" / f"rfc{source.stem}.md"


def faults(row: Row) -> list[str]:
    """What a row lacks, a sentence each."""
    found = []
    if row.level.upper() not in LEVELS:
        found.append(f"{row.level!r} is no level")
    if row.state == "met" and not row.tests:
        found.append("it is met, but no test shows it")
    if row.state == "not met" and row.tests:
        found.append("it is not met: what does its test show?")
    if row.state == "not met" and row.level.upper() != "MAY" and not row.remark:
        found.append("it is not met: why?")
    if row.state == "does not apply" and not row.remark:
        found.append("it does not apply: why?")
    return [f"section {row.section}, {row.says!r}: {fault}" for fault in found]


def collected(files: set[str]) -> set[str]:
    """The tests that pytest finds in these files, named as rows name them."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "--collect-only",
               *(f"tests/{file}" for file in sorted(files))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {line.partition("[")[0].removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}


def page(source: Path) -> str:
    """The page, as Markdown."""
    ledger = load(source)
    lines = [f"# {ledger.title}", "",
             f"Made by `python -m tests.ledger` from [rfc/{source.name}](rfc/{source.name}): edit that. The wording is "
             "ours, the section has the RFC's.", "",
             *_sums(ledger.rows())]
    for chapter in ledger.chapter:
        lines += ["", f"## {chapter.title}", "",
                  "| section | level | requirement | | shown by |", "|---|---|---|---|---|"]
        lines += [f"| {row.section} | {row.level} | {row.says} | {_state(row)} | {_evidence(row)} |"
                  for row in chapter.row]
    return "\n".join(lines) + "\n"


def _sums(rows: list[Row]) -> list[str]:
    counts = Counter((row.level.upper(), row.state) for row in rows)
    lines = [f"| | {' | '.join(STATES)} |", "|---|" + "---:|" * len(STATES)]
    for level in LEVELS:
        numbers = [counts[level, state] for state in STATES]
        if any(numbers):
            lines.append(f"| {level} | {' | '.join(map(str, numbers))} |")
    return lines


def _state(row: Row) -> str:
    if row.level.upper() == "MAY":
        return {"met": "done", "not met": "not done"}.get(row.state, row.state)
    return "**not met**" if row.state == "not met" else row.state


def _evidence(row: Row) -> str:
    """The remark, then the tests."""
    tests = (test.split("::") for test in row.tests)
    return "<br>".join([*([row.remark] if row.remark else []),
                        *(f"[{file.partition('/')[2]}](../tests/{file})::{name}" for file, name in tests)])
